"""The timeline of a workflow, from the store and from Celery's events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from celery_trace import timeline
from celery_trace.intervals import SAMPLE_S
from celery_trace.model import FailureSummary, Kind, Outcome, Run, Sample
from celery_trace.model.timelines import TaskEvents, Timeline

if TYPE_CHECKING:
    from celery_trace.queries import Queries

#: Runs, and failures of each outcome, that are read from the store for one root.
MOST_STORED: Final = 500
#: Roots of one workflow that are read, and tasks of which the root is looked up.
MOST_ROOTS: Final = 5
MOST_LOOKED_UP: Final = 200

Remembered = Callable[..., Sequence[TaskEvents]]


def no_events(*_: object) -> Sequence[TaskEvents]:
    """Outside of a monitor, Celery's events are not known."""
    return []


def read(queries: Queries, remembered: Remembered, root_id: str, now_s: float) -> Timeline:
    """
    The timeline of the workflow of a root, or of another of its tasks; without rows if no source knows the id.

    Args:
        queries: Reads the store.
        remembered: Returns the events of a workflow by its root's id, and of further tasks by their ids.
        root_id: The id that was asked for.
        now_s: The reader's clock, seconds since the epoch.
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
    return timeline.build(
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


def _samples(queries: Queries, runs: Sequence[Run]) -> list[Sample]:
    """The memory of the processes during the runs."""
    times = [(run.started_at_s, run.started_at_s + run.duration_s) for run in runs]
    finite = [pair for pair in times if all(map(math.isfinite, pair))]
    if not finite:
        return []
    since_s, until_s = min(starts_s for starts_s, _ in finite), max(ends_s for _, ends_s in finite)
    return queries.memory_between((run.process for run in runs), since_s, until_s + SAMPLE_S)
