"""Badges, sparklines and bars. Every function returns safe HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from celery_trace.text.format import size
from flower_plugin.rendering.markup import show

#: The meaning of a single run's bytes and blocks, on hover.
HELD_AT_END = (
    "Memory added when the run ended, including its result and objects that Celery had not released yet. "
    "For memory that is retained, see the verdict."
)

#: (text of the badge, color, meaning on hover)
_VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "leaking": (
        "leaking",
        "danger",
        "Memory grows with the runs and is not released",
    ),
    "growing": (
        "growing",
        "warning",
        "Memory grows with the runs; more runs are needed to distinguish a leak from a cache that fills up",
    ),
    "suspect": ("suspect", "info", "Memory may grow with the runs; more runs are needed"),
    "steady": ("steady", "success", "Memory does not grow, or its holder is bounded: a cache or a pool"),
    "too_few_runs": ("too few runs", "muted", "Not enough runs for a verdict"),
}

_OUTCOMES: Mapping[str, tuple[str, str, str]] = {
    "failed": ("failed", "danger", "The task raised an exception"),
    "retried": ("retried", "warning", "The task requested a retry"),
    "rejected": ("rejected", "muted", "The task raised Reject or Ignore"),
    "time_limit": ("time limit", "danger", "Killed by the hard time limit"),
    "revoked": ("revoked", "muted", "Revoked, and killed if it was running"),
    "lost": ("lost", "danger", "The process was killed or crashed, possibly out of memory"),
    "internal_error": ("internal error", "danger", "Celery itself failed while running the task"),
    # Of a row of a timeline:
    "succeeded": ("succeeded", "success", "The task returned a result"),
    "running": ("running", "info", "It has started and no end is known"),
    "waiting": ("waiting", "muted", "It was sent and has not started, as far as is known"),
    "unknown": ("unknown", "muted", "No source has its outcome"),
}

_STATES: Mapping[str, tuple[str, str, str]] = {
    "new": ("new", "info", "First seen within 24 hours"),
    "ongoing": ("ongoing", "muted", "Known and still occurring"),
    "resolved": ("resolved", "success", "Resolved and not seen since"),
    "regressed": ("regressed", "danger", "Seen again after it was resolved"),
    "ignored": ("ignored", "muted", "Ignored until the time that a user has set"),
    "firing": ("firing", "danger", "Above the threshold for the required time"),
    "pending": ("pending", "warning", "Above the threshold, but not for the required time yet"),
    "live": ("live", "success", "The process still has the objects"),
    "recreated": ("recreated", "info", "Recreated from the capture in a sandbox"),
    "running": ("running", "info", "In progress"),
    "stuck": ("stuck", "danger", "Lasts far longer than most runs of its task, and its stack does not move"),
    "alive": ("alive", "success", "Its processes report samples"),
    "stopped": ("stopped", "muted", "Its main process exited normally"),
    "killed": ("killed", "danger", "Its main process was killed or crashed"),
    "silent": ("silent", "warning", "None of its processes has reported recently, and no end is known"),
}


def _badge(table: Mapping[str, tuple[str, str, str]], word: str) -> str:
    text, color, meaning = table.get(str(word), (str(word), "muted", ""))
    return f'<span class="tr-badge tr-{color}" title="{show(meaning)}">{show(text)}</span>'


def verdict(word: str) -> str:
    """A leak's verdict."""
    return _badge(_VERDICTS, word)


def verdict_meaning(word: str) -> str:
    """The meaning of a verdict, escaped."""
    return show(_VERDICTS.get(str(word), ("", "", ""))[2])


def outcome(word: str) -> str:
    """The outcome of a run."""
    return _badge(_OUTCOMES, word)


def state(word: str) -> str:
    """The state of a group, an alert, a shell or a worker."""
    return _badge(_STATES, word)


def sparkline(
    points: Sequence[tuple[float, float]],
    label: str,
    width: int = 110,
    height: int = 26,
    *,
    shown: Callable[[float], str] = size,
) -> str:
    """
    A line through points, oldest first.

    Args:
        points: ``(time, value)``; times are seconds.
        label: The quantity, for screen readers.
        shown: A value as text; by default bytes.
    """
    if len(points) < 2:
        return '<span class="tr-none" aria-hidden="true">·</span>'
    points = points[:: max(1, len(points) // 60)]
    times = [float(time) for time, _ in points]
    values = [float(value) for _, value in points]
    low, span_s, span = min(0.0, *values), (times[-1] - times[0]) or 1.0, 0.0
    span = (max(values) - low) or 1.0
    place = " ".join(
        f"{2 + (time - times[0]) / span_s * (width - 6):.1f},{height - 3 - (value - low) / span * (height - 6):.1f}"
        for time, value in zip(times, values, strict=True)
    )
    x, y = place.rpartition(" ")[2].split(",")
    text = f"{label}: from {shown(values[0])} to {shown(values[-1])}"
    return (
        f'<svg class="tr-spark" role="img" aria-label="{show(text)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><polyline points="{place}"/><circle cx="{x}" cy="{y}" r="2.2"/></svg>'
    )


def bars(trend: Sequence[tuple[float, int]], label: str, width: int = 110, height: int = 26) -> str:
    """Bars of counts per time slice, oldest first."""
    if not trend or not any(count for _, count in trend):
        return '<span class="tr-none" aria-hidden="true">·</span>'
    trend = trend[-48:]
    most = max(count for _, count in trend)
    step = width / len(trend)
    rects = "".join(
        f'<rect x="{index * step:.1f}" y="{height - max(2, count / most * height):.1f}" '
        f'width="{max(1.0, step - 1):.1f}" height="{max(2, count / most * height):.1f}" rx="0.8"'
        + ("/>" if count else ' class="tr-zero"/>')
        for index, (_, count) in enumerate(trend)
    )
    return (
        f'<svg class="tr-bars" role="img" aria-label="{show(_in_words(trend, label))}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{rects}</svg>'
    )


def _in_words(trend: Sequence[tuple[float, int]], label: str) -> str:
    counts = [count for _, count in trend]
    return f"{label}: {sum(counts):,} in {len(counts)} intervals, at most {max(counts, default=0):,} in one"


def bar_plot(trend: Sequence[tuple[float, int]], label: str, moment: Callable[[float], str]) -> str:
    """
    Bars of counts per time slice over the whole width, oldest first, each with its time on hover.

    Args:
        trend: Begin of each slice, seconds since the epoch, and its count.
        moment: A time as text.
    """
    most = max((count for _, count in trend), default=0)
    bars_ = []
    for index, (begin, count) in enumerate(trend):
        height = max(2.0, count / most * 100) if count else 1.0
        bars_.append(
            f'<rect x="{index * 10 + 1}" y="{100 - height:.1f}" width="8" height="{height:.1f}"'
            f"{'' if count else ' class=tr-zero'}><title>{show(moment(begin))}: {count:,}</title></rect>"
        )
    return (
        f'<svg class="tr-bars tr-bar-plot" role="img" aria-label="{show(_in_words(trend, label))}" '
        f'viewBox="0 0 {len(trend) * 10} 100" preserveAspectRatio="none">{"".join(bars_)}</svg>'
    )


def meter(share: float, label: str) -> str:
    """A horizontal bar for a share from 0 to 1."""
    width = max(0.0, min(1.0, share)) * 100
    return (
        f'<svg class="tr-meter" role="img" aria-label="{show(label)}" viewBox="0 0 100 6" preserveAspectRatio="none">'
        f'<rect class="tr-meter-ground" width="100" height="6" rx="1"/>'
        f'<rect width="{width:.1f}" height="6" rx="1"/></svg>'
    )
