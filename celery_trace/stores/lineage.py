"""
The store's id, and the stores that were lost before it.

By its id a collector notices that its records went to another store. The store also records what became of earlier
stores at its place. Both are in the table ``meta``.
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
#: The newest losses that are shown.
MOST_LOST = 20


def read_id(connection: sa.Connection) -> str:
    """The store's id; empty in a store of an older version until the first write."""
    wanted = sa.select(tables.meta.c.value).where(tables.meta.c.id == _ID)
    return str(connection.execute(wanted).scalar() or "")


def give_id(connection: sa.Connection) -> str:
    """The store's id, created if it has none."""
    insert_new(connection, tables.meta, [{"id": _ID, "value": new_id()}])
    return read_id(connection)


def records(connection: sa.Connection) -> int:
    """The number of records in the store."""
    table = tables.tallies
    wanted = sa.select(sa.func.coalesce(sa.func.sum(table.c.value), 0)).where(table.c.id.like("rows:%"))
    return int(connection.execute(wanted).scalar_one())


def note(connection: sa.Connection, id: str, lost: LostStore) -> None:
    """Record the loss of the store that was here before; ``id`` is that store's id, if known."""
    key = _LOST + (id or stable_id("lost", repr(lost.at)))
    if insert_new(connection, tables.meta, [{"id": key, "value": text(lost)}]):
        return
    # Several processes may find the same damage: the one that set the file aside knows most, and may come last.
    known = connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.id == key)).scalar_one()
    if lost.set_aside and not msgspec.json.decode(known, type=LostStore).set_aside:
        upsert(connection, tables.meta, [{"id": key, "value": text(lost)}])


def lost(connection: sa.Connection) -> list[LostStore]:
    """The stores that were here before, the latest loss first."""
    meta = tables.meta
    wanted = sa.select(meta.c.value).where(meta.c.id >= _LOST, meta.c.id < _LOST[:-1] + ";")
    found = [msgspec.json.decode(value, type=LostStore) for value in connection.execute(wanted).scalars()]
    return sorted(found, key=lambda one: -one.at)[:MOST_LOST]


def sentence(lost: LostStore) -> str:
    """A loss in words, for the log, the page and the doctor."""
    what = {
        "deleted": "The store's file was deleted while in use",
        "replaced": "The store was emptied or replaced while in use",
    }.get(lost.why, "The store's file was damaged")
    held = f"; it had {lost.records} records" if lost.records is not None else ""
    kept = f" It is kept as {lost.set_aside}." if lost.set_aside else ""
    made = "" if lost.why == "replaced" else " A new one was created."
    return f"{what}{held}.{made}{kept} Records still in the spool are sent again."
