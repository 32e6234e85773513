"""The leak table, and the evidence of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import sqlalchemy as sa

from celery_trace.model import Leak, Page, Window
from celery_trace.queries import cursors, searches
from celery_trace.queries.base import QueryBase
from celery_trace.queries.filters import LeakFilter, exactly
from celery_trace.queries.language import Search
from celery_trace.stores import leak_rows, tables
from celery_trace.stores import rows as rows_of
from celery_trace.stores.mapping import Row
from celery_trace.stores.statements import chunks

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn, AnyRow

_leaks = tables.leaks
_state = tables.leak_state
#: Orders of the table besides urgency: column, and whether it descends.
SORTS: dict[str, tuple[tuple[AnyColumn, bool], ...]] = {
    "per_run": ((_leaks.c.kept_bytes_per_run, True),),
    "total": ((_leaks.c.kept_bytes_total, True),),
    "runs": ((_leaks.c.runs, True),),
    "seen": ((_leaks.c.last_seen_s, True),),
    "name": ((_leaks.c.name, False),),
}
MOST_QUEUES = 500
#: Newest windows that a query for one worker reads, shared out among its names, with a minimum for each.
WORKER_WINDOWS, LEAST_WINDOWS = 2000, 20


class LeakQueries(QueryBase):
    """Leaks."""

    def leaks(
        self,
        *,
        sort: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        **filters: Unpack[LeakFilter],
    ) -> Page[Leak]:
        """
        Leaks, the proven ones first, then by the memory retained per run.

        A resolved leak is listed again only if it was seen after that.

        Args:
            sort: Another order, one of :data:`SORTS`.
            limit, cursor: The page.
            filters: See :class:`LeakFilter`. ``search`` is part of the name, file, function or code.
        """
        kind, name, verdict = filters.get("kind"), filters.get("name"), filters.get("verdict")
        queue, since_s, search = filters.get("queue"), filters.get("since_s"), filters.get("search")
        asked = searches.understood("leaks", filters.get("query"), self._now_s())
        texts = [*asked.texts, *([search.strip()] if search else [])]
        worker = filters.get("worker") or next((one.exact for one in asked.of("worker") if one.exact), None)
        by_urgency = ((_leaks.c.rank, False), (_leaks.c.kept_bytes_per_run, True))
        order = (*(SORTS.get(sort or "", by_urgency)), (_leaks.c.id, True))
        if worker:
            with self.store.reading() as connection:
                rows = self._rows_of_worker(connection, worker, kind, name)
                rows = self._listed(connection, rows, queue)
            fitting = [row for row in rows if _fits(row, verdict, since_s, texts) and _fits_search(row, asked)]
            page, following = cursors.page_of(fitting, order, limit, cursor)
            return Page("leaks", [row["leak"] for row in page], following)
        leak_rows.refresh(self.store)
        resolved = _state.alias()
        wanted = (
            sa.select(_leaks)
            .join(resolved, resolved.c.id == sa.literal("leak:") + _leaks.c.id, isouter=True)
            .where(sa.or_(resolved.c.at_s.is_(None), _leaks.c.last_seen_s > resolved.c.at_s))
        )
        wanted = wanted.where(*exactly(_leaks, filters, "kind", "name", "verdict"))
        if queue:
            wanted = wanted.where(self._in_queue(queue))
        if since_s is not None:
            wanted = wanted.where(_leaks.c.last_seen_s >= since_s)
        wanted = wanted.where(*searches.of_leaks(asked), *searches.texts(texts, _leaks.c.name, _leaks.c.place))
        for term in asked.of("queue"):
            inside = sa.or_(*(self._in_queue(name) for name in term.values))
            wanted = wanted.where(sa.not_(inside) if term.negative else inside)
        with self.store.reading() as connection:
            return self._page(connection, "leaks", wanted, order, limit, cursor, self._build)

    @staticmethod
    def _in_queue(queue: str) -> sa.ColumnElement[bool]:
        table = tables.queues
        return sa.exists(
            sa.select(table.c.id).where(
                table.c.queue == queue, table.c.name == _leaks.c.name, table.c.kind == _leaks.c.kind
            )
        )

    def queues(self) -> list[str]:
        """The known queues, by name."""
        wanted = sa.select(tables.queues.c.queue).distinct().order_by(tables.queues.c.queue).limit(MOST_QUEUES)
        with self.store.reading() as connection:
            return list(connection.execute(wanted).scalars())

    def _rows_of_worker(self, connection: sa.Connection, worker: str, kind: str | None, name: str | None) -> list[Row]:
        """The table computed from this worker alone: its rows, each with its leak."""
        from celery_trace.heap.leaks import leak_table

        windows, processes = tables.windows, tables.processes
        of_it = sa.select(windows.c.payload, windows.c.kind, windows.c.name, windows.c.at_s, windows.c.id)
        of_it = of_it.join(processes, processes.c.uid == windows.c.process).where(processes.c.worker == worker)
        if kind:
            of_it = of_it.where(windows.c.kind == kind)
        if name:
            of_it = of_it.where(windows.c.name == name)
        part = of_it.subquery()
        names = connection.execute(sa.select(part.c.kind, part.c.name).distinct()).all()
        # The newest windows of each name: with the newest of all, busy names would hide the others.
        each = max(LEAST_WINDOWS, WORKER_WINDOWS // max(1, len(names)))
        place = sa.func.row_number().over(
            partition_by=(part.c.kind, part.c.name), order_by=(part.c.at_s.desc(), part.c.id.desc())
        )
        numbered = sa.select(part.c.payload, part.c.at_s, part.c.id, place.label("place")).subquery()
        newest = sa.select(numbered.c.payload).where(numbered.c.place <= each)
        evidence = rows_of.WINDOWS.records(connection.execute(newest.order_by(numbered.c.at_s, numbered.c.id)))
        found = leak_table(evidence, now_s=self._now_s())
        return [{**leak_rows.leak_row(leak, payload=None), "leak": leak} for leak in found]

    @staticmethod
    def _listed(connection: sa.Connection, rows: list[Row], queue: str | None) -> list[Row]:
        """The rows that are not resolved and, if a queue is given, were seen in it."""
        resolved_s: dict[str, float] = {}
        for part in chunks(f"leak:{row['id']}" for row in rows):
            wanted = sa.select(_state.c.id, _state.c.at_s).where(_state.c.id.in_(part))
            resolved_s.update((id.removeprefix("leak:"), at_s) for id, at_s in connection.execute(wanted))
        open_rows = [row for row in rows if row["last_seen_s"] > resolved_s.get(row["id"], -math.inf)]
        if not queue:
            return open_rows
        table = tables.queues
        here = sa.select(table.c.kind, table.c.name).where(table.c.queue == queue)
        in_queue = {(kind, name) for kind, name in connection.execute(here)}
        return [row for row in open_rows if (row["kind"], row["name"]) in in_queue]

    def leak(self, id: str) -> Leak | None:
        """One row of the table."""
        leak_rows.refresh(self.store)
        with self.store.reading() as connection:
            row = connection.execute(sa.select(_leaks).where(_leaks.c.id == id)).first()
        return leak_rows.leak(row, self._now_s()) if row is not None else None

    def leak_windows(self, id: str) -> list[Window]:
        """A row's windows, oldest first: those that show its site, and those without sites."""
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

    def _build(self, rows: Sequence[AnyRow]) -> list[Leak]:
        return [leak_rows.leak(row, self._now_s()) for row in rows]


def _fits(row: Row, verdict: str | None, since_s: float | None, texts: Sequence[str]) -> bool:
    """Whether a row matches, by the conditions that the table uses in the database."""
    return (
        (not verdict or row["verdict"] == verdict)
        and (since_s is None or row["last_seen_s"] >= since_s)
        and all(text.lower() in row["name"].lower() or text.lower() in row["place"].lower() for text in texts)
    )


def _fits_search(row: Row, asked: Search) -> bool:
    """The same for the qualifiers of a search."""
    columns = {"task": "name", "kind": "kind", "verdict": "verdict"}
    exact = all(term.fits(str(row[columns[term.qualifier.name]])) for term in asked.of(*columns))
    placed = all(
        any(value.lower().replace("*", "") in row["place"].lower() for value in term.values) is not term.negative
        for term in asked.of("place")
    )
    return exact and placed and all(row["last_seen_s"] >= term.at_s for term in asked.of("since"))
