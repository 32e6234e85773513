"""Bring a store's tables to the version that this program knows, forward only, with one starter at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from celery_trace.stores import schema
from celery_trace.stores.errors import StoreUnavailable

#: The revision that this version of the program reads and writes.
HEAD = "0007"
VERSION_TABLE = schema.PREFIX + "alembic"

#: Alembic's context is one for the process: two stores that were migrated at once would mix theirs up.
_one_at_a_time = threading.Lock()
_LOCK_NAME = "celery_trace_migration"
_LOCK_NUMBER = 0x63745F6D  # the same as a number, for PostgreSQL


def version(connection: sa.Connection) -> str | None:
    """The tables' revision; ``django`` if Django made them; None if there are none."""
    inspector = sa.inspect(connection)
    if inspector.has_table(VERSION_TABLE):
        row = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).first()  # noqa: S608 - a constant
        return str(row[0]) if row else None
    return "django" if inspector.has_table(schema.meta.name) else None


def _django_revision(connection: sa.Connection) -> str | None:
    """How far Django has migrated our tables; None where it keeps no account of that (tests without migrations)."""
    if not sa.inspect(connection).has_table("django_migrations"):
        return None
    wanted = sa.text("SELECT MAX(name) FROM django_migrations WHERE app = 'django_bridge'")
    name = connection.execute(wanted).scalar()
    return str(name).partition("_")[0] if name else None


def _lacks_migrations(connection: sa.Connection) -> bool:
    revision = _django_revision(connection)
    if revision is not None:
        return revision < HEAD
    return not set(sa.inspect(connection).get_table_names()) >= {table.name for table in schema.metadata.sorted_tables}


def refuse_if_newer(connection: sa.Connection, address: str) -> None:
    """
    Another host may have been updated, and have migrated the tables, while this one had the store open.

    Raises:
        StoreUnavailable: They are newer than this program.
    """
    found = version(connection)
    if found == "django":
        found = _django_revision(connection)
    if found is not None and found > HEAD:
        raise StoreUnavailable(
            f"Can't use the store {address}",
            f"its tables have version {found}, made by a newer celery-trace; this one knows {HEAD}",
            'Update this host: pip install -U "celery-trace".',
        )


def bring_up_to_date(engine: Engine, address: str, *, create: bool, by_django: bool) -> None:
    """
    Check the tables' version, and migrate where they are older or missing.

    Raises:
        StoreUnavailable: They are newer; or missing, and making them is not ours (a reader, or Django's database).
    """
    what = f"Can't use the store {address}"
    with engine.connect() as connection:
        found = version(connection)
        refuse_if_newer(connection, address)
        older = found == "django" and _lacks_migrations(connection)
    if older:
        raise StoreUnavailable(
            what, "its tables are of an older version", "Run: python manage.py migrate django_bridge"
        )
    if found in (HEAD, "django"):
        return
    if by_django:
        raise StoreUnavailable(what, "its tables are missing", "Run: python manage.py migrate django_bridge")
    if found is None and not create:
        raise StoreUnavailable(
            what, "it holds no tables of celery-trace yet", "Start a worker with CELERY_TRACE=1; it makes them."
        )
    if not create:
        raise StoreUnavailable(
            what,
            f"its tables have version {found}, this celery-trace needs {HEAD}",
            "Start the collector or the monitor of this version: it migrates them.",
        )
    _upgrade(engine)


def _upgrade(engine: Engine) -> None:
    # Alembic is imported here and not above: it takes 21 MB, and nearly every start finds the tables as they should be.
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    dialect = engine.dialect.name
    with _one_at_a_time, engine.connect().execution_options(writing=True) as connection:
        if dialect in {"mysql", "mariadb"}:  # DDL commits there, so the lock belongs to the connection
            connection.execute(sa.text("SELECT GET_LOCK(:name, 60)"), {"name": _LOCK_NAME})
            connection.commit()
        try:
            with connection.begin():  # SQLite: BEGIN IMMEDIATE, one writer at a time
                if dialect == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
                configuration.attributes["connection"] = connection
                command.upgrade(configuration, HEAD)
        finally:
            if dialect in {"mysql", "mariadb"}:
                connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
                connection.commit()
