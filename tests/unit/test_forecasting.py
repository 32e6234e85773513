"""When a growing process reaches its limit: the slope, what counts as growth, and how it is said."""

from __future__ import annotations

import math
import random

import pytest

from celery_trace.heap.forecasting import (
    WARM_UP_S,
    Series,
    evenly,
    growth_of,
    left_of,
    sentence,
    theil_sen,
)
from celery_trace.model import Forecast, GrowthShare

MIB = 1024 * 1024
HOUR = 3600.0


def series(hours: float, mib_at: object, *, every_s: float = 10.0, noise_mib: float = 0.5, seed: int = 1) -> Series:
    """Samples of a process that began at 0, with noise."""
    chance = random.Random(seed)
    assert callable(mib_at)
    times = [number * every_s for number in range(int(hours * HOUR / every_s))]
    return [(at_s, (mib_at(at_s / HOUR) + chance.gauss(0, noise_mib)) * MIB) for at_s in times]


def test_the_slope_is_the_median_of_all_slopes_and_a_peak_does_not_move_it() -> None:
    points = [(float(at), 2.0 * at) for at in range(20)]
    assert theil_sen(points).slope == 2.0
    peaked = [(at, value + (500 if at in (7, 8) else 0)) for at, value in points]
    assert theil_sen(peaked).slope == pytest.approx(2.0, abs=0.1)


def test_the_true_slope_lies_in_its_interval_nine_times_in_ten() -> None:
    inside = 0
    for seed in range(100):
        chance = random.Random(seed)
        trend = theil_sen([(float(at), 3.0 * at + chance.gauss(0, 20)) for at in range(30)])
        inside += trend.low <= 3.0 <= trend.high
    assert 84 <= inside <= 98


def test_a_slice_without_a_sample_is_as_the_one_before() -> None:
    assert [value for _, value in evenly([(0.0, 1.0), (10.0, 2.0), (100.0, 9.0)], 5)] == [1.5, 2.0, 2.0, 2.0, 9.0]


def test_steady_growth_reaches_its_limit_when_it_does() -> None:
    found = growth_of(series(2, lambda hour: 100 + 60 * hour), 0.0)
    assert found is not None
    assert found.trend.slope * HOUR / MIB == pytest.approx(60, rel=0.05)
    left = left_of(found, 512 * MIB, 2 * HOUR)
    assert left is not None
    assert left.seconds / HOUR == pytest.approx((512 - 220) / 60, rel=0.05)
    assert left.earliest_s <= left.seconds <= left.latest_s


@pytest.mark.parametrize(
    "mib_at",
    [
        lambda _: 200,
        lambda hour: 100 + (80 if hour > 0.7 else 0),
        lambda hour: 100 + 80 * (1 - math.exp(-hour * 8)),
        lambda hour: 100 + 60 * min(hour, 0.6),
        lambda hour: 150 + 50 * math.sin(hour * 20),
        lambda hour: 100 + 200 * ((hour * 6) % 1),
        lambda hour: 200 - 20 * hour,
        lambda hour: 200 + 0.4 * hour,
    ],
    ids=["flat", "step", "fills", "stops", "waves", "sawtooth", "shrinks", "a few kilobytes"],
)
def test_what_does_not_grow_on_is_told_no_date(mib_at: object) -> None:
    for seed in range(10):
        assert growth_of(series(2, mib_at, noise_mib=1.0, seed=seed), 0.0) is None


def test_noise_that_walks_at_random_is_rarely_taken_for_growth() -> None:
    taken = 0
    for seed in range(60):
        chance = random.Random(seed)
        level, points = 300.0 * MIB, []
        for number in range(720):
            level += chance.gauss(0, 0.3) * MIB
            points.append((number * 10.0, level))
        taken += growth_of(points, 0.0) is not None
    assert taken <= 6


def test_the_first_minutes_say_nothing() -> None:
    started = series(0.1, lambda hour: 50 + 2000 * hour)
    assert growth_of(started, 0.0) is None
    imports = [(at_s, min(300.0, 50 + at_s * 4) * MIB) for at_s in range(0, 1800, 10)]
    assert growth_of([(float(at_s), value) for at_s, value in imports], 0.0) is None
    assert WARM_UP_S >= 60


def test_growth_that_slowed_down_counts_as_it_is_now() -> None:
    found = growth_of(series(4, lambda hour: 100 + (200 * hour if hour < 1.5 else 300 + 20 * (hour - 1.5))), 0.0)
    assert found is not None
    assert found.trend.slope * HOUR / MIB == pytest.approx(20, rel=0.2)


def test_a_limit_far_ahead_or_passed_is_told_no_date() -> None:
    found = growth_of(series(1, lambda hour: 100 + 60 * hour), 0.0)
    assert found is not None
    assert left_of(found, 150 * MIB, HOUR) is None
    assert left_of(found, 100_000 * MIB, HOUR) is None


def forecast(**values: object) -> Forecast:
    known: dict[str, object] = {
        "worker": "shop@web1", "process": "p", "pid": 7, "limit": "child", "limit_bytes": 512 * MIB,
        "used_bytes": 300 * MIB, "bytes_per_hour": 60 * MIB, "at": 0.0, "seconds": 3 * HOUR, "earliest_s": 2 * HOUR,
        "latest_s": 5 * HOUR, "shares": [GrowthShare("task", "shop.tasks.remember_order", 48 * MIB, 0.8)],
    }  # fmt: skip
    return Forecast(**known | values)  # type: ignore[arg-type]


def test_it_is_said_in_one_sentence() -> None:
    assert sentence(forecast()) == (
        "reaches its limit of 512.0 MiB in 3 h (2 h to 5 h), 80 % of the growth by shop.tasks.remember_order"
    )
    assert sentence(forecast(limit="container", shares=[], earliest_s=3 * HOUR, latest_s=3 * HOUR)) == (
        "reaches its container's limit of 512.0 MiB in 3 h"
    )
