"""The tries of one message, from its failures, single runs, recorded starts, and what runs now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from celery_trace.model import FailureDetail, FailureSummary, MessageStart, Outcome, Run, RunningView
from celery_trace.model.attempts import Attempt
from celery_trace.queries.base import QueryBase
from celery_trace.queries.failures import FailureQueries
from celery_trace.queries.running import RunningQueries
from celery_trace.queries.runs import RunQueries
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables

#: Records of each source that are read for one task, the newest.
MOST: Final = 200
#: Two sources mean the same execution if their times differ by no more, seconds.
_SAME_S: Final = 2.0
_OF_STATE: Final = {"SUCCESS": "succeeded", "RETRY": "retried", "FAILURE": "failed"}


class AttemptQueries(QueryBase):
    """How often a message was executed."""

    def attempts(self, task_id: str) -> list[Attempt]:
        """The known executions of a task's message, in order; a run that succeeded may be missing."""
        if not task_id:
            return []
        failing = FailureQueries(self.store)
        failures = failing.failures(task_id=task_id, limit=MOST).rows
        started = sa.select(tables.starts).where(tables.starts.c.task_id == task_id)
        newest = started.order_by(tables.starts.c.started_at_s.desc()).limit(MOST)
        with self.store.reading() as connection:
            starts = rows_of.STARTS.records(connection.execute(newest))
        return together(
            failures,
            RunQueries(self.store).runs(task_id=task_id, limit=MOST).rows,
            starts,
            [run for run in RunningQueries(self.store).running().rows if run.task_id == task_id],
            failing.failure,
        )


def together(
    failures: Iterable[FailureSummary],
    runs: Iterable[Run],
    starts: Iterable[MessageStart],
    running: Iterable[RunningView],
    detail_of: Callable[[str], FailureDetail | None],
) -> list[Attempt]:
    """
    One attempt for each execution, in order.

    Args:
        failures, runs, starts, running: Of one task, in any order.
        detail_of: Reads a failure, for the times of its kills.
    """
    found: list[Attempt] = []
    for start in sorted(starts, key=lambda start: start.started_at_s):
        one = _of(found, start.retries, start.started_at_s, start.ended_at_s)
        one.redelivered, one.worker = start.redelivered, start.worker
        if start.succeeded:
            one.outcome = "succeeded"
    for run in runs:
        one = _of(found, run.retries, run.started_at_s, run.started_at_s + run.duration_s)
        one.run, one.outcome = run.id, _OF_STATE.get(run.state, one.outcome)
    for failure in sorted(failures, key=lambda failure: failure.at):
        _add_failure(found, failure, detail_of)
    for row in running:
        one = _of(found, row.retries, row.since, None)
        one.outcome, one.worker, one.pid = "running", row.worker, row.pid
    return sorted(found, key=lambda one: (one.retries, one.started_at or one.ended_at or 0.0))


def _add_failure(
    found: list[Attempt], failure: FailureSummary, detail_of: Callable[[str], FailureDetail | None]
) -> None:
    """A message that killed several processes has one failure, with a list of its kills."""
    detail = detail_of(failure.id) if failure.kills > 1 else None
    for kill in detail.killed if detail is not None else ():
        one = _of(found, failure.retries, None, kill.at_s)
        one.outcome, one.worker, one.pid, one.failure = str(Outcome.LOST), kill.worker, kill.pid, failure.id
    one = _of(found, failure.retries, None, failure.at)
    one.outcome, one.failure = str(failure.outcome), failure.id
    one.worker, one.pid = failure.worker or failure.hostname, failure.pid
    if failure.exception is not None:
        one.error = f"{failure.exception.type}: {failure.exception.message}"[:300]


def _of(found: list[Attempt], retries: int, started_s: float | None, ended_s: float | None) -> Attempt:
    """The attempt that these times are of; a new one if there is none."""
    for one in found:
        if one.retries == retries and _is_same(one, started_s, ended_s):
            break
    else:
        one = Attempt(retries=retries)
        found.append(one)
    one.started_at = one.started_at if one.started_at is not None else started_s
    one.ended_at = ended_s if ended_s is not None else one.ended_at
    return one


def _is_same(one: Attempt, started_s: float | None, ended_s: float | None) -> bool:
    if started_s is not None and one.started_at is not None:
        return abs(one.started_at - started_s) <= _SAME_S
    if ended_s is not None and one.ended_at is not None:
        return abs(one.ended_at - ended_s) <= _SAME_S
    # Of one, only the start is known, and of the other only the end.
    begin_s, end_s = (one.started_at, ended_s) if started_s is None else (started_s, one.ended_at)
    return begin_s is not None and end_s is not None and begin_s <= end_s
