"""
Exports the store's tables to files: JSON Lines, or Parquet for DuckDB, pandas and similar tools.

Rows are read page by page by the index on their time, so that an export of millions needs little memory and holds no
lock. The columns are those of :mod:`celery_trace.stores.schema`; ``payload`` is the record's JSON.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from celery_trace import private_files
from celery_trace.errors import Unavailable
from celery_trace.queries.cursors import after, ordered
from celery_trace.stores import Store, shared_captures, tables
from celery_trace.stores.rows import whole

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn

#: Table (its name without the prefix) and its time column.
TABLES: dict[str, tuple[sa.Table, str]] = {
    "processes": (tables.processes, "seen_at_s"),
    "totals": (tables.totals, "bucket_s"),
    "runs": (tables.runs, "started_at_s"),
    "samples": (tables.samples, "at_s"),
    "windows": (tables.windows, "at_s"),
    "heap_profiles": (tables.heap_profiles, "at_s"),
    "time_profiles": (tables.time_profiles, "at_s"),
    "flows": (tables.flows, "bucket_s"),
    "queue_samples": (tables.queue_samples, "at_s"),
    "starts": (tables.starts, "started_at_s"),
    "schedules": (tables.schedules, "at_s"),
    "failures": (tables.failures, "at_s"),
    "groups": (tables.groups, "last_seen_s"),
    "leaks": (tables.leaks, "last_seen_s"),
    "alerts": (tables.alerts, "since_s"),
    "deliveries": (tables.deliveries, "at_s"),
    "shells": (tables.shells, "started_at_s"),
    "audit": (tables.audit, "at_s"),
}

#: Columns that only concern how a row is stored.
STORED_ONLY = frozenset({"shared"})
#: Rows per read.
PAGE = 5000


class Exported(Struct):
    """The written files by table, and their row counts."""

    files: dict[str, str]
    rows: dict[str, int]


def rows(store: Store, name: str, *, since_s: float | None = None, page: int = PAGE) -> Iterator[dict[str, object]]:
    """
    A table's rows, oldest first.

    Args:
        store: The store.
        name: One of :data:`TABLES`.
        since_s: Only rows since then, seconds since the epoch.
        page: Rows per read.
    """
    table, time = TABLES[name]
    key = next(iter(table.primary_key.columns))
    order = ((table.c[time], False), (key, False))
    last: Sequence[object] | None = None
    while True:
        wanted = sa.select(table)
        if since_s is not None:
            wanted = wanted.where(table.c[time] >= since_s)
        if last is not None:
            wanted = wanted.where(after(order, last))
        with store.reading() as connection:
            found = connection.execute(ordered(wanted, order).limit(page)).all()
            shared = {row.shared for row in found} if table is tables.failures else set()
            bases = shared_captures.bases(connection, shared)
        for row in found:
            values = dict(row._mapping)
            base = bases.get(values.pop("shared", ""))
            if "payload" in values:
                try:
                    values["payload"] = whole(values["payload"], base).decode() if values["payload"] else None
                except LookupError:  # a failure that was pruned just now
                    continue
            yield values
        if len(found) < page:
            return
        last = [found[-1]._mapping[column.name] for column, _ in order]


def write_json_lines(
    store: Store, folder: Path, names: Iterable[str] = tuple(TABLES), *, since_s: float | None = None
) -> Exported:
    """Write ``<table>.jsonl`` for each table, 0600: one object per line, with ``payload`` as a nested object."""
    private_files.make_folder(folder)
    exported = Exported({}, {})
    encoder = msgspec.json.Encoder()
    for name in names:
        path = folder / f"{name}.jsonl"
        count = 0
        with _private(path) as file:
            for row in rows(store, name, since_s=since_s):
                payload = row.get("payload")
                if payload and isinstance(payload, str):
                    row["payload"] = msgspec.Raw(payload.encode())
                file.write(encoder.encode(row) + b"\n")
                count += 1
        exported.files[name], exported.rows[name] = str(path), count
    return exported


def write_parquet(
    store: Store, folder: Path, names: Iterable[str] = tuple(TABLES), *, since_s: float | None = None
) -> Exported:
    """
    Write ``<table>.parquet`` for each table, 0600, with one row group per read.

    Raises:
        Unavailable: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Unavailable(
            "Can't write Parquet",
            "pyarrow is not installed",
            'pip install "celery-trace[parquet]", or export JSON Lines.',
        ) from None
    private_files.make_folder(folder)
    exported = Exported({}, {})
    for name in names:
        table, _ = TABLES[name]
        columns = [column for column in table.columns if column.name not in STORED_ONLY]
        fields = pyarrow.schema([(column.name, _arrow_type(pyarrow, column)) for column in columns])
        path = folder / f"{name}.parquet"
        count = 0
        with _private(path) as file, parquet.ParquetWriter(file, fields, compression="zstd") as writer:
            for part in _parts(rows(store, name, since_s=since_s), PAGE):
                writer.write_table(pyarrow.Table.from_pylist(part, schema=fields))
                count += len(part)
        exported.files[name], exported.rows[name] = str(path), count
    return exported


def _parts(iterator: Iterator[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    part: list[dict[str, object]] = []
    for row in iterator:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _arrow_type(pyarrow: ModuleType, column: AnyColumn) -> object:
    if isinstance(column.type, sa.Boolean):
        return pyarrow.bool_()
    if isinstance(column.type, sa.Double):
        return pyarrow.float64()
    if isinstance(column.type, sa.Integer):
        return pyarrow.int64()
    return pyarrow.string()


def _private(path: Path) -> BinaryIO:
    return os.fdopen(private_files.create(path), "wb")
