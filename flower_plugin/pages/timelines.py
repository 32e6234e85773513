"""The timeline of a workflow: what waited and ran when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from celery_trace import timeline
from celery_trace.intervals import SAMPLE_S
from celery_trace.model import FailureSummary, Kind, Outcome, Run, Sample
from celery_trace.model.timelines import Span, TaskEvents, Timeline, TimelineRow
from celery_trace.queries import Queries
from celery_trace.text import format
from flower_plugin.pages.page import Context, MonitorPage, Visit
from flower_plugin.problems import NotFound

#: Runs, and failures of each outcome, that are read from the store for one root.
MOST_STORED = 500
#: Roots of one workflow that are read, and tasks of which the root is looked up.
MOST_ROOTS, MOST_LOOKED_UP = 5, 200
#: Chords of which the captured arguments are read.
MOST_CHORDS = 10
#: Width of the drawing, in its own units.
WIDTH = 1000.0

_FAILED = frozenset({"failed", "time_limit", "lost", "internal_error"})

Remembered = Callable[..., Sequence[TaskEvents]]


def read(queries: Queries, remembered: Remembered, root_id: str, now_s: float) -> Timeline:
    """
    The timeline of the workflow of a root, or of another of its tasks.

    Args:
        remembered: Flower's memory, :attr:`~flower_plugin.context.MonitorStatus.workflow`.
        now_s: The monitor's clock, seconds since the epoch.

    Raises:
        NotFound: No source knows the id.
    """
    events = remembered(root_id)
    looked_up = [root_id, *(one.task_id for one in events)][:MOST_LOOKED_UP]
    stored_roots = queries.roots_of(looked_up)
    # If a request has sent the workflow, its id is the root in the store, and Celery has another one.
    celerys = [one.root_id for one in events if one.task_id == root_id and one.root_id]
    first = next((one for one in (*stored_roots, *celerys) if one != root_id), root_id)
    roots = list(dict.fromkeys([root_id, *stored_roots]))[:MOST_ROOTS]
    runs: list[Run] = [*queries.runs(task_id=first, limit=MOST_STORED).rows]
    failures: list[FailureSummary] = []
    incomplete = False
    for root in roots:
        some_runs = queries.runs(root_id=root, limit=MOST_STORED)
        runs += some_runs.rows
        incomplete = incomplete or some_runs.next is not None
        for outcome in Outcome:  # the many retries of one task must not hide what failed
            some_failures = queries.failures(root_id=root, outcome=outcome, limit=MOST_STORED)
            failures += some_failures.rows
            incomplete = incomplete or some_failures.next is not None
    known = {one.task_id for one in events}
    stored = {run.task_id for run in runs if run.kind == Kind.TASK}
    stored |= {failure.task_id for failure in failures if failure.kind == Kind.TASK}
    if stored - known:
        events = remembered(root_id, stored)
    found = timeline.build(
        root_id,
        events=events,
        runs=runs,
        failures=failures,
        samples=_samples(queries, runs),
        chords=queries.chords(roots),
        now_s=now_s,
        first=first,
        incomplete=incomplete,
    )
    if not found.rows:
        raise NotFound(
            "Workflow not found.",
            "Its tasks succeeded and were not stored, or were pruned, and Flower no longer has them in memory.",
            ("trace_runs", "All names"),
        )
    return found


def _samples(queries: Queries, runs: Sequence[Run]) -> list[Sample]:
    """The memory of the processes during the runs."""
    times = [(run.started_at_s, run.started_at_s + run.duration_s) for run in runs]
    finite = [pair for pair in times if all(map(math.isfinite, pair))]
    if not finite:
        return []
    since_s, until_s = min(starts_s for starts_s, _ in finite), max(ends_s for _, ends_s in finite)
    return queries.memory_between((run.process for run in runs), since_s, until_s + SAMPLE_S)


class Bar(Struct, frozen=True, kw_only=True):
    """A rectangle of the drawing. ``x`` and ``width`` are in units of :data:`WIDTH`."""

    kind: str
    x: float
    width: float


class ShownRow(Struct, frozen=True, kw_only=True):
    """A row for the template. ``text`` describes its bars."""

    row: TimelineRow
    bars: list[Bar]
    text: str
    runs_link: bool


def shown(found: Timeline, now_s: float) -> list[ShownRow]:
    """The rows with their bars."""
    begins_s = now_s if found.begins_at is None else found.begins_at
    length_s = max((now_s if found.ends_at is None else found.ends_at) - begins_s, 0.001)
    return [
        ShownRow(
            row=row,
            bars=[bar for span in row.spans if (bar := _bar(span, row, begins_s, length_s, now_s))],
            text=_text(row, begins_s, now_s),
            runs_link=bool(row.run and row.name),
        )
        for row in found.rows
    ]


def _ends_s(span: Span, row: TimelineRow, now_s: float) -> float | None:
    """The end of a span; now if it goes on."""
    return now_s if span.ends_at is None and row.outcome == span.kind else span.ends_at


def _bar(span: Span, row: TimelineRow, begins_s: float, length_s: float, now_s: float) -> Bar | None:
    ends_s = _ends_s(span, row, now_s)
    known = [at_s for at_s in (span.starts_at, ends_s) if at_s is not None]
    if not known:
        return None
    left, right = ((at_s - begins_s) / length_s * WIDTH for at_s in (min(known), max(known)))
    width = max(6.0, right - left)
    return Bar(kind=_kind(span, row), x=max(0.0, min(left, WIDTH - width)), width=min(width, WIDTH))


def _kind(span: Span, row: TimelineRow) -> str:
    """The color of a bar: an earlier try was retried, whatever the outcome of the last."""
    if span.kind == "waiting":
        return "waiting"
    if span is not row.spans[-1] or row.outcome == "retried":
        return "retried"
    return "failed" if row.outcome in _FAILED else "running"


def _text(row: TimelineRow, begins_s: float, now_s: float) -> str:
    """The bars of a row in words."""

    def after(at_s: float) -> str:
        return f"{format.duration(max(0.0, at_s - begins_s))} after the start"

    parts = []
    for span in row.spans:
        ends_s = _ends_s(span, row, now_s)
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
