"""An SQLite file that is deleted, replaced or damaged while stores have it open."""

import sqlite3
import threading

import pytest
import sqlalchemy as sa

from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, migration, open_store
from celery_trace.stores.database_file import MOST_SET_ASIDE, folder_locked
from tests.support.store_contract import open_clock
from tests.support.store_records import failure


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path))


@pytest.fixture
def opened(settings):
    stores = []

    def make(chosen=settings, **options):
        stores.append(open_store(chosen, clock=open_clock(), **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def delete(folder):
    for path in folder.glob("trace.db*"):
        path.unlink()


def tasks(store):
    return sorted(row.task_id for row in Queries(store).failures().rows)


def test_a_monitor_that_only_reads_follows_to_the_file_that_a_collector_made_anew(tmp_path, opened):
    collector, monitor = opened(), opened(create=False)
    collector.write([failure("t1")])
    assert tasks(monitor) == ["t1"]
    delete(tmp_path)
    with pytest.raises(StoreUnavailable, match="the file does not exist"):
        tasks(monitor)
    assert not (tmp_path / "trace.db").exists()
    collector.write([failure("t2")])
    assert tasks(monitor) == ["t2"]


def test_what_is_written_while_the_file_goes_is_in_the_next_one(tmp_path, opened):
    store = opened()

    def work(connection):
        delete(tmp_path)
        return "done"

    store.write([failure("t1")])
    calls = []
    assert store.in_transaction(lambda connection: (calls or work(connection), calls.append(1))) == (calls, None)
    assert len(calls) == 2
    assert tasks(store) == []
    (lost,) = Queries(store).stats().lost_stores
    assert (lost.why, lost.records) == ("deleted", 1)


def test_two_that_find_the_same_damage_set_aside_one_file_and_lose_no_record(tmp_path, opened):
    stores = [opened() for _ in range(3)]
    stores[0].write([failure("before")])
    with (tmp_path / "trace.db").open("r+b") as file:
        file.write(b"\0" * 100)
    together = threading.Barrier(3)

    def write(number):
        together.wait()
        stores[number].write([failure(f"t{number}")])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tasks(stores[0]) == tasks(stores[2]) == ["t0", "t1", "t2"]
    aside = [path for path in tmp_path.glob("trace.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    assert len(aside) == 1
    (lost,) = Queries(stores[1]).stats().lost_stores
    assert lost.set_aside == str(aside[0])


def test_a_file_that_is_no_store_of_ours_stays_where_it_is(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("Dear Ada, " * 1000)
    with pytest.raises(StoreUnavailable, match="not a database") as refused:
        open_store(Settings(dir=str(tmp_path), store=f"sqlite:///{path}"))
    assert "Restore a backup, or move the file away" in refused.value.next
    assert [one.name for one in tmp_path.iterdir()] == ["letters.txt"]


def test_a_damaged_store_of_ours_at_a_chosen_address_is_set_aside(tmp_path, opened):
    chosen = Settings(dir=str(tmp_path), store=f"sqlite:///{tmp_path / 'mine.db'}")
    open_store(chosen).close()
    with (tmp_path / "mine.db").open("r+b") as file:
        file.write(b"\0" * 100)
    store = opened(chosen)
    (lost,) = Queries(store).stats().lost_stores
    assert lost.set_aside.startswith(str(tmp_path / "mine.db.damaged-"))


def test_a_reader_leaves_a_damaged_file_where_it_is_and_advises_what_helps(tmp_path, opened):
    opened().close()
    with (tmp_path / "trace.db").open("r+b") as file:
        file.write(b"\0" * 100)
    with pytest.raises(StoreUnavailable, match="not a database") as refused:
        opened(create=False)
    assert "Free some space" not in refused.value.next
    assert "Restore a backup" in refused.value.next
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_page_that_is_malformed_advises_what_helps(tmp_path, opened):
    store = opened()
    store.write([failure(f"t{n}", note="x" * 3000) for n in range(50)])
    store.close()
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.exec_driver_sql(
            "SELECT rootpage FROM sqlite_master WHERE name = 'celery_trace_groups'"
        ).scalar_one()
    store.close()
    with (tmp_path / "trace.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreUnavailable, match="malformed") as refused:
        Queries(opened(create=False)).groups()
    assert "Free some space" not in refused.value.next
    assert "Restore a backup" in refused.value.next


def test_a_disk_that_damages_one_file_after_the_other_is_not_filled_with_them(tmp_path, settings):
    for _ in range(MOST_SET_ASIDE):
        open_store(settings).close()
        (tmp_path / "trace.db").write_bytes(b"no database" * 100)
    open_store(settings).close()
    (tmp_path / "trace.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreUnavailable, match=f"{MOST_SET_ASIDE} before it") as refused:
        open_store(settings)
    assert "Check the disk" in refused.value.next


def test_a_store_that_an_older_version_made_gets_an_id_and_keeps_it(opened, tmp_path):
    store = opened()
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM celery_trace_meta")
    first = opened().token()
    assert first == opened().token() == opened(create=False).token() != store.token()


def test_a_relative_address_is_the_same_file_after_a_change_of_folder(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    store = opened(Settings(dir=str(tmp_path / "trace"), store="sqlite:///mine.db"))
    store.write([failure("t1")])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write([failure("t2")])
    assert tasks(store) == ["t1", "t2"]
    assert not (tmp_path / "elsewhere" / "mine.db").exists()


def test_a_store_whose_tables_were_dropped_is_made_anew_and_the_loss_is_kept(opened):
    store = opened()
    store.write([failure("t1")])
    with store.engine.begin() as connection:
        for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all():
            connection.exec_driver_sql(f"DROP TABLE {name}")
    with pytest.raises(StoreUnavailable, match="no such table"):
        store.write([failure("t2")])
    store.close()  # as a collector does, which uses it again
    store.write([failure("t2")])
    assert tasks(store) == ["t2"]
    assert [lost.why for lost in Queries(store).stats().lost_stores] == ["replaced"]


def test_no_file_is_set_aside_while_a_connection_to_it_is_closed(tmp_path, opened):
    """With its last connection SQLite deletes the WAL at the path: it must be the closed file's."""
    store = opened()
    store.write([failure("before")])
    wal = tmp_path / "trace.db-wal"
    with folder_locked(tmp_path):  # another process sets the file aside
        closing = threading.Thread(target=store.close)
        closing.start()
        closing.join(0.3)
        assert closing.is_alive()
        (tmp_path / "trace.db").rename(tmp_path / "trace.db.damaged-1")
        wal.rename(tmp_path / "trace.db.damaged-1-wal")
        wal.write_bytes(b"of the new file")
    closing.join(30)
    assert not closing.is_alive()
    assert wal.read_bytes() == b"of the new file"
    wal.unlink()


def test_a_new_file_that_another_process_is_just_creating_is_opened_a_moment_later(opened, monkeypatch):
    locked = [sqlite3.OperationalError("database is locked") for _ in range(2)]
    for error in locked:
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    real = migration.bring_up_to_date

    def bring_up_to_date(*args, **options):
        if locked:
            raise sa.exc.OperationalError("PRAGMA journal_mode=WAL", {}, locked.pop())
        return real(*args, **options)

    monkeypatch.setattr(migration, "bring_up_to_date", bring_up_to_date)
    store = opened()
    assert locked == []
    store.write([failure("t1")])
    assert tasks(store) == ["t1"]
