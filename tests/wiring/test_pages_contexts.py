"""Each page's function, without Tornado: from a store to what the template shows."""

import time

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from celery_trace import model
from celery_trace.model import (
    AlertView,
    ExceptionInfo,
    Forecast,
    Histogram,
    Kind,
    LocalValue,
    MemoryState,
    Page,
    ProcessRecord,
    ProcessView,
    Rollup,
    Sample,
    Stage,
    Verdict,
    Window,
    WorkerView,
    failure_id,
)
from celery_trace.model.timelines import TaskEvents
from celery_trace.queries import Queries
from celery_trace.settings import load
from celery_trace.stores import open_store
from flower_plugin.api.metrics import Snapshot, render, take
from flower_plugin.auth.roles import User, UserRole
from flower_plugin.context import MonitorStatus
from flower_plugin.incoming.broker import BrokerState
from flower_plugin.pages import alerts, failures, incidents, leaks, overview, runs, shells, statistics, workers
from flower_plugin.pages.page import Visit
from flower_plugin.pages.timemarks import marks_of
from flower_plugin.problems import NotFound
from flower_plugin.rendering import colours
from flower_plugin.rendering.markup import Paths
from tests.support import monitor_facts
from tests.support.alerting import leak as a_leak

FAILURE = failure_id("6e1f9b3a-0000-4000-8000-000000000000", 0)
KILLED = failure_id("6e1f9b3a-0000-4000-8000-000000000005", 0)
REQUEST = failure_id("6e1f9b3a-0000-4000-8000-000000000006", 0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return load({"trace_dir": str(tmp_path_factory.mktemp("pages"))}, environment={})


@pytest.fixture(scope="module")
def queries(settings):
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    yield Queries(store)
    store.close()


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    store = open_store(load({"trace_dir": str(tmp_path_factory.mktemp("none"))}, environment={}))
    yield Queries(store)
    store.close()


@pytest.fixture
def visit(settings):
    def make(role=UserRole.LIVE, **arguments):
        return Visit(
            arguments=arguments,
            now_s=time.time(),
            user=User("ada", role, "session"),
            paths=Paths(["/srv/shop"]),
            settings=settings,
            monitor=MonitorStatus(settings=settings, broker=BrokerState(up=True, since_s=0.0)),
        )

    return make


# --- overview ----------------------------------------------------------------------------------------


def test_the_overview_ranks_what_needs_attention(queries, visit):
    context = overview.overview(queries, visit())
    weights = [item.weight for item in context["incidents"]]
    assert weights == sorted(weights, reverse=True)
    text = " | ".join(f"{item.what} {item.detail}" for item in context["incidents"])
    assert "shop.tasks.remember_order keeps 101.6 KiB each run in shop.tasks.RECEIPTS (shop/tasks.py:57)" in text
    assert "shop.tasks.overrun was killed by its time limit" in text
    assert "Worker celery@batch-7 is silent" in text
    assert "shop.tasks.fill_cache" not in text
    assert not context["new_here"]


@pytest.mark.parametrize(("how", "state"), [("exit", "stopped"), ("killed", "killed"), ("", "silent")])
def test_how_the_main_process_ended_is_the_state_of_its_worker_whatever_became_of_its_children(
    tmp_path, visit, how, state
):
    store, now_s = open_store(load({"trace_dir": str(tmp_path)}, environment={})), time.time()
    long_ago = {"host": "h", "worker": "w1@h", "started_at_s": now_s - 5000}
    ended = {"ended_at_s": now_s - 2000, "ended_how": how} if how else {}
    store.write(
        [
            ProcessRecord(uid="main", pid=1, role="main", **long_ago, **ended),
            ProcessRecord(uid="child", pid=2, role="child", ended_at_s=now_s - 4000, ended_how="killed", **long_ago),
        ]
    )
    queries = Queries(store)
    assert [worker.state for worker in queries.workers().rows] == [state]
    items = [item.what for item in overview.overview(queries, visit())["incidents"]]
    assert items == {"stopped": [], "killed": ["Worker w1@h was killed"], "silent": ["Worker w1@h is silent"]}[state]
    store.close()


def test_a_scheduler_is_listed_and_is_no_worker(tmp_path, visit):
    store = open_store(load({"trace_dir": str(tmp_path)}, environment={}))
    began = {"host": "h", "started_at_s": time.time() - 60}
    store.write(
        [
            ProcessRecord(uid="solo", pid=1, worker="w1@h", role="solo", **began),
            ProcessRecord(uid="embedded", pid=2, worker="w1@h", role="beat", parent_uid="solo", **began),
            ProcessRecord(uid="alone", pid=3, role="beat", **began),
        ]
    )
    queries = Queries(store)
    listed = {worker.name: worker.role for worker in queries.workers().rows}
    figures = {figure.label: figure.note for figure in overview.overview(queries, visit())["figures"]}
    store.close()
    assert listed == {"w1@h": "solo", "beat@h": "beat"}
    assert figures["Memory"] == "in 1 worker and 1 other"


def an_alert(rule, subject, link, **changes):
    return AlertView(
        id=subject, rule=rule, subject=subject, state="firing", severity="warning", text=f"{subject} is wrong.",
        value=1.0, threshold=0.0, since=1.0, fired_at=2.0, resolved_at=None, link=link, **changes,
    )  # fmt: skip


def an_incident(weight, subjects=(), what="leak"):
    return incidents.Incident(
        weight=weight, tone="warning", what=what, detail="", links=(("Line", "/leaks/x"),), trend="<svg>",
        subjects=frozenset(subjects),
    )  # fmt: skip


def test_an_alert_and_the_fact_it_speaks_of_are_one_incident():
    others = [an_alert("missed_schedule", f"a{n}", "queues") for n in (1, 2)]
    found = incidents.with_alerts(
        [an_incident(10, what="other"), an_incident(700, ["leaks/x", "leaks/y"])],
        [*others, an_alert("leak", "task x", "leaks/y"), an_alert("leak", "task x", "leaks/x")],
    )
    assert [one.what for one in found] == ["leak", "a1 is wrong", "a2 is wrong", "other"]
    assert (found[0].weight, found[0].tone, found[0].alert, found[0].trend) == (1000, "danger", "firing", "<svg>")
    assert found[-1].alert == ""


def test_a_failure_rate_and_a_kill_belong_to_the_group_that_failed(queries, visit):
    groups = queries.groups(limit=100).rows
    failed = next(group for group in groups if group.outcome == "failed")
    killed = next(group for group in groups if group.outcome == "time_limit")
    found = incidents.with_alerts(
        incidents.of_groups([failed, replace(failed, fingerprint="rare", count=1), killed], True),
        [
            an_alert("failure_rate", f"{failed.kind} {failed.name}", f"failures?name={failed.name}"),
            an_alert("lost", f"{killed.kind} {killed.name}", "failures/some"),
        ],
    )
    assert sorted((one.link, one.alert) for one in found if one.alert) == sorted(
        [(f"/failures/{failed.latest_id}", "firing"), (f"/failures/{killed.latest_id}", "firing")]
    )
    assert len(found) == 3


def test_a_worker_that_grows_by_a_leak_is_told_with_the_leak_and_its_alert_too(queries, visit, monkeypatch):
    (worst,) = (row for row in leaks.table(queries, visit())["rows"] if row.verdict == "leaking")
    forecast = Forecast(
        worker="w@h", process="p", pid=7, limit="child", limit_bytes=512 * monitor_facts.MIB, used_bytes=1,
        bytes_per_hour=1, at=1.0, seconds=3 * 3600.0, earliest_s=1.0, latest_s=2.0,
        shares=[model.GrowthShare(worst.kind, worst.name, 1, 0.8)],
    )  # fmt: skip
    monkeypatch.setattr(type(queries), "forecasts", lambda self: [forecast])
    told = [an_alert("process_limit", "w@h (child)", "workers?worker=w%40h")]
    monkeypatch.setattr(type(queries), "alerts", lambda self, **_: Page("alerts", told))
    found = overview.overview(queries, visit())["incidents"]
    (leak,) = [one for one in found if "w@h" in one.what]
    assert leak.what.startswith(f"{worst.name} keeps ")
    assert leak.what.endswith("; at this rate pid 7 of w@h reaches its limit of 512.0 MiB in 3 h")
    assert [one.what for one in found if one.alert] == [leak.what]
    # Of a process that grows by something else, the forecast stays on its own.
    shares = [model.GrowthShare(worst.kind, worst.name, 1, 0.1)]
    monkeypatch.setattr(type(queries), "forecasts", lambda self: [replace(forecast, shares=shares)])
    (alone,) = [one for one in overview.overview(queries, visit())["incidents"] if "w@h" in one.what]
    assert alone.what == "pid 7 of w@h reaches its limit of 512.0 MiB in 3 h"


def test_every_incident_leads_on_by_links_that_are_pages(queries, visit):
    for one in overview.overview(queries, visit())["incidents"]:
        assert one.links, one
        assert all(label and path.startswith("/") for label, path in one.links), one.links


def test_memory_of_all_processes_is_pss_where_each_has_it(tmp_path, visit):
    store, now_s = open_store(load({"trace_dir": str(tmp_path)}, environment={})), time.time()
    mib = monitor_facts.MIB
    for uid, worker, role in (("m", "w1@h", "main"), ("c", "w1@h", "child"), ("v", "", "web"), ("u", "", "web")):
        record = ProcessRecord(uid=uid, host="h", pid=ord(uid), worker=worker, role=role, started_at_s=now_s - 60)
        memory = MemoryState(rss_bytes=100 * mib, uss_bytes=30 * mib, pss_bytes=40 * mib)
        store.write([record, Sample(process=uid, at_s=now_s - 30, memory=memory)])
        # A later sample without them leaves them as they were.
        store.write([Sample(process=uid, at_s=now_s - 20, memory=MemoryState(rss_bytes=110 * mib))])
    queries = Queries(store)
    figure = overview.overview(queries, visit())["figures"][2]
    assert (figure.value, figure.note) == ("160.0 MiB", "in 1 worker and 2 web processes")
    assert [(worker.rss_bytes, worker.pss_bytes) for worker in queries.workers().rows] == [(220 * mib, 80 * mib)] * 2
    store.write([ProcessRecord(uid="x", host="h", pid=9, worker="w1@h", role="child", started_at_s=now_s - 60)])
    store.write([Sample(process="x", at_s=now_s - 30, memory=MemoryState(rss_bytes=50 * mib))])
    figure = overview.overview(queries, visit())["figures"][2]
    assert (figure.value, figure.note) == ("490.0 MiB", "resident in 1 worker and 2 web processes")
    store.close()


def test_the_strip_shows_what_waits_by_queue_and_how_many_workers_there_were(tmp_path, visit):
    store, now_s = open_store(load({"trace_dir": str(tmp_path)}, environment={})), time.time()
    store.write([model.QueueSample(queue="mail", at_s=now_s - 20, depth=1484, oldest_age_s=240.0)])
    store.write([model.QueueSample(queue="quick", at_s=now_s - 15, depth=0)])
    store.write([model.QueueSample(queue="slow", at_s=now_s - 10, depth=3)])
    common = {"host": "h", "role": "main", "started_at_s": now_s - 1800}
    store.write([ProcessRecord(uid="a", pid=1, worker="a@h", **common)])
    store.write([ProcessRecord(uid="b", pid=2, worker="b@h", ended_at_s=now_s - 600, ended_how="killed", **common)])
    store.write([Sample(process="a", at_s=now_s - 20, memory=MemoryState(rss_bytes=1))])
    shown = {one.label: one for one in overview.overview(Queries(store), visit())["strips"]}
    assert list(shown) == ["Throughput", "Waiting", "Running", "Failing", "Workers"]
    assert (shown["Waiting"].value, shown["Waiting"].note) == ("1,487", "mail 1,484, oldest 4 min; slow 3")
    assert (shown["Workers"].value, shown["Workers"].note) == ("1", "1 killed")
    assert "Workers: from 0 to 1" in shown["Workers"].plot
    store.close()


def test_the_lines_of_one_leaking_task_are_one_item(queries, visit):
    (worst,) = (row for row in leaks.table(queries, visit())["rows"] if row.verdict == "leaking")
    other = replace(worst, id="another-line", line=worst.line + 4, kept_bytes_per_run=96)
    (lines,) = incidents.leaks_by_name([other, worst])
    assert lines == [worst, other]
    item = incidents.of_leak(lines, visit().paths)
    assert item.link == f"/leaks/{worst.id}"
    assert "and 1 more line" in item.detail


def test_what_grows_in_a_bounded_holder_needs_no_attention():
    growing = replace(a_leak(1000), verdict="growing", bounded="LimitedSet (maxlen=1000)")
    assert incidents.leaks_by_name([growing]) == []
    assert incidents.leaks_by_name([replace(growing, bounded="")]) != []
    assert incidents.leaks_by_name([replace(growing, verdict="leaking")]) != []


def test_growth_of_a_process_is_per_second(visit):
    item = incidents.of_leak([replace(a_leak(4096), kind="process", name="(process)")], visit().paths)
    assert item.what.startswith("The process keeps 2.0 KiB per second, allocated at ")


@pytest.mark.parametrize(("native", "where"), [(True, "native memory"), (False, "line not known yet")])
def test_only_native_growth_is_called_native(visit, native, where):
    item = incidents.of_leak([a_leak(1000, file="", line=0, native=native)], visit().paths)
    assert item.detail.endswith(f", {where}")


def test_an_alert_of_a_group_and_the_group_are_one_item_when_it_failed_again(queries, visit, monkeypatch):
    group = next(row for row in queries.groups(limit=100).rows if row.state == "new" and row.exception)
    told = AlertView(
        id="a", rule="new_failure", subject=f"task {group.name}: X ({group.fingerprint[:8]})", state="firing",
        severity="info", text="New failure", value=1.0, threshold=0.0, since=time.time(),
        fired_at=time.time(), resolved_at=None, link="failures/an-older-one",
    )  # fmt: skip
    monkeypatch.setattr(type(queries), "alerts", lambda self, **_: Page("alerts", [told]))
    items = [item for item in overview.overview(queries, visit())["incidents"] if item.alert]
    assert [(item.link, item.what.startswith(group.name)) for item in items] == [(f"/failures/{group.latest_id}", True)]


def test_a_time_limit_has_a_description():
    exceeded = ExceptionInfo("TimeLimitExceeded", "billiard.exceptions", "3")
    assert failures.exception_text(exceeded, "time_limit")[1] == "Exceeded the hard time limit of 3 s"


def test_the_overview_welcomes_who_has_nothing_yet(nothing, visit):
    context = overview.overview(nothing, visit())
    assert context["new_here"]
    assert context["incidents"] == []


def test_the_overview_quotes_no_message_to_who_may_not_see_values(queries, visit):
    context = overview.overview(queries, visit(UserRole.LOOK))
    assert "4242" not in " ".join(item.detail for item in context["incidents"])


# --- leaks -------------------------------------------------------------------------------------------


def test_the_leak_table_has_the_worst_first_and_sorts_as_asked(queries, visit):
    assert [row.verdict for row in leaks.table(queries, visit())["rows"]] == ["leaking", "growing", "steady"]
    names = [row.name for row in leaks.table(queries, visit(sort="name"))["rows"]]
    assert names == sorted(names)
    assert [row.name for row in leaks.table(queries, visit(verdict="steady"))["rows"]] == ["shop.tasks.fill_cache"]
    assert leaks.table(queries, visit(search="no such thing"))["rows"] == []


def test_a_leak_comes_with_its_evidence(queries, visit):
    row = leaks.table(queries, visit())["rows"][0]
    context = leaks.leak(queries, visit(), row.id)
    assert context["sentence"] == "shop.tasks.remember_order leaks"
    assert [line.lit for line in context["source"]] == [True]
    labels = [line.label for line in context["plot"].lines]
    assert labels[:3] == ["all processes", "pid 102", "pid 101"]
    assert {mark.text for mark in context["plot"].marks} >= {"pid 101 started", "pid 102 started"}
    assert len(context["windows"]) == 6
    assert context["types"][0].type == "str"
    assert sum(row.bytes for row in context["types"]) == context["leak"].kept_bytes_total
    assert context["evidence"].startswith("Memory of 674 of 674 runs is still alive, in 2 processes. It grows with ")


def test_an_unknown_leak_is_missing_with_a_way_back(queries, visit):
    with pytest.raises(NotFound) as caught:
        leaks.leak(queries, visit(), "../../x")
    assert caught.value.back == ("trace_leaks", "All leaks")


def test_growth_comes_to_what_the_table_says_and_no_line_goes_down():
    def rollup(bucket_s, runs):
        none = Histogram([])
        return Rollup(process="", kind=Kind.TASK, name="x", bucket_s=bucket_s, seq=1, runs=runs, durations=none)

    def window(id, at_s, run_number, verdict=Verdict.LEAKING, kept=10.0):
        return Window(
            id=id, investigation="i", process="p", kind=Kind.TASK, name="x", stage=Stage.SAMPLED, verdict=verdict,
            at_s=at_s, runs=8, run_number=run_number, kept_bytes_per_run=kept,
        )  # fmt: skip

    gone = ProcessRecord(uid="p", host="h", pid=7, started_at_s=100.0, ended_at_s=1000.0, ended_how="killed")
    row = replace(a_leak(10), kept_bytes_total=450, first_seen=200.0)
    windows = [window("w1", 500.0, 20), window("w2", 700.0, 30, Verdict.STEADY, 0.0), window("w3", 900.0, 50, kept=5.0)]
    rows = [rollup(300, 20), rollup(0, 10), rollup(-300, 10**6), rollup(600, 5)]
    plot = leaks.growth(row, windows, rows, {"p": gone})
    everything, process, others = plot.lines
    assert process == leaks.GrowthLine("pid 7", [(100.0, 0.0), (500.0, 200.0), (700.0, 200.0), (900.0, 300.0)])
    ends = [(at_s, round(kept)) for at_s, kept in everything.points if at_s in (100.0, 300.0, 600.0, 900.0)]
    assert (everything.label, ends) == ("all processes", [(100.0, 33), (300.0, 167), (600.0, 333), (900.0, 450)])
    assert others.label == "other processes"
    for (at_s, kept), (of_others_s, rest) in zip(everything.points, others.points, strict=True):
        assert (at_s, kept) == (of_others_s, pytest.approx(rest + leaks._at(process.points, at_s)))
        assert rest >= 0
    young = leaks.growth(row, windows[:2], rows, {"p": gone}, now_s=710.0).lines[0]
    assert young.points[-1] == (710.0, 450.0), "no point lies in the future"
    assert [mark.text for mark in plot.marks] == ["pid 7 started", "pid 7 killed"]
    mended = replace(row, kept_bytes_total=300)
    assert [line.label for line in leaks.growth(mended, windows, rows, {"p": gone}).lines] == ["all processes", "pid 7"]
    kept = [kept for _, kept in leaks.growth(mended, windows, rows, {"p": gone}).lines[0].points]
    assert kept == sorted(kept), "no line goes down"
    assert kept[-1] == 300.0, "runs after it was mended add nothing"
    nothing = replace(row, kept_bytes_per_run=0, kept_bytes_total=0)
    assert [line.label for line in leaks.growth(nothing, windows, rows, {"p": gone}).lines] == ["pid 7"]


def test_the_evidence_is_one_sentence_and_never_quite_certain():
    row = replace(a_leak(10), why="memory of 212 of 220 runs is still alive", processes=2, confidence=0.9996)
    assert leaks.evidence(row) == (
        "Memory of 212 of 220 runs is still alive, in 2 processes. It grows with more than 99.9 % confidence."
    )
    assert leaks.evidence(replace(row, confidence=0.975)).endswith("It grows with 97.5 % confidence.")
    assert leaks.evidence(replace(row, why="")) == ""


# --- failures ----------------------------------------------------------------------------------------


def test_groups_and_failures_are_filtered_by_the_address(queries, visit):
    assert len(failures.groups(queries, visit())["rows"]) == 5
    assert [g.outcome for g in failures.groups(queries, visit(outcome="time_limit"))["rows"]] == ["time_limit"]
    counts = [g.count for g in failures.groups(queries, visit(sort="count"))["rows"]]
    assert counts == sorted(counts, reverse=True)
    assert {row.fingerprint for row in failures.listing(queries, visit(fingerprint="group-1"))["rows"]} == {"group-1"}
    assert failures.listing(queries, visit(search="CardDeclined"))["rows"]


@pytest.mark.parametrize("search", [{"search": "4242"}, {"q": "4242"}, {"q": "message:4242"}, {"q": "task:x amount=5"}])
def test_a_search_of_who_may_not_see_values_reads_none(queries, visit, search):
    for page in (failures.listing, failures.groups):
        context = page(queries, visit(UserRole.LOOK, **search))
        assert (context["rows"], "needs the role locals" in context["asked"].problem) == ([], True)
        assert page(queries, visit(UserRole.LOCALS, **search))["asked"].problem == ""
    assert failures.listing(queries, visit(UserRole.LOOK, q="exception:Zero*"))["rows"]


@pytest.mark.parametrize(
    ("parameters", "query"),
    [
        ({"name": "shop.tasks.charge", "outcome": "failed"}, "task:shop.tasks.charge outcome:failed"),
        ({"fingerprint": "group-0", "worker": "celery@web-1", "live": "1"},
         "worker:celery@web-1 group:group-0 is:live"),
        ({"q": "since:1h", "range": "week"}, "since:1h since:7d"), ({"name": "GET /x"}, 'task:"GET /x"'),
        ({"outcome": "nonsense", "state": "new"}, ""), ({"search": "no such card"}, '"no such card"'),
    ],
)  # fmt: skip
def test_older_addresses_become_a_search_that_says_the_same(queries, visit, parameters, query):
    asked = failures.listing(queries, visit(**parameters))["asked"]
    assert (asked.query, asked.problem) == (query, "")


def test_a_search_that_is_not_understood_is_explained_on_the_page(queries, visit):
    for page in (failures.listing, failures.groups, runs.names, alerts.alerts):
        context = page(queries, visit(q="nothing:x"))
        assert (context["rows"], context["asked"].problem[:17]) == ([], "Unknown qualifier")


def test_a_failure_shows_its_frames_with_the_users_own_one_open(queries, visit):
    context = failures.failure(queries, visit(), FAILURE)
    first = context["chain"][0]
    assert [(in_app, len(frames)) for in_app, frames in first.runs] == [(True, 1), (False, 2)]
    shown = first.runs[0][1][0]
    assert shown.opened
    assert shown.file == "shop/tasks.py"
    assert [line.number for line in shown.source if line.lit] == [42]
    assert context["chain"][1].text == "was being handled when the exception above was raised"
    assert "create_error" in context["text"]
    assert context["has_shell"]


def test_who_may_not_see_values_sees_none(queries, visit):
    context = failures.failure(queries, visit(UserRole.LOOK), FAILURE)
    assert "Hello" not in repr(context)
    assert "Ada" not in repr(context)
    assert context["failure"].args == []
    assert not context["has_shell"]


def test_a_killed_task_shows_its_last_sign_of_life(queries, visit):
    context = failures.failure(queries, visit(), KILLED)
    assert context["kind"] == "Time limit"
    (link,) = context["chain"]
    assert link.runs[0][1][0].file == "shop/tasks.py"
    assert context["last_stack"] == [], "the same frames are not told twice"
    assert not context["has_shell"]


def test_attributes_of_the_exit_that_a_child_saw_are_not_shown_as_those_of_the_time_limit(queries, visit):
    detail = queries.failure(FAILURE)
    code = LocalValue(name="code", type="int", value="-241", cut=0, redacted=False)
    seen = replace(detail.chain[0], type="SystemExit", attributes=[code])
    cause = replace(detail.chain[1], attributes=[code])
    for title, attributes in (("TimeLimitExceeded", []), ("SystemExit", [code])):
        told = replace(detail, exception=ExceptionInfo(title, "", "3"), chain=[seen, cause])
        chain = failures.shown_chain(told, visit())
        assert [shown.link.attributes for shown in chain] == [attributes, [code]]
        assert chain[0].link.frames == seen.frames


def test_the_frames_of_a_black_box_are_folded_where_they_are_not_the_users(queries, visit):
    detail = queries.failure(KILLED)
    own = detail.frames[0]
    packages = "/usr/lib/python3.12/site-packages"
    frames = [own, *(replace(own, file=f"{packages}/{name}.py") for name in ("celery/app/trace", "billiard/pool"))]
    (link,) = failures.shown_chain(replace(detail, chain=[], frames=frames), visit())
    assert [(in_app, len(shown)) for in_app, shown in link.runs] == [(True, 1), (False, 2)]


def test_a_request_shows_what_was_asked(queries, visit):
    rows = dict(failures.failure(queries, visit(), REQUEST)["request_rows"])
    assert rows["GET"] == [("page", "2")]


def test_an_unknown_failure_is_missing(queries, visit):
    with pytest.raises(NotFound):
        failures.failure(queries, visit(), "nothing")


# --- the others --------------------------------------------------------------------------------------


def test_workers_show_the_chosen_one_over_time(queries, visit):
    context = workers.memory(queries, visit(range="day"))
    assert context["chosen"].name == monitor_facts.WORKER
    assert {line.label for line in context["plots"].lines} == {"main 100", "child 101", "child 102", "child 99"}
    assert "pid 99 killed" in [mark.text for mark in context["plots"].marks]
    assert context["by_name"][0][1] == "shop.tasks.remember_order"
    assert sum(share for *_, share in context["by_name"]) == pytest.approx(1)
    assert workers.memory(queries, visit(worker="nobody"))["unknown"] == "nobody"


def test_the_line_of_a_web_process_is_plotted_though_it_belongs_to_no_worker(queries, visit):
    context = workers.memory(queries, visit(worker="web@web-2"))
    assert [line.label for line in context["plots"].lines] == ["web 300"]
    assert context["no_samples"] is None


def test_a_line_breaks_where_a_process_was_silent_and_not_where_it_was_only_quiet():
    times_s = [0.0, 10.0, 310.0, 320.0, 2000.0, 2010.0]
    samples = [Sample(process="p", at_s=at_s, memory=MemoryState(rss_bytes=5), name="shop.run") for at_s in times_s]
    (line,) = workers.series(samples, None).lines
    assert line.at == [0.0, 10.0, 310.0, 320.0, 321.0, 2000.0, 2010.0]
    assert line.rss == [5, 5, 5, 5, None, 5, 5]
    assert line.name[4] == ""
    assert {len(getattr(line, what)) for what in ("at", "rss", "uss", "fds", "threads", "name")} == {7}


def test_a_line_that_was_thinned_breaks_where_its_process_was_silent_all_the_same():
    times_s = [10.0 * n for n in range(1000) if not 400 < n < 500]
    samples = [Sample(process="p", at_s=at_s, memory=MemoryState(rss_bytes=int(at_s))) for at_s in times_s]
    (line,) = workers.series(samples, None).lines
    assert len(line.at) <= workers.MOST_POINTS + 2
    assert [at_s for at_s, rss in zip(line.at, line.rss, strict=True) if rss is None] == [4001.0]
    assert line.at == sorted(line.at)
    # A week of one process is one sample in ten minutes, which is no silence.
    week = [Sample(process="p", at_s=600.0 * n, memory=MemoryState(rss_bytes=5)) for n in range(1000)]
    assert None not in workers.series(week, None).lines[0].rss


@pytest.mark.parametrize(
    ("values", "why", "due_s"),
    [
        ({"started_at": 95.0}, "No samples yet. The first is taken", 105.0),
        ({"started_at": 85.0}, "No samples yet. The first is taken 10 s after the start of a process", None),
        ({"started_at": 95.0, "mode": "off"}, "Memory is not measured: trace_memory is off", None),
        ({"started_at": 80.0, "ended_at": 85.0}, "No samples: all processes ended within 10 s", None),
        ({"started_at": 5.0, "at": 40.0}, "No samples in this time range", None),
    ],
)
def test_a_worker_without_a_sample_says_why_and_when_the_first_comes(values, why, due_s):
    known = {"uid": "u", "pid": 1, "role": model.Role.WEB, "memory": None, "at": None}
    process = ProcessView(**known | {"ended_at": None, "ended_how": ""} | values)
    found = workers.no_samples(
        WorkerView(
            name="web@h", host="h", role="web", alive=True, rss_bytes=0, last_seen=99.0, overhead_ratio=0.0,
            processes=[process],
        ),
        now_s=100.0,
    )  # fmt: skip
    assert found.why.startswith(why)
    assert found.due_s == due_s


def test_thinning_keeps_the_peak():
    samples = [
        Sample(process="p", at_s=float(n), memory=MemoryState(rss_bytes=10**9 if n == 777 else n)) for n in range(5000)
    ]
    kept = workers.thinned(samples, most=100)
    assert len(kept) <= 101
    assert max(sample.memory.rss_bytes for sample in kept) == 10**9


def test_runs_of_a_name_have_percentiles_and_outliers(queries, visit):
    context = runs.runs(queries, visit(), "task", "shop.tasks.remember_order")
    assert context["totals"].runs > 0
    assert context["totals"].percentiles[50] == pytest.approx(0.0128)
    assert context["runs"][0].why == "outlier"
    assert len(context["scatter"]["at"]) == 60
    with pytest.raises(NotFound):
        runs.runs(queries, visit(), "task", "nothing")


def test_names_are_busiest_first(queries, visit):
    counted = [row[2] for row in runs.names(queries, visit())["rows"]]
    assert counted == sorted(counted, reverse=True)
    assert len(runs.names(queries, visit(search="CACHE"))["rows"]) == 1


def test_percentiles_are_upper_bounds_of_their_bucket():
    counts = [0] * Histogram.BUCKETS
    counts[0], counts[10] = 90, 10
    assert Histogram(counts).percentile_s(0.5) == pytest.approx(0.0001)
    assert Histogram(counts).percentile_s(0.95) == pytest.approx(0.1024)
    assert Histogram([]).percentile_s(0.5) is None


def test_alerts_have_what_is_urgent_first(queries, visit):
    context = alerts.alerts(queries, visit())
    assert [row.state for row in context["rows"]] == ["firing", "pending", "resolved"]
    assert "keeps more than 512 B a run, over at least 20 runs" in context["rules"][0].sentence
    assert [delivery.ok for delivery in context["deliveries"]] == [False, True]


def test_transcripts_are_listed_and_shown(queries, visit):
    assert shells.shells(queries, visit())["rows"][0].id == "shell-1"
    shown = shells.shell(queries, visit(), "shell-1")["shell"]
    assert [line.kind for line in shown.lines] == ["input", "output", "remark", "error", "event"]
    with pytest.raises(NotFound):
        shells.shell(queries, visit(), "nothing")


def test_statistics_count_what_was_kept(queries, visit):
    kinds = {kind: held for kind, held, *_ in statistics.statistics(queries, visit())["kinds"]}
    assert max(kinds.values()) > 0
    assert {"failure", "process"} <= set(kinds)
    assert not {"failures", "runs", "processes", "rollups"} & set(kinds), "a table and its records are one row"


def test_the_counters_of_a_collector_are_a_text():
    counters = {"spool:records": 0, "collector:delivered": 1209, "collector:adopted": 1, "corrupt:lines": 0}
    assert statistics._counters_text(counters) == "delivered 1,209, adopted 1"
    assert statistics._counters_text({"spool:records": 0}) == "no activity yet"


@pytest.mark.parametrize(
    "page",
    [
        leaks.table,
        failures.groups,
        failures.listing,
        workers.memory,
        runs.names,
        alerts.alerts,
        shells.shells,
        statistics.statistics,
    ],
)
def test_every_list_is_calm_when_there_is_nothing(nothing, visit, page):
    context = page(nothing, visit())
    assert not context.get("rows")


# --- metrics -----------------------------------------------------------------------------------------


def test_metrics_parse_and_carry_no_task_id_and_no_pid(queries):
    text = render(take(queries, {"refused": 3}, time.time())).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {
        "celery_trace_store_up",
        "celery_trace_events",
        "celery_trace_task_kept_bytes",
        "celery_trace_process_resident_memory_bytes",
        "celery_trace_task_failures",
        "celery_trace_alerts",
        "celery_trace_queue_depth",
        "celery_trace_queue_latency_seconds",
        "celery_trace_stuck",
        "celery_trace_running",
        "celery_trace_records",
        "celery_trace_spool_bytes",
        "celery_trace_overhead_ratio",
    }
    (kept,) = families["celery_trace_task_kept_bytes"].samples
    assert (kept.labels["task"], kept.value) == ("shop.tasks.remember_order", pytest.approx(104_000))
    failed = {(s.labels["task"], s.labels["outcome"]): s.value for s in families["celery_trace_task_failures"].samples}
    assert failed["shop.tasks.overrun", "time_limit"] == 5
    assert "6e1f9b3a" not in text
    assert "pid" not in text


def test_metrics_say_when_the_store_is_down():
    assert "celery_trace_store_up 0.0" in render(Snapshot(), store_up=False).decode()


def test_the_overview_names_workers_near_their_limit_and_when_they_reach_it(tmp_path, visit):
    now_s = time.time()
    store = open_store(load({"trace_dir": str(tmp_path)}, environment={}))
    mib = monitor_facts.MIB
    common = {"host": "h", "role": model.Role.CHILD, "started_at_s": now_s - 3600}
    store.write([ProcessRecord(uid="p1", pid=7, worker="big@h", **common)])
    store.write([ProcessRecord(uid="p2", pid=8, worker="ok@h", **common)])
    for step in range(30):  # 10 MiB a minute
        at_s = now_s - (29 - step) * 60
        store.write(
            [
                Sample(
                    process="p1", at_s=at_s, memory=MemoryState(rss_bytes=(610 + 10 * step) * mib), name="shop.load"
                ),
                Sample(process="p2", at_s=at_s, memory=MemoryState(rss_bytes=700 * mib)),
            ]
        )
    queries = Queries(store)
    (item,) = overview.overview(queries, visit())["incidents"]
    assert item.what == "big@h is near its limit: 900.0 MiB of 1.0 GiB"
    assert "Pid 7, running shop.load" in item.detail
    assert "reached in 12 min" in item.detail
    assert "<svg" in item.trend
    # Celery's own limit counts too, for children; what is beyond one is told before what is near another.
    here = visit()
    context = overview.overview(queries, replace(here, monitor=replace(here.monitor, child_limit_bytes=650 * mib)))
    assert [item.what.split(":")[0] for item in context["incidents"]] == [
        "big@h exceeds its limit",
        "ok@h exceeds its limit",
    ]
    store.close()


def test_a_workflow_shows_root_parent_children_and_siblings_also_those_that_went_well(queries, visit):
    second = failure_id("6e1f9b3a-0000-4000-8000-000000000001", 1)
    tree = [
        (one.depth, one.relation, one.name, one.state) for one in failures.failure(queries, visit(), second)["workflow"]
    ]
    assert tree == [
        (0, "root", "shop.tasks.checkout", "SUCCESS"),
        (1, "", "shop.mail.receipt", "SUCCESS"),
        (1, "parent", "shop.tasks.create_error", "failed"),
        (2, "sibling", "shop.mail.send", "failed"),
        (2, "this", "shop.tasks.charge", "retried"),
    ]
    first = {one.name: one for one in failures.failure(queries, visit(), FAILURE)["workflow"]}
    assert {name: one.relation for name, one in first.items() if one.relation} == {
        "shop.tasks.checkout": "parent", "shop.tasks.create_error": "this",
        "shop.mail.send": "child", "shop.tasks.charge": "child", "shop.mail.receipt": "sibling",
    }  # fmt: skip
    assert first["shop.tasks.checkout"].link.startswith("/trace/runs/task/shop.tasks.checkout?run=")


def test_what_flower_remembers_of_a_workflow_is_shown_and_a_ring_of_parents_ends(queries, visit):
    def remembered(root_id):
        return [
            TaskEvents(task_id="a", name="shop.a", state="SUCCESS", parent_id="b", at_s=5.0),
            TaskEvents(task_id="b", name="shop.b", state="STARTED", parent_id="a", at_s=6.0),
            TaskEvents(task_id="c", name="shop.c", parent_id=root_id, at_s=1.0),
        ]

    here = visit()
    here = replace(here, monitor=replace(here.monitor, workflow=remembered))
    tree = failures.failure(queries, here, FAILURE)["workflow"]
    assert {"shop.c"} <= {one.name for one in tree}
    assert len(tree) == len({one.task_id for one in tree})


def test_a_failure_of_no_workflow_shows_none(queries, visit):
    alone = failure_id("6e1f9b3a-0000-4000-8000-000000000004", 0)
    assert failures.failure(queries, visit(), alone)["workflow"] == []
    assert failures.failure(queries, visit(), REQUEST)["workflow"] == []


def test_a_run_is_opened_by_its_id_and_only_under_its_name(queries, visit):
    name = "shop.tasks.remember_order"
    context = runs.runs(queries, visit(run="run-3"), "task", name)
    assert context["opened"].id == "run-3"
    assert context["opened_process"].pid == 101
    assert set(context["scatter"]["percentiles"]) == {"p50", "p95", "p99"}
    with pytest.raises(NotFound):
        runs.runs(queries, visit(run="run-3"), "task", "shop.tasks.fill_cache")
    with pytest.raises(NotFound):
        runs.runs(queries, visit(run="nothing"), "task", name)


def test_plots_mark_restarts_deploys_and_kills(queries, visit):
    marks = {mark.text: mark.kind for mark in workers.memory(queries, visit(range="all"))["plots"].marks}
    assert marks["1.4.2 deployed: celery@web-1 started"] == "deploy"
    assert marks["pid 99 killed"] == "killed"
    assert marks["celery@web-1 started"] == "restart"


def test_a_mark_says_in_a_word_how_a_process_ended():
    ends = [
        ProcessRecord(uid=how, host="h", pid=7, started_at_s=1.0, ended_at_s=2.0, ended_how=how)
        for how in ("exit", "killed")
    ]
    marks = [mark for mark in marks_of(ends, []) if mark.at == 2.0]
    assert [(mark.text, mark.kind) for mark in marks] == [("pid 7 exited", "end"), ("pid 7 killed", "killed")]


def test_starts_of_one_moment_are_one_mark():
    def main(worker, at_s, release):
        return ProcessRecord(uid=f"{worker}{at_s}", host="h", pid=1, worker=worker, started_at_s=at_s, release=release)

    mains = [main("a", 0, "1"), main("b", 5, "1"), main("a", 1000, "2"), main("b", 1030, "2"), main("c", 1050, "2")]
    assert [(mark.at, mark.text, mark.kind) for mark in marks_of([], mains)] == [
        (0, "a and 1 more started", "restart"),
        (1000, "2 deployed: a and 1 more started", "deploy"),
        (1050, "c started", "restart"),
    ]


def test_a_workers_recycling_says_how_long_children_live_and_how_large_they_get_and_leaves_out_killed_ones(
    queries, visit
):
    recycling = workers.memory(queries, visit(range="day"))["recycled"]
    assert (recycling.exited, recycling.killed, recycling.life_s, recycling.bytes_at_end) == (0, 1, None, None)
    (worker,) = (row for row in queries.workers(limit=100).rows if row.name == monitor_facts.WORKER)
    (killed,) = (process for process in worker.processes if process.ended_how == "killed")
    recycled = replace(
        killed, ended_how="exit", ended_at=killed.started_at + 60, memory=MemoryState(rss_bytes=7 * monitor_facts.MIB)
    )
    recycling = workers.recycling(replace(worker, processes=[killed, recycled]), None)
    assert (recycling.exited, recycling.killed, recycling.bytes_at_end) == (1, 1, 7 * monitor_facts.MIB)
    assert recycling.life_s == pytest.approx(60)


def test_leaks_are_filtered_by_queue_and_sorted_by_the_store(queries, visit):
    context = leaks.table(queries, visit(queue="orders", sort="name"))
    assert [leak.name for leak in context["rows"]] == ["shop.tasks.remember_order"]
    assert context["queues"] == ["celery", "orders"]


def test_what_needs_attention_is_not_hidden_behind_what_does_not(tmp_path, visit):
    """More resolved alerts and groups than a page asks for, all newer than the one that is open."""
    now_s = time.time()
    store = open_store(load({"trace_dir": str(tmp_path)}, environment={}))
    alert = monitor_facts.alerts(now_s)[0]
    store.save_alert(replace(alert, id="fires", state="firing", since=now_s - 9999, subject="the old one"))
    for n in range(210):
        store.save_alert(replace(alert, id=f"over{n}", state="resolved", since=now_s - n, resolved_at=now_s))
    failed = [
        model.Failure(
            id=f"f{n}",
            process="p",
            kind=Kind.TASK,
            name="shop.old" if n == 120 else "shop.charge",
            outcome=model.Outcome.FAILED,
            fingerprint=f"fp{n}",
            at_s=now_s - 60 - n,
        )
        for n in range(121)
    ]
    store.write(failed)
    for n in range(120):
        store.resolve_group(f"fp{n}", "ada", now_s)
    queries = Queries(store)
    assert next(row.id for row in alerts.alerts(queries, visit())["rows"]) == "fires"
    context = overview.overview(queries, visit())
    assert [item.what for item in context["incidents"]][-1].startswith("shop.old")
    assert (context["figures"][1].label, context["figures"][1].value) == ("Failures", "121")
    store.close()


def test_a_store_that_was_lost_is_told_on_the_overview_and_the_statistics(tmp_path, visit):
    store = open_store(load({"trace_dir": str(tmp_path)}, environment={}))
    store.save_alert_rules(None)
    for path in tmp_path.glob("trace.db*"):
        path.unlink()
    queries = Queries(store)
    item = overview.overview(queries, visit())["incidents"][0]
    assert item.what == "The store was lost and recreated"
    assert "deleted while in use" in item.detail
    context = statistics.statistics(queries, visit())
    assert [line for _, line in context["lost_stores"]] == [item.detail]
    assert context["store_size"][0].startswith("The store takes ")
    assert context["store_size"][1].startswith("0 failures take 0 B; 1,000,000 are kept, or 2.0 GiB of them")
    store.close()


def test_lanes_have_the_single_runs_and_those_in_progress_as_long_as_they_lasted(tmp_path, visit):
    store, now_s = open_store(load({"trace_dir": str(tmp_path)}, environment={})), time.time()
    child = ProcessRecord(uid="c", host="h", pid=8, worker="w@h", role="child", started_at_s=now_s - 900)
    growing = [(now_s - 890, 50), (now_s - 700, 80), (now_s - 30, 95)]
    store.write([child, *(
        Sample(process="c", at_s=at_s, memory=MemoryState(rss_bytes=mib * monitor_facts.MIB)) for at_s, mib in growing
    )])  # fmt: skip
    common = {"process": "c", "kind": Kind.TASK, "queue": "", "state": "SUCCESS", "why": "sampled"}
    store.write([
        model.Run(id="r1", name="shop.a", started_at_s=now_s - 600, duration_s=50.0, **common),
        model.Run(id="r2", name="shop.a", started_at_s=now_s - 400, duration_s=0.5, **common),
        model.Run(id="r3", name="shop.a", started_at_s=now_s - 90_000, duration_s=0.5, **common),
    ])  # fmt: skip
    run = model.RunningRun(
        process="c", kind=Kind.TASK, name="shop.b", task_id="t", pid=8, role="child", started_at_s=now_s - 20
    )
    store.write([model.RunningSnapshot(place="h", at_s=now_s - 1, runs=[run], ended={"c": 2})])
    context = workers.memory(Queries(store), visit(worker="w@h"))
    plot = context["plots"]
    assert [name.name for name in plot.names] == ["shop.a", "shop.b"]
    (lane,) = plot.lanes
    lasted = sorted((round(bar.from_s - now_s), round(bar.until_s - bar.from_s, 1), bar.name) for bar in lane)
    assert lasted == [(-600, 50.0, 0), (-400, 0.5, 0), (-20, 19.0, 1)]
    assert {bar.path for bar in lane} >= {"/runs/task/shop.a?run=r1", "/running/c/t"}
    # What it gained by its first imports is start-up, and no growth.
    assert context["settled"]["c"].memory.rss_bytes == 80 * monitor_facts.MIB
    store.close()


def test_a_name_has_one_colour_for_ever():
    assert [colours.of_name(name) for name in ("shop.tasks.quote", "shop.tasks.add", "\udcff")] == [12, 7, 1]
    assert {colours.of_name(f"task-{number}") for number in range(300)} == set(range(16))


@pytest.mark.parametrize(("age_s", "rate"), [(120.0, "60.0"), (7200.0, None)])
def test_throughput_is_that_of_the_last_minutes_and_not_of_the_hour(tmp_path, visit, age_s, rate):
    store, now_s = open_store(load({"trace_dir": str(tmp_path)}, environment={})), time.time()
    bucket_s = int(now_s) // 300 * 300
    child = ProcessRecord(uid="c", pid=1, host="h", worker="w@h", role="child", started_at_s=now_s - age_s)
    common = {"process": "c", "kind": Kind.TASK, "name": "x", "durations": Histogram([])}
    store.write([
        child,
        Sample(process="c", at_s=now_s, memory=MemoryState(rss_bytes=1)),
        Rollup(bucket_s=bucket_s, seq=1, runs=120, **common),
        Rollup(bucket_s=bucket_s - 1800, seq=2, runs=100_000, **common),
    ])  # fmt: skip
    shown = {one.label: one.value for one in overview.strips(Queries(store), Queries(store).workers().rows, [], now_s)}
    expected = rate or f"{60 * 120 / (now_s - bucket_s + 300):,.1f}"
    assert shown["Throughput"] == expected
    store.close()
