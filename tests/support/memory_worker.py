"""A worker of :mod:`tests.support.memory_project` that a module of tests shares, and what it recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from celery_trace.model import AnyRecord
from celery_trace.settings import Settings
from celery_trace.spool.lines import unpack
from tests.support.processes import REPOSITORY, WorkerProcess, trace_environment
from tests.support.waiting import wait_until


class MemoryWorker:
    """A running worker without a collector: its records are read from its spool."""

    def __init__(self, process: WorkerProcess, app: Any, folder: Path) -> None:
        self.process = process
        self.app = app
        self.folder = folder
        self.settings = Settings(dir=str(folder / "trace"))
        self._answers = 0

    def send(self, name: str, *args: Any) -> str:
        """Send a task; its id."""
        return str(self.app.send_task(name, args=args, ignore_result=True).id)

    def ask(self, name: str, *args: Any) -> dict[str, Any]:
        """Run a task that says something, and what it said."""
        self._answers += 1
        to = self.folder / f"answer-{self._answers}"
        self.app.send_task(name, args=[str(to), *args], ignore_result=True)
        wait_until(to.exists, f"{name} has run", timeout_s=60, explain=self.process.tail)
        return dict(json.loads(to.read_text()))

    def records(self) -> list[AnyRecord]:
        """All that is in the spool so far."""
        found = []
        for path in sorted((self.folder / "trace" / "spool").glob("*.spool")):
            lines = path.read_bytes().split(b"\n")[1:-1]  # the first is the file's head, the last may be half written
            found.extend(unpack(line) for line in lines if line)
        return found

    def of(self, kind: type, **values: Any) -> list[Any]:
        """The records of one type with these values."""
        return [
            record
            for record in self.records()
            if isinstance(record, kind) and all(getattr(record, name) == value for name, value in values.items())
        ]

    def wait_of(self, kind: type, **values: Any) -> list[Any]:
        """Those, as soon as there is one."""
        wait_until(
            lambda: self.of(kind, **values), f"a {kind.__name__} with {values}", timeout_s=60, explain=self.process.tail
        )
        return self.of(kind, **values)


@contextmanager
def memory_worker(
    broker_url: str, folder: Path, *, state: str = "", pool: str = "prefork", concurrency: int = 1, **settings: object
) -> Iterator[MemoryWorker]:
    """
    Start one, by default with one child, and wait until it takes tasks.

    Args:
        broker_url: A broker of its own.
        folder: For logs, records and answers.
        state: What the user did to the interpreter; see the project.
        pool: Celery's pool, or module and class of another one; ``concurrency`` processes, threads or greenlets.
        settings: celery-trace's, by bare name.
    """
    environment = trace_environment(
        broker_url=broker_url, trace_dir=folder / "trace", settings={"collector": "0", **settings}
    )
    environment |= {"PYTHONPATH": str(REPOSITORY), "MEMORY_PROJECT": state}
    if ":" in pool:
        environment["CELERY_CUSTOM_WORKER_POOL"], pool = pool, "custom"
    app = Celery("memory-client", broker=broker_url, set_as_current=False)
    process = WorkerProcess(
        "tests.support.memory_project", cwd=REPOSITORY, work=folder, environment=environment, pool=pool,
        concurrency=concurrency, name=folder.name,
    )  # fmt: skip
    try:
        with process:
            yield MemoryWorker(process.wait_ready(), app, folder)
    finally:
        app.close()
