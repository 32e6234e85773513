"""A project that knows nothing of celery-trace, switched on from outside."""

import subprocess
import sys

from tests.support.processes import REPOSITORY, trace_environment

PLAIN = REPOSITORY / "examples" / "plain"


def test_the_plain_example_does_not_mention_us():
    for file in PLAIN.glob("*.py"):
        text = file.read_text().lower()
        assert "trace" not in text, f"{file.name} would not be unchanged"


def test_a_plain_project_is_traced_by_the_environment_alone(start_worker, records, own_broker_url, trace_dir):
    worker = start_worker("tasks", PLAIN)
    sent = subprocess.run(
        [sys.executable, "send.py", "10"],
        cwd=PLAIN,
        env=trace_environment(broker_url=own_broker_url, switch=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sent.stdout.strip() == "Sent 10 rounds.", sent.stderr

    for name, runs in {"tasks.add": 10, "tasks.echo": 10, "tasks.greet": 10, "tasks.sleep": 2}.items():
        records.wait(
            lambda _, name=name, runs=runs: records.runs_of(name) >= runs,
            f"{runs} runs of {name} in the store",
            explain=worker.tail,
        )

    failures = records.wait(
        lambda queries: (rows := queries.failures(name="tasks.error").rows) and len(rows) == 2 and rows,
        "the two failures of tasks.error",
        explain=worker.tail,
    )
    detail = records.queries.failure(failures[0].id)
    assert detail.exception.type == "RuntimeError"
    frame = detail.frames[0]
    assert (frame.function, frame.file) == ("error", str(PLAIN / "tasks.py"))
    values = {local.name: local.value for local in frame.locals}
    assert "on purpose" in values["message"]
    assert "ON PURPOSE" in values["shout"]

    retried = records.wait(
        lambda queries: (rows := queries.failures(name="tasks.unsteady").rows) and len(rows) == 4 and rows,
        "two retries of each of the two unsteady tasks",
        explain=worker.tail,
    )
    assert {row.outcome for row in retried} == {"retried"}
    assert sorted(row.retries for row in retried) == [0, 0, 1, 1]


def test_a_stopped_worker_leaves_no_process_and_an_empty_spool(start_worker, trace_dir):
    worker = start_worker("tasks", PLAIN)
    family = worker.family()
    assert len(family) > 3, "main process, two children and the collector"
    worker.stop()
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
    assert worker.wait() == 0, worker.tail()
