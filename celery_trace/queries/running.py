"""What runs now on every host, against what is usual for its task."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from celery_trace.model import (
    SNAPSHOT_AGAIN_S,
    SNAPSHOT_VALID_S,
    Histogram,
    Page,
    RunningRun,
    RunningSnapshot,
    RunningView,
    StackLine,
    StalledProcess,
    is_stuck,
    stuck_after_s,
)
from celery_trace.queries.base import QueryBase
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.statements import chunks

_running = tables.running
_totals = tables.totals

#: The durations of this time are what is usual, seconds.
USUAL_S = 24 * 3600.0
#: Rollups that are read for it, the newest.
MOST_ROLLUPS = 3000


class RunningQueries(QueryBase):
    """Runs in progress."""

    def snapshots(self) -> list[RunningSnapshot]:
        """The latest snapshot of each host that still says something."""
        valid = _running.c.at_s >= self._now_s() - SNAPSHOT_VALID_S
        with self.store.reading() as connection:
            return rows_of.RUNNING.records(connection.execute(sa.select(_running).where(valid)))

    def stalled_processes(self) -> list[StalledProcess]:
        """Main processes and beats that are blocked."""
        return [stalled for snapshot in self.snapshots() for stalled in snapshot.stalled]

    def running(self) -> Page[RunningView]:
        """Every run in progress, those that began first first."""
        now_s = self._now_s()
        snapshots = self.snapshots()
        runs = [(run, snapshot) for snapshot in snapshots for run in snapshot.runs]
        uids = {run.process for run, _ in runs}
        processes = tables.processes
        with self.store.reading() as connection:
            ended: set[str] = set()
            for part in chunks(sorted(uids)):
                of_them = processes.c.uid.in_(part)
                gone = sa.select(processes.c.uid).where(of_them, processes.c.ended_at_s.is_not(None))
                ended.update(connection.execute(gone).scalars())
            usual = self._usual(connection, {run.name for run, _ in runs}, now_s)
        rows = [
            _view(run, snapshot, usual.get((str(run.kind), run.name)), now_s)
            for run, snapshot in runs
            if run.process not in ended
        ]
        return Page("running", sorted(rows, key=lambda row: (row.since, row.task_id)))

    def _usual(self, connection: sa.Connection, names: Iterable[str], now_s: float) -> dict[tuple[str, str], Histogram]:
        """How long the runs of these names took in the last day, by kind and name."""
        found: dict[tuple[str, str], list[Histogram]] = {}
        for part in chunks(sorted(names)):
            recent = _totals.c.bucket_s >= int(now_s - USUAL_S)
            wanted = sa.select(*rows_of.TOTAL_COLUMNS).where(_totals.c.name.in_(part), recent)
            newest = wanted.order_by(_totals.c.bucket_s.desc(), _totals.c.id).limit(MOST_ROLLUPS)
            for rollup in map(rows_of.total, connection.execute(newest)):
                found.setdefault((str(rollup.kind), rollup.name), []).append(rollup.durations)
        return {key: Histogram.together(histograms) for key, histograms in found.items()}


def _view(run: RunningRun, snapshot: RunningSnapshot, usual: Histogram | None, now_s: float) -> RunningView:
    elapsed_s = max(0.0, now_s - run.started_at_s)
    # As of its snapshot: what happened since is unknown.
    unmoved_s = max(0.0, snapshot.at_s - run.unmoved_since_s) if run.sampled_at_s else 0.0
    # The next snapshot comes if anything has changed, or after a while.
    known_s = min(now_s, snapshot.at_s + SNAPSHOT_AGAIN_S)
    stalled_s = max(0.0, known_s - run.stalled_since_s) if run.stalled_since_s else 0.0
    p99_s = usual.percentile_s(0.99) if usual is not None else None
    return RunningView(
        task_id=run.task_id,
        name=run.name,
        worker=run.worker or f"{run.role}@{run.hostname}",
        hostname=run.hostname,
        pid=run.pid,
        role=run.role,
        since=run.started_at_s,
        elapsed_s=elapsed_s,
        p50_s=usual.percentile_s(0.5) if usual is not None else None,
        p99_s=p99_s,
        retries=run.retries,
        queue=run.queue,
        rss_bytes=run.rss_bytes,
        stuck=is_stuck(elapsed_s, p99_s, stalled_s, snapshot.stuck_s),
        waiting_for=run.waiting_for,
        stack=[StackLine(file=line.file, line=line.line, function=line.function, code=line.code) for line in run.stack],
        kind=str(run.kind),
        process=run.process,
        thread=run.thread,
        sampled_at=run.sampled_at_s or None,
        unmoved_s=unmoved_s,
        stalled_s=stalled_s,
        stuck_after_s=stuck_after_s(p99_s, snapshot.stuck_s),
        at=snapshot.at_s,
        address=snapshot.address,
    )
