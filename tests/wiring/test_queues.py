"""Queues: read from a real broker, kept in a store, and what API, page and command make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu import Connection, Producer
from prometheus_client.parser import text_string_to_metric_families

from celery_trace.clock import FakeClock
from celery_trace.commands import trace
from celery_trace.errors import Unavailable
from celery_trace.model import Kind, QueueSample, Role, RunningRun, RunningSnapshot
from celery_trace.published import HEADER
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store
from flower_plugin.api.metrics import render, take
from flower_plugin.incoming.queues import QueueReader, head_age_s
from flower_plugin.jobs import QueueWatch
from flower_plugin.pages.overview import strips
from flower_plugin.pages.queues import together
from tests.support import store_records as make
from tests.support.monitor_app import Client, make_monitor, serving
from tests.support.processes import free_port

NOW_S = make.NOW_S


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW_S)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")), clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def queries(store: Store) -> Queries:
    return Queries(store)


# --- what the store makes of the records


def test_a_queue_has_its_waits_its_depth_and_its_consumers(store: Store, queries: Queries) -> None:
    store.write(
        [
            make.flow(1, 90, 0.5),
            make.flow(2, 95, 0.5),  # the same process, later
            make.flow(1, 5, 40.0, process="p2", name="shop.slow"),
            make.flow(1, 0, process="web", published=120, received=0),
            make.flow(1, 7, 9.0, bucket_s=int(NOW_S) - 86_400),
            make.queue_sample(30, 600),
            make.queue_sample(12, 5, oldest_age_s=8.5),
            make.consuming(),
            make.consuming(process="p3"),
            make.consuming(process="old", at_s=NOW_S - 500),
            make.consuming(process="left", gone=True),
            make.process("ended", ended_at_s=NOW_S - 1),
            make.consuming(process="ended"),
        ]
    )
    (queue,) = queries.queue_views().rows
    assert msgspec.to_builtins(queue) == {
        "name": "mails", "depth": 12, "oldest_age_s": 8.5, "wait_p50_s": 0.8192, "wait_p95_s": 0.8192,
        "published": 120, "started": 100, "consumers": 2,
    }  # fmt: skip
    slow, fast = sorted(queries.task_flows(), key=lambda flow: flow.started)[-2:]
    assert (slow.name, slow.started, slow.wait_p50_s) == ("shop.slow", 5, 40.0), "the longest wait bounds a bucket"
    assert (fast.name, fast.started, fast.published) == ("shop.mail", 95, 120)
    assert queries.depth_changes(since_s=NOW_S - 900) == {"mails": -18}


def test_where_publishers_do_not_record_what_came_in_is_counted(store: Store, queries: Queries) -> None:
    store.write([make.flow(1, 10, received=14), make.queue_sample(3, 600), make.queue_sample(8, 1, consumers=4)])
    (queue,) = queries.queue_views().rows
    assert (queue.published, queue.consumers) == (14 + 5, 4)


def test_an_old_reading_says_nothing_about_now(store: Store, queries: Queries) -> None:
    store.write([make.queue_sample(8, 300, oldest_age_s=5.0)])
    (queue,) = queries.queue_views().rows
    assert (queue.depth, queue.oldest_age_s, queue.consumers) == (None, None, 0)


def test_queues_are_paged_by_name(store: Store, queries: Queries) -> None:
    store.write([make.flow(1, 1, queue=f"q{number}") for number in range(5)])
    first = queries.queue_views(limit=2)
    second = queries.queue_views(limit=9, cursor=first.next)
    assert [row.name for row in first.rows + second.rows] == ["q0", "q1", "q2", "q3", "q4"]
    assert second.next is None


def test_a_start_is_repeated_only_if_the_run_before_went_on_or_had_succeeded(store: Store, queries: Queries) -> None:
    store.write(
        [
            make.process("killed", ended_at_s=NOW_S - 60),
            make.start(100, process="killed", task_id="worker-killed"),
            make.start(50, task_id="worker-killed", redelivered=True),
            make.start(100, 70, task_id="failed"),
            make.start(50, task_id="failed", redelivered=True),
            make.start(100, 70, succeeded=True, task_id="again"),
            make.start(50, 40, process="p2", worker="w2@h1", task_id="again", redelivered=True),
            make.start(100, task_id="both"),
            make.start(50, process="p2", worker="w2@h1", task_id="both", redelivered=True),
            make.start(30, task_id="alone", redelivered=True),
        ]
    )
    found = {run.task_id: run for run in queries.repeated_runs(since_s=NOW_S - 3600)}
    assert {task_id: run.overlapping for task_id, run in found.items()} == {"again": False, "both": True}
    assert found["both"].workers == ["w1@h1", "w2@h1"]


def test_the_end_of_a_start_completes_it_in_any_order(store: Store, queries: Queries) -> None:
    ended = make.start(100, 60, succeeded=True)
    store.write([ended])
    store.write([make.start(100), make.start(50, process="p2", redelivered=True)])
    (run,) = queries.repeated_runs(since_s=0)
    assert not run.overlapping


def test_a_task_is_at_risk_by_its_eta_and_by_its_duration_if_it_is_acknowledged_late(
    store: Store, queries: Queries
) -> None:
    store.write(
        [
            make.consuming(visibility_timeout_s=3600.0),
            make.flow(1, 40, name="far", eta_max_s=7200.0),
            make.flow(1, 40, name="near", eta_max_s=60.0),
            make.flow(1, 40, name="slow", acks_late=True),
            make.flow(1, 40, name="slow.early"),
            make.flow(1, 40, name="elsewhere", queue="rabbit", eta_max_s=1e6),
            *(
                make.rollup(1, 30, name=name, duration_max_s=3000.0, durations=make.Histogram([0] * 24 + [0, 30]))
                for name in ("slow", "slow.early")
            ),
        ]
    )
    risks = queries.redelivery_risks()
    assert [(risk.name, risk.held_s) for risk in risks] == [("far", 7200.0), ("slow", 3000.0)]
    assert [risk.why for risk in risks] == ["its longest ETA", "the p99 of its duration, with acks_late"]


def test_an_entry_that_two_living_schedulers_publish_is_doubled(store: Store, queries: Queries) -> None:
    store.write(
        [
            make.process("p4"),
            make.process("p5"),
            make.process("p6", ended_at_s=NOW_S - 30),
            make.schedule(20),
            make.schedule(21, process="p5", missed=2),
            make.schedule(22, process="p6"),
            make.schedule(20, entry="once"),
            make.schedule(20, entry="removed", gone=True),
        ]
    )
    found = {entry.entry: entry for entry in queries.schedules()}
    assert {name: entry.processes for name, entry in found.items()} == {"nightly": 2, "once": 1}
    assert (found["nightly"].published, found["nightly"].missed) == (9, 2)


def test_the_series_of_queues_is_pruned_after_two_days(store: Store, queries: Queries, clock: FakeClock) -> None:
    store.write([make.queue_sample(1), make.flow(1, 1)])
    clock.advance(3 * 86_400)
    store.prune(Settings(), clock.now_s())
    assert queries.queue_series(since_s=0) == []
    assert queries.task_flows(since_s=0) != []


# --- the broker


def publish(url: str, queue: str, **headers: Any) -> None:
    with Connection(url) as connection:
        Producer(connection).publish([[], {}, {}], serializer="json", routing_key=queue, headers=headers)


def watch_of(url: str, store: Store, queries: Queries, clock: FakeClock) -> QueueWatch:
    context: Any = SimpleNamespace(
        capp=Celery("shop", broker=url, set_as_current=False), store=store, queries=queries, clock=clock
    )
    return QueueWatch(context)


def test_the_watch_writes_the_depth_and_the_age_of_each_queue_where_they_change(
    own_broker_url: str, store: Store, queries: Queries, clock: FakeClock
) -> None:
    store.write([make.consuming(running=2, reserved=1), make.flow(1, 0, queue="forged", published=1)])
    with Connection(own_broker_url) as connection:  # queues have to be bound
        for name in ("mails", "forged"):
            connection.SimpleQueue(name).close()
    publish(own_broker_url, "mails", **{HEADER: NOW_S - 90})
    publish(own_broker_url, "mails", **{HEADER: NOW_S - 60})
    publish(own_broker_url, "forged", **{HEADER: "yesterday"})
    watch = watch_of(own_broker_url, store, queries, clock)
    watch.look()
    clock.advance(10)
    watch.look()
    watch.close()
    found = {name: queries.queue_series(queue=name, since_s=0) for name in ("mails", "celery", "forged")}
    first, second = found["mails"]
    assert (first.depth, first.oldest_age_s, first.running, first.reserved) == (2, 90.0, 2, 1)
    assert (second.depth, second.oldest_age_s, second.consumers) == (2, 100.0, None)
    assert [(sample.depth, sample.oldest_age_s) for sample in found["celery"]] == [(0, None)]
    assert [(sample.depth, sample.oldest_age_s) for sample in found["forged"]] == [(1, None)]


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"[]", b"{", b'{"headers": 7}', b"[" * 100_000, b'{"headers": {"trace_published": "x"}}']
)
def test_nothing_at_the_head_of_a_queue_fails_the_reader(raw: bytes) -> None:
    assert head_age_s(raw, NOW_S) is None


def test_the_age_at_the_head_counts_from_an_eta() -> None:
    headers = {HEADER: NOW_S - 50, "eta": "2023-11-14T22:13:10+00:00"}
    assert head_age_s(json.dumps({"headers": headers}).encode(), NOW_S) == 10.0


def test_a_broker_that_is_away_is_an_unavailable_without_its_password() -> None:
    port = free_port()
    reader = QueueReader(Celery("shop", broker=f"redis://:hunter2@127.0.0.1:{port}/0", set_as_current=False))
    with pytest.raises(Unavailable) as refused:
        reader.read(["celery"], NOW_S)
    assert "hunter2" not in str(refused.value)
    assert "queues" in refused.value.what


# --- readers


def test_metrics_have_the_wait_and_the_depth_of_each_queue(store: Store, queries: Queries) -> None:
    store.write(
        [
            make.flow(1, 90, 2.0),
            make.queue_sample(5, oldest_age_s=30.0),
            make.queue_sample(7, queue="unread", oldest_age_s=600.0),
            make.queue_sample(0, queue="idle"),
        ]
    )
    text = render(take(queries, {}, NOW_S)).decode()
    samples = {
        (sample.name, sample.labels["queue"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "queue" in sample.labels
    }
    assert samples == {
        ("celery_trace_queue_latency_seconds", "mails"): 30.0,
        ("celery_trace_queue_latency_seconds", "unread"): 600.0,
        ("celery_trace_queue_latency_seconds", "idle"): 0.0,
        ("celery_trace_queue_depth", "mails"): 5.0,
        ("celery_trace_queue_depth", "unread"): 7.0,
        ("celery_trace_queue_depth", "idle"): 0.0,
    }


def test_the_strip_of_the_overview_covers_an_hour(store: Store, queries: Queries) -> None:
    assert strips(queries, [], [], NOW_S) == []
    runs = [
        RunningRun(process="p", kind=kind, name="x", pid=7, role=Role.CHILD, started_at_s=NOW_S - 5, thread=number)
        for number, kind in enumerate((Kind.TASK, Kind.TASK, Kind.REQUEST))
    ]
    store.write(
        [
            make.rollup(1, 120, failed=30),
            make.rollup(1, 50, kind=Kind.REQUEST, name="GET /"),
            make.queue_sample(3, 60),
            make.queue_sample(4, 30, queue="other"),
            make.consuming(reserved=4),
            RunningSnapshot(place="h", at_s=NOW_S - 1, runs=runs),
        ]
    )
    found = {strip.label: strip for strip in strips(queries, [], queries.running().rows, NOW_S)}
    assert list(found) == ["Throughput", "Waiting", "Running", "Failing", "Workers"]
    assert (found["Waiting"].value, found["Running"].value, found["Failing"].value) == ("7", "2", "25 %")
    assert (found["Failing"].note, found["Running"].note) == ("of 120 runs", "4 reserved")


def test_a_queue_without_a_new_sample_keeps_its_last_one_in_a_sum() -> None:
    samples = [QueueSample(queue=name, at_s=at_s, depth=depth)
               for name, at_s, depth in (("a", 1.0, 5), ("b", 1.0, 2), ("b", 2.0, 0), ("a", 3.0, 1))]  # fmt: skip
    assert together(samples, lambda sample: sample.depth or 0) == [(1.0, 7.0), (2.0, 5.0), (3.0, 1.0)]


def test_api_and_command_answer_with_the_contracts_object(tmp_path: Path) -> None:
    settings = Settings(dir=str(tmp_path / "trace"), collector=False)
    store = open_store(settings)
    now_s = store.clock.now_s()
    bucket_s = int(now_s) // 300 * 300
    store.write([make.flow(1, 40, 2.0, bucket_s=bucket_s), QueueSample(queue="mails", at_s=now_s, depth=3)])
    store.close()
    wanted = {
        "name": "mails", "depth": 3, "oldest_age_s": None, "wait_p50_s": 2.0, "wait_p95_s": 2.0, "published": 40,
        "started": 40, "consumers": 0,
    }  # fmt: skip
    with serving(lambda: make_monitor(tmp_path, settings=settings)) as (base, _):
        client = Client(base)
        client.log_in()
        assert client.get("/api/trace/queues").json() == {"queues": [wanted], "next": None}
        assert client.get("/api/trace/queues?since=x").status == 400
        page = client.get("/trace/queues?queue=mails").text
    assert "mails" in page
    assert "No worker consumes this queue" in page
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update({"trace_dir": str(tmp_path / "trace")})
    context = CLIContext(app=app, no_color=True, workdir=None)
    answer = CliRunner().invoke(trace, ["queues", "--format", "json"], obj=context)
    assert json.loads(answer.stdout)["queues"] == [wanted]
    table = CliRunner().invoke(trace, ["queues"], obj=context)
    assert table.exit_code == 0
    assert "WAIT (P95)" in table.stdout
