"""
The leak table's rows, recomputed from the windows of a name when new windows arrive.

:func:`celery_trace.heap.leaks.leak_table` is a pure function of windows. Computing it for every reader would take
longer with every stored window, so its result is stored in a table and recomputed for names that changed.

A leak goes on between its windows, for hours once all about it is known. So the runs of growing rows are updated from
the totals: the columns hold these counts, and the payload those of the windows.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from celery_trace.guard import report
from celery_trace.heap.windows import shares
from celery_trace.model import Leak, Rollup, Verdict, Window
from celery_trace.stores import rows as rows_of
from celery_trace.stores import schema, tables
from celery_trace.stores.errors import StoreUnavailable
from celery_trace.stores.mapping import Row, TableOf
from celery_trace.stores.statements import upsert
from celery_trace.stores.store import Store

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow

_LEAKS = TableOf(schema.leaks, Leak)

#: The newest windows of one name that are read: about a hundred investigations.
MOST_WINDOWS = 400

#: How often the writer of records updates the runs of growing rows, seconds.
COUNT_ON_EVERY_S = 5.0
#: Most rows whose run counts are updated, the most urgent ones.
MOST_COUNTED = 200

#: The share of runs that must have retained something for all runs to count.
_NEARLY = 0.95

#: The table's order: the most urgent rows first.
RANKS = {
    Verdict.LEAKING: 0,
    Verdict.GROWING: 1,
    Verdict.SUSPECT: 2,
    Verdict.TOO_FEW_RUNS: 3,
    Verdict.STEADY: 4,
}


#: Verdicts of rows whose run counts are updated.
_GOES_ON = frozenset({Verdict.LEAKING, Verdict.GROWING})


def windows_of(connection: sa.Connection, kind: str, name: str, limit: int = MOST_WINDOWS) -> list[Window]:
    """The newest windows of one name, oldest first."""
    table = tables.windows
    wanted = (
        sa.select(table.c.payload)
        .where(table.c.name == name, table.c.kind == kind)
        .order_by(table.c.at_s.desc(), table.c.id.desc())
        .limit(limit)
    )
    return rows_of.WINDOWS.records(connection.execute(wanted))[::-1]


def refresh(store: Store, *, most_s: float = 0.5) -> int:
    """
    Recompute the rows of changed names. Names that don't fit in the time limit are left for the next call.

    Args:
        store: The store. A read-only one is left unchanged.
        most_s: Time limit, seconds: no further name is started after it.

    Returns:
        The number of recomputed names.
    """
    state = tables.leak_state
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
            break  # the reader gets the stored rows
        except Exception as error:  # a bug with one name must not hold up the others
            report(f"computing the leaks of {row.name}", error)
            store.in_transaction(partial(_forget, row=row))
        done += 1
        if time.monotonic() - started_s > most_s:
            break
    return done


def _runs_so_far(connection: sa.Connection, known: Leak, now_s: float) -> int:
    """
    The number of runs of a leak's name according to windows and totals: the larger of two counts.

    The first counts all runs since the five minutes in which the leak was first seen, including runs in processes that
    ended before a look or never looked. The second continues from the windows, which know earlier runs: from the
    five minutes of the latest window it counts all runs that the windows don't include if they saw the name's first
    run in the same five minutes, and otherwise a share by time. Where some runs retained nothing, because the leak
    was fixed for a while, only the second is used.
    """
    totals = tables.totals
    first_s = int(known.first_seen) // Rollup.BUCKET_S * Rollup.BUCKET_S
    since_s = int(known.last_seen) // Rollup.BUCKET_S * Rollup.BUCKET_S
    bucket, runs = totals.c.bucket_s, totals.c.runs
    summed = (
        sa.select(
            sa.func.coalesce(sa.func.sum(runs), 0),
            sa.func.coalesce(sa.func.sum(sa.case((bucket == since_s, runs), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((bucket > since_s, runs), else_=0)), 0),
        )
        .where(totals.c.name == known.name, totals.c.kind == known.kind, bucket >= first_s)
    )  # fmt: skip
    all_runs, in_latest, later = map(int, connection.execute(summed).one())
    if known.first_seen >= since_s and in_latest >= known.runs:
        in_latest -= known.runs
    else:
        ended_s = max(known.last_seen + 1, min(now_s, since_s + Rollup.BUCKET_S))
        in_latest = int(in_latest * (ended_s - known.last_seen) / (ended_s - since_s))
    from_windows = known.runs + in_latest + later
    every_run_kept = known.kept_bytes_total >= _NEARLY * known.kept_bytes_per_run * known.runs
    return max(from_windows, all_runs) if every_run_kept else from_windows


def update_run_counts(store: Store, *, most_s: float = 0.1) -> int:
    """
    Add the runs since their latest window to growing rows.

    Args:
        store: The store.
        most_s: Time limit, seconds: no further name is started after it.

    Returns:
        The number of changed rows.

    Raises:
        StoreUnavailable: The store can't be read or written.
    """
    table = tables.leaks
    growing = sa.select(table).where(table.c.rank <= RANKS[Verdict.GROWING])
    now_s, until_s = store.clock.now_s(), time.monotonic() + most_s
    changed: list[dict[str, object]] = []
    with store.reading() as connection:
        for row in connection.execute(growing.order_by(table.c.rank, table.c.id).limit(MOST_COUNTED)).all():
            if time.monotonic() > until_s:
                break
            known = _LEAKS.record(row)
            runs, total = _counted(known, _runs_so_far(connection, known, now_s))
            if runs > row.runs:
                changed.append(
                    {
                        "of_id": row.id,
                        "of_seen_s": row.last_seen_s,
                        "now_runs": runs,
                        "now_total": total,
                    }
                )
    if changed:
        # A row that has a newer window by now is left unchanged.
        mine = (table.c.id == sa.bindparam("of_id")) & (table.c.last_seen_s == sa.bindparam("of_seen_s"))
        update = sa.update(table).where(mine)
        update = update.values(runs=sa.bindparam("now_runs"), kept_bytes_total=sa.bindparam("now_total"))
        store.in_transaction(lambda connection: connection.execute(update, changed))
    return len(changed)


def _forget(connection: sa.Connection, row: AnyRow) -> None:
    """Remove a name's mark, unless more windows arrived meanwhile."""
    state = tables.leak_state
    connection.execute(sa.delete(state).where(state.c.id == row.id, state.c.username == row.username))


def _refresh_name(store: Store, due: AnyRow) -> None:
    from celery_trace.heap.leaks import leak_table

    now_s = store.clock.now_s()
    table = tables.leaks
    with store.reading() as connection:
        before = sa.select(table).where(table.c.name == due.name, table.c.kind == due.kind)
        known = {row.id: row for row in connection.execute(before)}
        leaks = []
        runs: dict[str, int] = {}
        for found in leak_table(windows_of(connection, due.kind, due.name), now_s=now_s):
            old = known.get(found.id)
            leak = _seen_since(found, old) if old is not None else found
            by_now = _runs_so_far(connection, leak, now_s) if leak.verdict in _GOES_ON else leak.runs
            runs[leak.id] = max(by_now, int(old.runs) if old is not None else 0)
            leaks.append(leak)

    def replace_rows(connection: sa.Connection) -> None:
        # If more windows arrived meanwhile, the mark has another timestamp and stays: the name is computed again.
        _forget(connection, due)
        keep = [leak.id for leak in leaks]
        stale = sa.delete(table).where(table.c.name == due.name, table.c.kind == due.kind)
        connection.execute(stale.where(table.c.id.not_in(keep)) if keep else stale)
        upsert(connection, table, [leak_row(leak, runs[leak.id]) for leak in leaks])

    store.in_transaction(replace_rows)


def _seen_since(leak: Leak, row: AnyRow) -> Leak:
    """The leak with the row's start if that is earlier, as only the newest windows are read."""
    known = _LEAKS.record(row)
    if known.first_seen >= leak.first_seen:
        return leak
    return msgspec.structs.replace(
        leak, first_seen=known.first_seen, began_with=known.began_with, began_at=known.began_at
    )


def _counted(leak: Leak, runs: int) -> tuple[int, int]:
    """A leak's total runs and bytes for this number of runs."""
    runs = max(runs, leak.runs)
    return runs, leak.kept_bytes_total + leak.kept_bytes_per_run * (runs - leak.runs)


def leak_row(leak: Leak, runs: int = 0, **more: object) -> Row:
    """
    The row of a leak.

    Args:
        leak: The leak as computed from its windows.
        runs: The total number of runs, if larger than the windows' count.
        more: Other values of columns.
    """
    runs, total = _counted(leak, runs)
    return _LEAKS.row(
        leak,
        rank=RANKS.get(leak.verdict, len(RANKS)),
        kept_bytes_total=total,
        runs=runs,
        place=f"{leak.file}:{leak.line} {leak.function} {leak.resource} {leak.code}",
        **more,
    )


def leak(row: AnyRow, now_s: float) -> Leak:
    """The leak in a row, with its updated run counts; ``now_s`` is seconds since the epoch."""
    known = _LEAKS.record(row)
    if row.runs <= known.runs:
        return known
    total = int(row.kept_bytes_total)
    if known.verdict in _GOES_ON:
        samples = [*known.samples, (max(now_s, known.last_seen), total)]
    else:
        samples = _spread(known.samples, total)
    types = shares(((one.type, one.count, one.bytes) for one in known.types), total)
    return msgspec.structs.replace(known, runs=int(row.runs), kept_bytes_total=total, samples=samples, types=types)


def _spread(samples: list[tuple[float, int]], total: int) -> list[tuple[float, int]]:
    """
    Scale the samples of a leak that has stopped growing to a total.

    The runs added while it grew belong between its windows, not at the end where it no longer grew.
    """
    last = samples[-1][1]
    return [(at_s, round(kept * (total / last))) for at_s, kept in samples] if last > 0 else samples
