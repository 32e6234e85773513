"""Who may not see values sees none: neither on our pages nor on Flower's, neither as JSON nor in an alert's words."""

import time
from base64 import b64encode

import pytest

from celery_trace.model import AlertView, Kind, ShellLine, ShellView, Site, Stage, Verdict, Window
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.support import monitor_facts
from tests.support.monitor_app import Client, make_monitor, serving

SECRET = "customer-4711"
TABLE = "draw=1&start=0&length=10&order%5B0%5D%5Bcolumn%5D=0&columns%5B0%5D%5Bdata%5D=name"


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    now_s = time.time()
    store = open_store(settings)
    monitor_facts.fill(store, now_s)
    store.save_alert(
        AlertView(
            id="alert-new", rule="new_failure", subject="task shop.tasks.pay: ValueError (abcd1234)", state="firing",
            severity="warning", text=f"New failure in task shop.tasks.pay: ValueError: no such {SECRET} (once).",
            value=1.0, threshold=0.0, since=now_s - 60, fired_at=now_s - 50, resolved_at=None, link="failures/x",
        )
    )  # fmt: skip
    store.add_shell(
        ShellView(id="shell-2", failure="x", mode="recreated", started_at=1.0, ended_at=None, users=["ada"])
    )
    store.add_shell_line("shell-2", ShellLine(seq=1, at=1.0, user="ada", kind="output", text="recreated words"))
    store.write([held_by_a_key(now_s)])
    store.close()
    with serving(
        lambda: make_monitor(
            folder, settings=settings, pairs=("lou:1", "val:2", "liv:3"), roles=("lou:look", "val:locals", "liv:live")
        )
    ) as (base, app):
        state = app.events.state
        for name, more in (
            ("task-received", {"name": "shop.tasks.pay", "args": f"('{SECRET}',)", "kwargs": "{}"}),
            ("task-failed", {"exception": f"ValueError('{SECRET}')", "traceback": SECRET}),
        ):
            event = {"type": name, "uuid": "u-1", "hostname": "celery@x", "timestamp": now_s, "clock": 1, "pid": 1}
            state.event({**event, "local_received": now_s, "utcoffset": 0, **more})
        active = {"id": "u-1", "name": "shop.tasks.pay", "args": [SECRET], "kwargs": {}, "time_start": None}
        app.inspector.workers["celery@x"].update(active=[active])
        yield base, app


def held_by_a_key(now_s):
    """A leak whose objects stand in a dictionary by what a customer is called."""
    site = Site(file="/srv/shop/index.py", line=4, function="index", code="keep(order)", bytes=9000, blocks=3)
    return Window(
        id="w-key", investigation="inv-key", process="child-1", kind=Kind.TASK, name="shop.tasks.index",
        stage=Stage.VERDICT, verdict=Verdict.LEAKING, at_s=now_s - 100, runs=8, run_number=700,
        kept_bytes_per_run=9000.0, kept_blocks_per_run=3.0, sites=[site],
        retained_by=["shop.registry (module)", "_by_customer: dict", f"['{SECRET}']: list", "Order × 12"],
    )  # fmt: skip


def get(monitor, name, path):
    pair = {"lou": "lou:1", "val": "val:2", "liv": "liv:3"}[name]
    header = {"Authorization": "Basic " + b64encode(pair.encode()).decode()}
    return Client(monitor[0]).get(path, headers=header)


@pytest.mark.parametrize(
    "path", ["/tasks", f"/tasks/datatable?{TABLE}", "/task/u-1", "/api/tasks", "/api/task/info/u-1", "/api/workers"]
)
def test_flowers_pages_with_arguments_and_results_need_the_role_locals(monitor, path):
    assert get(monitor, "lou", path).status == 403
    seen = get(monitor, "val", path)
    assert seen.status == 200
    assert SECRET in seen.text or path == "/tasks"  # the page of the table fetches it


@pytest.mark.parametrize("path", ["/worker/celery@x", "/api/task/result/u-1"])
def test_what_workers_run_and_what_a_task_gave_back_need_it_too(monitor, path):
    assert get(monitor, "lou", path).status == 403
    assert get(monitor, "val", path).status != 403


@pytest.mark.parametrize("path", ["/workers", "/api/task/types", "/metrics", "/trace", "/trace/alerts", "/trace/leaks"])
def test_figures_are_for_everybody_and_show_no_value(monitor, path):
    answer = get(monitor, "lou", path)
    assert answer.status == 200
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/api/trace/alerts", "/api/trace/alerts/alert-new", "/trace/alerts", "/trace"])
def test_an_alerts_words_quote_no_message_for_who_may_not_see_values(monitor, path):
    hidden, shown = get(monitor, "lou", path), get(monitor, "val", path)
    assert (hidden.status, shown.status) == (200, 200)
    assert SECRET not in hidden.text
    assert "shop.tasks.pay: ValueError (abcd1234)" in hidden.text
    assert SECRET in shown.text


def test_an_alert_about_something_else_keeps_its_words(monitor):
    assert "leaks 101.6 KiB a run" in get(monitor, "lou", "/api/trace/alerts").text


def test_what_a_live_shell_said_is_not_redacted_and_so_for_those_who_may_type_there(monitor):
    said = "context_data"  # a line of the transcript
    assert said in get(monitor, "liv", "/trace/shells/shell-1").text
    assert said in get(monitor, "liv", "/api/trace/shells/shell-1").text
    page = get(monitor, "val", "/trace/shells/shell-1")
    assert page.status == 200
    assert "needs the role live" in page.text
    assert said not in page.text
    assert get(monitor, "val", "/api/trace/shells/shell-1").status == 403
    assert said not in get(monitor, "val", "/api/trace/shells").text


def test_what_a_recreated_shell_said_is_as_redacted_as_the_page(monitor):
    assert "recreated words" in get(monitor, "val", "/trace/shells/shell-2").text
    assert "recreated words" in get(monitor, "val", "/api/trace/shells/shell-2").text
    assert get(monitor, "lou", "/api/trace/shells/shell-2").status == 403
    assert get(monitor, "lou", "/trace/shells/shell-2").status == 403


def test_a_dictionarys_key_on_the_way_to_a_leak_is_a_value(monitor):
    (row,) = get(monitor, "lou", "/api/trace/leaks?name=shop.tasks.index").json()["leaks"]
    places = ["/api/trace/leaks", f"/api/trace/leaks/{row['id']}", f"/trace/leaks/{row['id']}"]
    for path in places:
        hidden, seen = get(monitor, "lou", path), get(monitor, "val", path)
        assert (hidden.status, seen.status) == (200, 200)
        assert SECRET not in hidden.text
        assert SECRET in seen.text
    assert row["retained_by"] == ["shop.registry (module)", "_by_customer: dict", "[str]: list", "Order × 12"]


def test_a_test_of_a_failure_is_a_download_for_those_who_may_see_its_locals(monitor):
    (row,) = get(monitor, "val", "/api/trace/failures?outcome=failed&kind=task&limit=1").json()["failures"]
    link = f"/api/trace/failures/{row['id']}/test"
    assert f'href="{link}"' in get(monitor, "val", f"/trace/failures/{row['id']}").text
    assert "Make a test" not in get(monitor, "lou", f"/trace/failures/{row['id']}").text
    assert get(monitor, "lou", link).status == 403
    made = get(monitor, "val", link)
    assert made.status == 200
    assert made.headers["Content-Disposition"].startswith('attachment; filename="test_shop_tasks_')
    compile(made.text, "made", "exec")
    assert "def trial(args, kwargs)" in made.text
    assert get(monitor, "val", f"{link}?frame=77").status == 409
    assert get(monitor, "val", f"{link}?frame=-1").status == 400
    assert get(monitor, "val", "/api/trace/failures/nothing/test").status == 404


def test_there_is_no_test_of_a_failure_that_time_explains(monitor):
    (row,) = get(monitor, "val", "/api/trace/failures?outcome=time_limit&limit=1").json()["failures"]
    assert "Make a test" not in get(monitor, "val", f"/trace/failures/{row['id']}").text
    refused = get(monitor, "val", f"/api/trace/failures/{row['id']}/test")
    assert refused.status == 409
    assert "time limit" in refused.json()["error"]["why"]
