"""Pruning goes on beside those who write."""

import threading

from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import open_store
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
