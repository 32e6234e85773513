"""
When a growing process reaches its limit.

The slope of its memory is the Theil-Sen estimator: the median of the slopes between all pairs of points, which is
robust to outliers, with Sen's interval (P. K. Sen, *Estimates of the regression coefficient based on Kendall's tau*,
1968). A process grows if that interval is above zero over the whole time and over its second half, so growth that has
stopped gets no forecast.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Final

from msgspec import Struct

from celery_trace.intervals import SAMPLE_S
from celery_trace.model import Forecast
from celery_trace.text.format import about, percent, size

#: The start of a process, such as imports, is left out (seconds).
WARM_UP_S: Final = 120.0
#: The longest and the shortest time that a forecast is based on, seconds.
WINDOW_S: Final = 6 * 3600.0
LEAST_SPAN_S: Final = 480.0
#: Points that the time is divided into at most and at least.
MOST_POINTS: Final = 48
FEWEST_POINTS: Final = 10
POINT_S: Final = 2 * SAMPLE_S
#: Growth within the time that counts: a share of what is held, and bytes.
LEAST_SHARE: Final = 0.02
LEAST_BYTES: Final = 2 * 1024 * 1024
#: The share of the growth that each step between the fifths of the time must have; even growth gives a quarter.
A_PART: Final = 0.08
#: The horizon of a forecast: so many times the time of growth, and a week at most.
TIMES_AHEAD: Final = 12.0
MOST_AHEAD_S: Final = 7 * 86_400.0
#: The quantile of the normal distribution for an interval of 90 %.
_Z: Final = 1.645

#: ``(seconds, bytes)``, oldest first.
Series = Sequence[tuple[float, float]]


class Slope(Struct, frozen=True):
    """A slope with its interval of 90 %, bytes a second."""

    slope: float
    low: float
    high: float


class Growth(Struct, frozen=True):
    """A series that grows."""

    trend: Slope
    level_bytes: float  # at its end
    since_s: float  # the start of the series
    until_s: float

    @property
    def bytes(self) -> float:
        """What it gained in that time."""
        return self.trend.slope * (self.until_s - self.since_s)


def theil_sen(points: Series) -> Slope:
    """The slope through at least two points at different times."""
    slopes = sorted(
        (second[1] - first[1]) / (second[0] - first[0])
        for first, second in combinations(points, 2)
        if second[0] > first[0]
    )
    count = len(points)
    within = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - within) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + within) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])


def evenly(series: Series, points: int) -> list[tuple[float, float]]:
    """
    The series at even times: the median of each slice of time.

    A process writes a sample when its memory has changed, so a slice without one equals the one before.
    """
    begins_s, ends_s = series[0][0], series[-1][0]
    width_s = (ends_s - begins_s) / points
    slices: list[list[float]] = [[] for _ in range(points)]
    for at_s, value in series:
        slices[min(points - 1, int((at_s - begins_s) / width_s))].append(value)
    found = []
    level = series[0][1]
    for number, values in enumerate(slices):
        found.append((begins_s + (number + 0.5) * width_s, statistics.median(values) if values else level))
        level = values[-1] if values else level
    return found


def growth_of(series: Series, started_s: float) -> Growth | None:
    """
    Whether a process grows, and how fast.

    Args:
        series: What it held; bytes at times.
        started_s: When the process began.

    Returns:
        None if it does not grow, or there are too few points.
    """
    series = [point for point in series if point[0] >= started_s + WARM_UP_S]
    if len(series) < 3 or series[-1][0] - series[0][0] < LEAST_SPAN_S:
        return None
    span_s = series[-1][0] - series[0][0]
    points = evenly(series, max(FEWEST_POINTS, min(MOST_POINTS, int(span_s / POINT_S))))
    second_half = points[len(points) // 2 :]
    whole, late = theil_sen(points), theil_sen(second_half)
    if whole.low <= 0 or late.low <= 0:
        return None
    if late.high < whole.low or late.low > whole.high:
        points, trend = second_half, late  # it has slowed down or sped up
    else:
        trend = Slope(whole.slope, min(whole.low, late.slope), max(whole.high, late.slope))
    level = points[-1][1]
    if not goes_on([value for _, value in points]):
        return None
    if trend.slope * span_s < max(LEAST_BYTES, LEAST_SHARE * level):
        return None
    return Growth(trend, max(level, series[-1][1]), series[0][0], series[-1][0])


def goes_on(values: Sequence[float]) -> bool:
    """Whether each fifth of the time has gained its part: growth, not a step or a random walk."""
    marks = [statistics.median(values[len(values) * part // 5 : len(values) * (part + 1) // 5]) for part in range(5)]
    return all(after - before >= A_PART * (marks[-1] - marks[0]) for before, after in pairwise(marks))


class Left(Struct, frozen=True):
    """Seconds until a limit is reached, and the interval of 90 %."""

    seconds: float
    earliest_s: float
    latest_s: float


def left_of(growth: Growth, limit_bytes: float, now_s: float) -> Left | None:
    """When a limit is reached; None if it is exceeded already, or beyond the horizon."""
    left_bytes = limit_bytes - growth.level_bytes
    if left_bytes <= 0:
        return None
    passed_s = max(0.0, now_s - growth.until_s)
    trend = growth.trend
    times_s = (max(0.0, left_bytes / slope - passed_s) for slope in (trend.slope, trend.high, trend.low))
    found = Left(*times_s)
    if found.seconds > min(MOST_AHEAD_S, TIMES_AHEAD * (growth.until_s - growth.since_s)):
        return None
    return found


# --- words ----------------------------------------------------------------------------------------------

_LIMITS: Final = {
    "child": "where Celery replaces it",
    "container": "the memory of its container",
    "machine": "the memory of the machine",
}


def in_short(forecast: Forecast) -> str:
    """``reaches its limit of 512.0 MiB in 3 h``."""
    return f"reaches {_possessive(forecast)} limit of {size(forecast.limit_bytes)} in {about(forecast.seconds)}"


def sentence(forecast: Forecast) -> str:
    """``reaches its limit of 512.0 MiB in 3 h (2 h to 5 h), 80 % of the growth by shop.tasks.remember_order``."""
    earliest, latest = about(forecast.earliest_s), about(forecast.latest_s)
    text = in_short(forecast) + (f" ({earliest} to {latest})" if earliest != latest else "")
    if forecast.shares:
        first = forecast.shares[0]
        text += f", {percent(first.share)} of the growth by {first.name}"
    return text


def _possessive(forecast: Forecast) -> str:
    return {"container": "its container's", "machine": "the machine's"}.get(forecast.limit, "its")


def who(forecast: Forecast) -> str:
    """What reaches the limit: a process has its own, the others are shared by a whole worker."""
    if forecast.limit == "child":
        return f"pid {forecast.pid} of {forecast.worker}"
    return forecast.worker


def meaning(forecast: Forecast) -> str:
    """What the limit is."""
    return _LIMITS.get(forecast.limit, "")
