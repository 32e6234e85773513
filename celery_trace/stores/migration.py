"""Migrates a store's tables to the version that this program knows: forward only, one process at a time."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from celery_trace.stores import schema, tables
from celery_trace.stores.errors import StoreUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
#: The revision that this version of the program reads and writes: the last migration.
HEAD = max(file.stem[1:5] for file in (_MIGRATIONS / "versions").glob("v*.py"))

#: Alembic's context is global to the process: two stores must not be migrated at once.
_one_at_a_time = threading.Lock()
_LOCK_NAME = "celery_trace_migration"
_LOCK_NUMBER = 0x63745F6D  # the same as a number, for PostgreSQL


def version(connection: sa.Connection) -> str | None:
    """The tables' revision; ``django`` if Django migrations of an older version made them; None without tables."""
    inspector = sa.inspect(connection)
    if inspector.has_table(schema.VERSION_TABLE):
        # The table's name is a constant.
        row = connection.execute(sa.text(f"SELECT version_num FROM {schema.VERSION_TABLE}")).first()  # noqa: S608
        return str(row[0]) if row else None
    return "django" if inspector.has_table(tables.meta.name) else None


def _migrated_by_django(connection: sa.Connection) -> bool:
    """Whether ``manage.py migrate`` manages these tables."""
    if not sa.inspect(connection).has_table("django_migrations"):
        return False
    ours = sa.text("SELECT COUNT(*) FROM django_migrations WHERE app = 'django_bridge'")
    return bool(connection.execute(ours).scalar())


def refuse_if_newer(connection: sa.Connection, address: str) -> None:
    """
    Check the version again: another, updated host may have migrated the tables while this one had the store open.

    Raises:
        StoreUnavailable: The tables are newer than this program.
    """
    found = version(connection)
    if found is not None and found != "django" and found > HEAD:
        raise StoreUnavailable(
            f"Can't use the store {address}",
            f"its tables have version {found}, made by a newer celery-trace; this one knows {HEAD}",
            'Update this host: pip install -U "celery-trace".',
        )


def bring_up_to_date(engine: Engine, address: str, *, create: bool, by_django: bool) -> None:
    """
    Check the tables' version, and migrate tables that are older or missing.

    Raises:
        StoreUnavailable: They are newer; or they are older or missing and we must not migrate them (we only read,
            or Django migrates them).
    """
    what = f"Can't use the store {address}"
    with engine.connect() as connection:
        found = version(connection)
        refuse_if_newer(connection, address)
        if found == HEAD:
            return
        by_django = by_django or found == "django" or _migrated_by_django(connection)
    if by_django:
        why = "its tables are missing" if found is None else "its tables are of an older version"
        raise StoreUnavailable(what, why, "Run: python manage.py migrate django_bridge")
    if found is None and not create:
        raise StoreUnavailable(
            what, "it has no tables of celery-trace yet", "Start a worker with CELERY_TRACE=1; it creates them."
        )
    if not create:
        raise StoreUnavailable(
            what,
            f"its tables have version {found}, this celery-trace needs {HEAD}",
            "Start the collector or the monitor of this version: it migrates them.",
        )
    _upgrade(engine)


def _configuration(written: TextIO | None = None, **attributes: object) -> Config:
    # Alembic takes 21 MB, and nearly every start finds the tables up to date: import it only when needed.
    from alembic.config import Config

    configuration = Config(output_buffer=written)
    configuration.set_main_option("script_location", str(_MIGRATIONS))
    configuration.attributes.update(attributes)
    return configuration


def statements(revision: str, dialect: str) -> list[str]:
    """
    The SQL that migrates the tables from the previous revision to this one, for callers with their own connection.

    Args:
        revision: Such as ``0002``; the first one creates the tables.
        dialect: SQLAlchemy's name of the database.
    """
    from alembic import command

    before = int(revision) - 1
    written = io.StringIO()
    with _one_at_a_time:
        configuration = _configuration(written, dialect=dialect)
        command.upgrade(configuration, f"{before:04}:{revision}" if before else revision, sql=True)
    lines = (line for line in written.getvalue().splitlines() if not line.startswith("--"))
    found = [one.strip() for one in "\n".join(lines).split(";\n")]
    # Alembic expects its version table, which older Django databases don't have.
    return [one for one in found if one and schema.VERSION_TABLE not in one] + [
        f"CREATE TABLE IF NOT EXISTS {schema.VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        f"DELETE FROM {schema.VERSION_TABLE}",  # noqa: S608 - a constant
        f"INSERT INTO {schema.VERSION_TABLE} VALUES ('{revision}')",  # noqa: S608 - our own names of revisions
    ]


def _upgrade(engine: Engine) -> None:
    from alembic import command

    dialect = engine.dialect.name
    with _one_at_a_time, engine.connect().execution_options(writing=True) as connection:
        if dialect in {"mysql", "mariadb"}:  # DDL commits there, so the lock is held by the connection
            connection.execute(sa.text("SELECT GET_LOCK(:name, 60)"), {"name": _LOCK_NAME})
            connection.commit()
        try:
            with connection.begin():  # SQLite: BEGIN IMMEDIATE, one writer at a time
                if dialect == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
                command.upgrade(_configuration(connection=connection), HEAD)
        finally:
            if dialect in {"mysql", "mariadb"}:
                connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
                connection.commit()
