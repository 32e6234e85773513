"""
Writes a failed run as one record: captured in full or in brief, and only once.

:class:`celery_trace.failures.watcher.FailureWatcher` makes the :class:`SeenFailure` of a signal.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments, info_of
from celery_trace.failures.capture.render import text as rendered
from celery_trace.failures.celery_request import context_of, finished_before
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.failures.repeats import Repeats
from celery_trace.failures.run_logs import RunLogs
from celery_trace.model import (
    AnyRecord,
    Capture,
    ExceptionInfo,
    Failure,
    Kind,
    MemoryState,
    Outcome,
    ProcessRecord,
    Role,
    failure_id,
    kill_of,
    new_id,
)
from celery_trace.model.logs import LogTail
from celery_trace.process.counters import address_space_bytes
from celery_trace.process.memory import read_memory
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Settings

#: Ids of failures that this process wrote recently; Celery sends some ends twice.
_REMEMBERED: Final = 512
#: In a pool process only the current run can fail, and a longer list would look like a leak.
_REMEMBERED_IN_A_CHILD: Final = 16
_TRACEBACK_CHARACTERS: Final = 16 * 1024
#: Characters of a task's return value that could not be stored.
_RETURNED_CHARACTERS: Final = 300
#: Seconds between two failures with all memory counters, as reading them takes half a millisecond.
ALL_COUNTERS_EVERY_S: Final = 1.0
#: Seconds for which a reading of the resident size is reused, for tasks that fail dozens of times a second.
RESIDENT_EVERY_S: Final = 0.1

#: Takes a failure's record and the exception itself.
Keep = Callable[[Failure, BaseException], None]


class SeenRun(Struct, frozen=True):
    """The run that failed, from the signal and the task's request."""

    name: str
    task_id: str
    retries: int
    request: object  # the task's request, a message's fields, or None
    arguments: Arguments


class SoftLimit(Struct, frozen=True):
    """A soft time limit that interrupted a run, with the frames that it interrupted."""

    task_id: str
    at_s: float
    capture: Capture
    scrubber: Scrubber


class SeenFailure(Struct, frozen=True, kw_only=True):
    """
    A run that failed, from one signal. Nothing is captured or redacted yet.

    ``error`` is set in the process that ran it, while its frames exist; ``soft_limit`` if they were captured
    while it ran. Otherwise ``exception`` describes what was raised.
    """

    run: SeenRun
    outcome: Outcome
    error: BaseException | None = None
    formatted: str = ""  # the traceback as Celery has formatted it, with `error`
    soft_limit: SoftLimit | None = None
    exception: ExceptionInfo | None = None  # redacted
    traceback_text: str = ""
    pid: int = 0  # of the process that ran it; 0 for none
    killed: bool = False  # the process ended with the run
    #: When the run began, seconds since the epoch. In the main process it identifies a redelivered run.
    began_at_s: float | None = None
    duration_s: float | None = None
    note: str = ""


class FailureWriter:
    """
    Writes failures. One per traced process.

    Args:
        settings: What to capture, and how much of it.
        process: The process's record.
        emit: Takes the record; must not raise.
        clock: The time.
        keep: Takes the record and the exception afterwards, for the live shell.
        logs: The last log records of runs.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        emit: Callable[[AnyRecord], None],
        clock: Clock,
        keep: Keep | None = None,
        logs: RunLogs | None = None,
    ) -> None:
        self._settings = settings
        self._process = process
        self.emit = emit
        self._clock = clock
        self._keep = keep
        self._logs = logs
        self._limits = settings.limits
        self.redactor = Redactor(settings.redact)
        self._remembered = _REMEMBERED_IN_A_CHILD if process.role is Role.CHILD else _REMEMBERED
        #: By task id, the written run: its attempt, its outcome, and in the main process its start.
        self.written: OrderedDict[str, set[tuple[int, Outcome, float | None]]] = OrderedDict()
        self.repeats = Repeats(settings.capture_budget)
        self._memory = _Memory(clock)

    def write(self, seen: SeenFailure) -> None:
        """Write a failure, unless failures are not recorded or this one is written already."""
        if not self._settings.failures or self._is_written(seen):
            return
        if seen.error is not None:
            self._write_with_frames(seen, seen.error)
        elif seen.soft_limit is not None:
            self._remember(seen)
            self._emit_record(seen, seen.soft_limit.capture, seen.exception, seen.soft_limit.scrubber)
        else:
            self.write_described(seen)

    def _write_with_frames(self, seen: SeenFailure, error: BaseException) -> None:
        """Capture the error's frames, in brief if it repeats."""
        finished = finished_before(error)
        if finished is not None:
            seen = replace(seen, note=joined(seen.note, f"The task had finished; {finished[0]}"))
        scrubber = Scrubber()
        capture = capture_exception(
            error,
            limits=self._limits,
            redactor=self.redactor,
            in_app=self._settings.in_app,
            arguments=seen.run.arguments,
            formatted=seen.formatted,
            scrubber=scrubber,
            repeats=self.repeats,
        )
        captured_s = time.thread_time()
        self._remember(seen)
        in_full = not capture.brief
        returned = self._returned(finished[1], scrubber) if in_full and finished is not None else ""
        failure = self._emit_record(seen, capture, info_of(capture), scrubber, returned=returned)
        if in_full:
            if self._keep is not None:  # a thousand brief ones would evict those with locals
                self._keep(failure, error)
            self.repeats.charge(time.thread_time() - captured_s)

    def write_described(self, seen: SeenFailure) -> Failure:
        """Write a failure without frames, whatever was written before. Returns the record."""
        # Secrets in the arguments may also be in the error's message and in the traceback.
        scrubber = Scrubber()
        capture = self._arguments_only(seen.run.arguments, scrubber)
        exception = seen.exception
        if exception is not None:
            exception = replace(exception, message=scrubber.text(exception.message))
        traceback_text = scrubber.text(self.redactor.traceback(seen.traceback_text[-_TRACEBACK_CHARACTERS:]))
        note = scrubber.text(seen.note)
        self._remember(seen)
        return self._emit_record(replace(seen, traceback_text=traceback_text, note=note), capture, exception, scrubber)

    def _emit_record(
        self,
        seen: SeenFailure,
        capture: Capture | None,
        exception: ExceptionInfo | None,
        scrubber: Scrubber,
        returned: str = "",
    ) -> Failure:
        run, process = seen.run, self._process
        at_s = seen.soft_limit.at_s if seen.soft_limit is not None else self._clock.now_s()
        ran_here = seen.error is not None or seen.soft_limit is not None
        failure = Failure(
            id=failure_id(run.task_id, run.retries) if run.task_id else new_id(),
            process=process.uid,
            kind=Kind.TASK,
            name=run.name,
            task_id=run.task_id,
            retries=run.retries,
            outcome=seen.outcome,
            witness="main" if process.role is Role.MAIN else "child",
            exception=exception,
            traceback_text=seen.traceback_text,
            fingerprint=fingerprint(Kind.TASK, run.name, capture, exception, seen.outcome),
            worker=process.worker,
            pid=seen.pid,
            hostname=process.host,
            at_s=at_s,
            duration_s=seen.duration_s,
            capture=capture,
            task=context_of(run.request, self.redactor, self._limits, scrubber),
            memory=self._memory.read() if ran_here else None,
            note=joined(seen.note, capture.brief if capture is not None else ""),
            returned=returned,
            kills=[kill_of(process, seen.pid, at_s)] if seen.killed else [],
            logs=self._tail(run, scrubber) if ran_here and not (capture is not None and capture.brief) else None,
        )
        self.emit(failure)
        return failure

    def _tail(self, run: SeenRun, scrubber: Scrubber) -> LogTail | None:
        """The run's last log records; None if it has logged nothing."""
        tail = self._logs.of(run.task_id, run.retries, scrubber) if self._logs is not None else None
        return tail if tail is not None and tail.lines else None

    # --- each end once

    def _is_written(self, seen: SeenFailure) -> bool:
        """Celery sends some ends twice, such as an ``on_failure`` that raises again while its error is handled."""
        run = seen.run
        return (run.retries, seen.outcome, seen.began_at_s) in self.written.get(run.task_id, ())

    def _remember(self, seen: SeenFailure) -> None:
        run = seen.run
        self.written.setdefault(run.task_id, set()).add((run.retries, seen.outcome, seen.began_at_s))
        if len(self.written) > self._remembered:
            self.written.popitem(last=False)

    # --- values without frames

    def _returned(self, value: object, scrubber: Scrubber) -> str:
        """What a task returned, as short text."""
        capture = self._values(Arguments((value,), {}, ("returned",)), scrubber)
        return scrubber.text(rendered(capture.heap, capture.heap[capture.args].items[0], _RETURNED_CHARACTERS))

    def _arguments_only(self, arguments: Arguments, scrubber: Scrubber) -> Capture | None:
        if arguments.args is None and arguments.kwargs is None:
            return None
        return replace(self._values(arguments, scrubber), exceptions=[])

    def _values(self, arguments: Arguments, scrubber: Scrubber) -> Capture:
        return capture_exception(
            _NoError(), limits=self._limits, redactor=self.redactor, arguments=arguments, scrubber=scrubber
        )


class _Memory:
    """The process's memory at a failure: all counters at intervals, else its resident size."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all_counters_at_s = 0.0
        self._resident_at_s = -RESIDENT_EVERY_S
        self._resident = MemoryState()

    def read(self) -> MemoryState:
        now_s = self._clock.monotonic_s()
        if now_s >= self._all_counters_at_s:
            self._all_counters_at_s = now_s + ALL_COUNTERS_EVERY_S
            return read_memory()
        if now_s - self._resident_at_s >= RESIDENT_EVERY_S:
            self._resident_at_s = now_s
            self._resident = MemoryState(rss_bytes=address_space_bytes()[1])
        return self._resident


class _NoError(Exception):
    """An error without frames: only values are captured with it."""


def joined(*notes: str) -> str:
    """The notes that are not empty, in one text."""
    return "; ".join(note for note in notes if note)
