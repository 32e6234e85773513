"""Runs, their sums, the processes that ran them, and the memory of these processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.intervals import SAMPLE_S, SILENT_S
from celery_trace.model import (
    Page,
    ProcessRecord,
    ProcessView,
    Role,
    Rollup,
    Run,
    RunningSnapshot,
    RunSpan,
    Sample,
    WorkerView,
)
from celery_trace.queries import cursors, searches
from celery_trace.queries.base import QueryBase
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.statements import CHUNK, chunks

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow

_runs = tables.runs
_totals = tables.totals
_processes = tables.processes
_samples = tables.samples

#: By default, workers of the last day are listed.
RECENT_S = 24 * 3600.0
#: Processes of one answer, shared out among workers, with a minimum for each; recycled children make many.
MOST_PROCESSES, LEAST_PROCESSES = 2000, 50
#: Roles of a worker's first process.
MAIN_ROLES = tuple(str(role) for role in (Role.MAIN, Role.SOLO, Role.THREADS, Role.GREEN))
#: Points of a series. Longer series are thinned to one point per slice of time.
MOST_SAMPLES = 1000
#: Processes in a worker's series, those seen last.
MOST_SERIES = 500
MOST_ROLLUPS = 20_000
#: Single runs that are read for the lanes of a worker, the newest of all workers; and those that are returned.
SPANS_READ, MOST_SPANS = 20_000, 1000
MOST_NAMES = 10_000


class RunQueries(QueryBase):
    """Runs, workers and their memory."""

    def runs(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        why: str | None = None,
        task_id: str | None = None,
        root_id: str | None = None,
        since_s: float | None = None,
        query: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Run]:
        """
        Runs that are stored individually, newest first.

        Args:
            since_s: Seconds since the epoch.
            query: A search in the language of searches.
        """
        wanted = sa.select(_runs).where(*searches.of_runs(searches.understood("runs", query, self._now_s())))
        for column, value in (
            (_runs.c.kind, kind),
            (_runs.c.name, name),
            (_runs.c.why, why),
            (_runs.c.task_id, task_id),
            (_runs.c.root_id, root_id),
        ):
            if value:
                wanted = wanted.where(column == value)
        if since_s is not None:
            wanted = wanted.where(_runs.c.started_at_s >= since_s)
        order = ((_runs.c.started_at_s, True), (_runs.c.id, True))
        with self.store.reading() as connection:
            return self._page(connection, "runs", wanted, order, limit, cursor, rows_of.RUNS.records)

    def run(self, id: str) -> Run | None:
        """A run that is stored individually."""
        with self.store.reading() as connection:
            row = connection.execute(sa.select(_runs).where(_runs.c.id == id)).first()
        return rows_of.RUNS.record(row) if row is not None else None

    def spans(self, processes: Iterable[str], *, since_s: float | None = None) -> list[RunSpan]:
        """When the single runs of some processes ran, newest first; the newest :data:`MOST_SPANS`."""
        columns = [_runs.c[name] for name in ("id", "process", "kind", "name", "started_at_s", "duration_s", "why")]
        newest = sa.select(*columns).order_by(_runs.c.started_at_s.desc(), _runs.c.id).limit(SPANS_READ)
        if since_s is not None:
            newest = newest.where(_runs.c.started_at_s >= since_s)
        table = newest.subquery()
        found: list[RunSpan] = []
        with self.store.reading() as connection:
            for part in chunks(sorted(processes)):
                wanted = sa.select(table).where(table.c.process.in_(part)).order_by(table.c.started_at_s.desc())
                found += [
                    RunSpan(
                        run=row.id, process=row.process, kind=row.kind, name=row.name, started_at=row.started_at_s,
                        duration_s=row.duration_s, why=row.why,
                    )
                    for row in connection.execute(wanted.limit(MOST_SPANS))
                ]  # fmt: skip
        return sorted(found, key=lambda span: -span.started_at)[:MOST_SPANS]

    def rollups(
        self, *, kind: str | None = None, name: str | None = None, since_s: float | None = None
    ) -> list[Rollup]:
        """Five-minute sums over all processes (``process`` is empty), oldest first."""
        wanted = sa.select(*rows_of.TOTAL_COLUMNS)
        if kind:
            wanted = wanted.where(_totals.c.kind == kind)
        if name:
            wanted = wanted.where(_totals.c.name == name)
        if since_s is not None:
            wanted = wanted.where(_totals.c.bucket_s >= int(since_s) // Rollup.BUCKET_S * Rollup.BUCKET_S)
        newest = wanted.order_by(_totals.c.bucket_s.desc(), _totals.c.id.desc()).limit(MOST_ROLLUPS)
        with self.store.reading() as connection:
            return [rows_of.total(row) for row in connection.execute(newest)][::-1]

    def names(self, *, query: str | None = None) -> list[tuple[str, str, int, int]]:
        """All names that ever ran: kind, name, runs, failed runs; by name. ``query`` is a search."""
        table = tables.names
        asked = searches.understood("names", query, self._now_s())
        wanted = (
            sa.select(table.c.kind, table.c.name, table.c.runs, table.c.failed)
            .where(*searches.of_names(asked))
            .order_by(table.c.name)
            .limit(10_000)
        )
        with self.store.reading() as connection:
            return [(row.kind, row.name, row.runs, row.failed) for row in connection.execute(wanted)]

    # --- processes

    def workers(self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None) -> Page[WorkerView]:
        """
        Workers, web hosts and scripts with their processes, seen since then (by default within a day).

        A worker is alive while one of its processes has not ended and has reported within 15 minutes.
        """
        now_s = self._now_s()
        since_s = now_s - RECENT_S if since_s is None else since_s
        seen = _processes.c.seen_at_s >= since_s
        role = sa.case((_processes.c.worker == "", _processes.c.role), else_="")
        limit = max(1, min(limit, cursors.MOST))
        with self.store.reading() as connection:
            named = connection.execute(
                sa.select(_processes.c.worker, role.label("role"), _processes.c.host).where(seen).distinct()
            )
            keys = sorted((_name(row), row.host) for row in named)
            if cursor:
                after = tuple(cursors.decode(cursor, (str, str)))
                keys = [key for key in keys if key > after]
            page = keys[:limit]
            # The newest of each worker, living ones first: with the newest of all, one worker that keeps starting
            # children would hide the others.
            each = max(LEAST_PROCESSES, MOST_PROCESSES // max(1, len(page)))
            place = sa.func.row_number().over(
                partition_by=(_processes.c.worker, role, _processes.c.host),
                order_by=(
                    sa.case((_processes.c.ended_at_s.is_(None), 0), else_=1),
                    _processes.c.seen_at_s.desc(),
                    _processes.c.uid,
                ),
            )
            hosts = [host for _, host in page]
            numbered = (
                sa.select(_processes, place.label("place"))
                .where(seen, _processes.c.host.in_(hosts) if len(hosts) <= CHUNK else sa.true())
                .subquery()
            )
            rows = connection.execute(sa.select(numbered).where(numbered.c.place <= each)).all() if page else []
            newest = _newest_facts(rows_of.RUNNING.records(connection.execute(sa.select(tables.running))))
        together: dict[tuple[str, str], list[Any]] = {}
        for row in rows:
            together.setdefault((_name(row), row.host), []).append(row)
        views = [
            _worker(name, host, together[name, host], newest, now_s) for name, host in page if (name, host) in together
        ]
        following = cursors.encode(list(page[-1])) if len(keys) > limit else None
        return Page("workers", views, following)

    def starts(self, *, since_s: float | None = None, worker: str | None = None) -> list[ProcessRecord]:
        """Main processes of workers that have reported since then, oldest first; the newest 500."""
        wanted = sa.select(_processes).where(_processes.c.worker != "", _processes.c.role.in_(MAIN_ROLES))
        if worker:
            wanted = wanted.where(_processes.c.worker == worker)
        if since_s is not None:
            wanted = wanted.where(_processes.c.seen_at_s >= since_s)
        with self.store.reading() as connection:
            rows = connection.execute(wanted.order_by(_processes.c.seen_at_s.desc()).limit(500)).all()
        return sorted(rows_of.PROCESSES.records(rows), key=lambda process: process.started_at_s)

    def settled(self, uids: Iterable[str], after_s: float) -> dict[str, Sample]:
        """The first sample of each process that was taken so long after its start, by uid."""
        first = (
            sa.select(_samples.c.id)
            .where(_samples.c.process == _processes.c.uid, _samples.c.at_s >= _processes.c.started_at_s + after_s)
            .order_by(_samples.c.at_s)
            .limit(1)
            .correlate(_processes)
            .scalar_subquery()
        )
        with self.store.reading() as connection:
            ids: list[str] = []
            for part in chunks(sorted(uids)):
                wanted = sa.select(first).select_from(_processes).where(_processes.c.uid.in_(part))
                ids += [id for id in connection.execute(wanted).scalars() if id is not None]
            found = rows_of.SAMPLES.records(self._by_key(connection, _samples, ids).values())
        return {sample.process: sample for sample in found}

    def processes(self, uids: Iterable[str]) -> dict[str, ProcessRecord]:
        """Processes by uid; unknown ones are left out."""
        with self.store.reading() as connection:
            found = self._by_key(connection, _processes, uids)
        return {uid: rows_of.PROCESSES.record(row) for uid, row in found.items()}

    def samples(
        self,
        *,
        process: str | None = None,
        worker: str | None = None,
        since_s: float | None = None,
        most: int | None = None,
    ) -> list[Sample]:
        """
        The memory series of a process, or of all processes of a worker as :meth:`workers` names it, oldest first.

        At most about ``most`` points, or :data:`MOST_SAMPLES`, spread evenly over the time since ``since_s``.
        """
        most = most or MOST_SAMPLES
        if not process and not worker:
            raise ValueError("a series needs a process or a worker")
        wanted = sa.select(_processes.c.uid, _processes.c.started_at_s, _processes.c.seen_at_s)
        wanted = wanted.where(_processes.c.uid == process if process else _is_of(worker or ""))
        if since_s is not None:
            wanted = wanted.where(_processes.c.seen_at_s >= since_s)
        with self.store.reading() as connection:
            lives = connection.execute(wanted.order_by(_processes.c.seen_at_s.desc()).limit(MOST_SERIES)).all()
            begins_s = min((max(row.started_at_s, since_s or 0.0) for row in lives), default=0.0)
            lived_s = sum(max(0.0, row.seen_at_s - max(row.started_at_s, begins_s)) for row in lives)
            slice_s = lived_s / most
            if slice_s < 2 * SAMPLE_S:
                whole = sa.select(_samples).where(_samples.c.process.in_([row.uid for row in lives]))
                if since_s is not None:
                    whole = whole.where(_samples.c.at_s >= since_s)
                newest = whole.order_by(_samples.c.at_s.desc()).limit(4 * most)
                rows = connection.execute(newest).all()
            else:
                ends_s = max(row.seen_at_s for row in lives)
                ids = _one_in_each_slice(connection, [row.uid for row in lives], begins_s, ends_s, slice_s)
                rows = list(self._by_key(connection, _samples, ids).values())
        return sorted(rows_of.SAMPLES.records(rows), key=lambda sample: (sample.at_s, sample.process))


def _name(row: AnyRow) -> str:
    """A worker's name. Web hosts and scripts have none; they are named by role and host."""
    return row.worker or f"{row.role}@{row.host}"


def _is_of(name: str) -> sa.ColumnElement[bool]:
    """A condition for the processes of the worker that :func:`_name` names so."""
    role, _, host = name.partition("@")
    unnamed = sa.and_(_processes.c.worker == "", _processes.c.role == role, _processes.c.host == host)
    return sa.or_(_processes.c.worker == name, unnamed)


def _one_in_each_slice(
    connection: sa.Connection, uids: Sequence[str], begins_s: float, ends_s: float, slice_s: float
) -> list[str]:
    """
    The first sample of each process in each slice of its life, by one index lookup for each.

    Reading a week of a worker's samples and dropping most of them would take seconds.
    """
    slices = sa.select(sa.literal(begins_s, sa.Double).label("at_s")).cte("slices", recursive=True)
    slices = slices.union_all(sa.select(slices.c.at_s + slice_s).where(slices.c.at_s + slice_s <= ends_s))
    first = (
        sa.select(_samples.c.id)
        .where(
            _samples.c.process == _processes.c.uid,
            _samples.c.at_s >= slices.c.at_s,
            _samples.c.at_s < slices.c.at_s + slice_s,
        )
        .order_by(_samples.c.at_s)
        .limit(1)
        .correlate(_processes, slices)
        .scalar_subquery()
    )
    living = sa.and_(slices.c.at_s + slice_s > _processes.c.started_at_s, slices.c.at_s <= _processes.c.seen_at_s)
    found: list[str] = []
    for part in chunks(uids):
        wanted = sa.select(first).select_from(_processes.join(slices, living)).where(_processes.c.uid.in_(part))
        found += [id for id in connection.execute(wanted).scalars() if id is not None]
    return found


class _NewestFacts(NamedTuple):
    """What a snapshot says of a process: newer than its latest sample, which may be minutes old."""

    at_s: float
    runs: int
    running: str


def _newest_facts(snapshots: Iterable[RunningSnapshot]) -> dict[str, _NewestFacts]:
    """By process."""
    found: dict[str, _NewestFacts] = {}
    for snapshot in snapshots:
        names = {run.process: run.name for run in snapshot.runs}
        for uid, runs in snapshot.ended.items():
            found[uid] = _NewestFacts(snapshot.at_s, runs, names.get(uid, ""))
    return found


def _state(alive: bool, processes: Sequence[ProcessView]) -> str:
    """A worker's state, see :class:`WorkerView`. How its latest main process ended decides it; children come and go."""
    if alive:
        return "alive"
    mains = [process for process in processes if process.role in MAIN_ROLES] or processes
    last = max(mains, key=lambda process: process.started_at)
    if last.ended_at is None:
        return "silent"
    return "killed" if last.ended_how == "killed" else "stopped"


def _alive(row: AnyRow, now_s: float) -> bool:
    return row.ended_at_s is None and now_s - row.seen_at_s < SILENT_S


def _worker(
    name: str, host: str, rows: Sequence[AnyRow], newest: Mapping[str, _NewestFacts], now_s: float
) -> WorkerView:
    rows = sorted(rows, key=lambda row: (not _alive(row, now_s), -row.seen_at_s))
    living = [row for row in rows if _alive(row, now_s)]  # the first ones
    views = [_process(row, newest.get(row.uid)) for row in rows]
    # A child that has just started has no sample yet.
    known = [view.memory for view in views[: len(living)] if view.memory]
    shares = [memory.pss_bytes for memory in known if memory.pss_bytes is not None]
    ratios = [row.overhead_ratio for row in living if row.sampled_at_s is not None]
    return WorkerView(
        name=name,
        host=host,
        role=_shared_role(rows),
        alive=bool(living),
        rss_bytes=sum(memory.rss_bytes for memory in known),
        last_seen=max(max(row.seen_at_s, newest[row.uid].at_s if row.uid in newest else 0.0) for row in rows),
        overhead_ratio=max(ratios, default=0.0),
        processes=views,
        rss_processes=len(known),
        pss_bytes=sum(shares) if shares and len(shares) == len(known) else None,
        state=_state(bool(living), views),
    )


def _shared_role(rows: Sequence[AnyRow]) -> str:
    """The role of a worker's children, if it has any: ``child`` means prefork. An embedded scheduler is ignored."""
    roles = {row.role for row in rows}
    return "child" if "child" in roles else min(roles - {"beat"}, default="beat")


def _process(row: AnyRow, newest: _NewestFacts | None) -> ProcessView:
    view = rows_of.PROCESS_VIEWS.record(row, at=row.sampled_at_s)
    if newest is None or row.ended_at_s is not None or newest.at_s < (row.sampled_at_s or 0.0):
        return view
    runs = max(view.runs, newest.runs)  # a count only grows
    return replace(view, runs=runs, running=newest.running, at=newest.at_s)
