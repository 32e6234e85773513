"""
The leak table's rows, computed from the windows of a name when new ones have arrived.

:func:`celery_trace.leaks.leak_table` is a pure function of windows. Computing it for every reader would take longer
with every window that is kept, so its result stands in a table and is computed anew for the names that changed.

Between its windows a leak goes on, for hours when all is known of it. So the runs of what grows are counted on from
the totals: the columns hold them, and the payload what the windows say.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from celery_trace.guard import report
from celery_trace.model import Leak, Rollup, Verdict, Window
from celery_trace.stores import rows as rows_of
from celery_trace.stores import schema
from celery_trace.stores.errors import StoreUnavailable
from celery_trace.stores.statements import upsert

if TYPE_CHECKING:
    from celery_trace.stores.store import Store

#: The newest windows of one name that are looked at: about a hundred investigations.
MOST_WINDOWS = 400

#: How often the runs of what grows are counted on by who writes the records, seconds.
COUNT_ON_EVERY_S = 5.0
#: Rows whose runs are counted on, the most urgent ones.
MOST_COUNTED = 200

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


def _runs_since_windows(connection: sa.Connection, known: Leak, now_s: float) -> int:
    """
    How many runs of a leak's name ended after its latest window.

    Totals are of five minutes. Of those in which the window came, all runs count that the windows do not know if
    they saw the name's first run then too, and otherwise those in proportion to the time.
    """
    totals = schema.totals
    since_s = int(known.last_seen) // Rollup.BUCKET_S * Rollup.BUCKET_S
    summed = (
        sa.select(
            sa.func.coalesce(sa.func.sum(sa.case((totals.c.bucket_s == since_s, totals.c.runs), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(totals.c.runs), 0),
        )
        .where(totals.c.name == known.name, totals.c.kind == known.kind, totals.c.bucket_s >= since_s)
    )  # fmt: skip
    first, all_runs = map(int, connection.execute(summed).one())
    if known.first_seen >= since_s and first >= known.runs:
        in_first = first - known.runs
    else:
        ended_s = max(known.last_seen + 1, min(now_s, since_s + Rollup.BUCKET_S))
        in_first = int(first * (ended_s - known.last_seen) / (ended_s - since_s))
    return in_first + all_runs - first


def count_on(store: Store, *, most_s: float = 0.1) -> int:
    """
    Add to the rows of what grows the runs since their latest window.

    Args:
        store: The store.
        most_s: No further name is looked at after this many seconds.

    Returns:
        How many rows changed.

    Raises:
        StoreUnavailable: The store can't be read or written.
    """
    table = schema.leaks
    growing = sa.select(table).where(table.c.rank <= RANKS[Verdict.GROWING])
    now_s, until_s = store.clock.now_s(), time.monotonic() + most_s
    changed: list[dict[str, Any]] = []
    with store.reading() as connection:
        for row in connection.execute(growing.order_by(table.c.rank, table.c.id).limit(MOST_COUNTED)).all():
            if time.monotonic() > until_s:
                break
            known = msgspec.json.decode(rows_of.unsqueeze(row.payload), type=Leak)
            runs, total = _counted(known, _runs_since_windows(connection, known, now_s))
            if runs != row.runs:
                changed.append(
                    {
                        "of_id": row.id,
                        "of_seen_s": row.last_seen_s,
                        "now_runs": runs,
                        "now_total": total,
                    }
                )
    if changed:
        # A row that has a newer window by now is left as it is.
        mine = (table.c.id == sa.bindparam("of_id")) & (table.c.last_seen_s == sa.bindparam("of_seen_s"))
        update = sa.update(table).where(mine)
        update = update.values(runs=sa.bindparam("now_runs"), kept_bytes_total=sa.bindparam("now_total"))
        store.in_transaction(lambda connection: connection.execute(update, changed))
    return len(changed)


def _forget(connection: sa.Connection, row: Any) -> None:
    """Take the mark off a name, unless more windows came meanwhile."""
    state = schema.leak_state
    connection.execute(sa.delete(state).where(state.c.id == row.id, state.c.username == row.username))


def _refresh_name(store: Store, due: Any) -> None:
    from celery_trace.leaks import leak_table

    now_s = store.clock.now_s()
    with store.reading() as connection:
        leaks = leak_table(windows_of(connection, due.kind, due.name), now_s=now_s)
        after: dict[str, int] = {}
        for leak in leaks:
            if RANKS[leak.verdict] <= RANKS[Verdict.GROWING]:
                after[leak.id] = _runs_since_windows(connection, leak, now_s)

    def replace_rows(connection: sa.Connection) -> None:
        # If more windows came meanwhile the mark has another stamp, stays, and the name is computed once more.
        _forget(connection, due)
        keep = [leak.id for leak in leaks]
        stale = sa.delete(schema.leaks).where(schema.leaks.c.name == due.name, schema.leaks.c.kind == due.kind)
        connection.execute(stale.where(schema.leaks.c.id.not_in(keep)) if keep else stale)
        upsert(connection, schema.leaks, [leak_row(leak, after.get(leak.id, 0)) for leak in leaks])

    store.in_transaction(replace_rows)


def _counted(leak: Leak, runs_after: int) -> tuple[int, int]:
    """Runs and bytes of a leak in all, when so many runs came after its latest window."""
    return leak.runs + runs_after, leak.kept_bytes_total + leak.kept_bytes_per_run * runs_after


def leak_row(leak: Leak, runs_after: int = 0) -> rows_of.Row:
    """A leak's row; so many runs came after its latest window."""
    runs, total = _counted(leak, runs_after)
    return {
        "id": leak.id,
        "kind": leak.kind,
        "name": leak.name,
        "verdict": str(leak.verdict),
        "rank": RANKS.get(leak.verdict, len(RANKS)),
        "kept_bytes_per_run": leak.kept_bytes_per_run,
        "kept_bytes_total": total,
        "runs": runs,
        "last_seen_s": leak.last_seen,
        "place": f"{leak.file}:{leak.line} {leak.function} {leak.resource} {leak.code}",
        "payload": rows_of.squeeze(msgspec.json.encode(leak)),
    }


def leak(row: Any, now_s: float) -> Leak:
    """The leak that stands in a row, with what was counted on by now (seconds since the epoch)."""
    known = msgspec.json.decode(rows_of.unsqueeze(row.payload), type=Leak)
    if row.runs <= known.runs:
        return known
    total = int(row.kept_bytes_total)
    # At the same rate: what the line on the plot would come to if somebody looked again now.
    grown = (known.samples[-1][1] if known.samples else 0) + total - known.kept_bytes_total
    return msgspec.structs.replace(
        known,
        runs=int(row.runs),
        kept_bytes_total=total,
        samples=[*known.samples, (max(now_s, known.last_seen), grown)],
    )
