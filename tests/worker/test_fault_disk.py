"""
A disk that is full, or can't be written to, under real processes: what happened is what is recorded or counted.

Every disk here is a small tmpfs of the test's own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from celery import Celery

from celery_trace.collector import CollectorProcess
from celery_trace.model import StatsView
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool.unrecorded import EVENT
from celery_trace.spool.writer import RESERVE_BYTES
from celery_trace.stores import open_store
from tests.support.fixtures_worker import StartWorker
from tests.support.processes import REPOSITORY
from tests.support.requirements import lacking
from tests.support.waiting import wait_until

DEADLINE_S = 90

BAKERY = """
import os
import re

from celery import Celery

app = Celery("bakery")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)


@app.task(bind=True)
def burn(self, number):
    recipe = {f"step {n}": "flour and water, " * 20 + str(number) for n in range(40)}
    fd = os.open("burnt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(fd, f"{self.request.id}\\n".encode())
    os.close(fd)
    raise ValueError(f"loaf {number} is burnt")
"""


class Disk:
    """A tmpfs that can be filled to its last block and freed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "somebody-elses"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def mount(self, *words: str) -> bool:
        return subprocess.run(["mount", *words, str(self.folder)], check=False, capture_output=True).returncode == 0

    @property
    def taken_bytes(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    if not disk.mount("-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        lacking("The right to mount a tmpfs", "run the tests as root, outside a container that forbids it.")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)  # also after a test that failed


@contextmanager
def collecting(settings: Settings) -> Iterator[CollectorProcess]:
    collector = CollectorProcess(settings)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()


def drained(settings: Settings) -> bool:
    return {path.name for path in settings.spool_folder.iterdir()} == {"collector"}


def collect_all(settings: Settings) -> tuple[set[str], StatsView]:
    """With a collector at work and room for it: the tasks of the failures in the store, and what is said was lost."""
    with collecting(settings) as collector:
        wait_until(
            lambda: drained(settings), "the spool is empty", timeout_s=DEADLINE_S,
            explain=lambda: str((collector.status(), sorted(os.listdir(settings.spool_folder)))),
        )  # fmt: skip
    store = open_store(settings, create=False)
    try:
        queries = Queries(store)
        tasks, page = [], queries.failures(limit=1000)
        tasks += [row.task_id for row in page.rows]
        while page.next:
            page = queries.failures(limit=1000, cursor=page.next)
            tasks += [row.task_id for row in page.rows]
        assert len(tasks) == len(set(tasks))
        return set(tasks), queries.stats()
    finally:
        store.close()


# --- one traced process, reduced to its spool -------------------------------------------------------------


class Writer:
    """A process that writes failures; see :mod:`tests.support.spool_writer`."""

    def __init__(self, settings: Settings, tag: str, failures: int, *how: str) -> None:
        words = [sys.executable, "-m", "tests.support.spool_writer", str(settings.spool_folder), tag, str(failures)]
        self.process = subprocess.Popen(
            [*words, "1", str(64 * 1024 * 1024), *how], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait_done(self) -> str:
        """Until it has written all; gives its words."""
        assert self.process.stdout is not None
        said = b""
        while b"done" not in said:
            got = os.read(self.process.stdout.fileno(), 65536)
            assert got, said.decode()
            said += got
        return said.decode()

    def end(self) -> None:
        """Let it say goodbye, if it still can."""
        self.process.communicate(timeout=DEADLINE_S)


StartWriter = Callable[..., Writer]


@pytest.fixture
def settings(disk: Disk, tmp_path: Path) -> Settings:
    """The spool on the small disk, the store on another."""
    return Settings(dir=str(disk.folder / "trace"), store=f"sqlite:///{tmp_path / 'trace.db'}")


@pytest.fixture
def start_writer(settings: Settings) -> Iterator[StartWriter]:
    started: list[Writer] = []

    def start(tag: str, failures: int, *how: str) -> Writer:
        started.append(Writer(settings, tag, failures, *how))
        return started[-1]

    yield start
    for writer in started:
        writer.process.kill()
        writer.process.communicate()


MANY = 3_500  # big failures; about 8 MB, of which 2 MiB find room on an empty disk and 4 MiB wait in memory


@pytest.mark.parametrize("killed", [False, True], ids=["in order", "killed"])
@pytest.mark.parametrize("room", ["from the start", "none from the start"])
def test_what_a_full_disk_costs_is_counted_to_the_last_failure(
    settings: Settings, disk: Disk, start_writer: StartWriter, killed: bool, room: str
) -> None:
    if room == "none from the start":
        disk.fill()
    writer = start_writer("w", MANY, "big")
    writer.wait_done()
    if killed:
        writer.process.kill()
    writer.end()
    assert disk.mount("-o", "remount,size=64m")
    stored, stats = collect_all(settings)
    assert stats.dropped["failure"] > 100
    assert len(stored) + stats.dropped["failure"] == MANY
    assert ("process" in stats.records) == (room == "from the start")


def test_a_process_that_ends_on_a_full_disk_still_says_how_it_ended_and_what_it_did(
    settings: Settings, disk: Disk, start_writer: StartWriter
) -> None:
    writer = start_writer("w", MANY, "big")
    writer.wait_done()
    disk.fill()
    writer.end()
    assert disk.mount("-o", "remount,size=64m")
    stored, stats = collect_all(settings)
    assert len(stored) + stats.dropped["failure"] == MANY
    store = open_store(settings, create=False)
    try:
        (worker,) = Queries(store).workers(since_s=0).rows
        assert [view.ended_how for view in worker.processes] == ["exit"]
    finally:
        store.close()


def test_what_waited_in_memory_is_written_as_soon_as_there_is_room(
    settings: Settings, disk: Disk, start_writer: StartWriter
) -> None:
    disk.fill()
    writer = start_writer("w", 400)
    assert "wrote" not in writer.wait_done()
    disk.free()
    writer.end()
    stored, stats = collect_all(settings)
    assert len(stored) == 400
    assert "failure" not in stats.dropped


def test_the_room_of_what_was_delivered_comes_back_while_the_process_lives(
    settings: Settings, disk: Disk, start_writer: StartWriter
) -> None:
    writer = start_writer("w", 500)  # less than one file holds
    writer.wait_done()
    files = list(settings.spool_folder.glob("*.spool"))
    before = {path: path.stat() for path in files}
    assert max(status.st_blocks for status in before.values()) * 512 > 64 * 1024
    taken = disk.taken_bytes
    with collecting(settings) as collector:
        wait_until(
            lambda: (status := collector.status()) and status.delivered >= 1000, "all is delivered",
            timeout_s=DEADLINE_S, explain=lambda: str(collector.status()),
        )  # fmt: skip
        wait_until(
            lambda: disk.taken_bytes < taken - 64 * 1024, "the room is free", explain=lambda: str(disk.taken_bytes)
        )
    for path, status in before.items():
        assert path.stat().st_size == status.st_size, "it is the file that the process goes on with"
        assert path.stat().st_blocks * 512 <= 24 * 1024
    writer.end()
    stored, _ = collect_all(settings)
    assert len(stored) == 500


def test_a_reserve_is_given_back_when_the_process_ends_and_by_the_collector_when_it_was_killed(
    settings: Settings, start_writer: StartWriter
) -> None:
    for how in ("in order", "killed"):
        writer = start_writer("w", 1)
        writer.wait_done()
        (reserve,) = settings.spool_folder.glob("*.reserve")
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
        if how == "killed":
            writer.process.kill()
        writer.end()
        assert reserve.exists() == (how == "killed")
    collect_all(settings)


# --- a worker ---------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "bakery.py").write_text(BAKERY)
    return folder


@pytest.fixture
def burn(own_broker_url: str, project: Path) -> Iterator[Callable[[int], None]]:
    """Send so many failing tasks, and wait until they have failed."""
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    client.conf.task_ignore_result = True

    def send(number: int) -> None:
        before = len(burnt(project))
        for n in range(number):
            client.send_task("bakery.burn", (n,))
        wait_until(lambda: len(burnt(project)) >= before + number, f"{number} tasks have failed", timeout_s=DEADLINE_S)

    yield send
    client.close()


def burnt(project: Path) -> list[str]:
    path = project / "burnt"
    return path.read_text().split() if path.exists() else []


@pytest.fixture
def trace_dir(disk: Disk) -> Path:
    return disk.folder / "trace"


def test_a_worker_on_a_full_disk_accounts_for_every_failure_however_its_processes_end(
    disk: Disk, project: Path, start_worker: StartWorker, burn: Callable[[int], None], trace_dir: Path
) -> None:
    """Spool and store on the same disk; children that are replaced, killed, and stopped in order."""
    worker = start_worker(
        "bakery", project, settings={"memory": "rss"}, concurrency=2, options=["--max-tasks-per-child=60"]
    )
    burn(100)
    disk.fill()
    burn(300)
    victims = [child for child in worker.children() if "collector" not in " ".join(child.cmdline())]
    os.kill(victims[0].pid, signal.SIGKILL)
    burn(100)
    worker.stop()
    assert "no space for records" in worker.output
    assert disk.mount("-o", "remount,size=64m")
    stored, stats = collect_all(Settings(dir=str(trace_dir)))
    failed = set(burnt(project))
    assert len(failed) >= 500
    assert stats.dropped["failure"] > 0
    # A task that was killed between its last word and its exception is told as lost: that is one record as well.
    assert stored <= failed
    assert len(stored) + stats.dropped["failure"] == len(failed)


# --- a trace_dir that can't be written to -----------------------------------------------------------------


class Closed:
    """A trace_dir that can't be written to until :meth:`open` is called."""

    def __init__(self, trace_dir: Path, disk: Disk, how: str) -> None:
        self._trace_dir, self._disk, self._how = trace_dir, disk, how
        if how == "a file stands there":
            trace_dir.write_bytes(b"")
        elif how == "read-only":
            assert disk.mount("-o", "remount,ro")
        else:
            disk.fill()

    def open(self) -> None:
        if self._how == "a file stands there":
            self._trace_dir.unlink()
        elif self._how == "read-only":
            assert self._disk.mount("-o", "remount,rw,size=64m")
        else:
            assert self._disk.mount("-o", "remount,size=64m")
            self._disk.free()


@pytest.mark.parametrize("how", ["a file stands there", "read-only", "full"])
def test_a_trace_dir_that_is_closed_from_the_start_is_told_once_and_records_once_it_is_open(
    disk: Disk, project: Path, start_worker: StartWorker, burn: Callable[[int], None], trace_dir: Path, how: str
) -> None:
    closed = Closed(trace_dir, disk, how)
    worker = start_worker(
        "bakery", project, settings={"memory": "rss"}, concurrency=2, options=["--max-tasks-per-child=8"]
    )
    burn(40)
    said = "no space for records" if how == "full" else "records can't be written"
    errors = [line for line in worker.output.splitlines() if said in line]
    assert len(errors) == 1, errors
    assert "ERROR" in errors[0]
    assert ("Free some space" if how == "full" else "Set CELERY_TRACE_DIR to a writable folder") in errors[0]
    assert "CELERY_TRACE_TRANSPORT=broker" in errors[0] or how == "full"
    assert "failed (" not in worker.output, "no traceback of ours"
    closed.open()
    burn(10)
    settings = Settings(dir=str(trace_dir))
    wait_until(
        lambda: list(settings.spool_folder.glob("*.box")), "a child that began before has a black box by now",
        timeout_s=DEADLINE_S, explain=worker.tail,
    )  # fmt: skip
    worker.stop()
    stored, stats = collect_all(settings)
    failed = set(burnt(project))
    assert len(failed) == 50
    assert failed >= stored
    # A child that ended while nothing could be written took what waited with it: its log says how many.
    gone = sum(int(count) for count in re.findall(r"were lost: (?:.*?)(\d+) of kind failure", worker.output))
    assert len(stored) + stats.dropped.get("failure", 0) + gone == 50
    assert len(stored) >= 10
    if how != "full":
        assert "records are written to" in worker.output


def test_a_worker_that_records_nothing_says_so_in_an_event(
    disk: Disk, project: Path, start_worker: StartWorker, own_broker_url: str, trace_dir: Path
) -> None:
    Closed(trace_dir, disk, "a file stands there")
    client = Celery("listener", broker=own_broker_url, set_as_current=False)
    heard: list[dict[str, object]] = []
    worker = start_worker("bakery", project, settings={"memory": "rss"}, concurrency=1)
    with client.connection() as connection:
        receiver = client.events.Receiver(connection)

        def hear(event: dict[str, object]) -> None:
            heard.append(event)
            receiver.should_stop = True

        receiver.handlers = {EVENT: hear}
        with suppress(TimeoutError):
            receiver.capture(limit=None, timeout=DEADLINE_S, wakeup=False)
    assert heard, worker.tail()
    client.close()
    assert heard[0]["hostname"] == worker.node
    assert str(trace_dir) in str(heard[0]["why"])
    assert "CELERY_TRACE_DIR" in str(heard[0]["next"])
