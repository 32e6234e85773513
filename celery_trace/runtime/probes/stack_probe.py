"""
Samples the stacks of the runs in progress: the latest into the black box (:mod:`celery_trace.process.blackbox`), all of
them added up in the profile of their task (:mod:`celery_trace.profiles.sampled`).
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from threading import get_ident
from types import CodeType
from typing import Final

from celery_trace import guard
from celery_trace.failures.chords import ChordNotes
from celery_trace.heap.sampler import locals_mark
from celery_trace.intervals import PROFILE_FIRST_S, PROFILE_S
from celery_trace.model import RUN_NOTHING, Role
from celery_trace.process.blackbox import BlackBox, SampledStack
from celery_trace.process.movement import Movement
from celery_trace.profiles.sampled import StackTimes
from celery_trace.redaction import Redactor
from celery_trace.running.answers import Answers
from celery_trace.runtime.probes.probe import Host, Probe
from celery_trace.text.code_owner import CodeOwner, project_roots

#: How often the stack of a run in progress is written, seconds.
STACK_S: Final = 0.1
#: How often a sample is counted in the profiles, on average, seconds. As often are stacks written while each run ends
#: before the next sample: a thread that wakes up more often costs more than short runs do.
STACK_COUNTED_S: Final = 0.5
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
        self.times: StackTimes | None = None
        self._write_due_s = 0.0  # the profiles, by the monotonic clock
        self._counted_due_s = 0.0  # the next sample that is counted
        self._due_s = 0.0
        self._runs = 0  # at the last sample
        self._answers: Answers | None = None
        self._around: frozenset[CodeType] = frozenset()
        self._chords = ChordNotes(host.write, host.clock)

    def start(self) -> None:
        """Make the black box, where tasks may run."""
        host = self.host
        if host.process.role in RUN_NOTHING or not host.settings.black_box:
            return
        self.call_every(STACK_S, idle_s=RETRY_S)
        assert self.timer is not None
        self.timer.early, self.timer.wake = 0.0, self._wake
        self.times = StackTimes(host.process, CodeOwner(host.settings.in_app, project_roots()), host.clock)
        self._write_due_s = host.clock.monotonic_s() + PROFILE_FIRST_S
        self._count_at(host.clock.monotonic_s() + STACK_COUNTED_S)
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
            box.places, box.around = host.places, self._around
            self.box = box
            if host.process.role in _OF_A_WORKER:
                with guard.Guard("crash handler"):
                    box.catch_crashes()
            if host.process.role in _IN_MAIN_THREAD and host.settings.stack_signal:
                with guard.Guard("stack by signal"):
                    box.dump_on(signal.Signals[host.settings.stack_signal])

    def stop_at(self, codes: Iterable[CodeType]) -> None:
        """Set the functions around every run: frames outside of them are not the run's."""
        self._around = frozenset(codes)
        if self.box is not None:
            self.box.around = self._around

    def _wake(self) -> float:
        """
        The process is no longer idle: when the next sample is due, by the monotonic clock.

        At random, so that whether a run is sampled depends on how long it takes, not on when it began.
        """
        self._count_at(self.host.clock.monotonic_s() + STACK_COUNTED_S * random.random())  # noqa: S311 - no secret
        if self.times is not None:
            self.times.resume(self._counted_due_s, STACK_COUNTED_S)
        return self._counted_due_s

    def _count_at(self, due_s: float) -> None:
        """Set when the next sample is counted; a run that ends later without having been sampled is noted."""
        self._counted_due_s = self.host.open_runs.due_s = due_s

    def _without_secrets(self, text: str) -> str:
        return Redactor(self.host.settings.redact).text(text)

    def soft_limit_reached(self) -> None:
        """The soft time limit of this thread's run was reached. Called from a signal handler."""
        if self._movement is not None:
            self._movement.soft_limit_reached(get_ident(), self.host.clock.now_s())

    def every(self) -> None:
        """Write the stacks of the runs in progress, and add them to the profiles of their tasks."""
        host = self.host
        lasts = host.runs == self._runs and host.open_runs.count > 0
        self._runs = host.runs
        if self.box is not None:
            stacks = self.box.sample()
            for one in stacks:
                if one.token.task_id:
                    self._chords.member(one.token.origin, one.token.task_id)
            self._count(stacks)
            if self.box.requested():
                self._answer()
        elif host.clock.monotonic_s() >= self._due_s and not host.closed:
            self.open_box()
        left_s = max(0.001, self._counted_due_s - host.clock.monotonic_s())
        self.call_every(STACK_S if lasts and left_s > 1.5 * STACK_S else left_s)

    def _count(self, stacks: Sequence[SampledStack]) -> None:
        """
        Add a sample to the profiles, if it is due.

        When it is due depends on nothing that runs: samples that are taken more often while a run lasts are not
        counted, and a late one does not delay the next.
        """
        host, due_s, now_s = self.host, self._counted_due_s, self.host.clock.monotonic_s()
        if now_s < due_s:
            return
        missed = host.open_runs.take_missed()
        if self.times is not None:
            self.times.look(stacks, missed, due_s)
        interval_s = STACK_COUNTED_S * random.uniform(0.75, 1.25)  # noqa: S311 - a task may repeat itself at intervals
        self._count_at(due_s + interval_s if due_s + interval_s > now_s else now_s + interval_s)
        if self.times is not None and now_s >= self._write_due_s:
            self._write_due_s = now_s + PROFILE_S
            for profile in self.times.changed():
                host.write(profile)

    def counters(self) -> Mapping[str, int]:
        """Seconds of runs that are in no profile, because too many names ran."""
        left_out_s = round(self.times.left_out_s) if self.times is not None else 0
        return {"time_profile:left_out_s": left_out_s} if left_out_s else {}

    def write_rest(self) -> None:
        """Write the profiles of the last minutes."""
        if self.times is not None:
            for profile in self.times.changed(at_end=True):
                self.host.write(profile)

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
        if self._answers is not None:
            self._answers.close()

    def after_fork(self) -> None:
        """The box is the parent's, and so are the profiles."""
        self.box = self.times = self._answers = None
