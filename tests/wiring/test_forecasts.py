"""Which processes reach their limit, as readers, pages, alerts and commands tell it from what the store holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.alerting.engine import AlertEngine
from celery_trace.clock import FakeClock
from celery_trace.heap import forecasting
from celery_trace.model import Evidence, MemoryState, Role, Room
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, leak_rows, open_store
from tests.support import store_records as make

MIB = 1024 * 1024
START_S = make.NOW_S
NOW_S = START_S + 7200


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path)), clock=FakeClock(NOW_S))
    yield opened
    opened.close()


def grow(
    store: Store,
    uid: str = "p1",
    *,
    mib_an_hour: float = 60.0,
    child_limit_mib: int | None = 512,
    room: tuple[str, float, int] | None = None,
    seconds: float = 7200.0,
    **values: Any,
) -> None:
    """Two hours of a process whose memory grows; ``room`` is of what, how fast, and the limit in MiB."""
    began_s = NOW_S - seconds
    store.write([make.process(uid, started_at_s=began_s, **values)])
    samples = []
    for step in range(int(seconds / 20)):
        hours = step * 20 / 3600
        shared = Room(int((300 + room[1] * hours) * MIB), room[2] * MIB, room[0]) if room else None
        limit = child_limit_mib * MIB if child_limit_mib else None
        memory = MemoryState(rss_bytes=int((100 + mib_an_hour * hours) * MIB), child_limit_bytes=limit, room=shared)
        samples.append(make.sample(began_s + step * 20, 0, process=uid, memory=memory))
    store.write(samples)


def leak(store: Store, kept_mib_a_run: float, runs: int, uid: str = "p1") -> None:
    """A task with a leak, and its runs over the two hours."""
    evidence = Evidence(400, 200, 200, kept_mib_a_run * MIB * 400, 400)
    store.write([make.window("w1", process=uid, at_s=NOW_S - 60, evidence=evidence, name="shop.remember")])
    first_s = int(START_S) // 300 * 300
    buckets = range(first_s, int(NOW_S), 300)
    store.write(
        [
            make.rollup(1, runs // len(buckets), process=uid, bucket_s=bucket_s, name="shop.remember")
            for bucket_s in buckets
        ]
    )
    leak_rows.refresh(store, most_s=10)


def test_a_child_reaches_its_limit_and_the_leak_that_it_is_due_to_is_named(store: Store) -> None:
    grow(store)
    leak(store, 0.1, 1200)  # 120 MiB in all; the child gains 60 MiB in each of two hours
    (forecast,) = Queries(store).forecasts()
    assert (forecast.limit, forecast.limit_bytes, forecast.pid) == ("child", 512 * MIB, 11)
    assert forecast.seconds / 3600 == pytest.approx((512 - 220) / 60, rel=0.05)
    assert forecast.earliest_s <= forecast.seconds <= forecast.latest_s
    (share,) = forecast.shares
    assert share.name == "shop.remember"
    assert share.share == pytest.approx(1.0, abs=0.1)
    assert "% of the growth by shop.remember" in forecasting.sentence(forecast)


@pytest.mark.parametrize(
    "case",
    [
        {"mib_an_hour": 0.0},
        {"child_limit_mib": None},
        {"seconds": 500.0, "mib_an_hour": 900.0},
        {"ended_at_s": NOW_S - 5, "ended_how": "exit"},
        {"child_limit_mib": 150},
    ],
    ids=["it does not grow", "no limit", "the first minutes", "it has ended", "it is beyond it"],
)
def test_nothing_is_foretold(store: Store, case: dict[str, Any]) -> None:
    grow(store, **case)
    assert Queries(store).forecasts() == []


def test_a_container_fills_whoever_of_its_processes_grows(store: Store) -> None:
    grow(store, "main", role=Role.MAIN, mib_an_hour=0.0, child_limit_mib=None, room=("container", 100.0, 1024))
    (forecast,) = Queries(store).forecasts()
    assert (forecast.limit, forecast.process) == ("container", "main")
    assert forecast.seconds / 3600 == pytest.approx((1024 - 500) / 100, rel=0.05)
    assert "its container's limit of 1.0 GiB" in forecasting.sentence(forecast)


def test_a_machine_that_others_fill_is_none_of_the_workers(store: Store) -> None:
    grow(store, "main", role=Role.MAIN, mib_an_hour=0.0, child_limit_mib=None, room=("machine", 100.0, 1024))
    assert Queries(store).forecasts() == []
    grow(store, "child", child_limit_mib=None)
    assert [one.limit for one in Queries(store).forecasts()] == ["machine"]


def test_an_answer_holds_for_a_moment(store: Store) -> None:
    grow(store)
    queries = Queries(store)
    first = queries.forecasts()
    grow(store, "p2", mib_an_hour=80.0)
    assert queries.forecasts() is first
    clock = store.clock
    assert isinstance(clock, FakeClock)
    clock.advance(60)
    assert len(queries.forecasts()) == 2


def test_an_alert_is_on_once_a_limit_is_near(store: Store) -> None:
    grow(store, mib_an_hour=100.0)
    clock = store.clock
    assert isinstance(clock, FakeClock)
    settings = Settings(alert_rules=({"rule": "process_limit", "for": 0},))
    engine = AlertEngine(store, Queries(store), settings, clock)
    engine.evaluate()
    (alert,) = Queries(store).alerts(state="firing").rows
    assert (alert.rule, alert.subject) == ("process_limit", "w1@h1 (child)")
    assert alert.text.startswith("pid 11 of w1@h1 reaches its limit of 512.0 MiB in 2 h")
    assert alert.link == "workers?worker=w1%40h1"
