"""The leak table, and the evidence behind a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from celery_trace.model import Leak, Page, Window
from celery_trace.queries.base import Base
from celery_trace.queries.cursors import like
from celery_trace.stores import leak_rows, schema
from celery_trace.stores import rows as rows_of

_leaks = schema.leaks
_state = schema.leak_state
#: Orders of the table beside that by urgency: column, and whether the greatest comes first.
SORTS: dict[str, tuple[tuple[sa.Column[Any], bool], ...]] = {
    "per_run": ((_leaks.c.kept_bytes_per_run, True),),
    "total": ((_leaks.c.kept_bytes_total, True),),
    "runs": ((_leaks.c.runs, True),),
    "seen": ((_leaks.c.last_seen_s, True),),
    "name": ((_leaks.c.name, False),),
}
MOST_QUEUES = 500
#: A question for one worker looks at so many of its newest windows.
WORKER_WINDOWS = 2000


class LeakQueries(Base):
    """What keeps growing."""

    def leaks(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        verdict: str | None = None,
        worker: str | None = None,
        queue: str | None = None,
        since_s: float | None = None,
        search: str | None = None,
        sort: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """
        Leaks, the proven ones first, then by the memory that each run keeps.

        One that somebody resolved is listed again only when it was seen after that.

        Args:
            kind, name, verdict: Exactly these, where given.
            worker: Computed from this worker's processes alone.
            queue: Of tasks that were seen in this queue.
            since_s: Seen since then.
            search: Part of the name, file, function or code.
            sort: Instead of that order one of :data:`SORTS`; a worker's leaks are few, and keep theirs.
            limit, cursor: The page.
        """
        if worker:
            return self._of_worker(worker, kind, name, verdict, queue, since_s, search, limit)
        leak_rows.refresh(self.store)
        resolved = _state.alias()
        wanted = (
            sa.select(_leaks)
            .join(resolved, resolved.c.id == sa.literal("leak:") + _leaks.c.id, isouter=True)
            .where(sa.or_(resolved.c.at_s.is_(None), _leaks.c.last_seen_s > resolved.c.at_s))
        )
        for column, value in ((_leaks.c.kind, kind), (_leaks.c.name, name), (_leaks.c.verdict, verdict)):
            if value:
                wanted = wanted.where(column == value)
        if queue:
            wanted = wanted.where(self._in_queue(queue))
        if since_s is not None:
            wanted = wanted.where(_leaks.c.last_seen_s >= since_s)
        if search:
            pattern = like(search.strip().lower())
            wanted = wanted.where(
                sa.or_(*(sa.func.lower(c).like(pattern, escape="!") for c in (_leaks.c.name, _leaks.c.place)))
            )
        by_urgency = ((_leaks.c.rank, False), (_leaks.c.kept_bytes_per_run, True))
        order = (*(SORTS.get(sort or "", by_urgency)), (_leaks.c.id, True))
        with self.store.reading() as connection:
            return self._page(connection, "leaks", wanted, order, limit, cursor, self._build)

    @staticmethod
    def _in_queue(queue: str) -> sa.ColumnElement[bool]:
        table = schema.queues
        return sa.exists(
            sa.select(table.c.id).where(
                table.c.queue == queue, table.c.name == _leaks.c.name, table.c.kind == _leaks.c.kind
            )
        )

    def queues(self) -> list[str]:
        """The queues in which anything was seen, by name."""
        wanted = sa.select(schema.queues.c.queue).distinct().order_by(schema.queues.c.queue).limit(MOST_QUEUES)
        with self.store.reading() as connection:
            return list(connection.execute(wanted).scalars())

    def _of_worker(
        self,
        worker: str,
        kind: str | None,
        name: str | None,
        verdict: str | None,
        queue: str | None,
        since_s: float | None,
        search: str | None,
        limit: int,
    ) -> Page:
        from celery_trace.leaks import leak_table

        windows, processes = schema.windows, schema.processes
        wanted = (
            sa.select(windows.c.payload)
            .join(processes, processes.c.uid == windows.c.process)
            .where(processes.c.worker == worker)
            .order_by(windows.c.at_s.desc())
            .limit(WORKER_WINDOWS)
        )
        if kind:
            wanted = wanted.where(windows.c.kind == kind)
        if name:
            wanted = wanted.where(windows.c.name == name)
        with self.store.reading() as connection:
            evidence = [rows_of.window(row) for row in connection.execute(wanted)]
            table = schema.queues
            here = sa.select(table.c.kind, table.c.name).where(table.c.queue == queue)
            in_queue = {tuple(row) for row in connection.execute(here)} if queue else None
        found = leak_table(evidence, now_s=self._now_s())
        text = (search or "").strip().lower()
        kept = [
            leak
            for leak in found
            if (not verdict or leak.verdict == verdict)
            and (in_queue is None or (str(leak.kind), leak.name) in in_queue)
            and (since_s is None or leak.last_seen >= since_s)
            and text in f"{leak.name} {leak.file} {leak.function} {leak.code}".lower()
        ]
        kept.sort(key=lambda leak: (leak_rows.RANKS.get(leak.verdict, 9), -leak.kept_bytes_per_run))
        return Page("leaks", kept[:limit])

    def leak(self, id: str) -> Leak | None:
        """One row of the table."""
        leak_rows.refresh(self.store)
        with self.store.reading() as connection:
            row = connection.execute(sa.select(_leaks).where(_leaks.c.id == id)).first()
        return leak_rows.leak(row, self._now_s()) if row is not None else None

    def leak_windows(self, id: str) -> list[Window]:
        """The windows behind a row, oldest first: those that show its site, and those without sites."""
        leak = self.leak(id)
        if leak is None:
            return []
        with self.store.reading() as connection:
            windows = leak_rows.windows_of(connection, leak.kind, leak.name)
        if leak.native:
            return [window for window in windows if window.native]
        return [
            window
            for window in windows
            if not window.native
            and (not window.sites or any((site.file, site.line) == (leak.file, leak.line) for site in window.sites))
        ]

    def _build(self, rows: Sequence[Any]) -> list[Any]:
        return [leak_rows.leak(row, self._now_s()) for row in rows]
