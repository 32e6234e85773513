"""Each way in which a task can end badly ends as one record, with what could still be seen."""

import pytest
from celery import Celery

from celery_trace.alerting.rules import Facts, configured, evaluate
from celery_trace.cli.renderers.failures import failure as failure_text
from celery_trace.cli.renderers.failures import failures as failures_table
from celery_trace.cli.renderers.style import Style
from flower_plugin.auth.values import without_values
from tests.support import failing_project
from tests.support.processes import free_port
from tests.support.waiting import wait_until

SETTINGS = {"memory": "off", "rejected": "1"}


@pytest.fixture
def project(tmp_path):
    return failing_project.write(tmp_path / "project")


@pytest.fixture
def client(own_broker_url):
    app = Celery("client", broker=own_broker_url, backend=own_broker_url, set_as_current=False)
    app.conf.task_ignore_result = True
    yield app
    app.close()


@pytest.fixture
def send(client):
    def send(name, *args, **kwargs):
        return client.send_task(f"failing.{name}", args, kwargs).id

    return send


@pytest.fixture
def failure_of(records):
    """The one settled record of a run."""

    def failure_of(task_id, retries=0, *, outcome, explain=None):
        def look(queries):
            rows = [row for row in queries.failures(task_id=task_id).rows if row.retries == retries]
            assert len(rows) <= 1, rows
            return rows and rows[0].outcome == outcome and queries.failure(rows[0].id)

        return records.wait(look, f"task {task_id} (try {retries}) recorded as {outcome}", explain=explain)

    return failure_of


def values(frame):
    return {local.name: local.value for local in frame.locals}


def own(detail):
    return [frame for frame in detail.frames if frame.in_app]


def everything_written(trace_dir):
    return b"".join(path.read_bytes() for path in trace_dir.rglob("*") if path.is_file())


def test_each_failure_that_a_child_sees_is_one_record_with_frames(
    start_worker, project, send, failure_of, records, trace_dir
):
    worker = start_worker("failing", project, settings=SETTINGS)
    ids = {
        name: send(name)
        for name in (
            "soft", "out_of_retries", "retries_once", "retries_plainly", "unpicklable", "bad_start", "bad_end",
            "unencodable", "rejects", "ignores",
        )
    }  # fmt: skip
    ids["boom"] = send("boom", 5, "hunter2")
    ids["logs"] = send("logs", "hunter2")
    ids["two"] = send("two", 1, 2, 3)
    ids["nothing"] = send("nothing", 1, key="value")

    def failure(name, outcome, retries=0):
        return failure_of(ids[name], retries, outcome=outcome, explain=worker.tail)

    boom = failure("boom", "failed")
    assert boom.exception.type == "ValueError"
    assert boom.exception.message == "can't buy for 5 with [redacted]"
    assert [frame.function for frame in own(boom)] == ["innermost", "boom"]
    assert values(boom.frames[0])["basket"] == "{'amount': 5, 'rows': [1, 2, 3]}"
    assert values(boom.frames[0])["password"] == "[redacted]"
    assert [arg.value for arg in boom.args] == ["5", "[redacted]"]
    assert boom.task.queue == "celery"
    assert boom.worker == worker.node
    assert boom.pid in {process.pid for process in worker.children()}
    assert 0 <= boom.duration_s < 60
    assert boom.memory.rss_bytes > 1_000_000

    assert failure("two", "failed").exception.type == "TypeError"

    assert boom.logs is None
    for attempt, outcome in enumerate(("retried", "failed")):
        logged = failure("logs", outcome, attempt).logs.lines
        assert [(line.level, line.logger, line.text) for line in logged] == [
            ("WARNING", "failing.orders", f"attempt {attempt} with [redacted]"),
            ("ERROR", "failing", f"attempt {attempt} fails"),
        ]
        assert logged[0].file.endswith("failing.py")

    soft = failure("soft", "time_limit")
    assert soft.exception.type == "SoftTimeLimitExceeded"
    assert values(own(soft)[0])["waiting"] == "'for the soft limit'"

    assert failure("out_of_retries", "failed").exception.type == "LookupError"

    first = failure("retries_once", "retried", 0)
    last = failure("retries_once", "failed", 1)
    assert (first.exception.message, last.exception.message) == ("attempt 0", "attempt 1")
    assert values(own(first)[0])["attempt"] == "0"

    plain = failure("retries_plainly", "retried")
    assert plain.exception.type == "Retry"
    assert values(own(plain)[0])["reason"] == "'no error, just later'"

    unpicklable = failure("unpicklable", "failed")
    assert unpicklable.exception.type == "Awkward"
    assert "lock" in values(own(unpicklable)[0])

    start = failure("bad_start", "failed")
    assert start.exception.message == "can't start at level 7"
    assert values(own(start)[0])["level"] == "7"

    end = failure("bad_end", "internal_error")
    assert end.exception.message == "the end is bad"
    assert "the task's own" in [link.message for link in end.chain]
    original = next(link for link in end.chain if link.message == "the task's own")
    assert values(original.frames[0])["first"] == '"the task\'s own"'

    unencodable = failure("unencodable", "failed")
    assert unencodable.exception.type == "EncodeError"
    assert unencodable.exception.message == "Object of type object is not JSON serializable", "as Celery says it"
    assert unencodable.note == "The task had finished; its result could not be stored"
    assert unencodable.returned.startswith("{'token': [redacted], 'value': <object")
    assert failure("rejects", "rejected").exception.type == "Reject"
    assert failure("ignores", "rejected").exception.type == "Ignore"

    nothing = failure("nothing", "failed")
    assert nothing.exception.type == "NotRegistered"
    assert nothing.name == "failing.nothing"
    assert [arg.value for arg in nothing.args] == ["1"]
    assert [(word.name, word.value) for word in nothing.kwargs] == [("key", "'value'")]

    assert len(records.queries.failures().rows) == len(ids) + 2, "one each, and one more for each second try"
    worker.stop()
    assert b"hunter2" not in everything_written(trace_dir)


def test_each_failure_that_kills_its_child_is_one_record_with_the_last_that_was_seen(
    start_worker, project, client, send, failure_of, records, trace_dir
):
    worker = start_worker("failing", project, settings=SETTINGS, concurrency=3)
    hard = send("hard", 5)
    limited = failure_of(hard, outcome="time_limit", explain=worker.tail)
    assert limited.exception.type == "TimeLimitExceeded"

    def with_frames(task_id):
        def look(queries):
            detail = queries.failure(queries.failures(task_id=task_id).rows[0].id)
            return own(detail) and detail

        return records.wait(look, f"the frames of {task_id}", explain=worker.tail)

    limited = with_frames(hard)
    assert values(own(limited)[0])["waiting"] == "'for the hard limit'"
    assert [arg.value for arg in limited.args] == ["5"]

    exits = send("exits")
    left = failure_of(exits, outcome="lost", explain=worker.tail)
    assert left.exception.type == "SystemExit"
    assert values(own(left)[0])["status"] == "3"

    revoked_id = send("sleeps", 8)
    worker.wait_for(rf"Task failing.sleeps\[{revoked_id}\] received")
    wait_until(
        lambda: any(revoked_id in str(tasks) for tasks in (client.control.inspect(timeout=2).active() or {}).values()),
        "the task to be revoked runs",
        explain=worker.tail,
    )
    client.control.revoke(revoked_id, terminate=True)
    revoked = failure_of(revoked_id, outcome="revoked", explain=worker.tail)
    revoked = with_frames(revoked_id)
    assert revoked.outcome == "revoked"
    assert values(own(revoked)[0])["waiting"] == "'to be revoked'"

    killed_id = send("killed", 1.0, "hunter2")
    failure_of(killed_id, outcome="lost", explain=worker.tail)
    killed = records.wait(
        lambda queries: (
            (detail := queries.failure(queries.failures(task_id=killed_id).rows[0].id)).last_sample and detail
        ),
        "the last sample of the killed task",
        explain=worker.tail,
    )
    killed = records.wait(
        lambda queries: (
            (detail := queries.failure(queries.failures(task_id=killed_id).rows[0].id)).exception and detail
        ),
        "what the main process says of the killed task",
        explain=worker.tail,
    )
    assert killed.exception.type == "WorkerLostError"
    assert "killed" in [line.function for line in killed.last_sample.stack]
    assert killed.last_sample.memory.rss_bytes > 1_000_000
    assert "killed" in [frame.function for frame in killed.frames], "without frames the last sample is shown"
    assert [arg.value for arg in killed.args] == ["1.0", "[redacted]"]

    assert len(records.queries.failures().rows) == 4
    worker.stop()
    assert len(records.queries.failures().rows) == 4
    assert b"hunter2" not in everything_written(trace_dir)


def test_a_soft_time_limit_that_the_task_catches_is_recorded_where_it_struck(
    start_worker, project, send, failure_of, records, trace_dir
):
    worker = start_worker("failing", project, settings=SETTINGS, concurrency=1)
    before = send("two", 1, 2)
    for _ in range(40):  # runs of which nothing is to be seen
        send("goes_on", 4, "hunter2", 0)
    caught = failure_of(send("goes_on", 5, "hunter2"), outcome="time_limit", explain=worker.tail)
    assert caught.exception.type == "SoftTimeLimitExceeded"
    assert [frame.function for frame in own(caught)] == ["goes_on"]
    assert values(own(caught)[0])["waiting"] == "'for the soft limit 5'", "as it was then"
    assert [frame.function for frame in caught.frames][-1] == "trace_task", "as in any other traceback"
    assert "celery_trace" not in "".join(frame.file for frame in caught.frames)
    assert [arg.value for arg in caught.args] == ["5", "[redacted]"]
    assert caught.note.startswith("The task caught the soft time limit's error and continued for ")
    assert caught.note.endswith(": SUCCESS")
    assert 1 <= caught.duration_s < 30

    again = failure_of(send("tries_again"), outcome="retried", explain=worker.tail)
    assert again.exception.type == "SoftTimeLimitExceeded"
    after = send("boom", 1, "x")
    failure_of(after, outcome="failed", explain=worker.tail)
    recorded = {row.task_id for row in records.queries.failures().rows}
    assert recorded == {caught.task_id, again.task_id, after}, "no run beside it, nor the try that ended well"
    assert before not in recorded
    worker.stop()
    assert b"hunter2" not in everything_written(trace_dir)


def test_a_child_that_crashes_has_the_stack_of_the_crash(start_worker, project, send, records, trace_dir):
    worker = start_worker("failing", project, settings=SETTINGS, concurrency=1)
    task_id = send("crashes", "hunter2")

    def look(queries):
        rows = queries.failures(task_id=task_id).rows
        detail = rows and queries.failure(rows[0].id)
        return detail and detail.last_sample and detail.exception and detail

    lost = records.wait(look, "both witnesses of the crash", explain=worker.tail)
    assert (lost.outcome, lost.exception.type, lost.last_sample.crash) == (
        "lost", "WorkerLostError", "Segmentation fault"
    )  # fmt: skip
    assert [line.function for line in lost.last_sample.stack][:3] == ["string_at", "into_native_code", "crashes"]
    assert lost.last_sample.stack[1].code.strip() == "ctypes.string_at(0)"
    assert lost.note == "The process crashed: Segmentation fault. The stack is where it crashed."
    assert lost.frames[0].note == "where the process crashed"
    worker.stop()
    assert b"hunter2" not in everything_written(trace_dir)
    assert not list(trace_dir.rglob("*.box"))


def test_a_message_that_kills_at_each_delivery_is_one_record_that_counts_them(
    start_worker, project, send, records, tmp_path
):
    marks = tmp_path / "marks"
    marks.mkdir()
    worker = start_worker("failing", project, settings=SETTINGS, concurrency=1)
    task_id = send("poison", str(marks), 4)

    def look(queries):
        rows = queries.failures(task_id=task_id).rows
        assert len(rows) <= 1, rows
        return rows and rows[0].kills == 4 and rows[0]

    row = records.wait(look, "four kills of one message", explain=worker.tail, timeout_s=90)
    assert (row.outcome, row.count) == ("lost", 1)
    detail = records.queries.failure(row.id)
    assert len({kill.pid for kill in detail.killed}) == 4
    assert {kill.worker for kill in detail.killed} == {worker.node}
    assert [kill.at_s for kill in detail.killed] == sorted(kill.at_s for kill in detail.killed)
    assert (row.at, row.pid) == (detail.killed[-1].at_s, detail.killed[-1].pid) == (detail.at, detail.pid)
    style = Style(now_s=detail.at)
    assert "killed 4 times" in failures_table([row], style)
    assert "killed     4 times, once at each delivery" in failure_text(detail, style)
    (reading,) = evaluate(configured([{"rule": "lost", "above": 3}])[0], Facts(now_s=detail.at, losses=[row]))
    assert reading.value == 4


def test_a_run_whose_result_could_not_be_stored_says_what_it_returned(start_worker, project, send, failure_of):
    nobody_listens = f"redis://127.0.0.1:{free_port()}/0"
    worker = start_worker("failing", project, settings=SETTINGS, extra={"FAILING_RESULTS": nobody_listens})
    failure = failure_of(send("two", 6, 7), outcome="internal_error", explain=worker.tail)
    assert failure.exception.type == "ConnectionError"
    assert failure.note == "The task had finished; its result could not be stored"
    assert failure.returned == "6"
    assert without_values(failure).returned == ""


def test_a_task_out_of_memory_is_recorded_before_the_worker_dies_of_it(start_worker, project, send, failure_of):
    worker = start_worker("failing", project, settings=SETTINGS)
    failure = failure_of(send("out_of_memory"), outcome="failed", explain=worker.tail)
    assert failure.exception.type == "MemoryError"
    assert values(own(failure)[0])["wanted"] == "'much'"


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_other_pools_record_each_failure_once_too(pool, start_worker, project, send, failure_of, records):
    worker = start_worker("failing", project, pool=pool, settings=SETTINGS)
    ids = {
        name: send(name) for name in ("unpicklable", "bad_start", "unencodable", "rejects", "ignores", "out_of_retries")
    }
    ids["boom"] = send("boom", 5, "hunter2")
    ids["nothing"] = send("nothing")
    outcomes = {"rejects": "rejected", "ignores": "rejected"}
    for name, task_id in ids.items():
        found = failure_of(task_id, outcome=outcomes.get(name, "failed"), explain=worker.tail)
        if name == "boom":
            assert [frame.function for frame in own(found)] == ["innermost", "boom"]
    # After all others are through: Celery lets it end a solo worker, with whatever that has taken in.
    ids["bad_end"] = send("bad_end")
    failure_of(ids["bad_end"], outcome="internal_error", explain=worker.tail)
    if pool == "gevent":
        hard = failure_of(send("hard", 5), outcome="time_limit", explain=worker.tail)
        assert hard.exception.type == "TimeLimitExceeded"
        ids["hard"] = hard.task_id
    assert len(records.queries.failures().rows) == len(ids)


def test_rejected_runs_are_left_out_unless_asked_for(start_worker, project, send, failure_of, records):
    worker = start_worker("failing", project, settings={"memory": "off"})
    send("rejects")
    send("ignores")
    failure_of(send("boom", 1, "x"), outcome="failed", explain=worker.tail)
    worker.wait_for(r"failing\.ignores\[\S+\] ignored")
    worker.stop()
    assert [row.name for row in records.queries.failures().rows] == ["failing.boom"]


def test_a_child_that_is_killed_behind_many_failures_leaves_none_out(start_worker, project, send, records):
    worker = start_worker("failing", project, settings=SETTINGS | {"capture_budget": "0"}, concurrency=1)
    ids = {send("without_price", number) for number in range(150)}
    last = send("killed", 0, "hunter2")

    def all_of_them(queries):
        rows = queries.failures(limit=500).rows
        return {row.task_id for row in rows} == ids | {last} and rows

    rows = records.wait(all_of_them, "a record of each", explain=worker.tail)
    assert len(rows) == len(ids) + 1
    outcomes = {row.task_id: row.outcome for row in rows}
    assert outcomes.pop(last) == "lost"
    assert set(outcomes.values()) == {"failed"}
