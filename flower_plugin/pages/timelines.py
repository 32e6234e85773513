"""The timeline of a workflow: what waited and ran when."""

from __future__ import annotations

from msgspec import Struct

from celery_trace.model.timelines import Timeline, TimelineRow
from celery_trace.queries import Queries
from celery_trace.queries.timelines import Remembered
from celery_trace.queries.timelines import read as read_timeline
from celery_trace.text import format
from celery_trace.timeline import Bar, bars, ends_of
from flower_plugin.pages.page import Context, MonitorPage, Visit
from flower_plugin.problems import NotFound

#: Width of the drawing, in its own units.
WIDTH = 1000.0


def read(queries: Queries, remembered: Remembered, root_id: str, now_s: float) -> Timeline:
    """
    The timeline of the workflow of a root, or of another of its tasks.

    Args:
        remembered: Flower's memory, :attr:`~flower_plugin.context.MonitorStatus.workflow`.
        now_s: The monitor's clock, seconds since the epoch.

    Raises:
        NotFound: No source knows the id.
    """
    found = read_timeline(queries, remembered, root_id, now_s)
    if not found.rows:
        raise NotFound(
            "Workflow not found.",
            "Its tasks succeeded and were not stored, or were pruned, and Flower no longer has them in memory.",
            ("trace_runs", "All names"),
        )
    return found


class Rectangle(Struct, frozen=True, kw_only=True):
    """A bar of the drawing. ``x`` and ``width`` are in units of :data:`WIDTH`."""

    kind: str
    x: float
    width: float


class ShownRow(Struct, frozen=True, kw_only=True):
    """A row for the template. ``text`` describes its bars."""

    row: TimelineRow
    bars: list[Rectangle]
    text: str
    runs_link: bool


def shown(found: Timeline, now_s: float) -> list[ShownRow]:
    """The rows with their bars."""
    begins_s = now_s if found.begins_at is None else found.begins_at
    return [
        ShownRow(
            row=row,
            bars=[_rectangle(bar) for bar in bars(found, row, now_s)],
            text=_text(row, begins_s, now_s),
            runs_link=bool(row.run and row.name),
        )
        for row in found.rows
    ]


def _rectangle(bar: Bar) -> Rectangle:
    left, right = bar.begins * WIDTH, bar.ends * WIDTH
    width = max(6.0, right - left)
    return Rectangle(kind=bar.kind, x=max(0.0, min(left, WIDTH - width)), width=min(width, WIDTH))


def _text(row: TimelineRow, begins_s: float, now_s: float) -> str:
    """The bars of a row in words."""

    def after(at_s: float) -> str:
        return f"{format.duration(max(0.0, at_s - begins_s))} after the start"

    parts = []
    for span in row.spans:
        ends_s = ends_of(span, row, now_s)
        if span.starts_at is not None and ends_s is not None:
            lasted = f"{span.kind} for {format.duration(max(0.0, ends_s - span.starts_at))}"
            parts.append(f"{lasted}, from {after(span.starts_at)}")
        elif span.starts_at is not None:
            parts.append(f"{span.kind} from {after(span.starts_at)}, end unknown")
        elif ends_s is not None:
            parts.append(f"ended {after(ends_s)}, start unknown")
    return "; ".join(parts) or "times unknown"


def page(queries: Queries, visit: Visit, root_id: str) -> Context:
    """
    The timeline of one workflow.

    Raises:
        NotFound: No source knows the id.
    """
    found = read(queries, visit.monitor.workflow, root_id, visit.now_s)
    name = next((row.name for row in found.rows if row.name), root_id)
    return {
        "title": f"{name} · timeline",
        "timeline": found,
        "heading_name": name,
        "rows": shown(found, visit.now_s),
        "length_s": None if found.begins_at is None or found.ends_at is None else found.ends_at - found.begins_at,
        "total": len(found.rows) + found.more,
    }


PAGE = MonitorPage(
    path=r"/trace/workflow/([^/]+)",
    name="trace_workflow",
    title="Timeline",
    template="trace/timeline.html",
    tab="runs",
    context=page,
)
