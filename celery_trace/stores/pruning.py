"""
Remove what is old, in small batches.

Each batch is a transaction of its own, so a writer waits for one batch at most. Old rows are found over the index on
their time, never by counting a table; the running sums are corrected in the same transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from msgspec import Struct, field

from celery_trace.model import stable_id
from celery_trace.settings import Settings
from celery_trace.stores import schema, shared_captures
from celery_trace.stores.statements import add_tallies, chunks

if TYPE_CHECKING:
    from celery_trace.stores.store import Store

#: Rows of one batch.
BATCH = 500
DAY_S = 86400.0

#: Table, its column of time, and whether its rows are counted in the running sums.
_BY_AGE: tuple[tuple[sa.Table, str, bool], ...] = (
    (schema.runs, "started_at_s", True),
    (schema.samples, "at_s", True),
    (schema.rollups, "bucket_s", True),
    (schema.totals, "bucket_s", False),
    (schema.days, "day_s", False),
    (schema.windows, "at_s", True),
    (schema.failures, "at_s", True),
    (schema.trends, "hour_s", False),
    (schema.kept, "until_s", True),
    (schema.stats, "at_s", True),
    (schema.processes, "seen_at_s", True),
    (schema.audit, "at_s", True),
    (schema.deliveries, "at_s", False),
    (schema.shells, "started_at_s", False),
    (schema.alerts, "since_s", False),
    (schema.leak_state, "at_s", False),
)


class Pruned(Struct):
    """How many rows went, by table (its name without the prefix)."""

    rows: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All tables together."""
        return sum(self.rows.values())


def prune(store: Store, settings: Settings, now_s: float) -> Pruned:
    """Remove rows older than ``retention_days``, and single runs beyond ``retention_runs``, oldest first."""
    gone: Counter[str] = Counter()
    if settings.retention_days > 0:
        before_s = now_s - settings.retention_days * DAY_S
        for table, column, counted in _BY_AGE:
            remove = partial(_remove_batch, table=table, column=column, before_s=before_s, counted=counted)
            gone[_short(table)] += _until_none_is_left(store, remove)
        for table in (schema.names, schema.queues):  # after the totals, by which a name is known to be in use
            gone[_short(table)] += _until_none_is_left(store, partial(_remove_unused, table=table))
    surplus = _surplus_runs(store, settings.retention_runs)
    while surplus > 0:
        size = min(surplus, BATCH)
        oldest = partial(
            _remove_batch, table=schema.runs, column="started_at_s", before_s=float("inf"), counted=True, size=size
        )
        removed = store.in_transaction(oldest)
        gone["runs"] += removed
        surplus -= removed
        if removed == 0:
            break
    return Pruned({table: count for table, count in gone.items() if count})


def _until_none_is_left(store: Store, remove: Callable[[sa.Connection], int]) -> int:
    """Remove batch after batch, each in a transaction of its own; how many rows went."""
    total = 0
    while True:
        removed = store.in_transaction(remove)
        total += removed
        if removed < BATCH:
            return total


def _short(table: sa.Table) -> str:
    return table.name.removeprefix(schema.PREFIX)


def _surplus_runs(store: Store, most: int) -> int:
    with store.reading() as connection:
        wanted = sa.select(schema.tallies.c.value).where(schema.tallies.c.id == f"rows:{schema.runs.name}")
        return int(connection.execute(wanted).scalar() or 0) - most


def _remove_batch(
    connection: sa.Connection, table: sa.Table, column: str, before_s: float, *, counted: bool, size: int = BATCH
) -> int:
    key = next(iter(table.primary_key.columns))
    extra = (table.c.fingerprint, table.c.at_s, table.c.shared) if table is schema.failures else ()
    old = sa.select(key, *extra).order_by(table.c[column]).limit(size)
    if before_s != float("inf"):
        old = old.where(table.c[column] < before_s)
    if table is schema.processes:
        old = old.where(table.c.ended_at_s.is_not(None) | (table.c.seen_at_s < before_s - DAY_S))
    if table is schema.alerts:
        old = old.where(table.c.state == "resolved", table.c.resolved_at_s < before_s)
    if table is schema.leak_state:  # what somebody resolved; the other rows are work that is still to be done
        old = old.where(table.c.id >= "leak:", table.c.id < "leak;")
    rows = connection.execute(old).all()
    if not rows:
        return 0
    keys = [row[0] for row in rows]
    removed = 0
    for part in chunks(keys):
        removed += connection.execute(sa.delete(table).where(key.in_(part))).rowcount
    if table is schema.failures:
        _take_from_groups(connection, rows)
        values = schema.failure_values
        for part in chunks(keys):
            connection.execute(sa.delete(values).where(values.c.id.in_(part)))
        shared_captures.add(connection, {id: -n for id, n in Counter(row.shared for row in rows).items() if id})
    if table is schema.windows:
        _forget_leaks(connection, before_s)
    if table is schema.shells:
        connection.execute(sa.delete(schema.shell_lines).where(schema.shell_lines.c.shell.in_(keys)))
    changes = {"changes": 1}
    if counted:
        changes[f"rows:{table.name}"] = -removed
    add_tallies(connection, schema.tallies, changes)
    return removed


def _remove_unused(connection: sa.Connection, table: sa.Table) -> int:
    """
    Forget names that have not run for as long as anything is kept, such as routes of an older release.

    One that runs again just then comes back with its next rollup; what it counts begins anew.
    """
    totals = schema.totals
    used = sa.exists().where(totals.c.name == table.c.name, totals.c.kind == table.c.kind)
    keys = connection.execute(sa.select(table.c.id).where(~used).limit(BATCH)).scalars().all()
    for part in chunks(keys):
        connection.execute(sa.delete(table).where(table.c.id.in_(part)))
    if keys:
        add_tallies(connection, schema.tallies, {"changes": 1})
    return len(keys)


def _take_from_groups(connection: sa.Connection, rows: Sequence[Any]) -> None:
    groups, trends = schema.groups, schema.trends
    fewer: Counter[str] = Counter()
    hours: Counter[str] = Counter()
    for row in rows:
        fewer[row.fingerprint] += 1
        hours[stable_id("trend", row.fingerprint, int(row.at_s // 3600) * 3600)] += 1
    for fingerprint, count in sorted(fewer.items()):
        connection.execute(
            sa.update(groups).where(groups.c.fingerprint == fingerprint).values(count=groups.c["count"] - count)
        )
    for key, count in sorted(hours.items()):
        connection.execute(sa.update(trends).where(trends.c.id == key).values(count=trends.c["count"] - count))
    connection.execute(sa.delete(groups).where(groups.c.fingerprint.in_(sorted(fewer)), groups.c["count"] <= 0))


def _forget_leaks(connection: sa.Connection, before_s: float) -> None:
    connection.execute(sa.delete(schema.leaks).where(schema.leaks.c.last_seen_s < before_s))
