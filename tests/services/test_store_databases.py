"""PostgreSQL and MariaDB keep what every store promises."""

import threading

import pytest
import sqlalchemy as sa

from celery_trace.settings import Settings
from celery_trace.stores import open_store, schema, tables
from tests.support.store_contract import CONTRACT, move_up_from_the_first_schema, open_clock


def as_people_write_it(url):
    """And not as our engine spells it."""
    return url.replace("mysql+pymysql://", "mariadb://").replace("postgresql+psycopg://", "postgres://")


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
    yield as_people_write_it(url)
    clear()
    engine.dispose()


@pytest.fixture(scope="module")
def databases():
    """By server, the address of a database whose tables were made by the first store in it."""
    return {}


@pytest.fixture(params=["postgres_url", "mariadb_url"])
def store(request, databases, tmp_path):
    """An empty store. Its tables are made once, as that takes far longer than most tests."""
    server = sa.make_url(request.getfixturevalue(request.param))
    if request.param not in databases:
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("CREATE DATABASE kept"))
        engine.dispose()
        databases[request.param] = server.set(database="kept").render_as_string(hide_password=False)
    address = databases[request.param]
    empty(address)
    store = open_store(Settings(dir=str(tmp_path), store=as_people_write_it(address)), clock=open_clock())
    yield store
    store.close()


def empty(address):
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        made = set(sa.inspect(connection).get_table_names())
        for table in tables.metadata.sorted_tables:
            if table.name in made and connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
                connection.execute(sa.text(f"TRUNCATE TABLE {table.name}"))
    engine.dispose()


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
