"""PostgreSQL and MariaDB keep what every store promises."""

import threading

import pytest
import sqlalchemy as sa

from celery_trace.settings import Settings
from celery_trace.stores import open_store, schema, tables
from tests.support.store_contract import CONTRACT, move_up_from_the_first_schema, open_clock


@pytest.fixture(params=["postgres_url", "mariadb_url"])
def empty_url(request):
    """A database without our tables."""
    url = request.getfixturevalue(request.param)
    engine = sa.create_engine(url)

    def clear():
        with engine.begin() as connection:
            tables.metadata.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {schema.VERSION_TABLE}"))

    clear()
    # As people write it, and not as our engine spells it.
    yield url.replace("mysql+pymysql://", "mariadb://").replace("postgresql+psycopg://", "postgres://")
    clear()
    engine.dispose()


@pytest.fixture
def store(empty_url, tmp_path):
    store = open_store(Settings(dir=str(tmp_path), store=empty_url), clock=open_clock())
    yield store
    store.close()


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_a_server_database_keeps_the_promise(promise, store):
    promise(store)


def test_a_store_of_the_first_version_is_brought_up_to_date(empty_url, tmp_path, monkeypatch):
    move_up_from_the_first_schema(Settings(dir=str(tmp_path), store=empty_url), monkeypatch)


def test_starters_at_the_same_time_make_the_tables_once(empty_url, tmp_path):
    settings = Settings(dir=str(tmp_path), store=empty_url)
    errors = []
    together = threading.Barrier(4)

    def start():
        together.wait()
        try:
            open_store(settings).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_migrated_tables_are_those_of_the_schema(store):
    """What Alembic makes is what the code expects: columns, whether they may be empty, and indexes."""
    inspector = sa.inspect(store.engine)
    for table in tables.metadata.sorted_tables:
        made = {column["name"]: column["nullable"] for column in inspector.get_columns(table.name)}
        assert made == {column.name: column.nullable for column in table.columns}, table.name
        indexes = {index["name"]: index["column_names"] for index in inspector.get_indexes(table.name)}
        assert indexes == {index.name: [column.name for column in index.columns] for index in table.indexes}
