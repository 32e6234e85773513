"""
Writes what users decide about groups of failures (assigned, ignored, resolved, commented, sent again), and their views.

Each function runs in the caller's transaction, see :meth:`celery_trace.stores.store.Store.in_transaction`.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from celery_trace.model.searches import SavedView
from celery_trace.model.triage import Comment, Retried
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.mapping import Row
from celery_trace.stores.statements import add_tallies, chunks, locked, upsert


def _decide(connection: sa.Connection, fingerprint: str, **values: object) -> None:
    found = locked(connection, tables.triage, [fingerprint])
    before: dict[str, object] = {"assigned_to": "", "ignored_until_s": None, "ignored_by": ""}
    if fingerprint in found:
        before = dict(found[fingerprint]._mapping)
    _put(connection, tables.triage, [{**before, "fingerprint": fingerprint, **values}])


def _put(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Add rows, or replace those with the same key."""
    upsert(connection, table, rows)
    _changed(connection)


def _remove(connection: sa.Connection, table: sa.Table, id: str) -> None:
    connection.execute(sa.delete(table).where(table.c.id == id))
    _changed(connection)


def _changed(connection: sa.Connection) -> None:
    add_tallies(connection, tables.tallies, {"changes": 1})


def assign(connection: sa.Connection, fingerprint: str, to: str) -> None:
    """Assign a group to a user; an empty name removes the assignment."""
    _decide(connection, fingerprint, assigned_to=to)


def ignore(connection: sa.Connection, fingerprint: str, until_s: float | None, by: str) -> None:
    """Ignore a group until a time, seconds since the epoch; no longer if it is None."""
    _decide(connection, fingerprint, ignored_until_s=until_s, ignored_by=by if until_s is not None else "")


def reopen(connection: sa.Connection, fingerprint: str) -> None:
    """A resolved group is no longer resolved."""
    groups = tables.groups
    connection.execute(
        sa.update(groups).where(groups.c.fingerprint == fingerprint).values(resolved_at_s=None, resolved_by="")
    )
    _changed(connection)


def comment(connection: sa.Connection, comment: Comment) -> None:
    """Add a comment."""
    _put(connection, tables.comments, [rows_of.COMMENTS.row(comment)])


def remove_comment(connection: sa.Connection, id: str) -> None:
    """Remove a comment."""
    _remove(connection, tables.comments, id)


def retried(connection: sa.Connection, records: Sequence[Retried]) -> None:
    """Note that failures were sent again."""
    _put(connection, tables.retried, [rows_of.RETRIED.row(record) for record in records])


def save_view(connection: sa.Connection, view: SavedView) -> None:
    """Save a user's search, or replace it."""
    _put(connection, tables.saved_views, [rows_of.SAVED_VIEWS.row(view)])


def remove_view(connection: sa.Connection, id: str) -> None:
    """Remove a user's search."""
    _remove(connection, tables.saved_views, id)


def forget(connection: sa.Connection, fingerprints: Sequence[str]) -> None:
    """Remove everything about groups that no longer exist."""
    for part in chunks(fingerprints):
        for table in (tables.triage, tables.comments, tables.retried):
            connection.execute(sa.delete(table).where(table.c.fingerprint.in_(part)))
