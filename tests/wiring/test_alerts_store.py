"""The engine over a real store: from records to a page, over restarts, and beside a second monitor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from celery_trace.alerting.engine import AlertEngine
from celery_trace.clock import FakeClock
from celery_trace.model import AnyRecord, MemoryState, Outcome, Role
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, leak_rows, open_store
from tests.support import store_records as make
from tests.support.alerting import MemoryChannel


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(make.NOW_S)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")), clock=clock)
    yield opened
    opened.close()


def engine(store: Store, clock: FakeClock, *channels: MemoryChannel, **values: Any) -> AlertEngine:
    return AlertEngine(store, Queries(store), Settings().over(**values), clock, channels=channels)


def rules_of(alerts: list[Any]) -> dict[str, str]:
    return {alert.rule: alert.state for alert in alerts}


def what_calls_for_every_rule(now_s: float) -> list[AnyRecord]:
    return [
        make.process("p1"),
        make.process("p2", worker="w2@h1", role=Role.MAIN, ended_at_s=now_s - 5, ended_how="killed"),
        make.window("x1", stage="verdict", run_number=420, runs=40),
        make.sample(now_s - 1, 3 * 1024**3),
        make.failure("t1", at_s=now_s - 2),
        make.failure("t2", at_s=now_s - 1, outcome=Outcome.LOST, exception=None, fingerprint="fp-lost"),
        make.rollup(1, 100, failed=60),
        *grows_towards_its_limit(now_s),
    ]


def grows_towards_its_limit(now_s: float) -> list[AnyRecord]:
    mib = 1024 * 1024
    samples: list[AnyRecord] = [
        make.sample(
            now_s - 3600 + step * 20,
            0,
            process="p3",
            memory=MemoryState(rss_bytes=(100 + step) * mib, child_limit_bytes=400 * mib),
        )
        for step in range(180)
    ]
    return [make.process("p3", started_at_s=now_s - 3600), *samples]


def test_every_shipped_rule_fires_on_records_that_call_for_it(store: Store, clock: FakeClock) -> None:
    channel = MemoryChannel()
    alerts = engine(store, clock, channel)
    store.write(what_calls_for_every_rule(make.NOW_S))
    leak_rows.refresh(store, most_s=10)
    first = rules_of(alerts.evaluate())
    assert first == {
        "leak": "firing", "lost": "firing", "new_failure": "firing", "worker_silent": "firing",
        "process_memory": "pending", "failure_rate": "pending", "process_limit": "pending",
    }  # fmt: skip
    clock.advance(61)
    second = rules_of(alerts.evaluate())
    assert second["process_memory"] == "firing"
    assert second["failure_rate"] == "firing"
    assert second["process_limit"] == "firing"
    assert {message.rule for message in channel.messages} == set(first)
    for message in channel.messages:
        json.dumps(message.body)
        assert message.alerts


def test_a_restart_over_the_store_pages_nobody_twice(store: Store, clock: FakeClock) -> None:
    channel = MemoryChannel()
    store.write([make.process(), make.failure("t1", outcome=Outcome.LOST, exception=None)])
    engine(store, clock, channel).evaluate()
    heard = list(channel.heard)
    assert ("firing", 1) in heard
    for _ in range(3):
        clock.advance(20)
        engine(store, clock, channel).evaluate()
    assert channel.heard == heard


def test_an_acknowledgement_and_a_silence_survive_a_restart(store: Store, clock: FakeClock) -> None:
    killed = make.failure("t1", outcome=Outcome.LOST, exception=None, fingerprint="fp-lost")
    store.write([make.process(), killed, make.failure("t2")])
    lost = next(alert for alert in engine(store, clock).evaluate() if alert.rule == "lost")
    engine(store, clock).acknowledge(lost.id, "ada")
    engine(store, clock).silence(lost.id, 3600, "ada")
    clock.advance(5)
    channel = MemoryChannel()
    again = next(alert for alert in engine(store, clock, channel).evaluate() if alert.rule == "lost")
    assert (again.acknowledged_by, again.silenced_until) == ("ada", make.NOW_S + 3600)
    assert [message.rule for message in channel.messages] == ["new_failure"]


def test_two_monitors_over_one_store_send_one_message(store: Store, clock: FakeClock) -> None:
    store.write([make.process(), make.failure("t1", outcome=Outcome.LOST, exception=None)])
    ours, theirs = MemoryChannel(), MemoryChannel()  # the same address in two monitors
    one = engine(store, clock, ours, alert_rules=[{"rule": "lost"}])
    two = engine(store, clock, theirs, alert_rules=[{"rule": "lost"}])
    for _ in range(5):
        one.evaluate()
        two.evaluate()
        clock.advance(10)
    assert ours.heard + theirs.heard == [("firing", 1)]


def test_the_delivery_log_is_read_back_with_what_went_wrong(store: Store, clock: FakeClock) -> None:
    channel = MemoryChannel()
    channel.broken = "ünreachable 😀"
    store.write([make.process(), make.failure("t1", outcome=Outcome.LOST, exception=None)])
    alerts = engine(store, clock, channel, alert_rules=[{"rule": "lost"}])
    (alert,) = alerts.evaluate()
    clock.advance(5)
    channel.broken = ""
    alerts.evaluate()
    log = Queries(store).deliveries(alert.id).rows
    assert [(entry.ok, entry.attempt, entry.error) for entry in log] == [(True, 2, ""), (False, 1, "ünreachable 😀")]


def test_a_call_while_a_round_is_under_way_returns_at_once(store: Store, clock: FakeClock) -> None:
    entered, release = threading.Event(), threading.Event()

    class Slow(MemoryChannel):
        def send(self, message: Any) -> None:
            entered.set()
            assert release.wait(30)
            super().send(message)

    channel = Slow()
    store.write([make.process(), make.failure("t1", outcome=Outcome.LOST, exception=None)])
    alerts = engine(store, clock, channel, alert_rules=[{"rule": "lost"}])
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(alerts.evaluate)
        assert entered.wait(30)
        assert [alert.state for alert in alerts.evaluate()] == ["firing"]
        # What a person does is not held up by a channel that hangs.
        assert alerts.acknowledge(alerts.evaluate()[0].id, "ada") is not None
        release.set()
        slow.result(30)
    assert channel.heard == [("firing", 1)]
    assert [alert.acknowledged_by for alert in alerts.evaluate()] == ["ada"]
