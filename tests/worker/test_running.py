"""What runs now, and its stack, in real workers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from celery import Celery

from celery_trace.failures.views import arguments, frames, keywords
from celery_trace.model import FrameView, RunningView, RunStack
from celery_trace.queries import Queries
from celery_trace.running import client
from celery_trace.running.client import StackReader
from celery_trace.running.outside import unavailable
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from tests.support.fixtures_worker import StartWorker
from tests.support.processes import REPOSITORY, WorkerProcess
from tests.support.waiting import wait_until

T = TypeVar("T")

SOURCE = Path(__file__).parents[1] / "support" / "running_project.py"
SECRET = "hunter2-hunter2"
#: How old facts may be, seconds, and what a loaded machine adds.
FRESH_S = 2.0 + 5.0


def line_of(mark: str) -> int:
    lines = SOURCE.read_text().splitlines()
    return next(number for number, text in enumerate(lines, 1) if f"# {mark}" in text)


class Host:
    """A worker, and what its store says of it."""

    def __init__(self, worker: WorkerProcess, trace_dir: Path, broker_url: str) -> None:
        self.worker = worker
        self.settings = Settings(dir=str(trace_dir))
        self.app = Celery("running-client", broker=broker_url, set_as_current=False)
        self.reader = StackReader(self.settings, self.app.connection_for_write, "terminal")

    def send(self, name: str) -> str:
        return str(self.app.send_task(name, args=[7], kwargs={"password": SECRET}, ignore_result=True).id)

    def ask(self, question: Callable[[Queries], T]) -> T | None:
        """What the store says; None while there is none."""
        try:
            store = open_store(self.settings, create=False)
        except StoreUnavailable:
            return None
        try:
            return question(Queries(store))
        finally:
            store.close()

    def running(self) -> list[RunningView]:
        page = self.ask(lambda queries: queries.running())
        return page.rows if page is not None else []

    def runs_of_children(self) -> list[int]:
        page = self.ask(lambda queries: queries.workers())
        workers = page.rows if page is not None else []
        return [process.runs for worker in workers for process in worker.processes if process.role == "child"]

    def wait_for(self, name: str, *, sampled: bool = True) -> RunningView:
        """The run of a task, once its stack and its host's queue are known."""
        found: list[RunningView] = []

        def seen() -> bool:
            found[:] = [
                row for row in self.running() if row.name == name and row.address and (row.stack or not sampled)
            ]
            return bool(found)

        wait_until(seen, f"{name} is seen running", timeout_s=60, explain=self.worker.tail)
        return found[0]


@pytest.fixture
def start_host(start_worker: StartWorker, trace_dir: Path, own_broker_url: str) -> Any:
    hosts: list[Host] = []

    def start(pool: str, concurrency: int = 1) -> Host:
        extra = {"PYTHONPATH": str(REPOSITORY)}
        if ":" in pool:
            extra["CELERY_CUSTOM_WORKER_POOL"], pool = pool, "custom"
        worker = start_worker(
            "tests.support.running_project", REPOSITORY, pool=pool, concurrency=concurrency,
            extra=extra,
        )  # fmt: skip
        hosts.append(Host(worker, trace_dir, own_broker_url))
        return hosts[-1]

    yield start
    for host in hosts:
        host.app.close()
        for process in host.worker.family():  # a warm shutdown would wait for the run
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def of_project(stack: RunStack) -> list[FrameView]:
    assert stack.capture is not None, stack
    return [frame for frame in frames(stack.capture) if frame.file == str(SOURCE)]


def values(frame: FrameView) -> dict[str, str]:
    return {local.name: local.value for local in frame.locals}


@pytest.mark.parametrize(
    ("pool", "task", "mark"),
    [
        ("prefork", "running.lock", "LOCK"),
        ("prefork", "running.await", "AWAIT"),
        ("solo", "running.lock", "LOCK"),
        ("threads", "running.lock", "LOCK"),
        ("gevent", "running.sleep", "SLEEP"),
        ("eventlet", "running.sleep", "SLEEP"),
        ("celery_aio_pool.pool:AsyncIOPool", "running.coroutine", "COROUTINE"),
    ],
)
def test_a_run_that_waits_shows_its_line_and_on_request_its_locals(
    pool: str, task: str, mark: str, start_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start_host(pool, concurrency=2 if pool != "solo" else 1)
    task_id = host.send(task)
    run = host.wait_for(task)
    assert (run.task_id, run.retries, run.queue) == (task_id, 0, "celery")
    assert run.hostname in run.worker
    assert run.rss_bytes > 10_000_000
    [shown, *_] = [line for line in run.stack if line.file == str(SOURCE)]
    assert (shown.line, shown.code.partition("  #")[0]) == (
        line_of(mark), SOURCE.read_text().splitlines()[line_of(mark) - 1].strip().partition("  #")[0]
    )  # fmt: skip

    here = host.reader.read(run, user="ann")
    monkeypatch.setattr(client, "is_here", lambda *_: False)
    started_s = time.monotonic()
    over_broker = host.reader.read(run, user="ann")
    assert time.monotonic() - started_s < 2.0
    for stack in (here, over_broker):
        assert (stack.by, stack.why) == ("process", "")
        inner = of_project(stack)[0]
        assert inner.line == line_of(mark)
        assert values(inner)["waiting_for"] == "'orders'"
        assert stack.capture is not None
        assert [value.value for value in arguments(stack.capture)] == ["7"]
        assert [(value.name, value.redacted) for value in keywords(stack.capture)] == [("password", True)]
        said = json.dumps(repr(stack))
        assert SECRET not in said
        assert "0123456789abcdef" not in said
    assert host.worker.running
    assert [path.suffix for path in host.settings.spool_folder.iterdir() if path.suffix in (".request", ".stack")] == []
    audit = (host.settings.folder / "audit.jsonl").read_text()
    assert audit.count(f"stack of {task_id}") == 3  # the terminal twice, and the collector


def test_a_run_in_c_code_is_read_from_outside_or_by_a_signal_and_goes_on(start_host: Any) -> None:
    host = start_host("prefork")
    host.send("running.regex")
    run = host.wait_for("running.regex", sampled=False)
    stack = host.reader.read(run, user="ann")
    assert stack.by == ("signal" if unavailable() else "outside"), stack
    assert "the interpreter's lock" in stack.why
    assert stack.capture is None
    own = next(line for line in stack.stack if line.file == str(SOURCE))
    assert (own.line, own.function) == (line_of("REGEX"), "regex")
    time.sleep(2.5)
    assert host.wait_for("running.regex", sampled=False).task_id == run.task_id


def test_the_number_of_runs_is_two_seconds_old_at_most(start_host: Any) -> None:
    host = start_host("prefork")
    for _ in range(20):
        host.app.send_task("running.done", ignore_result=True)
    wait_until(lambda: host.runs_of_children() == [20], "20 are counted", timeout_s=15, explain=host.worker.tail)

    def by_name() -> list[int] | None:
        return host.ask(lambda queries: [runs for _, name, runs, _ in queries.names() if name == "running.done"])

    wait_until(lambda: by_name() == [20], "20 are counted by name", timeout_s=FRESH_S, explain=host.worker.tail)


def test_a_worker_that_was_stopped_is_stopped_and_not_silent(start_host: Any) -> None:
    host = start_host("prefork")

    def states() -> list[str]:
        page = host.ask(lambda queries: queries.workers())
        return [worker.state for worker in page.rows] if page is not None else []

    wait_until(lambda: states() == ["alive"], "the worker is seen", timeout_s=15, explain=host.worker.tail)
    host.worker.stop()
    wait_until(lambda: states() == ["stopped"], "its end is seen", timeout_s=FRESH_S, explain=host.worker.tail)
