"""
Stores that can't be written to under a real collector: records wait, nothing fails, nothing is lost.

Disks that are full or read-only, a database that somebody holds, tables of another version.
"""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import contextmanager

import pytest

from celery_trace.collector import CollectorProcess
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import migration, open_store, schema
from tests.support.processes import REPOSITORY
from tests.support.waiting import wait_until

CAP = 64 * 1024 * 1024


def mount(*words):
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A file system of its own for the store, 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)):
        if os.environ.get("CI"):
            pytest.fail("A tmpfs can't be mounted here, and CI is set.")
        pytest.skip("A tmpfs can't be mounted here: not root, or a container without that right.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def settings(tmp_path, disk):
    return Settings(dir=str(tmp_path / "trace"), store=f"sqlite:///{disk / 'trace.db'}")


@contextmanager
def collecting(settings):
    collector = CollectorProcess(settings)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()


def write(settings, tag, failures, runs):
    """A traced process that begins, writes and ends; gives its failures and the slowest append of 99 in 100 (µs)."""
    words = [sys.executable, "-m", "tests.support.spool_writer", str(settings.spool_folder), tag]
    words += [str(failures), str(runs), str(CAP)]
    done = subprocess.run(words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    slow_us = int(re.search(rb"done (\d+) us", done.stdout)[1])
    return set(re.findall(r"wrote (\S+)", done.stdout.decode())), slow_us


def wait_for_refusal(collector, pattern):
    def refused():
        status = collector.status()
        return status and status.state == "waiting" and re.search(pattern, status.why)

    wait_until(refused, f"the collector waits because of {pattern}", explain=lambda: str(collector.status()))


def assert_stored_once(settings, collector, written, runs):
    def stored():
        status = collector.status()
        return status and status.state == "ready" and status.spool_records == 0 and not spooled(settings)

    wait_until(stored, "the spool is empty", timeout_s=90, explain=lambda: str(collector.status()))
    store = open_store(settings, create=False)
    try:
        queries = Queries(store)
        tasks, page = [], queries.failures(limit=1000)
        while True:
            tasks += [row.task_id for row in page.rows]
            if page.next is None:
                break
            page = queries.failures(limit=1000, cursor=page.next)
        assert sorted(tasks) == sorted(written)
        assert sum(group.count for group in queries.groups(limit=1000).rows) == len(written)
        assert queries.stats().records["run"] == runs
        assert queries.stats().dropped == {}
    finally:
        store.close()


def spooled(settings):
    return [path.name for path in settings.spool_folder.iterdir() if path.name != "collector"]


def test_a_disk_that_is_full_under_the_store_loses_nothing_and_no_append_waits(settings, disk):
    with collecting(settings) as collector:
        first, _ = write(settings, "before", 20, 5)
        wait_until(lambda: not spooled(settings), "the first ones are stored", explain=lambda: str(collector.status()))
        second, slow_us = write(settings, "full", 200, 40)  # some 4 MB for 2 MiB of disk
        wait_for_refusal(collector, r"full|disk|space")
        assert slow_us < 1000
        assert mount("-o", "remount,size=64m", str(disk))
        assert_stored_once(settings, collector, first | second, 20 * 5 + 200 * 40)


def test_a_store_that_is_read_only_loses_nothing(settings, disk):
    with collecting(settings) as collector:
        first, _ = write(settings, "before", 20, 5)
        wait_until(lambda: not spooled(settings), "the first ones are stored", explain=lambda: str(collector.status()))
    assert mount("-o", "remount,ro", str(disk))
    with collecting(settings) as collector:
        second, slow_us = write(settings, "readonly", 50, 5)
        wait_for_refusal(collector, r"read-?only|unable to open|Read-only")
        assert "Give this user write permission" in collector.status().why
        assert slow_us < 1000
        assert mount("-o", "remount,rw", str(disk))
        assert_stored_once(settings, collector, first | second, 20 * 5 + 50 * 5)


@pytest.fixture
def database(tmp_path):
    """A store on the machine's own disk, which does not wait long for other writers."""
    return Settings(dir=str(tmp_path / "trace"), store=f"sqlite:///{tmp_path / 'trace.db'}?timeout=0.2")


@contextmanager
def holding(settings, *statements):
    """Another program in the same database."""
    holder = sqlite3.connect(settings.store.removeprefix("sqlite:///").partition("?")[0], isolation_level=None)
    try:
        for statement in statements:
            holder.execute(statement)
        yield holder
    finally:
        holder.close()


def test_a_store_that_another_program_holds_loses_nothing_and_no_append_waits(database):
    with collecting(database) as collector:
        first, _ = write(database, "before", 20, 5)
        wait_until(lambda: not spooled(database), "the first ones are stored", explain=lambda: str(collector.status()))
        with holding(database, "BEGIN EXCLUSIVE"):
            second, slow_us = write(database, "held", 50, 5)
            wait_for_refusal(collector, "locked")
        assert slow_us < 1000
        assert_stored_once(database, collector, first | second, 20 * 5 + 50 * 5)


def test_a_store_of_the_first_version_is_migrated_by_the_collector_with_what_it_holds(database):
    with pytest.MonkeyPatch.context() as older:
        older.setattr(migration, "HEAD", "0001")
        open_store(database).close()
    with holding(database) as before:
        before.execute(
            "INSERT INTO celery_trace_tallies (id, value) VALUES ('rows:celery_trace_runs', 3), ('stat:cut:x', 5)"
        )
    written, _ = write(database, "first", 50, 5)
    with collecting(database) as collector:
        more, _ = write(database, "second", 50, 5)
        assert_stored_once(database, collector, written | more, 2 * 50 * 5 + 3)
    with holding(database) as after:
        assert after.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}").fetchone() == (migration.HEAD,)


def test_a_store_that_a_newer_host_has_migrated_keeps_records_waiting_until_this_host_is_updated(database):
    with collecting(database) as collector:
        first, _ = write(database, "before", 20, 5)
        wait_until(lambda: not spooled(database), "the first ones are stored", explain=lambda: str(collector.status()))
    with holding(database, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"):
        pass
    with collecting(database) as collector:
        second, slow_us = write(database, "newer", 50, 5)
        wait_for_refusal(collector, "newer celery-trace")
        assert slow_us < 1000
    with holding(database, f"UPDATE {schema.VERSION_TABLE} SET version_num = '{migration.HEAD}'"):
        pass
    with collecting(database) as collector:
        assert_stored_once(database, collector, first | second, 20 * 5 + 50 * 5)
