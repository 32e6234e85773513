"""The same tables by Django and by the store on PostgreSQL and MariaDB, and records that both can read."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from celery_trace.model import ExceptionInfo, Failure, Kind, Outcome
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from tests.support import old_django
from tests.support.django_databases import ALIAS, other_database
from tests.support.schema_facts import tables_of

pytest_plugins = ["tests.support.fixtures_django"]


@contextmanager
def _database(url: sa.URL, name: str) -> Iterator[sa.URL]:
    """An empty database on the server, dropped afterwards."""
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield url.set(database=name)
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}"))
    finally:
        server.dispose()


@pytest.mark.parametrize("fixture", ["postgres_url", "mariadb_url"])
def test_django_makes_the_tables_that_the_store_makes(fixture, request, site, tmp_path):
    from django.core.management import call_command

    server = sa.make_url(request.getfixturevalue(fixture))
    with _database(server, "by_store") as by_store, _database(server, "by_django") as by_django:
        store = open_store(Settings(dir=str(tmp_path), store=by_store.render_as_string(hide_password=False)))
        engine = sa.create_engine(by_django)
        try:
            with other_database(by_django):
                call_command("migrate", "django_bridge", database=ALIAS, verbosity=0)
                assert tables_of(engine) == tables_of(store.engine)
        finally:
            store.close()
            engine.dispose()


@pytest.mark.parametrize("last", old_django.VERSIONS)
@pytest.mark.parametrize("fixture", ["postgres_url", "mariadb_url"])
def test_a_database_that_django_made_before_moves_up_with_its_rows(fixture, last, request, site, tmp_path):
    server = sa.make_url(request.getfixturevalue(fixture))
    with _database(server, "by_store") as by_store, _database(server, "by_django") as by_django:
        store = open_store(Settings(dir=str(tmp_path), store=by_store.render_as_string(hide_password=False)))
        engine = sa.create_engine(by_django)
        try:
            with other_database(by_django):
                old_django.moves_up(engine, ALIAS, tmp_path, last, tables_of(store.engine))
        finally:
            store.close()
            engine.dispose()


@pytest.mark.parametrize("fixture", ["postgres_url", "mariadb_url"])
def test_what_the_collector_writes_into_a_django_database_django_reads(fixture, request, site, tmp_path):
    from django.core.management import call_command

    failure = Failure(
        id="f1", process="p1", kind=Kind.TASK, name="shop.tasks.pay", task_id="t1", outcome=Outcome.FAILED,
        exception=ExceptionInfo("ValueError", "builtins", "schließt ☃"), at_s=1_700_000_000.0,
    )  # fmt: skip
    server = sa.make_url(request.getfixturevalue(fixture))
    with _database(server, "by_django") as by_django, other_database(by_django):
        call_command("migrate", database=ALIAS, verbosity=0)
        from django_bridge.models import Failure as Row

        store = open_store(Settings(dir=str(tmp_path), store=f"django:{ALIAS}"))
        try:
            assert store.write([failure]).refused == []
            assert store.write([failure]).refused == [], "a second delivery is the same record"
            assert store.engine.url.database == "by_django"
        finally:
            store.close()
        (row,) = Row.objects.all()
        assert row._state.db == ALIAS
        assert (row.id, row.exception_message, row.at_s) == ("f1", "schließt ☃", 1_700_000_000.0)


@pytest.mark.parametrize("fixture", ["postgres_url"])
def test_with_the_router_only_our_tables_are_made_there(fixture, request, site):
    from django.core.management import call_command

    server = sa.make_url(request.getfixturevalue(fixture))
    with _database(server, "by_django") as by_django, other_database(by_django):
        call_command("migrate", "django_bridge", database=ALIAS, verbosity=0)
        engine = sa.create_engine(by_django)
        try:
            names = set(sa.inspect(engine).get_table_names())
        finally:
            engine.dispose()
    assert {name for name in names if not name.startswith("celery_trace_")} == {"django_migrations"}
