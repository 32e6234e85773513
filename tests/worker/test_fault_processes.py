"""Real processes are killed, starved and doubled; what went in is counted against what came out."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import psutil
import pytest

from celery_trace.collector import CollectorProcess, read_status
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from tests.support.processes import REPOSITORY
from tests.support.waiting import wait_until

CAP = 256 * 1024 * 1024
DEADLINE_S = 90


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path))


def start_writer(settings, tag, failures, runs=0, *, cap_bytes=CAP, how=()):
    words = [sys.executable, "-m", "tests.support.spool_writer", str(settings.spool_folder), tag]
    words += [str(failures), str(runs), str(cap_bytes), *how]
    return subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def finish(writer):
    """Let it say goodbye; gives the failures that it knows to stand in the spool."""
    out, _ = writer.communicate(timeout=DEADLINE_S)
    return said(out)


def said(out):
    return set(re.findall(r"wrote (\S+)", out.decode()))


@contextmanager
def collecting(settings):
    collector = CollectorProcess(settings)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()


@contextmanager
def reading(settings):
    store = open_store(settings, create=False)
    try:
        yield Queries(store)
    finally:
        store.close()


def stored_failures(settings):
    """All failures in the store, and how many its groups say there are."""
    with reading(settings) as queries:
        tasks, page = [], queries.failures(limit=1000)
        tasks += [row.task_id for row in page.rows]
        while page.next:
            page = queries.failures(limit=1000, cursor=page.next)
            tasks += [row.task_id for row in page.rows]
        return tasks, sum(group.count for group in queries.groups(limit=1000).rows)


def progressed(settings, before):
    return count(settings).get("run", 0) > before


def count(settings):
    try:
        with reading(settings) as queries:
            return queries.stats().records
    except StoreUnavailable:
        return {}


def test_a_collector_that_is_killed_again_and_again_loses_nothing_and_doubles_nothing(settings):
    writers = [start_writer(settings, f"w{n}", 300, 100) for n in range(3)]
    written = set()
    with collecting(settings) as collector:
        for _ in range(5):
            before = count(settings).get("run", 0)
            wait_until(partial(progressed, settings, before), "progress", timeout_s=DEADLINE_S)
            os.kill(collector.pid, signal.SIGKILL)
            collector.stop()
            collector.start()
        for writer in writers:
            written |= finish(writer)
        wait_until(
            lambda: count(settings).get("run") == 90_000, "all runs are stored", timeout_s=DEADLINE_S,
            explain=lambda: str((count(settings), collector.status())),
        )  # fmt: skip
    tasks, grouped = stored_failures(settings)
    assert len(written) == 900
    assert sorted(tasks) == sorted(written)
    assert grouped == 900


def test_a_process_that_is_killed_has_already_delivered_what_it_wrote(settings):
    writer = start_writer(settings, "victim", 100_000, 1)
    said_so = b""
    while said_so.count(b"\n") < 500:
        said_so += os.read(writer.stdout.fileno(), 4096)
    writer.kill()
    said_so += writer.communicate()[0]
    written = said(said_so[: said_so.rfind(b"\n")])
    with collecting(settings) as collector:
        wait_until(
            lambda: (status := collector.status()) and status.adopted == 1, "the dead process is adopted",
            timeout_s=DEADLINE_S,
        )  # fmt: skip
    tasks, _ = stored_failures(settings)
    assert written <= set(tasks)
    assert len(tasks) == len(set(tasks)) <= len(written) + 1, "at most the one that it could not tell any more"
    with reading(settings) as queries:
        (worker,) = queries.workers(since_s=0).rows
        assert [view.ended_how for view in worker.processes] == ["killed"]
    assert sorted(path.name for path in settings.spool_folder.iterdir()) == ["collector"]


def test_two_hundred_processes_share_a_spool_and_half_of_them_are_killed(settings):
    # Started by fork from one small program: two hundred interpreters at once would only test the machine.
    program = f"""
import os, sys
from tests.support.spool_writer import main
children = []
for n in range(200):
    pid = os.fork()
    if pid == 0:
        sys.stdin = open(os.devnull)
        try:
            main({str(settings.spool_folder)!r}, f"p{{n}}", 10, 10, {CAP}, "die" if n % 2 == 0 else "")
        finally:
            os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""
    with collecting(settings) as collector:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=True, timeout=DEADLINE_S
        )
        wait_until(
            lambda: not set(settings.spool_folder.iterdir()) - {settings.spool_folder / "collector"},
            "the spool is empty", timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
        wait_until(lambda: collector.status().adopted == 100, "half of them are adopted", timeout_s=DEADLINE_S)
    written = said(done.stdout)
    tasks, grouped = stored_failures(settings)
    assert len(written) == 2000
    assert sorted(tasks) == sorted(written)
    assert grouped == 2000
    assert count(settings)["run"] == 20_000
    assert count(settings)["process"] == 200
    with reading(settings) as queries:
        ends = [view.ended_how for worker in queries.workers(since_s=0).rows for view in worker.processes]
    assert (ends.count("killed"), ends.count("exit")) == (100, 100)


def test_a_clock_that_steps_back_an_hour_and_again_loses_nothing_and_doubles_nothing(settings):
    writers = [start_writer(settings, f"w{n}", 150, 200, how=["back"]) for n in range(2)]
    with collecting(settings) as collector:
        written = set().union(*map(finish, writers))
        wait_until(
            lambda: not set(settings.spool_folder.iterdir()) - {settings.spool_folder / "collector"},
            "the spool is empty", timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
    tasks, grouped = stored_failures(settings)
    assert len(written) == 300
    assert sorted(tasks) == sorted(written)
    assert grouped == 300
    assert count(settings)["run"] == 60_000
    with reading(settings) as queries:
        assert queries.stats().dropped == {}
        at_s = [row.at for row in queries.failures(limit=1000).rows]
        assert max(at_s) - min(at_s) > 7000, "the clock went back"


def test_what_the_cap_takes_is_counted_exactly_while_the_collector_is_away(settings):
    cap_bytes = 2 * 1024 * 1024
    writers = [start_writer(settings, f"w{n}", 200, 100, cap_bytes=cap_bytes) for n in range(4)]
    written = set()
    for writer in writers:
        written |= finish(writer)
    assert sum(path.stat().st_size for path in settings.spool_folder.iterdir()) < cap_bytes * 1.5
    with collecting(settings) as collector:
        wait_until(
            lambda: (status := collector.status()) and status.state == "ready" and status.dropped,
            "the spool is drained", timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
    with reading(settings) as queries:
        stats = queries.stats()
    assert stats.dropped["run"] > 10_000
    assert stats.records["run"] + stats.dropped["run"] == 80_000
    assert set(stats.dropped) == {"run"}
    assert sorted(stored_failures(settings)[0]) == sorted(written)
    assert len(written) == 800


def test_cap_and_collector_at_work_together_account_for_every_record(settings):
    writers = [start_writer(settings, f"w{n}", 150, 200, cap_bytes=512 * 1024) for n in range(4)]
    with collecting(settings) as collector:
        written = set()
        for writer in writers:
            written |= finish(writer)
        wait_until(
            lambda: not set(settings.spool_folder.iterdir()) - {settings.spool_folder / "collector"},
            "the spool is empty", timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
    with reading(settings) as queries:
        stats = queries.stats()
    assert stats.records["run"] + stats.dropped.get("run", 0) == 120_000
    assert sorted(stored_failures(settings)[0]) == sorted(written)
    assert len(written) == 600


def test_a_second_collector_stands_by_and_takes_over(settings):
    with collecting(settings) as first:
        wait_until(lambda: read_status(settings.folder), "the first one is at work", timeout_s=DEADLINE_S)
        with collecting(settings) as second:
            wait_until(lambda: second.pid is None, "the second one finds the folder taken", timeout_s=DEADLINE_S)
            second.watch()
            assert second.restarts == 0, "that is no failure"
            finish(start_writer(settings, "a", 5))
            wait_until(lambda: count(settings).get("failure") == 5, "the first one delivers", timeout_s=DEADLINE_S)
            os.kill(first.pid, signal.SIGKILL)
            finish(start_writer(settings, "b", 5))

            def taken_over():
                second.watch()
                return count(settings).get("failure") == 10

            wait_until(taken_over, "the second one delivers", timeout_s=DEADLINE_S, every_s=0.5)


def test_a_collector_whose_parent_is_killed_drains_once_more_and_ends(settings):
    program = f"""
import os, sys
from celery_trace.collector import CollectorProcess
from celery_trace.settings import Settings
collector = CollectorProcess(Settings(dir={str(settings.folder)!r}))
collector.start()
print(collector.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())
    wait_until(lambda: read_status(settings.folder), "it is at work", timeout_s=DEADLINE_S)
    os.kill(pid, signal.SIGSTOP)
    finish(start_writer(settings, "late", 50, 5))
    parent.kill()
    parent.communicate()
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not psutil.pid_exists(pid), "it ended", timeout_s=DEADLINE_S)
    assert count(settings)["failure"] == 50
    assert read_status(settings.folder).state == "ended"


def test_a_collector_that_ends_is_started_again_with_growing_pauses(settings):
    class Hands:
        now = 0.0

        def now_s(self):
            return self.now

        def monotonic_s(self):
            return self.now

    hands = Hands()
    collector = CollectorProcess(settings, clock=hands)
    collector.start()
    try:
        pauses = []
        for _ in range(3):
            os.kill(collector.pid, signal.SIGKILL)
            wait_until(lambda: collector.pid is None, "it is dead", timeout_s=DEADLINE_S)
            collector.watch()
            begun = hands.now
            while collector.pid is None:
                hands.now += 0.5
                collector.watch()
            pauses.append(hands.now - begun)
        assert pauses == [1.0, 2.0, 4.0]
        assert collector.restarts == 3
    finally:
        collector.stop()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("A tmpfs can't be mounted here, and CI is set.")
        pytest.skip("A tmpfs can't be mounted here: not root, or a container without that right.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_failures_take_the_room_of_runs_and_nothing_fails(small_disk, tmp_path):
    settings = Settings(dir=str(small_disk), store=f"sqlite:///{tmp_path / 'trace.db'}")
    filler = small_disk / "somebody-elses"
    writer = start_writer(settings, "w", 400, 100)  # about 10 MB of runs for 3 MB of disk
    out = b""
    while out.count(b"\n") < 401:
        out += os.read(writer.stdout.fileno(), 65536)
    assert b"done" in out
    filler.write_bytes(b"")
    written = said(out)
    with collecting(settings) as collector:
        wait_until(lambda: count(settings).get("failure") == len(written), "they are stored", timeout_s=DEADLINE_S)
        finish(writer)
        wait_until(
            lambda: not set(settings.spool_folder.iterdir()) - {settings.spool_folder / "collector"},
            "the spool is empty", timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
    tasks, _ = stored_failures(settings)
    assert len(written) == 400
    assert sorted(tasks) == sorted(written)


def test_an_append_takes_less_than_a_millisecond_while_the_spool_is_full(settings):
    writer = start_writer(settings, "w", 50, 500, cap_bytes=1024 * 1024)
    out, _ = writer.communicate(timeout=DEADLINE_S)
    slow_us, gone = map(int, re.search(rb"done (\d+) us, evicted (\d+)", out).groups())
    assert gone > 5000, "the cap was at work"
    assert slow_us < 1000, "99 in 100 appends"
