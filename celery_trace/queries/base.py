"""The base of all queries: the store, the clock, and reading a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import sqlalchemy as sa

from celery_trace.model import Page
from celery_trace.queries import cursors
from celery_trace.stores.statements import chunks
from celery_trace.stores.store import Store
from celery_trace.stores.tables import AnyColumn, AnyRow, AnySelect

View = TypeVar("View")
Order = Sequence[tuple[AnyColumn, bool]]


class QueryBase:
    """A part of :class:`celery_trace.queries.Queries`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def _now_s(self) -> float:
        return self.store.clock.now_s()

    def _page(
        self,
        connection: sa.Connection,
        noun: str,
        wanted: AnySelect,
        order: Order,
        limit: int,
        cursor: str | None,
        build: Callable[[Sequence[AnyRow]], list[View]],
    ) -> Page[View]:
        """One page of a list; ``build`` converts the page's rows into its objects."""
        limit = max(1, min(limit, cursors.MOST))
        if cursor:
            wanted = wanted.where(cursors.after(order, cursors.decode(cursor, cursors.kinds_of(order))))
        found = connection.execute(cursors.ordered(wanted, order).limit(limit + 1)).all()
        page, more = found[:limit], len(found) > limit
        last = cursors.encode([page[-1]._mapping[column.name] for column, _ in order]) if more else None
        return Page(noun, build(page), last)

    def _by_key(self, connection: sa.Connection, table: sa.Table, keys: Iterable[str]) -> dict[str, AnyRow]:
        key = next(iter(table.primary_key.columns))
        found: dict[str, AnyRow] = {}
        for part in chunks(sorted(set(keys))):
            for row in connection.execute(sa.select(table).where(key.in_(part))):
                found[row._mapping[key.name]] = row
        return found
