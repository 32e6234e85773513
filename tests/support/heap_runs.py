"""Runs of plain functions in this process while its heap is watched, and looks at it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from celery_trace.clock import Clock, SystemClock
from celery_trace.heap import sampling
from celery_trace.heap.leaks import leak_table
from celery_trace.heap.picks import UNTAGGED
from celery_trace.heap.watch import HeapWatch, watch_heap
from celery_trace.model import Kind, Leak, ProcessRecord, Role, Window
from celery_trace.settings import Settings
from tests.support import heaps

#: A budget that no test uses up, however busy the machine is.
AMPLE = 1.0


class Watched:
    """A watch of this process's heap whose windows are kept; another thread takes the looks, as the ticker does."""

    def __init__(self, watch: HeapWatch, windows: list[Window], looks: ThreadPoolExecutor) -> None:
        self.watch = watch
        self.windows = windows
        self._looks = looks

    def run(self, task: Callable[[int], Any], number: int = 0, *, kind: Kind = Kind.TASK) -> Any:
        """One run of a function, told as a worker tells of it."""
        before = self.watch.run(self.watch.tag(kind, task.__name__))
        try:
            return task(number)
        finally:
            self.watch.restore(before)

    def turns(self, *tasks: Callable[[int], Any], runs: int, looks: int = 4) -> Watched:
        """Each task so often, one after the other, with some looks on the way and one at the end."""
        for number in range(runs):
            for task in tasks:
                self.run(task, number)
            if (number + 1) % max(1, runs // looks) == 0:
                self.judge()
        return self

    def judge(self) -> Watched:
        """Judge what is alive, and search its holders."""
        self._looks.submit(self.watch.judge).result()
        return self

    def look(self) -> None:
        """What the ticker does once a second."""
        self._looks.submit(self.watch.look).result()

    def close(self) -> list[Leak]:
        """End the process; the rows of its windows."""
        self._looks.submit(self.watch.close).result()
        return self.rows()

    def rows(self, name: str = "") -> list[Leak]:
        """The rows so far, of one name or of all."""
        return [row for row in leak_table(self.windows, now_s=0.0) if not name or row.name == name]


@contextmanager
def watched(
    *,
    role: Role = Role.CHILD,
    recheck_runs: int = 120,
    budget: float = AMPLE,
    process: str = "process-1",
    clock: Clock | None = None,
    mean_bytes: float = 128.0,
    **settings: Any,
) -> Iterator[Watched]:
    """
    Watch this process's heap for a while, as a process of its own.

    Args:
        mean_bytes: Of the distance of two picks: by default nothing of a kilobyte is missed, so that no chance is left.
    """
    heaps.referrers()
    windows: list[Window] = []
    with patch.object(sampling, "MEAN_BYTES", mean_bytes):
        watch = watch_heap(
            Settings(memory_recheck_runs=recheck_runs, memory_budget=budget, **settings),
            ProcessRecord(uid=process, host="host", pid=1, started_at_s=0.0, role=role),
            windows.append,
            clock or SystemClock(),
        )
        assert watch is not None, "another watch is open"
        watch.restore(UNTAGGED)  # an earlier test may have taken a look from this thread
        with ThreadPoolExecutor(1, thread_name_prefix="looks") as looks:
            try:
                yield Watched(watch, windows, looks)
            finally:
                looks.submit(_end, watch).result()


def _end(watch: HeapWatch) -> None:
    watch.close()
    watch.restore(UNTAGGED)  # another thread may get this one's number
