"""
Which store this is, and which ones were lost before it.

A store has an id, so that a collector notices that its records went to another one, and knows what became of the
store that stood at its place before: both stand among its facts (the table ``meta``).
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from celery_trace.model import LostStore, new_id, stable_id
from celery_trace.stores import tables
from celery_trace.stores.mapping import text
from celery_trace.stores.statements import insert_new, upsert

_ID = "store_id"
_LOST = "lost:"
#: So many losses are shown, the newest ones.
MOST_LOST = 20


def read_id(connection: sa.Connection) -> str:
    """The store's id; empty for one that an older version made, until somebody writes to it."""
    wanted = sa.select(tables.meta.c.value).where(tables.meta.c.id == _ID)
    return str(connection.execute(wanted).scalar() or "")


def give_id(connection: sa.Connection) -> str:
    """The store's id, made if it has none."""
    insert_new(connection, tables.meta, [{"id": _ID, "value": new_id()}])
    return read_id(connection)


def records(connection: sa.Connection) -> int:
    """How many records it holds."""
    table = tables.tallies
    wanted = sa.select(sa.func.coalesce(sa.func.sum(table.c.value), 0)).where(table.c.id.like("rows:%"))
    return int(connection.execute(wanted).scalar_one())


def note(connection: sa.Connection, id: str, lost: LostStore) -> None:
    """Keep what is known of the store that stood here before; ``id`` is its own, if that is known."""
    key = _LOST + (id or stable_id("lost", repr(lost.at)))
    if insert_new(connection, tables.meta, [{"id": key, "value": text(lost)}]):
        return
    # Several may find the same damage at once: whoever has set the file aside knows most, and may come last.
    known = connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.id == key)).scalar_one()
    if lost.set_aside and not msgspec.json.decode(known, type=LostStore).set_aside:
        upsert(connection, tables.meta, [{"id": key, "value": text(lost)}])


def lost(connection: sa.Connection) -> list[LostStore]:
    """The stores that stood here before, the one lost last first."""
    meta = tables.meta
    wanted = sa.select(meta.c.value).where(meta.c.id >= _LOST, meta.c.id < _LOST[:-1] + ";")
    found = [msgspec.json.decode(value, type=LostStore) for value in connection.execute(wanted).scalars()]
    return sorted(found, key=lambda one: -one.at)[:MOST_LOST]


def sentence(lost: LostStore) -> str:
    """What happened, for a log, a page and the doctor."""
    what = {
        "deleted": "The store's file was deleted while it was in use",
        "replaced": "The store was emptied or replaced by another one while it was in use",
    }.get(lost.why, "The store's file was damaged")
    held = f"; {lost.records} records were in it" if lost.records is not None else ""
    kept = f" It is kept as {lost.set_aside}." if lost.set_aside else ""
    made = "" if lost.why == "replaced" else " A new one was made."
    return f"{what}{held}.{made}{kept} What is still in the spool is sent again."
