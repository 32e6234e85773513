"""Pruning goes on beside those who write."""

import os
import random
import sqlite3
import threading
from types import SimpleNamespace

import pytest

from celery_trace.model import Capture, Node
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from tests.support.store_contract import counted, open_clock, sums
from tests.support.store_records import NOW_S, failure, run


def test_writers_go_on_while_the_store_is_pruned_and_the_sums_stay_right(tmp_path):
    settings = Settings(dir=str(tmp_path), retention_days=14.0, retention_runs=200)
    store = open_store(settings, clock=open_clock())
    old_s = NOW_S - 30 * 86400
    store.write([failure(f"old{n}", at_s=old_s + n, fingerprint=f"fp{n % 5}") for n in range(3000)])
    store.write([run(f"old{n}", started_at_s=old_s + n) for n in range(3000)])
    errors = []

    def write(first):
        try:
            for n in range(first, first + 40):
                store.write([failure(f"new{n}", at_s=NOW_S + n, fingerprint=f"fp{n % 5}"), run(f"new{n}")])
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(n * 40,)) for n in range(3)]
    for writer in writers:
        writer.start()
    pruned = store.prune(settings, NOW_S)
    for writer in writers:
        writer.join()
    try:
        assert errors == []
        assert pruned.rows["failures"] == 3000
        assert pruned.rows["runs"] == 3000
        assert sums(store) == {"failure": 120, "run": 120}
        real = counted(store)
        assert (real["failures"], real["runs"]) == (120, 120)
        groups = Queries(store).groups().rows
        assert sorted((group.fingerprint, group.count) for group in groups) == [(f"fp{n}", 24) for n in range(5)]
    finally:
        store.close()


def test_nothing_is_pruned_by_age_when_the_retention_is_nought(tmp_path):
    settings = Settings(dir=str(tmp_path), retention_days=0.0)
    store = open_store(settings, clock=open_clock())
    try:
        store.write([failure("t1", at_s=1.0)])
        assert store.prune(settings, NOW_S).total == 0
        assert sums(store) == {"failure": 1}
    finally:
        store.close()


def noise(number):
    heap = [Node("str", "plain", random.Random(number).randbytes(500).hex())]
    return failure(f"t{number}", at_s=NOW_S + number, fingerprint=f"fp{number}", capture=Capture(heap=heap))


def test_an_sqlite_file_gives_space_back_in_steps(tmp_path):
    settings = Settings(dir=str(tmp_path), retention_days=0.0, retention_failures=50)
    store = open_store(settings, clock=open_clock())
    try:
        store.write([noise(number) for number in range(2000)])
        store.prune(settings, NOW_S)
        before = Queries(store).stats().size
        assert before.gives_back
        assert before.free_bytes > before.bytes / 2
        assert store.give_back(most_s=60.0) > 0
        after = Queries(store).stats().size
        assert after.bytes < before.bytes / 2
        assert after.free_bytes <= 256 * 4096
        store.close()
        assert (tmp_path / "trace.db").stat().st_size == after.bytes
        assert store.give_back(most_s=60.0) == 0
        assert sums(store) == {"failure": 50}
    finally:
        store.close()


def test_a_file_of_an_older_version_gives_space_back_after_it_was_vacuumed(tmp_path):
    settings = Settings(dir=str(tmp_path), retention_days=0.0, retention_failures=50)
    older = sqlite3.connect(tmp_path / "trace.db")
    older.execute("CREATE TABLE other (a)")  # as the first version made it, without a way to shrink
    older.close()
    store = open_store(settings, clock=open_clock())
    try:
        store.write([noise(number) for number in range(2000)])
        store.prune(settings, NOW_S)
        assert not Queries(store).stats().size.gives_back
        assert store.give_back(most_s=60.0) == 0
        assert store.vacuum() > 1_000_000
        assert Queries(store).stats().size.gives_back
        store.write([noise(number) for number in range(3000, 5000)])
        store.prune(settings, NOW_S)
        assert store.give_back(most_s=60.0) > 0
    finally:
        store.close()


def test_a_vacuum_without_room_is_refused_with_how_much_it_needs(tmp_path, monkeypatch):
    store = open_store(Settings(dir=str(tmp_path)), clock=open_clock())
    try:
        real = os.statvfs(tmp_path)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=real.f_frsize))
        with pytest.raises(StoreUnavailable, match="of disk space") as refused:
            store.vacuum()
        assert "Free some space first" in refused.value.next
    finally:
        store.close()


def test_failures_of_an_older_version_are_weighed_when_the_store_is_opened(tmp_path):
    store = open_store(Settings(dir=str(tmp_path)), clock=open_clock())
    store.write([noise(number) for number in range(100)])
    right = Queries(store).stats().size.failure_bytes
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM celery_trace_meta")
        connection.exec_driver_sql("DELETE FROM celery_trace_tallies WHERE id LIKE '%bytes:failures'")
    store.close()
    store = open_store(Settings(dir=str(tmp_path)), clock=open_clock())
    try:
        assert 0.3 * right < Queries(store).stats().size.failure_bytes <= right
    finally:
        store.close()
