"""
A store that goes away under a real collector: deleted, replaced or damaged. What was not in it is in the next one,
and the loss is said.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_trace.cli.doctor import Installation, examine_store
from celery_trace.collector import CollectorProcess
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from tests.support.processes import REPOSITORY
from tests.support.waiting import wait_until


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path / "trace"))


@pytest.fixture
def database(settings):
    return settings.folder / "trace.db"


@pytest.fixture
def collector(settings):
    collector = CollectorProcess(settings)
    collector.start()
    yield collector
    collector.stop()


class Writer:
    """A living process that writes failures when asked."""

    def __init__(self, settings, tag):
        self.tag, self.written = tag, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.asked_writer", str(settings.spool_folder), tag],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def write(self, failures):
        self.process.stdin.write(f"{failures}\n")
        self.process.stdin.flush()
        self.written += failures
        assert self.process.stdout.readline() == f"{self.written}\n"

    @property
    def tasks(self):
        return {f"{self.tag}-{number}" for number in range(self.written)}


@contextmanager
def writing(settings, tag):
    writer = Writer(settings, tag)
    try:
        yield writer
    finally:
        writer.process.communicate(timeout=30)


def stored(settings):
    """Task ids of the failures in the store at the path; none while there is no store."""
    try:
        store = open_store(settings, create=False)
    except StoreUnavailable:
        return set()
    try:
        tasks, cursor = [], None
        while True:
            page = Queries(store).failures(limit=1000, cursor=cursor)
            tasks += [row.task_id for row in page.rows]
            cursor = page.next
            if cursor is None:
                break
        assert len(tasks) == len(set(tasks))
        return set(tasks)
    except StoreUnavailable:
        return set()
    finally:
        store.close()


def wait_for(settings, tasks, collector):
    wait_until(
        lambda: stored(settings) >= tasks,
        f"{len(tasks)} failures are in the store",
        timeout_s=60,
        explain=lambda: f"{len(stored(settings) & tasks)} are; {collector.status()}",
    )


def lost_stores(settings):
    store = open_store(settings, create=False)
    try:
        return Queries(store).stats().lost_stores
    finally:
        store.close()


def doctors_words(settings):
    return "\n".join(f"{one.level}: {one.found} {one.advice}" for one in examine_store(Installation(None, settings)))


def test_a_deleted_file_is_made_anew_and_no_later_record_is_lost(settings, database, collector):
    with writing(settings, "ended") as ended:
        ended.write(20)
        wait_for(settings, ended.tasks, collector)
    with writing(settings, "living") as living:
        living.write(30)
        wait_for(settings, living.tasks | ended.tasks, collector)
        for name in os.listdir(settings.folder):
            if name.startswith("trace.db"):
                (settings.folder / name).unlink()
        living.write(450)
        wait_for(settings, living.tasks, collector)
    assert database.stat().st_mode & 0o777 == 0o600
    (lost,) = lost_stores(settings)
    assert lost.why == "deleted"
    assert lost.records >= 50
    assert collector.status().state == "ready"
    assert collector.status().sent_again >= 30
    assert "warn: The store's file was deleted while in use" in doctors_words(settings)


def test_a_file_that_was_deleted_without_its_wal_is_made_anew(settings, database, collector):
    with writing(settings, "a") as writer:
        writer.write(30)
        wait_for(settings, writer.tasks, collector)
        database.unlink()
        writer.write(100)
        wait_for(settings, writer.tasks, collector)
    assert sqlite3.connect(database).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_was_deleted_while_no_collector_ran_gets_what_the_spool_still_holds(settings, database):
    with writing(settings, "a") as writer:
        first = CollectorProcess(settings)
        first.start()
        writer.write(30)
        wait_for(settings, writer.tasks, first)
        first.stop()
        database.unlink()
        second = CollectorProcess(settings)
        second.start()
        try:
            wait_for(settings, writer.tasks, second)
        finally:
            second.stop()


def test_a_backup_that_is_put_in_place_gets_what_the_spool_still_holds(settings, database, collector, tmp_path):
    with writing(settings, "a") as writer:
        writer.write(5)
        wait_for(settings, writer.tasks, collector)
        backup = tmp_path / "backup.db"
        with sqlite3.connect(database) as connection:
            connection.execute("VACUUM INTO ?", (str(backup),))
        writer.write(30)
        wait_for(settings, writer.tasks, collector)
        for ending in ("-wal", "-shm"):
            database.with_name(f"trace.db{ending}").unlink()
        backup.rename(database)
        writer.write(30)
        wait_for(settings, writer.tasks, collector)
    assert lost_stores(settings) == []  # it is the same store


def remove(folder: Path) -> None:
    """Remove a folder with its contents, though processes may add files to it meanwhile."""
    aside = folder.with_name(f"{folder.name}-removed")
    folder.rename(aside)
    shutil.rmtree(aside)


def test_a_trace_dir_that_was_removed_is_made_again_by_the_processes_that_still_run(settings, database, collector):
    with writing(settings, "a") as writer:
        writer.write(30)
        wait_for(settings, writer.tasks, collector)
        remove(settings.folder)
        writer.write(450)
        wait_for(settings, writer.tasks, collector)
        assert settings.folder.stat().st_mode & 0o777 == settings.spool_folder.stat().st_mode & 0o777 == 0o700
        wait_until(lambda: collector.status(), "the collector has a status again")
        writer.write(10)
        wait_for(settings, writer.tasks, collector)
    status = collector.status()
    assert (status.state, status.folders_lost) == ("ready", 1)
    wait_until(lambda: not any(settings.spool_folder.glob("*.spool")), "the spool is empty")


@pytest.mark.parametrize("damage", ["header", "zeros", "emptied", "root pages"])
def test_a_damaged_file_is_set_aside_and_recording_goes_on(settings, database, collector, damage):
    with writing(settings, "a") as writer:
        writer.write(300)
        wait_for(settings, writer.tasks, collector)
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        size = database.stat().st_size
        with database.open("r+b") as file:
            if damage == "header":
                file.write(b"\0" * 100)
            elif damage == "zeros":
                file.write(b"\0" * size)
            elif damage == "emptied":
                file.truncate(0)
            else:
                file.seek(4096)
                file.write(b"\xff" * (size - 4096))
        writer.write(450)
        wait_for(settings, writer.tasks, collector)
    (lost,) = lost_stores(settings)
    if damage == "emptied" and lost.why == "replaced":  # whoever looked first took it for a new one
        assert "was emptied or replaced" in doctors_words(settings)
        return
    assert lost.why == "damaged"
    assert os.path.exists(lost.set_aside)
    assert lost.set_aside in doctors_words(settings)


def test_a_damaged_file_that_a_new_collector_finds_is_set_aside(settings, database):
    first = CollectorProcess(settings)
    first.start()
    with writing(settings, "a") as writer:
        writer.write(30)
        wait_for(settings, writer.tasks, first)
        first.stop()
        with database.open("r+b") as file:
            file.write(b"no database" * 100)
        second = CollectorProcess(settings)
        second.start()
        try:
            writer.write(30)
            wait_for(settings, writer.tasks, second)
        finally:
            second.stop()
    (lost,) = lost_stores(settings)
    assert (lost.why, os.path.exists(lost.set_aside)) == ("damaged", True)
