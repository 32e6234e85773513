"""
The leak table's rows, computed from the windows of a name when new ones have arrived.

:func:`celery_trace.leaks.leak_table` is a pure function of windows. Computing it for every reader would take longer
with every window that is kept, so its result stands in a table and is computed anew for the names that changed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from celery_trace.guard import report
from celery_trace.model import Leak, Verdict, Window
from celery_trace.stores import rows as rows_of
from celery_trace.stores import schema
from celery_trace.stores.errors import StoreUnavailable
from celery_trace.stores.statements import upsert

if TYPE_CHECKING:
    from celery_trace.stores.store import Store

#: The newest windows of one name that are looked at: about a hundred investigations.
MOST_WINDOWS = 400

#: The order of the table: what needs attention first.
RANKS = {
    Verdict.LEAKING: 0,
    Verdict.GROWING: 1,
    Verdict.SUSPECT: 2,
    Verdict.TOO_FEW_RUNS: 3,
    Verdict.STEADY: 4,
}


def windows_of(connection: sa.Connection, kind: str, name: str, limit: int = MOST_WINDOWS) -> list[Window]:
    """The newest windows of one name, oldest first."""
    table = schema.windows
    wanted = (
        sa.select(table.c.payload)
        .where(table.c.name == name, table.c.kind == kind)
        .order_by(table.c.at_s.desc(), table.c.id.desc())
        .limit(limit)
    )
    return [rows_of.window(row) for row in connection.execute(wanted)][::-1]


def refresh(store: Store, *, most_s: float = 0.5) -> int:
    """
    Bring the rows of changed names up to date; what does not fit in the time stays for the next call.

    Args:
        store: The store. One that can only be read is left as it is.
        most_s: No further name is begun after this many seconds.

    Returns:
        How many names were computed.
    """
    state = schema.leak_state
    with store.reading() as connection:
        due = connection.execute(
            sa.select(state.c.id, state.c.kind, state.c.name, state.c.username)
            .where(state.c.id >= "name:", state.c.id < "name;")
            .limit(500)
        ).all()
    started_s = time.monotonic()
    done = 0
    for row in due:
        try:
            _refresh_name(store, row)
        except StoreUnavailable:
            break  # the reader still gets what stands there
        except Exception as error:  # a mistake of ours about one name; the others are not to wait behind it
            report(f"computing the leaks of {row.name}", error)
            store.in_transaction(partial(_forget, row=row))
        done += 1
        if time.monotonic() - started_s > most_s:
            break
    return done


def _forget(connection: sa.Connection, row: Any) -> None:
    """Take the mark off a name, unless more windows came meanwhile."""
    state = schema.leak_state
    connection.execute(sa.delete(state).where(state.c.id == row.id, state.c.username == row.username))


def _refresh_name(store: Store, due: Any) -> None:
    from celery_trace.leaks import leak_table

    with store.reading() as connection:
        windows = windows_of(connection, due.kind, due.name)
    leaks = leak_table(windows, now_s=store.clock.now_s())

    def replace_rows(connection: sa.Connection) -> None:
        # If more windows came meanwhile the mark has another stamp, stays, and the name is computed once more.
        _forget(connection, due)
        keep = [leak.id for leak in leaks]
        stale = sa.delete(schema.leaks).where(schema.leaks.c.name == due.name, schema.leaks.c.kind == due.kind)
        connection.execute(stale.where(schema.leaks.c.id.not_in(keep)) if keep else stale)
        upsert(connection, schema.leaks, [leak_row(leak) for leak in leaks])

    store.in_transaction(replace_rows)


def leak_row(leak: Leak) -> rows_of.Row:
    """A leak's row."""
    return {
        "id": leak.id,
        "kind": leak.kind,
        "name": leak.name,
        "verdict": str(leak.verdict),
        "rank": RANKS.get(leak.verdict, len(RANKS)),
        "kept_bytes_per_run": leak.kept_bytes_per_run,
        "kept_bytes_total": leak.kept_bytes_total,
        "runs": leak.runs,
        "last_seen_s": leak.last_seen,
        "place": f"{leak.file}:{leak.line} {leak.function} {leak.resource} {leak.code}",
        "payload": rows_of.squeeze(msgspec.json.encode(leak)),
    }


def leak(row: Any) -> Leak:
    """The leak that stands in a row."""
    return msgspec.json.decode(rows_of.unsqueeze(row.payload), type=Leak)
