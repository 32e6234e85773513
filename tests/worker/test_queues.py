"""Messages of a real prefork worker: how long they wait, where, behind what, and which are run twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Producer

from celery_trace import published
from celery_trace.model import Consuming, QueueView, RepeatedRun, ScheduleView, TaskFlow
from celery_trace.queries import Queries
from celery_trace.runtime.plugin import CeleryTrace
from celery_trace.settings import Settings
from tests.support.processes import REPOSITORY
from tests.support.records import Records

APP = "tests.support.flow_project"
SETTINGS = {"memory": "off"}


@pytest.fixture
def publisher(own_broker_url: str, tmp_path: Path) -> Iterator[Celery]:
    """An app of a process that publishes and records nothing."""
    app = Celery("flowing", broker=own_broker_url, set_as_current=False)
    plugin = CeleryTrace(app, Settings(dir=str(tmp_path / "publisher")))
    yield app
    plugin.close()
    app.close()


@pytest.fixture
def start(start_worker: Callable[..., Any]) -> Callable[..., Any]:
    def started(**more: Any) -> Any:
        extra = {"PYTHONPATH": str(REPOSITORY), **more.pop("extra", {})}
        return start_worker(APP, REPOSITORY, settings=SETTINGS, extra=extra, concurrency=1, **more)

    return started


def flow_of(queries: Queries, name: str) -> TaskFlow | None:
    return next((flow for flow in queries.task_flows() if flow.name == name), None)


def started(name: str, runs: int) -> Callable[[Queries], TaskFlow | None]:
    def look(queries: Queries) -> TaskFlow | None:
        flow = flow_of(queries, name)
        return flow if flow is not None and flow.started >= runs else None

    return look


def test_waits_are_counted_from_publishing_to_the_start_of_each_run(
    start: Callable[..., Any], publisher: Celery, records: Records
) -> None:
    for _ in range(6):
        publisher.send_task("flowing.nap", (0.4,))
    worker = start()
    flow = records.wait(started("flowing.nap", 6), "six starts", explain=worker.tail)
    assert flow is not None
    assert (flow.queue, flow.received, flow.started, flow.redelivered) == ("celery", 6, 6, 0)
    # The last one waited for five naps, in the worker: the prefetch is four a process.
    assert flow.wait_p95_s is not None
    assert 2.0 <= flow.wait_p95_s < 30
    assert flow.reserved_p95_s is not None
    assert flow.reserved_p95_s > 0.8
    (queue,) = records.wait(lambda queries: queries.queue_views().rows, "the queue")
    assert (queue.name, queue.started, queue.consumers) == ("celery", 6, 1)
    assert queue.published >= 6
    assert records.queries.flow_problems() == {}


def test_an_eta_is_no_wait_and_a_retry_counts_from_its_own_message(
    start: Callable[..., Any], publisher: Celery, records: Records
) -> None:
    worker = start()
    publisher.send_task("flowing.nap", (0.0,), countdown=3)
    publisher.send_task("flowing.passes_on")
    flow = records.wait(started("flowing.nap", 1), "the run with an ETA", explain=worker.tail)
    assert flow is not None
    assert flow.wait_p95_s is not None
    assert flow.wait_p95_s < 2.0
    assert 2.0 < flow.eta_max_s <= 3.0
    retried = records.wait(started("flowing.passes_on", 2), "the retry", explain=worker.tail)
    assert retried is not None
    assert retried.wait_max_s < 2.0
    passed = records.wait(
        lambda queries: (found := flow_of(queries, "flowing.nothing")) and found.started and found.published and found,
        "what a task has published",
        explain=worker.tail,
    )
    assert (passed.published, passed.started) == (1, 1)


def test_forged_and_absurd_headers_are_counted_and_change_no_wait(
    start: Callable[..., Any], own_broker_url: str, records: Records
) -> None:
    worker = start()
    forged = ["soon", -5.0, 1e308, time.time() + 86_400, True, [time.time()], {"at": 1}, None, time.time() + 60]
    with Connection(own_broker_url) as connection:
        producer = Producer(connection)
        for number, value in enumerate(forged):
            headers = {"task": "flowing.nothing", "id": f"forged-{number}", "retries": 0, published.HEADER: value}
            producer.publish([[], {}, {}], serializer="json", routing_key="celery", headers=headers)
    flow = records.wait(started("flowing.nothing", len(forged)), "all starts", explain=worker.tail)
    assert flow is not None
    assert flow.wait_max_s < 30, "the clock that is a minute ahead counts as now"
    problems = records.wait(
        lambda queries: (found := queries.flow_problems()).get("header_refused") == 7 and found, "the counts",
        explain=worker.tail,
    )  # fmt: skip
    assert problems == {"header_refused": 7, "clock_ahead": 1}


def test_reserved_messages_have_the_run_that_they_wait_for(
    start: Callable[..., Any], publisher: Celery, records: Records
) -> None:
    worker = start()
    ids = [publisher.send_task("flowing.nap", (25.0,)).id for _ in range(3)]

    def behind(queries: Queries) -> Consuming | None:
        return next((one for one in queries.consuming() if one.reserved == 2 and one.ahead), None)

    state = records.wait(behind, "two messages behind a nap", explain=worker.tail)
    assert state is not None
    assert (state.queue, state.running) == ("celery", 1)
    assert (state.ahead[0].name, state.ahead[0].task_id) == ("flowing.nap", ids[0])


def test_a_message_that_outlives_the_visibility_timeout_is_seen_to_run_on_two_workers(
    start: Callable[..., Any], publisher: Celery, own_broker_url: str, records: Records
) -> None:
    extra = {"FLOW_VISIBILITY_S": "5"}
    first = start(extra=extra, name="first", options=["--prefetch-multiplier=1"])
    task_id = publisher.send_task("flowing.late_nap", (60.0,)).id
    records.wait(started("flowing.late_nap", 1), "the first start", explain=first.tail)
    second = start(extra=extra, name="second")
    with Connection(own_broker_url, transport_options={"visibility_timeout": 5}) as connection:
        time.sleep(5.5)
        connection.default_channel.qos.restore_visible(interval=1)  # as each consumer does every 100 seconds

    def repeated(queries: Queries) -> list[RepeatedRun]:
        return [run for run in queries.repeated_runs(since_s=0) if run.task_id == task_id]

    run = records.wait(repeated, "a second start", timeout_s=90, explain=lambda: first.tail() + second.tail())[0]
    assert run.overlapping
    assert len(run.starts) == 2
    assert run.workers == sorted([first.node, second.node])
    flow = records.wait(started("flowing.late_nap", 2), "the second start's count", explain=second.tail)
    assert flow is not None
    assert flow.redelivered == 1
    assert flow.acks_late


def test_beat_reports_what_is_due_and_published(start: Callable[..., Any], records: Records, tmp_path: Path) -> None:
    worker = start(options=["-B", "-s", str(tmp_path / "schedule")])

    def published_twice(queries: Queries) -> ScheduleView | None:
        return next((one for one in queries.schedules() if one.entry == "every-second" and one.published >= 3), None)

    entry = records.wait(published_twice, "three messages of beat", explain=worker.tail)
    assert entry is not None
    assert (entry.task, entry.interval_s, entry.processes, entry.failed) == ("flowing.nothing", 1.0, 1, 0)
    assert entry.due_at is not None
    assert abs(entry.due_at - time.time()) < 30
    queue = records.wait(
        lambda queries: next((one for one in queries.queue_views().rows if one.published >= 3), None), "the count"
    )
    assert isinstance(queue, QueueView)
