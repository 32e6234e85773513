"""Runs of plain functions under a memory probe, as a worker that takes one task at a time would do them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from celery_trace.clock import SystemClock
from celery_trace.leaks import leak_table
from celery_trace.model import Kind, Leak, ProcessRecord, Role, Stage, Window
from celery_trace.probes.lease import AloneLease, Lease
from celery_trace.probes.memory import Measured, MemoryProbe
from celery_trace.settings import Settings


class Bench:
    """A probe whose windows are kept."""

    def __init__(
        self,
        *,
        role: Role = Role.SOLO,
        recheck_runs: int = 120,
        memory: str = "auto",
        lease: Lease | None = None,
        process: str = "process-1",
        budget: float = 1.0,
        **probe: Any,
    ) -> None:
        self.windows: list[Window] = []
        self.probe = MemoryProbe(
            Settings(memory=memory, memory_recheck_runs=recheck_runs, memory_budget=budget),
            ProcessRecord(uid=process, host="host", pid=1, started_at_s=0.0, role=role),
            self.windows.append,
            SystemClock(),
            lease or AloneLease(),
            **probe,
        )
        self.last: Measured | None = None

    def run(self, task: Callable[[int], Any], runs: int, *, kind: Kind = Kind.TASK, start: int = 0) -> Bench:
        """Run a function so often, its argument counting up; what it raises is dropped, as a worker drops it."""
        for number in range(start, start + runs):
            token = self.probe.before(kind, task.__name__)
            failed = False
            try:
                result = task(number)
            except Exception:
                failed, result = True, None
            measured = self.probe.after(token, failed=failed)
            if number == start + runs - 1:
                self.last = measured
            # A worker holds nothing of a run when the next begins.
            del result, token, measured
        return self

    def close(self) -> list[Leak]:
        """End the process; the rows of its windows."""
        self.probe.close()
        return leak_table(self.windows, now_s=0.0)

    def runs_until(self, stage: Stage) -> int:
        """The run at which a stage ended; fails the test when it never did."""
        return next(window.run_number for window in self.windows if window.stage is stage)

    def stages(self) -> list[str]:
        """The stages in order."""
        return [str(window.stage) for window in self.windows]


def rows_of(task: Callable[[int], Any], runs: int = 165, **bench: Any) -> list[Leak]:
    """Run a function under a fresh probe and close it."""
    on = Bench(**bench)
    with contextlib.closing(on.probe):
        on.run(task, runs)
        return on.close()
