"""Statements that differ between databases, and reading rows by many keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from celery_trace.stores.errors import Interrupted
from celery_trace.stores.mapping import Row

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn, AnyRow

T = TypeVar("T")

#: Keys in one ``IN``, rows in one statement.
CHUNK = 500

#: Without it SQLAlchemy loses the row count of a repeated INSERT.
_COUNTED = {"preserve_rowcount": True}

_INT_MOST = 2**63 - 1


class _RowFitter:
    """Cuts the texts and numbers of a table's rows to what every database accepts."""

    def __init__(self, table: sa.Table) -> None:
        self._lengths = {
            column.name: column.type.length
            for column in table.columns
            if isinstance(column.type, sa.String) and not isinstance(column.type, sa.LargeBinary)
        }
        self._real = {column.name for column in table.columns if isinstance(column.type, sa.Double)}
        self._whole = {column.name for column in table.columns if isinstance(column.type, sa.BigInteger)}

    def __call__(self, row: Row) -> Row:
        for name, length in self._lengths.items():
            value = row.get(name)
            if value:
                if "\x00" in value:  # PostgreSQL's text can't contain NUL
                    row[name] = value = value.replace("\x00", "\ufffd")
                if length is not None and len(value) > length:
                    row[name] = value[:length]
        for name in self._whole:
            value = row.get(name)
            if value is not None and not -_INT_MOST <= value <= _INT_MOST:
                row[name] = max(-_INT_MOST, min(_INT_MOST, value))
        for name in self._real:
            value = row.get(name)
            if value is not None and not isfinite(value):  # MySQL has no infinity
                row[name] = 0.0
        return row


_fits: dict[str, _RowFitter] = {}


def fit(table: sa.Table, row: Row) -> Row:
    """The row, with each value cut to its column."""
    cutter = _fits.get(table.name)
    if cutter is None:
        cutter = _fits[table.name] = _RowFitter(table)
    return cutter(row)


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Slices of at most ``size``."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _is_mysql(connection: sa.Connection) -> bool:
    return connection.dialect.name in {"mysql", "mariadb"}


def _insert_into_sqlite(connection: sa.Connection, table: sa.Table, rows: Sequence[Row], on_conflict: str) -> int:
    """
    Insert rows that have all columns of the table; returns SQLite's count of written rows.

    SQLAlchemy's processing of parameters takes half as long as SQLite needs to store a row. SQLite can bind the values
    of rows (texts, numbers, bytes, None) directly.
    """
    names = list(rows[0])
    columns = ", ".join(f'"{name}"' for name in names)
    places = ", ".join("?" * len(names))
    # Names of our own tables and columns.
    statement = f'INSERT INTO "{table.name}" ({columns}) VALUES ({places}) ON CONFLICT {on_conflict}'  # noqa: S608
    in_order = itemgetter(*names)
    values = [in_order(fit(table, row)) for row in rows]
    return connection.exec_driver_sql(statement, values, execution_options=_COUNTED).rowcount


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> int:
    """
    Insert rows with new keys; existing rows stay unchanged.

    Returns:
        The number of new rows. Waits for another writer's uncommitted rows with the same keys.
    """
    if not rows:
        return 0
    if connection.dialect.name == "sqlite":
        return sum(_insert_into_sqlite(connection, table, part, "DO NOTHING") for part in chunks(rows))
    statement: mysql.Insert | postgresql.Insert
    if _is_mysql(connection):
        statement = mysql.insert(table).prefix_with("IGNORE")
    else:
        statement = postgresql.insert(table).on_conflict_do_nothing()
    new = 0
    for part in chunks(rows):
        result = connection.execute(statement, [fit(table, row) for row in part], execution_options=_COUNTED)
        new += max(result.rowcount, 0)
    return new


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """
    Insert rows that did not exist when this transaction looked.

    Raises:
        Interrupted: Another writer has inserted one of them since.
    """
    if insert_new(connection, table, rows) != len(rows):
        raise Interrupted(table.name)


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, or overwrite all columns of existing rows."""
    if not rows:
        return
    key = next(iter(table.primary_key.columns)).name
    changed = [name for name in rows[0] if name != key]
    if connection.dialect.name == "sqlite":
        settings = ", ".join(f'"{name}" = excluded."{name}"' for name in changed)
        for part in chunks(rows):
            _insert_into_sqlite(connection, table, part, f'("{key}") DO UPDATE SET {settings}')
        return
    values = [fit(table, row) for row in rows]
    statement: mysql.Insert | postgresql.Insert
    if _is_mysql(connection):
        base = mysql.insert(table)
        statement = base.on_duplicate_key_update({name: base.inserted[name] for name in changed})
    else:
        post = postgresql.insert(table)
        statement = post.on_conflict_do_update(
            index_elements=[key], set_={name: post.excluded[name] for name in changed}
        )
    for part in chunks(values):
        connection.execute(statement, part)


def update_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Overwrite rows that this transaction has locked; all have the same columns, the key among them."""
    if not rows:
        return
    key = next(iter(table.primary_key.columns))
    columns = [name for name in rows[0] if name != key.name]
    statement = (
        sa.update(table)
        .where(key == sa.bindparam("the_key"))
        .values({name: sa.bindparam(f"new_{name}") for name in columns})
    )
    for part in chunks(fit(table, row) for row in rows):
        connection.execute(
            statement,
            [{"the_key": row[key.name], **{f"new_{name}": row[name] for name in columns}} for row in part],
        )


def locked(
    connection: sa.Connection, table: sa.Table, keys: Iterable[str], columns: Sequence[AnyColumn] = ()
) -> dict[str, AnyRow]:
    """Rows by key, locked for this transaction in key order, so that writers never deadlock."""
    key = next(iter(table.primary_key.columns))
    found: dict[str, AnyRow] = {}
    for part in chunks(sorted(set(keys))):
        wanted = sa.select(*(columns or (table,))).where(key.in_(part)).order_by(key).with_for_update()
        for row in connection.execute(wanted):
            found[row._mapping[key.name]] = row
    return found


@contextmanager
def by_key(connection: sa.Connection) -> Iterator[None]:
    """
    Make a join of few rows look up the other table's rows by key.

    PostgreSQL estimates ten thousand such lookups as more expensive than reading the whole table, which takes half a
    second for a table of texts.
    """
    ways = ("enable_hashjoin", "enable_mergejoin", "jit") if connection.dialect.name == "postgresql" else ()
    for way in ways:
        connection.exec_driver_sql(f"SET LOCAL {way} = off")
    yield
    for way in ways:
        connection.exec_driver_sql(f"SET LOCAL {way} TO DEFAULT")


def add_tallies(connection: sa.Connection, table: sa.Table, changes: dict[str, int]) -> None:
    """Add to running sums, creating new ones."""
    keys = sorted(key for key, value in changes.items() if value)
    if not keys:
        return
    statement = (
        sa.update(table).where(table.c.id == sa.bindparam("the_key")).values(value=table.c.value + sa.bindparam("more"))
    )
    for key in keys:
        if connection.execute(statement, {"the_key": key[:200], "more": changes[key]}).rowcount == 0:
            insert_all(connection, table, [{"id": key, "value": changes[key]}])
