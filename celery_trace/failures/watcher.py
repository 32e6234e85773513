"""
Which of Celery's signals means which failure, and what can be read at that time.

Celery reports the end of a run in many ways, and some ends twice. Each handler makes a :class:`SeenFailure`, which
:class:`FailureWriter` captures and writes. Records of one run share an id and are merged in the store. When each signal
is sent, and which objects exist then, is taken from Celery's ``app/trace.py`` and ``worker/request.py``.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final

from celery_trace.clock import Clock
from celery_trace.failures.capture import capture_frames, describe
from celery_trace.failures.capture.exceptions import Arguments, traceback_of
from celery_trace.failures.celery_request import (
    class_name,
    field,
    is_named,
    is_placeholder,
    message_being_handled,
    number,
    parameters,
    passed_through,
    retries_of,
    retries_of_message,
    text,
    time_start,
    whole,
)
from celery_trace.failures.chords import ChordNotes
from celery_trace.failures.refusals import MessageRefusals
from celery_trace.failures.writer import FailureWriter, SeenFailure, SeenRun, SoftLimit
from celery_trace.model import UNLOCK, ExceptionInfo, Outcome, ProcessRecord, Role
from celery_trace.redaction import Scrubber
from celery_trace.settings import Settings
from celery_trace.text.format import duration

#: Errors with which the main process reports for a child that could not, and their outcomes.
_OUTCOME_BY_MAIN: Final = {
    "TimeLimitExceeded": Outcome.TIME_LIMIT,
    "WorkerLostError": Outcome.LOST,
    "Terminated": Outcome.LOST,
}
_SOFT_LIMIT: Final = ExceptionInfo("SoftTimeLimitExceeded", "billiard.exceptions", "SoftTimeLimitExceeded()")
#: Most tasks with cached parameters.
_MOST_TASKS: Final = 1024


class FailureWatcher:
    """
    Turns signals into failures. One per traced process.

    Args:
        settings: What to capture, and how much of it.
        process: The process's record.
        writer: Captures and writes them.
        clock: The time.
    """

    def __init__(self, settings: Settings, process: ProcessRecord, writer: FailureWriter, clock: Clock) -> None:
        self._settings = settings
        self._process = process
        self._clock = clock
        self._writer = writer
        self.refusals = MessageRefusals(settings, writer, clock)
        self._parameters: dict[str, tuple[str, ...]] = {}
        self._chords = ChordNotes(writer.emit, clock)

    @property
    def counters(self) -> dict[str, int]:
        """Counts for the process's statistics: brief captures, refused messages that were only counted."""
        counters = {"cut:captures": self._writer.repeats.brief, "cut:refused_messages": self.refusals.left_out}
        return {name: count for name, count in counters.items() if count}

    # --- in the process that runs the task

    def failure(
        self,
        sender: object = None,
        task_id: str = "",
        exception: BaseException | None = None,
        args: object = None,
        kwargs: object = None,
        traceback: object = None,
        einfo: object = None,
        started_s: float | None = None,
        **_: object,
    ) -> None:
        """
        ``task_failure``: the traceback exists, and is cleared right after this handler.

        A caller that knows when the run began, by the monotonic clock, passes ``started_s``; otherwise Celery's stack
        is searched for it.
        """
        if class_name(exception) in _OUTCOME_BY_MAIN or isinstance(traceback, str):
            # solo, threads and gevent: the worker's request handler reports in the same process.
            self.main_failure(
                sender=sender, task_id=task_id, exception=exception, args=args, kwargs=kwargs, traceback=traceback
            )
            return
        error = exception
        caught = sys.exc_info()[1]
        if caught is not exception and caught is not None and is_placeholder(exception, caught):
            error = caught  # Celery replaces an error that can't be pickled by a wrapper
        if error is None:
            return
        run = self._run(sender, task_id, getattr(sender, "request", None), args, kwargs)
        # Celery has formatted the traceback by now, so an error's own `__str__` has been called.
        formatted = getattr(einfo, "traceback", None)
        formatted = formatted if type(formatted) is str and error is exception else ""
        self._write(run, _outcome_of(error), error, formatted=formatted, started_s=started_s)

    def batch_failed(
        self, task: object, task_id: str, request: object, error: BaseException, args: object, note: str
    ) -> None:
        """A call for several messages has failed."""
        self._write(self._run(task, task_id, request, args, {}), _outcome_of(error), error, note=note)

    def soft_limit_reached(self, task: object, task_id: str, request: object, frame: FrameType) -> SoftLimit:
        """A soft time limit interrupts a run. Whether that ends the run is not known yet."""
        scrubber = Scrubber()
        capture = capture_frames(
            frame,
            limits=self._settings.limits,
            redactor=self._writer.redactor,
            in_app=self._settings.in_app,
            outermost="trace_task",
            raised=_SOFT_LIMIT,
            arguments=self._run(task, task_id, request).arguments,
            scrubber=scrubber,
        )
        return SoftLimit(task_id, self._clock.now_s(), capture, scrubber)

    def soft_limit_ignored(
        self, task: object, request: object, soft_limit: SoftLimit, state: str, duration_s: float
    ) -> None:
        """A run has gone on after its soft time limit was reached: the task caught the error."""
        later_s = max(0.0, self._clock.now_s() - soft_limit.at_s)
        self._writer.write(
            SeenFailure(
                run=self._run(task, soft_limit.task_id, request),
                outcome=Outcome.TIME_LIMIT,
                soft_limit=soft_limit,
                exception=_SOFT_LIMIT,
                pid=self._process.pid,
                duration_s=duration_s,
                note=f"The task caught the soft time limit's error and continued for {duration(later_s)}: {state}",
            )
        )

    def retry(self, sender: object = None, request: object = None, reason: object = None, **_: object) -> None:
        """``task_retry``: the error that led to it, or the ``Retry`` itself."""
        run = self._run(sender, text(field(request, "id")), request)
        if run.name == UNLOCK:  # it looks again later: nothing has failed
            self._chords.unlock(request)
            return
        cause = getattr(reason, "exc", None)
        error = cause if isinstance(cause, BaseException) else reason
        if not isinstance(error, BaseException):
            note = "cancelled by the worker, for example after a lost broker connection; it is redelivered"
            self._writer.write(SeenFailure(run=run, outcome=Outcome.RETRIED, note=note))
        elif traceback_of(error) is None and self._process.role is Role.MAIN:
            self._writer.write(SeenFailure(run=run, outcome=Outcome.RETRIED, exception=self._described(error)))
        else:
            if traceback_of(error) is None and isinstance(reason, BaseException) and traceback_of(reason) is not None:
                error = reason  # `retry(exc=...)` with an error that was not raised
            self._write(run, Outcome.RETRIED, error)

    def internal_error(
        self,
        sender: object = None,
        task_id: str = "",
        args: object = None,
        kwargs: object = None,
        request: object = None,
        exception: BaseException | None = None,
        **_: object,
    ) -> None:
        """``task_internal_error``: code around the task's body raised, or an eager task's error propagates."""
        if exception is None:
            return
        outcome = Outcome.INTERNAL_ERROR
        if field(request, "is_eager") and not passed_through(exception, "handle_error_state"):
            outcome = _outcome_of(exception)
        self._write(self._run(sender, task_id, request, args, kwargs), outcome, exception)

    def postrun(
        self,
        task: object = None,
        task_id: str = "",
        state: str | None = None,
        request: object = None,
        args: object = None,
        kwargs: object = None,
        retval: object = None,
        **_: object,
    ) -> None:
        """
        ``task_postrun``, or the call that replaces it.

        It is the last chance for a run that is being killed, and the only one for a rejected run.

        While ``SystemExit`` passes (a hard time limit, a revoke, ``sys.exit``), the frames are reachable
        for about 0.1 s before the process is killed.
        """
        if request is None:
            request = getattr(task, "request", None)
        if state in ("REJECTED", "IGNORED"):
            if self._settings.rejected and isinstance(retval, BaseException):
                self._write(self._run(task, task_id, request, args, kwargs), Outcome.REJECTED, retval)
            return
        if state is not None:
            return
        error = sys.exc_info()[1]
        if error is None or isinstance(error, Exception):
            return  # an `Exception` reaches task_failure or task_internal_error
        self._write(self._run(task, task_id, request, args, kwargs), Outcome.LOST, error)

    # --- in the worker's main process

    def main_failure(
        self,
        sender: object = None,
        task_id: str = "",
        exception: BaseException | None = None,
        args: object = None,
        kwargs: object = None,
        traceback: object = None,
        **_: object,
    ) -> None:
        """``task_failure`` of the main process: a hard time limit, a lost child, a rejection."""
        if exception is None:
            return
        outcome = _OUTCOME_BY_MAIN.get(class_name(exception), Outcome.FAILED)
        ended_the_process = outcome is not Outcome.FAILED
        if not ended_the_process and is_named(exception, "Reject"):
            if not self._settings.rejected:
                return
            outcome = Outcome.REJECTED
        message = message_being_handled()
        request = getattr(message, "_context", None) or getattr(sender, "request", None)
        pid = whole(getattr(message, "worker_pid", None))
        began_at_s = number(getattr(message, "time_start", None))
        self._writer.write(
            SeenFailure(
                run=self._run(sender, task_id, request, args, kwargs, retries_of_message(message)),
                outcome=outcome,
                exception=self._described(exception),
                traceback_text=traceback if isinstance(traceback, str) else "",
                pid=pid,
                killed=pid != 0 and ended_the_process,
                began_at_s=began_at_s,
                duration_s=self._since(began_at_s),
            )
        )

    def revoked(
        self,
        sender: object = None,
        request: object = None,
        terminated: bool | None = None,
        signum: object = None,
        expired: bool | None = None,
        **_: object,
    ) -> None:
        """``task_revoked``: terminated while it ran, or discarded before it began."""
        how = "terminated" if terminated else "expired" if expired else "revoked"
        note = "terminated while it ran" if terminated else f"{how} before it began"
        if signum:
            note += f", signal {signum}"[:60]
        message = message_being_handled()
        task_id = text(field(request, "id"))
        args, kwargs = getattr(message, "args", None), getattr(message, "kwargs", None)
        pid = whole(getattr(message, "worker_pid", None)) if terminated else 0
        began_at_s = number(getattr(message, "time_start", None)) if terminated else None
        self._writer.write(
            SeenFailure(
                run=self._run(sender, task_id, request, args, kwargs),
                outcome=Outcome.REVOKED,
                exception=ExceptionInfo("TaskRevokedError", "celery.exceptions", how),
                pid=pid,
                killed=pid != 0,
                began_at_s=began_at_s,
                duration_s=self._since(began_at_s),
                note=note,
            )
        )

    # --- what is seen

    def _write(
        self,
        run: SeenRun,
        outcome: Outcome,
        error: BaseException,
        *,
        formatted: str = "",
        started_s: float | None = None,
        note: str = "",
    ) -> None:
        """A run of this process failed, and its frames still exist."""
        self._chords.member(run.request, run.task_id)
        started_s = time_start() if started_s is None else started_s
        self._writer.write(
            SeenFailure(
                run=run,
                outcome=outcome,
                error=error,
                formatted=formatted,
                pid=self._process.pid,
                killed=outcome is Outcome.LOST,
                duration_s=self._clock.monotonic_s() - started_s if started_s is not None else None,
                note=note,
            )
        )

    def _run(
        self,
        task: object,
        task_id: str,
        request: object,
        args: object = None,
        kwargs: object = None,
        retries: int | None = None,
    ) -> SeenRun:
        """The run of a signal; missing facts are read from the task's request."""
        return SeenRun(
            name=text(getattr(task, "name", "")) or text(field(request, "task")),
            task_id=task_id,
            retries=retries_of(request) if retries is None else retries,
            request=request,
            arguments=Arguments(
                args if args is not None else field(request, "args"),
                kwargs if kwargs is not None else field(request, "kwargs"),
                self._parameters_of(task),
            ),
        )

    def _parameters_of(self, task: object) -> tuple[str, ...]:
        """The names of the task function's positional parameters, so that a positional password is recognised."""
        name = getattr(task, "name", None)
        if not isinstance(name, str):
            return ()
        known = self._parameters.get(name)
        if known is None:
            if len(self._parameters) >= _MOST_TASKS:
                self._parameters.clear()
            known = self._parameters[name] = parameters(getattr(task, "run", None))
        return known

    def _described(self, error: BaseException) -> ExceptionInfo:
        return describe(error, self._writer.redactor, self._settings.limits.string)

    def _since(self, began_at_s: float | None) -> float | None:
        return max(0.0, self._clock.now_s() - began_at_s) if began_at_s is not None else None


def _outcome_of(error: BaseException) -> Outcome:
    return Outcome.TIME_LIMIT if is_named(error, "SoftTimeLimitExceeded") else Outcome.FAILED
