"""Runs, their sums, the processes that carried them out, and those processes' memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from celery_trace.model import Page, ProcessRecord, ProcessView, Rollup, Sample, WorkerView
from celery_trace.queries import cursors
from celery_trace.queries.base import Base
from celery_trace.stores import rows as rows_of
from celery_trace.stores import schema

_runs = schema.runs
_totals = schema.totals
_processes = schema.processes
_samples = schema.samples

#: A process that said nothing for this long, without an end, is taken for gone. Its host may have died.
SILENT_S = 900.0
#: Without another wish, workers of the last day are listed.
RECENT_S = 24 * 3600.0
#: Processes of one answer; recycled children make many.
MOST_PROCESSES = 2000
MOST_SAMPLES = 5000
MOST_ROLLUPS = 20_000
MOST_NAMES = 10_000


class RunQueries(Base):
    """What ran, where, and with how much memory."""

    def runs(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        why: str | None = None,
        task_id: str | None = None,
        since_s: float | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Runs that are kept by themselves, the newest first. ``since_s`` is seconds since the epoch."""
        wanted = sa.select(_runs)
        for column, value in (
            (_runs.c.kind, kind),
            (_runs.c.name, name),
            (_runs.c.why, why),
            (_runs.c.task_id, task_id),
        ):
            if value:
                wanted = wanted.where(column == value)
        if since_s is not None:
            wanted = wanted.where(_runs.c.started_at_s >= since_s)
        order = ((_runs.c.started_at_s, True), (_runs.c.id, True))
        with self.store.reading() as connection:
            return self._page(connection, "runs", wanted, order, limit, cursor, lambda rows: [*map(rows_of.run, rows)])

    def rollups(
        self, *, kind: str | None = None, name: str | None = None, since_s: float | None = None
    ) -> list[Rollup]:
        """Sums of five minutes over all processes (``process`` is empty), oldest first."""
        wanted = sa.select(_totals)
        if kind:
            wanted = wanted.where(_totals.c.kind == kind)
        if name:
            wanted = wanted.where(_totals.c.name == name)
        if since_s is not None:
            wanted = wanted.where(_totals.c.bucket_s >= int(since_s) // Rollup.BUCKET_S * Rollup.BUCKET_S)
        newest = wanted.order_by(_totals.c.bucket_s.desc(), _totals.c.id.desc()).limit(MOST_ROLLUPS)
        with self.store.reading() as connection:
            return [rows_of.rollup(row) for row in connection.execute(newest)][::-1]

    def names(self) -> list[tuple[str, str, int, int]]:
        """What ever ran: kind, name, runs, failed runs; by name."""
        table = schema.names
        wanted = (
            sa.select(table.c.kind, table.c.name, table.c.runs, table.c.failed).order_by(table.c.name).limit(10_000)
        )
        with self.store.reading() as connection:
            return [(row.kind, row.name, row.runs, row.failed) for row in connection.execute(wanted)]

    # --- processes

    def workers(self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None) -> Page:
        """
        Workers, web hosts and scripts with their processes, seen since then (by default within a day).

        A worker lives while one of its processes has not ended and was heard of within a quarter of an hour.
        """
        now_s = self._now_s()
        since_s = now_s - RECENT_S if since_s is None else since_s
        wanted = (
            sa.select(_processes)
            .where(_processes.c.seen_at_s >= since_s)
            .order_by(_processes.c.seen_at_s.desc())
            .limit(MOST_PROCESSES)
        )
        with self.store.reading() as connection:
            rows = connection.execute(wanted).all()
        together: dict[tuple[str, str], list[Any]] = {}
        for row in rows:
            together.setdefault((row.worker or f"{row.role}@{row.host}", row.host), []).append(row)
        views = [_worker(name, host, group, now_s) for (name, host), group in sorted(together.items())]
        start = 0
        if cursor:
            after = tuple(cursors.decode(cursor, 2))
            start = sum((view.name, view.host) <= after for view in views)
        page = views[start : start + limit]
        following = None
        if start + limit < len(views):
            following = cursors.encode([page[-1].name, page[-1].host])
        return Page("workers", page, following)

    def processes(self, uids: Iterable[str]) -> dict[str, ProcessRecord]:
        """Processes by uid; an unknown one is left out."""
        with self.store.reading() as connection:
            return {uid: rows_of.process(row) for uid, row in self._by_key(connection, _processes, uids).items()}

    def samples(
        self, *, process: str | None = None, worker: str | None = None, since_s: float | None = None
    ) -> list[Sample]:
        """The memory series of a process, or of all processes of a worker, oldest first; the newest 5000 points."""
        wanted = sa.select(_samples)
        if process:
            wanted = wanted.where(_samples.c.process == process)
        if since_s is not None:
            wanted = wanted.where(_samples.c.at_s >= since_s)
        with self.store.reading() as connection:
            if worker:
                uids = connection.execute(
                    sa.select(_processes.c.uid)
                    .where(_processes.c.worker == worker)
                    .order_by(_processes.c.seen_at_s.desc())
                    .limit(500)
                ).scalars()
                wanted = wanted.where(_samples.c.process.in_(list(uids)))
            rows = connection.execute(wanted.order_by(_samples.c.at_s.desc()).limit(MOST_SAMPLES)).all()
        return [rows_of.sample(row) for row in reversed(rows)]


def _alive(row: Any, now_s: float) -> bool:
    return row.ended_at_s is None and now_s - row.seen_at_s < SILENT_S


def _worker(name: str, host: str, rows: Sequence[Any], now_s: float) -> WorkerView:
    rows = sorted(rows, key=lambda row: (not _alive(row, now_s), -row.seen_at_s))
    living = [row for row in rows if _alive(row, now_s)]
    views = [_process(row) for row in rows]
    ratios = [row.overhead_ratio for row in living if row.sampled_at_s is not None]
    return WorkerView(
        name=name,
        host=host,
        role=_shared_role(rows),
        alive=bool(living),
        rss_bytes=sum(
            view.memory.rss_bytes for view, row in zip(views, rows, strict=True) if row in living and view.memory
        ),
        last_seen=max(row.seen_at_s for row in rows),
        overhead_ratio=max(ratios, default=0.0),
        processes=views,
    )


def _shared_role(rows: Sequence[Any]) -> str:
    """A worker with children is named after them: ``child`` says prefork."""
    roles = {row.role for row in rows}
    return "child" if "child" in roles else min(roles)


def _process(row: Any) -> ProcessView:
    return ProcessView(
        uid=row.uid,
        pid=row.pid,
        role=rows_of.process(row).role,
        started_at=row.started_at_s,
        ended_at=row.ended_at_s,
        ended_how=row.ended_how,
        memory=rows_of.memory(row.memory),
        at=row.sampled_at_s,
        running=row.running,
        runs=row.runs,
        kept_failures=row.kept_failures,
        overhead_ratio=row.overhead_ratio,
        mode=row.mode,
        counters=msgspec.json.decode(row.counters or "[]"),
    )
