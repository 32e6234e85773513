"""
Databases as Django made them before its migrations ran the store's own.

``<vendor>.sql`` is what ``sqlmigrate`` printed then; 0.1.0 had the migrations up to ``0005``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celery_trace.model import ExceptionInfo
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, migration, open_store, rows, schema, tables
from tests.support.schema_facts import tables_of
from tests.support.store_contract import insert_old
from tests.support.store_records import failure, rollup

FOLDER = Path(__file__).parent
#: Versions that a database is brought up to date from: the first, that of 0.1.0, and the last of this kind.
VERSIONS = ("0001", "0005", "0007")


def _statements(vendor: str) -> dict[str, list[str]]:
    """By the migration's name."""
    text = (FOLDER / f"{vendor}.sql").read_text()
    parts = (part.partition("\n") for part in text.split("-- ")[1:])
    return {name: [one for one in body.split(";\n") if one.strip()] for name, _, body in parts}


def make(engine: sa.Engine, alias: str, last: str) -> None:
    """Make the tables as they were after the migration with this number, and note in Django that it ran."""
    from django.db import connections
    from django.db.migrations.recorder import MigrationRecorder

    due = {name: part for name, part in _statements(engine.dialect.name).items() if name[:4] <= last}
    with engine.begin() as connection:
        for statement in (one for part in due.values() for one in part):
            connection.exec_driver_sql(statement)
    recorder = MigrationRecorder(connections[alias])
    for name in due:
        recorder.record_applied("django_bridge", name)
    connections[alias].close()


def fill(engine: sa.Engine) -> None:
    """A failure, a rollup with its total, and a leak, as they were written then."""
    with engine.begin() as connection:
        has = {
            table.name: [column["name"] for column in sa.inspect(connection).get_columns(table.name)]
            for table in (tables.failures, tables.leaks)
        }
        raised = ExceptionInfo("ValueError", "builtins", "schließt ☃")
        row: dict[str, Any] = rows.failure_row(failure("t1", exception=raised))
        insert_old(connection, tables.failures, {name: row[name] for name in has[tables.failures.name] if name in row})
        old = rollup(1, 9, gated=3, kept_bytes=300)
        insert_old(connection, tables.rollups, rows.ROLLUPS.row(old, overhead_s=0.0))
        insert_old(connection, tables.totals, rows.total_row(old) | {"overhead_s": 0.0})
        empty = {column.name: column.empty for column in schema.leaks.columns if column.name in has[tables.leaks.name]}
        insert_old(connection, tables.leaks, empty | {"id": "l1", "kind": "task", "name": "shop.charge"})


def moves_up(engine: sa.Engine, alias: str, folder: Path, last: str, expected: dict[str, Any]) -> None:
    """A database of that version is refused, migrated by Django, and read and written with all that it held."""
    from django.core.management import call_command

    make(engine, alias, last)
    fill(engine)
    settings = Settings(dir=str(folder), store=f"django:{alias}")
    with pytest.raises(StoreUnavailable, match="older version") as refused:
        open_store(settings)
    assert "migrate django_bridge" in refused.value.next
    call_command("migrate", "django_bridge", database=alias, verbosity=0)
    assert tables_of(engine) == expected
    with engine.connect() as connection:
        assert migration.version(connection) == migration.HEAD
        due = list(connection.execute(sa.select(tables.leak_state.c.id, tables.leak_state.c.name)))
        assert due == ([("name:l1", "shop.charge")] if last < "0003" else [])
    store = open_store(settings)
    try:
        queries = Queries(store)
        (found,) = queries.failures().rows
        assert (found.task_id, found.exception) == ("t1", ExceptionInfo("ValueError", "builtins", "schließt ☃"))
        assert queries.failure(found.id) is not None
        store.write([rollup(2, 12, gated=4, kept_bytes=400), failure("t2")])
        assert [(total.runs, total.gated, total.kept_bytes) for total in queries.rollups()] == [(12, 4, 400)]
        assert {row.task_id for row in queries.failures().rows} == {"t1", "t2"}
    finally:
        store.close()
