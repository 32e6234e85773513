"""Keeps the stacks of the runs in progress in the black box (:mod:`celery_trace.process.blackbox`)."""

from __future__ import annotations

import signal
from threading import get_ident
from typing import Final

from celery_trace import guard
from celery_trace.heap.sampler import locals_mark
from celery_trace.model import RUN_NOTHING, Role
from celery_trace.process.blackbox import BlackBox
from celery_trace.process.movement import Movement
from celery_trace.redaction import Redactor
from celery_trace.running.answers import Answers
from celery_trace.runtime.probes.probe import Host, Probe

#: How often the stack of a run in progress is written, seconds.
STACK_S: Final = 0.1
#: The same while each run ends before the next sample: a thread that wakes up so often costs more than short runs do.
STACK_SHORT_S: Final = 0.3
#: A black box that could not be made is tried again after so long, seconds.
RETRY_S: Final = 10.0
#: Roles of the processes that a worker runs tasks in. Elsewhere the crash handler is the program's.
_OF_A_WORKER: Final = frozenset({Role.CHILD, Role.SOLO, Role.THREADS, Role.GREEN})
#: Roles of the processes whose main thread runs the tasks: `faulthandler` reads the stack of the thread that handles
#: the signal, and no other, as another one may run meanwhile.
_IN_MAIN_THREAD: Final = frozenset({Role.CHILD, Role.SOLO, Role.GREEN})


class StackProbe(Probe):
    """The black box and its stack samples."""

    name = "black box"
    closes_last = True  # a process that is killed while it writes its last records is found by its box

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.box: BlackBox | None = None
        self._movement: Movement | None = None
        self._due_s = 0.0
        self._runs = 0  # at the last sample
        self._answers: Answers | None = None

    def start(self) -> None:
        """Make the black box, where tasks may run."""
        if self.host.process.role in RUN_NOTHING or not self.host.settings.black_box:
            return
        self.call_every(STACK_S, idle_s=RETRY_S)
        self.open_box()

    def open_box(self) -> None:
        """Make the black box; if that fails, as on a full disk, it is tried again after :data:`RETRY_S`."""
        host = self.host
        self._due_s = host.clock.monotonic_s() + RETRY_S
        if host.spool.write_error is not None:
            return  # it has been logged, and would fail for the same reason
        with self.guard:
            path = host.settings.spool_folder / f"{host.process.uid}.box"
            try:
                self._movement = Movement(host.settings.stuck_seconds, locals_mark(), self._without_secrets)
                box = BlackBox(path, host.process, host.clock, host.open_runs, self._movement)
            except OSError as error:
                guard.own_errors[self.name] += 1
                host.spool.note_failure(error)
                return
            box.places = host.places
            self.box = box
            if host.process.role in _OF_A_WORKER:
                with guard.Guard("crash handler"):
                    box.catch_crashes()
            if host.process.role in _IN_MAIN_THREAD and host.settings.stack_signal:
                with guard.Guard("stack by signal"):
                    box.dump_on(signal.Signals[host.settings.stack_signal])

    def _without_secrets(self, text: str) -> str:
        return Redactor(self.host.settings.redact).text(text)

    def soft_limit_reached(self) -> None:
        """The soft time limit of this thread's run was reached. Called from a signal handler."""
        if self._movement is not None:
            self._movement.soft_limit_reached(get_ident(), self.host.clock.now_s())

    def every(self) -> None:
        """Write the stacks of the runs in progress."""
        host = self.host
        lasts = host.runs == self._runs and host.open_runs.count > 0
        self.call_every(STACK_S if lasts else STACK_SHORT_S)
        self._runs = host.runs
        if self.box is not None:
            self.box.sample()
            if self.box.requested():
                self._answer()
        elif host.clock.monotonic_s() >= self._due_s and not host.closed:
            self.open_box()

    def _answer(self) -> None:
        """Answer a request for the stack of a run."""
        host = self.host
        if self._answers is None:
            self._answers = Answers(
                host.settings.spool_folder, host.process.uid, host.open_runs, limits=host.settings.limits,
                redactor=Redactor(host.settings.redact), in_app=host.settings.in_app, code_of=host.code_of,
                places=host.places,
            )  # fmt: skip
        self._answers.write(host.clock.now_s())

    def close(self) -> None:
        """Remove the black box: only a process that is killed leaves one."""
        if self.box is not None:
            self.box.close()

    def after_fork(self) -> None:
        """The box is the parent's."""
        self.box = None
