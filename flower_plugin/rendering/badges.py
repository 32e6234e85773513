"""Small pieces of markup: badges, sparklines, bars. Every function returns safe HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from celery_trace.text.format import size
from flower_plugin.rendering.wording import show

#: What a single run's bytes and blocks mean, on hover.
HELD_AT_END = (
    "What the run had added when it ended, with its result and what Celery had not let go of yet. "
    "What stays for good is the verdict's matter."
)

#: (what a badge says, its colour, what it means on hover)
_VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "leaking": (
        "leaking",
        "danger",
        "It grows with the runs, survives a collection, and still grew when it was looked at again",
    ),
    "growing": (
        "growing",
        "warning",
        "It grows with the runs and survives a collection; a later look will tell a leak from a cache that fills",
    ),
    "suspect": ("suspect", "info", "Counters grow with the runs; the line is still being looked for"),
    "steady": ("steady", "success", "It grew at first and then stopped: a cache that filled, or a pool"),
    "too_few_runs": ("too few runs", "muted", "Not enough runs were looked at to say more"),
}

_OUTCOMES: Mapping[str, tuple[str, str, str]] = {
    "failed": ("failed", "danger", "The task raised"),
    "retried": ("retried", "warning", "The task asked to be run again"),
    "rejected": ("rejected", "muted", "The task raised Reject or Ignore"),
    "time_limit": ("time limit", "danger", "The hard time limit killed it"),
    "revoked": ("revoked", "muted", "It was revoked, and killed if it ran"),
    "lost": ("lost", "danger", "Its process was killed, perhaps for want of memory"),
    "internal_error": ("internal error", "danger", "Celery failed around the task"),
}

_STATES: Mapping[str, tuple[str, str, str]] = {
    "new": ("new", "info", "First seen within the last day"),
    "ongoing": ("ongoing", "muted", "Known, and still happening"),
    "resolved": ("resolved", "success", "Marked as resolved, and not seen since"),
    "regressed": ("regressed", "danger", "Seen again after it was resolved"),
    "firing": ("firing", "danger", "The condition has held for as long as the rule asks"),
    "pending": ("pending", "warning", "The condition holds, but not yet for as long as the rule asks"),
    "live": ("live", "success", "The process still holds the objects"),
    "recreated": ("recreated", "info", "From the capture, in a sandbox"),
    "alive": ("alive", "success", "Its processes write samples"),
    "silent": ("silent", "muted", "None of its processes has written for a while"),
}


def _badge(table: Mapping[str, tuple[str, str, str]], word: str) -> str:
    text, colour, meaning = table.get(str(word), (str(word), "muted", ""))
    return f'<span class="tr-badge tr-{colour}" title="{show(meaning)}">{show(text)}</span>'


def verdict(word: str) -> str:
    """A leak's verdict."""
    return _badge(_VERDICTS, word)


def verdict_meaning(word: str) -> str:
    """What a verdict means, escaped."""
    return show(_VERDICTS.get(str(word), ("", "", ""))[2])


def outcome(word: str) -> str:
    """How a run ended."""
    return _badge(_OUTCOMES, word)


def state(word: str) -> str:
    """The state of a group, an alert, a shell or a worker."""
    return _badge(_STATES, word)


def sparkline(points: Sequence[tuple[float, float]], label: str, width: int = 110, height: int = 26) -> str:
    """
    A line through points, oldest first.

    Args:
        points: ``(time, value)``; times are seconds, values bytes.
        label: What it shows, for a screen reader.
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
    text = f"{label}: from {size(values[0])} to {size(values[-1])}"
    return (
        f'<svg class="tr-spark" role="img" aria-label="{show(text)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><polyline points="{place}"/><circle cx="{x}" cy="{y}" r="2.2"/></svg>'
    )


def bars(trend: Sequence[tuple[float, int]], label: str, width: int = 110, height: int = 26) -> str:
    """Bars of a count per equal slice of time, oldest first."""
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
    total = sum(count for _, count in trend)
    text = f"{label}: {total:,} in {len(trend)} slices of time, at most {most:,} in one"
    return (
        f'<svg class="tr-bars" role="img" aria-label="{show(text)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{rects}</svg>'
    )


def meter(share: float, label: str) -> str:
    """A horizontal bar for a share from 0 to 1."""
    width = max(0.0, min(1.0, share)) * 100
    return (
        f'<svg class="tr-meter" role="img" aria-label="{show(label)}" viewBox="0 0 100 6" preserveAspectRatio="none">'
        f'<rect class="tr-meter-ground" width="100" height="6" rx="1"/>'
        f'<rect width="{width:.1f}" height="6" rx="1"/></svg>'
    )
