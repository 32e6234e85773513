"""A black box with runs that a test begins and ends by hand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from celery_trace.clock import Clock
from celery_trace.model import ProcessRecord
from celery_trace.process.blackbox import BlackBox, label
from celery_trace.process.movement import Movement
from celery_trace.process.open_runs import Counts, OpenRuns


class BoxWithRuns(BlackBox):
    """A black box; each thread's innermost run is the one that ends next."""

    def __init__(self, path: Path, process: ProcessRecord, clock: Clock) -> None:
        self.runs = OpenRuns()
        self.runs.now = clock.now_s
        self._tokens = threading.local()
        super().__init__(path, process, clock, self.runs, Movement(30.0))

    def begin(self, name: str, task_id: str = "id", retries: int = 0, queue: str | None = "") -> None:
        """A run of a task begins in this thread; its queue can't be read if it is None."""
        token: Any = self.runs.begin(Counts(label("task", name)), task_id, retries)
        token.origin, token.describe = queue, _queue_of
        self._tokens.open = [*getattr(self._tokens, "open", []), token]

    def end(self) -> None:
        """The innermost run of this thread has ended."""
        self.runs.end(self._tokens.open.pop(), False, False)


def _queue_of(queue: str | None) -> tuple[str, str]:
    if queue is None:
        raise ValueError("a request that can't be read")
    return queue, ""
