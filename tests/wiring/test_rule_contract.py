"""
What every alert rule keeps: alone in the engine, over a real store, it fires on what it is for and on nothing else.

A new rule gets its records in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from celery_trace.alerting.engine import AlertEngine
from celery_trace.alerting.rules import Facts, Reading, Rule, RuleKind, kinds
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.clock import FakeClock
from celery_trace.guard import own_errors
from celery_trace.model import AnyRecord, MemoryState, Outcome, Role, Stats, Verdict
from celery_trace.queries import Queries
from celery_trace.queries.forecasts import HOLDS_S
from celery_trace.settings import Settings
from celery_trace.stores import Store, leak_rows, open_store
from tests.support import store_records as make

NOW_S = make.NOW_S
MIB = 1024 * 1024
LOST = {"outcome": Outcome.LOST, "exception": None, "fingerprint": "fp-lost"}


class Case(NamedTuple):
    """Two sets of records with the same facts: one that a rule is for, and one that it is not for."""

    fires: Callable[[], list[AnyRecord]]
    does_not: Callable[[], list[AnyRecord]]


def grows(mib_a_minute: float) -> list[AnyRecord]:
    """A child's samples of the last hour; its limit is 400 MiB."""
    samples: list[AnyRecord] = [
        make.sample(
            NOW_S - 3600 + step * 20,
            0,
            process="p3",
            memory=MemoryState(rss_bytes=int((100 + step / 3 * mib_a_minute) * MIB), child_limit_bytes=400 * MIB),
        )
        for step in range(180)
    ]
    return [make.process("p3", started_at_s=NOW_S - 3600), *samples]


def main_process(how: str) -> AnyRecord:
    return make.process("p2", worker="w2@h1", role=Role.MAIN, ended_at_s=NOW_S - 5, ended_how=how)


def dropped(**counters: int) -> AnyRecord:
    named = {name.replace("_", ":"): count for name, count in counters.items()}
    return Stats(process="p1", seq=1, at_s=NOW_S, counters=named)


CASES: dict[str, Case] = {
    "leak": Case(
        lambda: [make.window("x1", run_number=420, runs=40)],
        lambda: [make.window("x1", run_number=420, runs=40, verdict=Verdict.STEADY)],
    ),
    "process_memory": Case(
        lambda: [make.sample(NOW_S - 1, 3 * 1024 * MIB)],
        lambda: [make.sample(NOW_S - 1, 100 * MIB)],
    ),
    "process_limit": Case(lambda: grows(3), lambda: grows(0.1)),
    "failure_rate": Case(
        lambda: [make.rollup(1, 100, failed=21)],
        lambda: [make.rollup(1, 100, failed=20), make.rollup(2, 19, failed=19, name="shop.few")],
    ),
    "new_failure": Case(
        lambda: [make.failure("t1", at_s=NOW_S - 2)],
        lambda: [make.failure("t1", at_s=NOW_S - 2000), make.failure("t2", at_s=NOW_S - 2), make.failure("t3", **LOST)],
    ),
    "lost": Case(
        lambda: [make.failure("t2", at_s=NOW_S - 1, **LOST)],
        lambda: [make.failure("t1", at_s=NOW_S - 1), make.failure("t2", at_s=NOW_S - 901, **LOST)],
    ),
    "stuck": Case(
        lambda: [make.snapshot(make.running_run("t1", started_at_s=NOW_S - 40, stalled_since_s=NOW_S - 35))],
        lambda: [
            make.snapshot(
                make.running_run("t1", started_at_s=NOW_S - 40, unmoved_since_s=NOW_S - 35, stalled_since_s=0.0)
            )
        ],
    ),
    "spool_dropping": Case(lambda: [dropped(dropped_run=3)], lambda: [dropped(written_run=3)]),
    "worker_silent": Case(lambda: [main_process("killed")], lambda: [main_process("exit")]),
    "queue_latency": Case(
        lambda: [make.flow(1, 40, 400.0)],
        lambda: [make.flow(1, 40, 250.0), make.flow(1, 19, 4000.0, queue="few")],
    ),
    "queue_unread": Case(
        lambda: [make.queue_sample(3)],
        lambda: [
            make.queue_sample(3),
            make.consuming(),
            make.queue_sample(9, 120, queue="shrinks"),
            make.queue_sample(5, queue="shrinks"),
            make.queue_sample(7, queue="busy"),
            make.flow(1, 2, queue="busy"),
            make.queue_sample(0, queue="empty"),
        ],
    ),
    "duplicate_runs": Case(
        lambda: [make.start(100, 40), make.start(50, process="p2", redelivered=True)],
        lambda: [
            make.start(100, 60),  # it failed, and its message was delivered again
            make.start(50, process="p2", redelivered=True),
            make.start(100, 40, task_id="t2"),
            make.start(50, task_id="t2", retries=1),
            make.consuming(visibility_timeout_s=3600.0),
            make.flow(1, 40, eta_max_s=2000.0),
        ],
    ),
    "missed_schedule": Case(
        lambda: [make.schedule(-90)],
        lambda: [make.schedule(-20), make.schedule(-90, entry="removed", gone=True)],
    ),
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW_S)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")), clock=clock)
    yield opened
    opened.close()


def engine(store: Store, clock: FakeClock, *entries: dict[str, Any]) -> AlertEngine:
    return AlertEngine(store, Queries(store), Settings().over(alert_rules=entries), clock, channels=())


def states(alerts: AlertEngine) -> dict[str, str]:
    return {alert.rule: alert.state for alert in alerts.evaluate()}


def write(store: Store, clock: FakeClock, records: list[AnyRecord]) -> None:
    store.write([make.process("p1"), *records])
    leak_rows.refresh(store, most_s=10)
    clock.advance(HOLDS_S)  # forecasts are not made anew at once


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [kind.name for kind in kinds.KINDS]


@pytest.mark.parametrize("name", list(CASES))
def test_a_rule_alone_fires_on_what_it_is_for(name: str, store: Store, clock: FakeClock) -> None:
    alerts = engine(store, clock, {"rule": name, "for": 0})
    assert states(alerts) == {}, "nothing is in the store; what was dropped before the first look is not news"
    write(store, clock, CASES[name].fires())
    assert states(alerts) == {name: "firing"}


@pytest.mark.parametrize("name", list(CASES))
def test_a_rule_alone_does_not_fire_on_what_it_is_not_for(name: str, store: Store, clock: FakeClock) -> None:
    alerts = engine(store, clock, {"rule": name, "for": 0})
    assert states(alerts) == {}
    write(store, clock, CASES[name].does_not())
    assert states(alerts) == {}
    assert own_errors == {}


def test_the_needs_of_every_rule_are_facts() -> None:
    facts = set(Facts.__struct_fields__) - {"now_s"}
    assert {need for kind in kinds.KINDS for need in kind.needs} == facts


# --- what a rule that somebody adds can rely on


def _slow(facts: Facts, rule: Rule) -> Iterator[Reading]:
    del rule
    for rollup in facts.rollups:
        yield Reading(f"{rollup.kind} {rollup.name}", rollup.duration_max_s, f"{rollup.name} is slow")


def add_rule(monkeypatch: pytest.MonkeyPatch, *needs: str) -> None:
    """A further rule that looks back further than any shipped one."""
    kind = RuleKind(
        name="slow",
        read=_slow,
        needs=needs,
        unit=SECONDS,
        quantity="Longest run",
        shipped=Rule(rule="slow", name="slow", above=60, window_s=3600),
        meaning="A run took more than `above` within `window`",
    )
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, kind))


def test_a_rules_facts_reach_as_far_back_as_its_own_window(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(monkeypatch, "rollups")
    write(store, clock, [make.rollup(1, 9, bucket_s=int(NOW_S) - 3000, duration_max_s=300.0)])
    assert states(engine(store, clock, {"rule": "slow"})) == {"slow": "firing"}
    assert states(engine(store, clock, {"rule": "slow"}, {"rule": "failure_rate"})) == {"slow": "firing"}


def test_a_rule_that_does_not_name_what_it_reads_is_refused_in_any_company(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_rule(monkeypatch, "leaks")
    write(store, clock, [make.rollup(1, 9, duration_max_s=300.0)])
    assert states(engine(store, clock, {"rule": "slow"}, {"rule": "failure_rate"})) == {}
    assert "reads the fact 'rollups', which its KIND does not declare" in caplog.text
    assert own_errors.pop("alert rule slow") == 1
