"""
The store's size, its growth, and when the failures reach their limits.

The size of failures is a running sum (``bytes:failures``): on PostgreSQL and MariaDB a table does not shrink when rows
are removed, so its size does not show how many more to remove. The sizes are recorded once an hour in ``meta``; the
forecast comes from the last days.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from celery_trace.model import StoreSize
from celery_trace.settings import Settings
from celery_trace.stores import tables
from celery_trace.stores.mapping import text
from celery_trace.stores.statements import chunks, insert_new, upsert
from celery_trace.text.format import duration, size

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn

#: Running sums in bytes and rows: the failures stored now, and all failures ever written.
HELD, ADDED, ADDED_ROWS = "bytes:failures", "added:bytes:failures", "added:rows:failures"
#: A failure's size besides its payload and text: columns, and entries in a dozen indexes. Measured on SQLite.
ROW_BYTES = 900
#: The same of a shared capture.
CAPTURE_BYTES = 300

_NOTES = "sizes"
#: How often sizes are recorded, and how long they are kept, seconds.
NOTED_EVERY_S, NOTED_FOR_S = 3600.0, 3 * 86_400.0
#: A forecast needs records over at least this time, seconds.
LEAST_S = 600.0
#: Failures that are measured to estimate the size of an older version's failures.
WEIGHED = 500

DAY_S = 86_400.0

#: Pages of an SQLite file freed in one step, and free pages kept for new rows (or 5 % of the file).
STEP_PAGES, KEPT_PAGES = 256, 256


class Note(msgspec.Struct, array_like=True):
    """Sizes at one time; ``added`` counts from the store's creation."""

    at_s: float
    bytes: int
    added_bytes: int
    added_rows: int


def weight(payload: bytes | None, searched: str) -> int:
    """A failure's size, bytes."""
    return len(payload or b"") + len(searched) + ROW_BYTES


def _length(connection: sa.Connection, column: AnyColumn) -> sa.ColumnElement[int]:
    """The bytes of a payload or the characters of a text."""
    if isinstance(column.type, sa.LargeBinary) or connection.dialect.name == "sqlite":
        return sa.func.coalesce(sa.func.length(column), 0)
    return sa.func.coalesce(sa.func.char_length(column), 0)


def weight_of(connection: sa.Connection, ids: Sequence[str]) -> int:
    """The size of these failures, bytes."""
    failures, values = tables.failures, tables.failure_values
    each = _length(connection, failures.c.payload) + _length(connection, values.c.text) + ROW_BYTES
    total = 0
    for part in chunks(ids):
        joined = sa.select(sa.func.sum(each)).select_from(
            failures.join(values, values.c.id == failures.c.id, isouter=True)
        )
        total += int(connection.execute(joined.where(failures.c.id.in_(part))).scalar() or 0)
    return total


def weight_of_captures(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    """The size of these shared captures, bytes."""
    captures = tables.captures
    each = _length(connection, captures.c.payload) + _length(connection, captures.c.text) + CAPTURE_BYTES
    return int(connection.execute(sa.select(sa.func.sum(each)).where(which)).scalar() or 0)


def begin(connection: sa.Connection) -> None:
    """Estimate the size of the failures of an older version from their newest ones."""
    tallies, failures = tables.tallies, tables.failures
    if connection.execute(sa.select(tallies.c.value).where(tallies.c.id == HELD)).first() is not None:
        return
    newest = sa.select(failures.c.id).order_by(failures.c.at_s.desc()).limit(WEIGHED)
    ids = list(connection.execute(newest).scalars())
    rows = connection.execute(sa.select(tallies.c.value).where(tallies.c.id == f"rows:{failures.name}")).scalar() or 0
    estimate = round(weight_of(connection, ids) / len(ids) * rows) if ids else 0
    insert_new(connection, tallies, [{"id": HELD, "value": estimate}])


def on_disk(connection: sa.Connection) -> tuple[int, int, bool]:
    """
    The store's bytes on disk, the bytes free for new rows, and whether the file can shrink.

    The free bytes of a database server are unknown; the server manages them.
    """
    name = connection.dialect.name
    if name == "sqlite":
        facts = {
            fact: int(connection.exec_driver_sql(f"PRAGMA {fact}").scalar_one())
            for fact in ("page_size", "page_count", "freelist_count", "auto_vacuum")
        }
        page = facts["page_size"]
        return page * facts["page_count"], page * facts["freelist_count"], facts["auto_vacuum"] == 2
    names = [table.name for table in tables.metadata.sorted_tables]
    if name == "postgresql":
        found = (
            "SELECT SUM(pg_total_relation_size(to_regclass(name))) FROM unnest(CAST(:names AS text[])) AS ours(name)"
        )
        wanted = sa.text(found).bindparams(names=names)
    else:
        found = (
            "SELECT SUM(data_length + index_length) FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name IN :names"
        )
        wanted = sa.text(found).bindparams(sa.bindparam("names", names, expanding=True))
    return int(connection.execute(wanted).scalar() or 0), 0, True


def give_back(connection: sa.Connection) -> int:
    """Shrink an SQLite file by some of its free pages; returns the freed bytes."""
    facts = {
        fact: int(connection.exec_driver_sql(f"PRAGMA {fact}").scalar_one())
        for fact in ("page_size", "page_count", "freelist_count", "auto_vacuum")
    }
    spare = facts["freelist_count"] - max(KEPT_PAGES, facts["page_count"] // 20)
    if facts["auto_vacuum"] != 2 or spare <= 0:
        return 0
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA incremental_vacuum({min(spare, STEP_PAGES)})")
        cursor.fetchall()  # frees a page for each row
    left = int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    return (facts["page_count"] - left) * facts["page_size"]


def note(connection: sa.Connection, now_s: float) -> None:
    """Record the sizes if the last record is an hour old."""
    notes = _notes(connection)
    if notes and now_s - notes[-1].at_s < NOTED_EVERY_S:
        return
    sums = _sums(connection)
    notes.append(Note(now_s, on_disk(connection)[0], sums[ADDED], sums[ADDED_ROWS]))
    kept = [one for one in notes if now_s - one.at_s <= NOTED_FOR_S]
    upsert(connection, tables.meta, [{"id": _NOTES, "value": text(kept)}])


def _notes(connection: sa.Connection) -> list[Note]:
    value = connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.id == _NOTES)).scalar()
    return msgspec.json.decode(value, type=list[Note]) if value else []


def _sums(connection: sa.Connection) -> dict[str, int]:
    table = tables.tallies
    keys = (HELD, ADDED, ADDED_ROWS, f"rows:{tables.failures.name}")
    rows = connection.execute(sa.select(table.c.id, table.c.value).where(table.c.id.in_(keys)))
    found = {row.id: int(row.value) for row in rows}
    return {key: max(0, found.get(key, 0)) for key in keys}


def held(connection: sa.Connection) -> tuple[int, int]:
    """The number of failures and their size, bytes."""
    sums = _sums(connection)
    return sums[f"rows:{tables.failures.name}"], sums[HELD]


def read(connection: sa.Connection, settings: Settings, now_s: float) -> StoreSize:
    """The sizes now, with a forecast."""
    total, free, gives_back = on_disk(connection)
    sums = _sums(connection)
    failures, failure_bytes = sums[f"rows:{tables.failures.name}"], sums[HELD]
    found = StoreSize(
        bytes=total,
        free_bytes=free,
        gives_back=gives_back,
        failures=failures,
        failure_bytes=failure_bytes,
        most_failures=settings.retention_failures,
        most_failure_bytes=settings.retention_bytes,
    )
    since = next((one for one in _notes(connection) if now_s - one.at_s >= LEAST_S), None)
    if since is None:
        return found
    days = (now_s - since.at_s) / DAY_S
    rows_a_day = (sums[ADDED_ROWS] - since.added_rows) / days
    bytes_a_day = (sums[ADDED] - since.added_bytes) / days
    left_days = [
        max(0.0, most - now) / pace
        for most, now, pace in (
            (settings.retention_failures, failures, rows_a_day),
            (settings.retention_bytes, failure_bytes, bytes_a_day),
        )
        if most and pace > 0
    ]
    return msgspec.structs.replace(
        found,
        bytes_per_day=round((total - since.bytes) / days),
        failures_per_day=round(rows_a_day),
        failure_bytes_per_day=round(bytes_a_day),
        bound_at=now_s + min(left_days) * DAY_S if left_days else None,
    )


def sentences(found: StoreSize, now_s: float) -> list[str]:
    """The sizes in words, for pages and terminals."""
    parts = [f"The store takes {size(found.bytes)}"]
    if found.free_bytes:
        parts[0] += f", {size(found.free_bytes)} of them free"
    if found.bytes_per_day is not None:
        grows = found.bytes_per_day
        parts[0] += f", and {'grows' if grows >= 0 else 'shrinks'} by {size(abs(grows))} a day"
    bound = f"; {found.most_failures:,} are kept"
    if found.most_failure_bytes:
        bound += f", or {size(found.most_failure_bytes)} of them"
    parts.append(f"{found.failures:,} failures take {size(found.failure_bytes)}{bound}")
    if found.failures_per_day is not None and found.failure_bytes_per_day is not None:
        pace = f"{found.failures_per_day:,} a day come in, {size(found.failure_bytes_per_day)}"
        if found.bound_at is None:
            parts.append(pace)
        elif found.bound_at <= now_s:
            parts.append(f"{pace}: older ones make room")
        else:
            parts.append(f"{pace}: older ones make room in {duration(found.bound_at - now_s)}")
    return [f"{one}." for one in parts]
