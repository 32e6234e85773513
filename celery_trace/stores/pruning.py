"""
Remove old rows, in small batches.

Each batch is its own transaction, so a writer waits for one batch at most. Old rows are found by the index on their
time, never by counting a table; the running sums are corrected in the same transaction.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import sqlalchemy as sa
from msgspec import Struct, field

from celery_trace.model import stable_id
from celery_trace.settings import Settings
from celery_trace.stores import schema, shared_captures, sizes, tables, triage
from celery_trace.stores.statements import add_tallies, chunks

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow

T = TypeVar("T")

#: Rows of one batch.
BATCH = 500
DAY_S = 86400.0

#: Table, its column of time, and whether its rows are counted in the running sums.
_BY_AGE: tuple[tuple[sa.Table, str, bool], ...] = (
    (tables.runs, "started_at_s", True),
    (tables.samples, "at_s", True),
    (tables.running, "at_s", True),
    (tables.chords, "at_s", True),
    (tables.rollups, "bucket_s", True),
    (tables.totals, "bucket_s", False),
    (tables.windows, "at_s", True),
    (tables.heap_profiles, "at_s", True),
    (tables.time_profiles, "at_s", True),
    (tables.failures, "at_s", True),
    (tables.trends, "hour_s", False),
    (tables.kept, "until_s", True),
    (tables.stats, "at_s", True),
    (tables.processes, "seen_at_s", True),
    (tables.flows, "bucket_s", True),
    (tables.consuming, "at_s", True),
    (tables.starts, "started_at_s", True),
    (tables.schedules, "at_s", True),
    (tables.audit, "at_s", True),
    (tables.deliveries, "at_s", False),
    (tables.shells, "started_at_s", False),
    (tables.alerts, "since_s", False),
    (tables.leak_state, "at_s", False),
)


#: The series of queues is kept for a shorter time: a point every ten seconds. Seconds.
QUEUE_SERIES_S = 2 * DAY_S


class Pruned(Struct):
    """Removed rows by table (its name without the prefix), and whether nothing is left to remove."""

    rows: dict[str, int] = field(default_factory=dict)
    finished: bool = True

    @property
    def total(self) -> int:
        """The sum over all tables."""
        return sum(self.rows.values())


class InTransaction(Protocol):
    """Runs work in its own transaction, as :meth:`celery_trace.stores.store.Store.in_transaction` does."""

    def __call__(self, work: Callable[[sa.Connection], T], /) -> T: ...


class _Round:
    """One call: batches, each in its own transaction, until nothing is left or the time is over."""

    def __init__(self, in_transaction: InTransaction, most_s: float) -> None:
        self.in_transaction = in_transaction
        self._until_s = time.monotonic() + most_s
        self.rows: Counter[str] = Counter()
        self.finished = True

    def is_over(self) -> bool:
        """Whether the time is over."""
        if time.monotonic() > self._until_s:
            self.finished = False
        return not self.finished

    def remove(self, table: sa.Table, batch: Callable[[sa.Connection], int]) -> None:
        """Call ``batch`` until it removes nothing."""
        removed = 1
        while removed and not self.is_over():
            removed = self.in_transaction(batch)
            self.rows[_short(table)] += removed


def prune(in_transaction: InTransaction, settings: Settings, now_s: float, *, most_s: float = math.inf) -> Pruned:
    """
    Remove rows older than ``retention_days``, and single runs and failures beyond their limits, oldest first.

    The first and the latest failure of each group are removed last.

    Args:
        in_transaction: The store's way to run a batch.
        settings: The retention settings.
        now_s: The time, seconds since the epoch.
        most_s: Time limit, seconds: no further batch is started after it. The next call continues.
    """
    this = _Round(in_transaction, most_s)
    _prune_failures(settings, this)
    this.remove(tables.runs, partial(_remove_surplus_runs, most=settings.retention_runs))
    series_s = min(QUEUE_SERIES_S, settings.retention_days * DAY_S or QUEUE_SERIES_S)
    samples = tables.queue_samples
    old = partial(_remove_batch, table=samples, column="at_s", before_s=now_s - series_s, counted=True)
    this.remove(samples, old)
    if settings.retention_days > 0:
        before_s = now_s - settings.retention_days * DAY_S
        for table, column, counted in _BY_AGE:
            this.remove(table, partial(_remove_batch, table=table, column=column, before_s=before_s, counted=counted))
        for table in (tables.names, tables.queues):  # after the totals, which show that a name is in use
            this.remove(table, partial(_remove_unused, table=table))
    in_transaction(partial(sizes.note, now_s=now_s))
    return Pruned({table: count for table, count in this.rows.items() if count}, this.finished)


def _prune_failures(settings: Settings, this: _Round) -> None:
    """
    Remove failures beyond their limits.

    Failures that are neither the first nor the latest of their group are removed first, oldest first; then the others.
    """
    for spared in (True, False):
        after: tuple[float, str] | None = (0.0, "")
        while after is not None and not this.is_over():
            batch = partial(_remove_surplus_failures, settings=settings, spared=spared, after=after)
            removed, after = this.in_transaction(batch)
            this.rows["failures"] += removed


def _remove_surplus_failures(
    connection: sa.Connection, settings: Settings, *, spared: bool, after: tuple[float, str]
) -> tuple[int, tuple[float, str] | None]:
    """The number of removed failures, and after which one to continue; None if nothing is left."""
    failures, groups = tables.failures, tables.groups
    rows, held_bytes = sizes.held(connection)
    too_many = rows - settings.retention_failures
    too_big = held_bytes - settings.retention_bytes if settings.retention_bytes else 0
    if rows <= 0 or (too_many <= 0 and too_big <= 0):
        return 0, None
    by_size = math.ceil(too_big / max(1.0, held_bytes / rows))
    old = (
        sa.select(failures.c.id, failures.c.fingerprint, failures.c.at_s, failures.c.shared)
        .where(failures.c.at_s >= after[0], sa.or_(failures.c.at_s > after[0], failures.c.id > after[1]))
        .order_by(failures.c.at_s, failures.c.id)
        .limit(min(BATCH, max(too_many, by_size)))
    )
    if spared:
        old = old.join(groups, groups.c.fingerprint == failures.c.fingerprint).where(
            failures.c.at_s > groups.c.first_seen_s, failures.c.id != groups.c.latest_id
        )
    found = connection.execute(old).all()
    if not found:
        return 0, None
    return _remove_rows(connection, failures, found, counted=True), (found[-1].at_s, found[-1].id)


def _short(table: sa.Table) -> str:
    return table.name.removeprefix(schema.PREFIX)


def _remove_surplus_runs(connection: sa.Connection, most: int) -> int:
    runs = tables.runs
    wanted = sa.select(tables.tallies.c.value).where(tables.tallies.c.id == f"rows:{runs.name}")
    surplus = int(connection.execute(wanted).scalar() or 0) - most
    if surplus <= 0:
        return 0
    oldest = sa.select(runs.c.id).order_by(runs.c.started_at_s).limit(min(surplus, BATCH))
    rows = connection.execute(oldest).all()
    return _remove_rows(connection, runs, rows, counted=True) if rows else 0


def _remove_batch(connection: sa.Connection, table: sa.Table, column: str, before_s: float, *, counted: bool) -> int:
    key = next(iter(table.primary_key.columns))
    extra = (table.c.fingerprint, table.c.at_s, table.c.shared) if table is tables.failures else ()
    old = sa.select(key, *extra).where(table.c[column] < before_s).order_by(table.c[column]).limit(BATCH)
    if table is tables.processes:
        old = old.where(table.c.ended_at_s.is_not(None) | (table.c.seen_at_s < before_s - DAY_S))
    if table is tables.alerts:
        old = old.where(table.c.state == "resolved", table.c.resolved_at_s < before_s)
    if table is tables.leak_state:  # only resolved leaks; the other rows are pending work
        old = old.where(table.c.id >= "leak:", table.c.id < "leak;")
    rows = connection.execute(old).all()
    removed = _remove_rows(connection, table, rows, counted=counted) if rows else 0
    if removed and table is tables.windows:
        _forget_leaks(connection, before_s)
    return removed


def _remove_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[AnyRow], *, counted: bool) -> int:
    """Remove these rows, which begin with their keys, and their dependent rows."""
    key = next(iter(table.primary_key.columns))
    keys = [row[0] for row in rows]
    removed = 0
    weight = sizes.weight_of(connection, keys) if table is tables.failures else 0
    for part in chunks(keys):
        removed += connection.execute(sa.delete(table).where(key.in_(part))).rowcount
    if table is tables.failures:
        _take_from_groups(connection, rows)
        values = tables.failure_values
        for part in chunks(keys):
            connection.execute(sa.delete(values).where(values.c.id.in_(part)))
        served = Counter(row.shared for row in rows if row.shared)
        weight += shared_captures.change(connection, {id: -count for id, count in served.items()})
    if table is tables.shells:
        connection.execute(sa.delete(tables.shell_lines).where(tables.shell_lines.c.shell.in_(keys)))
    changes = {"changes": 1, sizes.HELD: -weight}
    if counted:
        changes[f"rows:{table.name}"] = -removed
    add_tallies(connection, tables.tallies, changes)
    return removed


def _remove_unused(connection: sa.Connection, table: sa.Table) -> int:
    """
    Remove names that have not run within the retention, such as routes of an older release.

    A name that runs again just then comes back with its next rollup and new counts.
    """
    totals = tables.totals
    used = sa.exists().where(totals.c.name == table.c.name, totals.c.kind == table.c.kind)
    keys = connection.execute(sa.select(table.c.id).where(~used).limit(BATCH)).scalars().all()
    for part in chunks(keys):
        connection.execute(sa.delete(table).where(table.c.id.in_(part)))
    if keys:
        add_tallies(connection, tables.tallies, {"changes": 1})
    return len(keys)


def _take_from_groups(connection: sa.Connection, rows: Sequence[AnyRow]) -> None:
    groups, trends = tables.groups, tables.trends
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
    empty = sa.select(groups.c.fingerprint).where(groups.c.fingerprint.in_(sorted(fewer)), groups.c["count"] <= 0)
    gone = connection.execute(empty).scalars().all()
    connection.execute(sa.delete(groups).where(groups.c.fingerprint.in_(gone)))
    triage.forget(connection, gone)


def _forget_leaks(connection: sa.Connection, before_s: float) -> None:
    connection.execute(sa.delete(tables.leaks).where(tables.leaks.c.last_seen_s < before_s))
