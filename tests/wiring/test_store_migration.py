"""A store of an older version is brought up to date with what it holds."""

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import migration, open_store, tables
from tests.support.schema_facts import tables_of
from tests.support.store_contract import move_up_from_the_first_schema
from tests.support.store_records import failure


def test_every_older_version_becomes_the_newest_with_its_rows(tmp_path, monkeypatch):
    move_up_from_the_first_schema(Settings(dir=str(tmp_path)), monkeypatch)


def test_migrated_tables_are_those_of_the_schema(tmp_path, monkeypatch):
    old, new = Settings(dir=str(tmp_path / "old")), Settings(dir=str(tmp_path / "new"))
    with monkeypatch.context() as older:
        older.setattr(migration, "HEAD", "0001")
        open_store(old).close()
    migrated, fresh = open_store(old), open_store(new)
    by_schema = sa.create_engine(f"sqlite:///{tmp_path}/schema.db")
    tables.metadata.create_all(by_schema)
    try:
        assert tables_of(migrated.engine) == tables_of(fresh.engine) == tables_of(by_schema)
        migrated.write([failure("t1")])
        assert [row.task_id for row in Queries(migrated).failures().rows] == ["t1"]
    finally:
        migrated.close()
        fresh.close()
        by_schema.dispose()


def test_several_stores_are_made_at_once_in_one_process(tmp_path):
    every = [Settings(dir=str(tmp_path / str(number))) for number in range(4)]
    with ThreadPoolExecutor(len(every)) as threads:
        stores = list(threads.map(open_store, every))
    tables = [tables_of(store.engine) for store in stores]
    for store in stores:
        store.close()
    assert tables[1:] == tables[:-1]
