"""The page Running, the stack of one run, the API and the metric."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celery_trace.model import Capture, CapturedException, Frame, Node, RunningView, RunStack, Variable
from celery_trace.running.client import StackUnavailable
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.support import monitor_facts
from tests.support.monitor_app import Client, make_monitor, serving
from tests.support.monitor_facts import RUNNING

ONE = f"/trace/running/child-1/{RUNNING}"
FILE = "/srv/shop/shop/tasks.py"


class Reader:
    """Answers for the process, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: RunStack | StackUnavailable = self.captured()

    @staticmethod
    def captured() -> RunStack:
        frame = Frame(
            file=FILE, line=88, function="sync_stock", code="lock.wait()", context_start=87,
            context=["lock = threading.Event()", "lock.wait()"], locals=[Variable("order", 0), Variable("token", 1)],
        )  # fmt: skip
        nodes = [Node("str", "plain", "order-4711"), Node("str", "redacted"), Node("tuple", "tuple", items=[0])]
        capture = Capture(
            exceptions=[CapturedException(type="", module="", message="", frames=[frame])], heap=nodes, args=2
        )
        return RunStack(request="r", at_s=time.time(), by="process", capture=capture)

    def read(self, run: RunningView, *, user: str) -> RunStack:
        self.asked.append((run.task_id, user))
        if isinstance(self.answer, StackUnavailable):
            raise self.answer
        return self.answer


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("running")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    store.close()
    with serving(
        lambda: make_monitor(folder, settings=settings, pairs=("eye:e", "val:v"), roles=("eye:look", "val:locals"))
    ) as (address, app):
        yield address, app, folder


@pytest.fixture
def reader(served: Any) -> Reader:
    _, app, folder = served
    store = open_store(load({"trace_dir": str(folder)}, environment={}))
    store.write([monitor_facts.running(time.time())])  # a snapshot is valid for some seconds
    store.close()
    app.context.stacks = Reader()
    return app.context.stacks  # type: ignore[no-any-return]


def get(served: Any, path: str, user: str = "val:v", **headers: str) -> Any:
    words = base64.b64encode(user.encode()).decode()
    return Client(served[0]).request("GET", path, headers={"Authorization": f"Basic {words}", **headers})


def test_the_page_lists_what_runs_with_the_stuck_run_first(served: Any, reader: Reader) -> None:
    text = get(served, "/trace/running", "eye:e").text
    assert "2 runs in progress, <strong>1 stuck</strong>" in " ".join(text.split())
    assert text.index("shop.tasks.sync_stock</bdi>") < text.index("shop.tasks.remember_order</bdi>")
    assert "timeout" in text  # of the innermost line of user code, which is marked up
    assert "a lock" in text
    assert ONE in text
    assert reader.asked == []


def test_the_overview_names_a_stuck_run_and_links_it(served: Any, reader: Reader) -> None:
    text = get(served, "/trace", "eye:e").text
    assert "shop.tasks.sync_stock is stuck" in text
    assert ONE in text
    assert "shop.tasks.remember_order is stuck" not in text
    assert reader.asked == []


def test_filters_select_runs(served: Any, reader: Reader) -> None:
    text = get(served, "/trace/running?name=shop.tasks.remember_order").text
    assert ONE not in text
    assert "1 run in progress" in " ".join(text.split())
    assert "Nothing is running" in get(served, "/trace/running?worker=nobody").text


def test_opening_a_run_reads_its_stack_with_values_and_arguments(served: Any, reader: Reader) -> None:
    text = get(served, ONE).text
    assert reader.asked == [(RUNNING, "val")]
    assert "order-4711" in text
    assert 'title="Redacted in the process"' in text
    assert "Positional arguments" in text
    assert "shop/tasks.py:88" in text


def test_an_open_page_does_not_ask_again_by_itself(served: Any, reader: Reader) -> None:
    answer = get(served, ONE, **{"X-Trace-Refresh": "1"})
    assert answer.status == 200
    assert 'id="live-run"' in answer.text
    assert reader.asked == []


def test_without_the_role_locals_the_process_is_not_asked(served: Any, reader: Reader) -> None:
    text = get(served, ONE, "eye:e").text
    assert reader.asked == []
    assert "Values are hidden" in text
    assert "order-4711" not in text
    assert "tasks.py:88" in text


def test_a_process_that_can_not_be_asked_shows_why_and_the_last_sample(served: Any, reader: Reader) -> None:
    reader.answer = StackUnavailable(
        "No stack", "the collector of web-1 did not answer within 2 s", "It may have ended."
    )
    text = get(served, ONE).text
    assert "did not answer within 2 s. It may have ended." in text
    assert "tasks.py:88" in text


def test_a_run_that_has_ended_is_not_found(served: Any, reader: Reader) -> None:
    answer = get(served, "/trace/running/child-1/none")
    assert answer.status == 404
    assert "This run is not in progress." in answer.text


def test_the_list_of_the_api_has_the_contracts_fields(served: Any, reader: Reader) -> None:
    answer = get(served, "/api/trace/running", "eye:e").json()
    assert answer["next"] is None
    stuck, fresh = answer["running"]
    names = "task_id name worker hostname pid role since elapsed_s p50_s p99_s retries queue rss_bytes stuck"
    assert set(stuck) >= {*names.split(), "waiting_for", "stack"}
    assert (stuck["task_id"], stuck["stuck"], fresh["stuck"], fresh["retries"]) == (RUNNING, True, False, 2)
    assert stuck["elapsed_s"] == pytest.approx(2400, abs=60)
    assert fresh["p50_s"] <= fresh["p99_s"]
    assert stuck["p99_s"] is None
    assert set(stuck["stack"][0]) == {"file", "line", "function", "code"}
    only = get(served, f"/api/trace/running?task_id={RUNNING}").json()["running"]
    assert [row["task_id"] for row in only] == [RUNNING]


def test_locals_of_the_api_need_the_role_and_come_from_the_process(served: Any, reader: Reader) -> None:
    path = f"/api/trace/running?locals=1&task_id={RUNNING}"
    assert get(served, path, "eye:e").status == 403
    assert reader.asked == []
    [row] = get(served, path).json()["running"]
    assert reader.asked == [(RUNNING, "val")]
    assert row["stack"][0]["locals"][0]["value"] == "'order-4711'"
    assert row["stack"][0]["locals"][1]["redacted"] is True
    reader.answer = StackUnavailable("No stack", "gone", "")
    [row] = get(served, path).json()["running"]
    assert row["stack_why"] == "gone"
    assert "locals" not in row["stack"][0]


@pytest.mark.parametrize("query", ["locals=2", "limit=5"])
def test_a_wrong_parameter_is_refused(served: Any, reader: Reader, query: str) -> None:
    assert get(served, f"/api/trace/running?{query}").status == 400


def test_the_metric_counts_runs_by_task(served: Any, reader: Reader) -> None:
    text = get(served, "/metrics").text
    assert 'celery_trace_running{task="shop.tasks.sync_stock"} 1.0' in text
    assert RUNNING not in text
