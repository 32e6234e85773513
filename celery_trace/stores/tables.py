"""The tables of :mod:`celery_trace.stores.schema` for SQLAlchemy's statements."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from celery_trace.stores import schema

#: Columns, statements and result rows of any type: SQLAlchemy's types depend on a table's columns.
AnyColumn = sa.Column[Any]
AnySelect = sa.Select[Any]
AnyRow = sa.Row[*tuple[Any, ...]]

metadata = sa.MetaData()

_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    # MySQL's plain types hold 64 KiB.
    "long text": sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"),
    "bytes": sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
    "whole": sa.BigInteger(),
    "real": sa.Double(),
    "flag": sa.Boolean(),
}


def _column(column: schema.Column) -> AnyColumn:
    kind = sa.String(column.type.length) if column.type.kind == "text" else _TYPES[column.type.kind]
    if column.key:
        return sa.Column(column.name, kind, primary_key=True)
    return sa.Column(column.name, kind, nullable=column.nullable, default=column.empty)


def _table(table: schema.Table) -> sa.Table:
    columns = map(_column, table.columns)
    indexes = (sa.Index(index.name, *index.columns) for index in table.indexes)
    return sa.Table(
        table.name, metadata, *columns, *indexes, mysql_engine="InnoDB", mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin", mariadb_engine="InnoDB", mariadb_charset="utf8mb4", mariadb_collate="utf8mb4_bin",
    )  # fmt: skip


processes = _table(schema.processes)
rollups = _table(schema.rollups)
totals = _table(schema.totals)
names = _table(schema.names)
queues = _table(schema.queues)
runs = _table(schema.runs)
running = _table(schema.running)
chords = _table(schema.chords)
samples = _table(schema.samples)
windows = _table(schema.windows)
heap_profiles = _table(schema.heap_profiles)
time_profiles = _table(schema.time_profiles)
leaks = _table(schema.leaks)
leak_state = _table(schema.leak_state)
failures = _table(schema.failures)
captures = _table(schema.captures)
failure_values = _table(schema.failure_values)
groups = _table(schema.groups)
triage = _table(schema.triage)
comments = _table(schema.comments)
retried = _table(schema.retried)
saved_views = _table(schema.saved_views)
trends = _table(schema.trends)
kept = _table(schema.kept)
stats = _table(schema.stats)
tallies = _table(schema.tallies)
flows = _table(schema.flows)
consuming = _table(schema.consuming)
queue_samples = _table(schema.queue_samples)
starts = _table(schema.starts)
schedules = _table(schema.schedules)
audit = _table(schema.audit)
alerts = _table(schema.alerts)
deliveries = _table(schema.deliveries)
shells = _table(schema.shells)
shell_lines = _table(schema.shell_lines)
meta = _table(schema.meta)

#: The table of each record tag.
RECORDS = {
    "process": processes,
    "rollup": rollups,
    "run": runs,
    "sample": samples,
    "window": windows,
    "heap": heap_profiles,
    "time": time_profiles,
    "failure": failures,
    "kept": kept,
    "stats": stats,
    "audit": audit,
    "flow": flows,
    "consuming": consuming,
    "queue": queue_samples,
    "start": starts,
    "schedule": schedules,
    "running": running,
    "chord": chords,
}
