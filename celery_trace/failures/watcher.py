"""
Which of Celery's signals means which failure, and what can still be seen at that moment.

Celery tells the end of a run in many ways, and some ends in two places; each handler here writes what it
sees as one record, and records of one run share an id, so that they become one in the store.
What fires when, and what is alive then, was read in Celery's ``app/trace.py`` and ``worker/request.py``.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.failures.backlog import Backlog, Waiting, may_wait
from celery_trace.failures.capture import capture_exception, capture_frames, describe
from celery_trace.failures.capture.exceptions import Arguments, capture_repeat, info_of, sight, traceback_of
from celery_trace.failures.capture.render import text as rendered
from celery_trace.failures.celery_request import (
    class_name,
    context_of,
    field,
    finished_before,
    is_named,
    is_stand_in,
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
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.failures.repeats import Repeats
from celery_trace.model import (
    AnyRecord,
    Capture,
    ExceptionInfo,
    Failure,
    Frame,
    Kind,
    MemoryState,
    Outcome,
    ProcessRecord,
    Role,
    TaskContext,
    failure_id,
    kill_of,
    new_id,
)
from celery_trace.process.blackbox import BlackBox
from celery_trace.process.counters import address_space_bytes
from celery_trace.process.memory import read_memory
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Settings
from celery_trace.words import duration

#: Ids of failures that this process wrote lately; Celery says some ends twice.
_REMEMBERED: Final = 512
#: Errors by which the main process tells that a child could not speak for itself.
_TOLD_BY_MAIN: Final = frozenset(("TimeLimitExceeded", "WorkerLostError", "Terminated"))
#: Outcomes that end the process of a run, as the worker's main process tells them.
_KILLED: Final = frozenset((Outcome.LOST, Outcome.TIME_LIMIT, Outcome.REVOKED))
_SOFT_LIMIT: Final = ExceptionInfo("SoftTimeLimitExceeded", "billiard.exceptions", "SoftTimeLimitExceeded()")
_TRACEBACK_CHARACTERS: Final = 16 * 1024
#: Characters of what a task returned, where that could not be stored.
_RETURNED_CHARACTERS: Final = 300
#: Seconds between two failures whose record has all memory counters.
ALL_COUNTERS_EVERY_S: Final = 1.0
#: Seconds for which a look at the resident size serves; only tasks that fail by the dozen a second share one.
RESIDENT_EVERY_S: Final = 0.1


#: Refused messages of one way that are recorded each minute; the rest are counted.
MOST_REFUSED_A_MINUTE: Final = 30
#: Bodies up to so many bytes are read for a refused message's arguments.
_MOST_BODY_BYTES: Final = 1024 * 1024
_MOST_NAME: Final = 200
_NO_NAME: Final = "(no task)"
_JSON: Final = "application/json"
_UNQUOTED: Final = "(left out: the decoder's words may quote the message; the worker's log has them)"
#: What became of a message, by the consumer's method that refused it.
_REFUSED: Final = {
    "on_decode_error": "Celery could not decode the message, so nothing ran. It acknowledged it: the message is gone",
    "on_unknown_message": "the message is not a task's, so nothing ran. Celery rejected it",
    "on_invalid_task": "Celery refused the message before it was a task, so nothing ran. It rejected it",
    "on_unknown_task": "no worker that took it has a task of this name",
}


class Struck(NamedTuple):
    """A soft time limit that interrupted a run, with the frames that it interrupted."""

    task_id: str
    at_s: float
    capture: Capture
    scrubber: Scrubber


class _Flood:
    """Messages that were refused in one way within a minute."""

    __slots__ = ("began_s", "last", "left_out", "told", "written")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.written = self.left_out = self.told = 0
        self.last: Failure | None = None


class FailureWatcher:
    """
    Turns signals into failure records. One per traced process.

    Args:
        settings: What to capture, and how much of it.
        process: Who sees it.
        emit: Takes the record; must not raise.
        clock: Tells when.
        keep: Takes the record and the exception itself afterwards, for the live shell.
        box: The process's black box; with it, what repeats may wait for a moment before it is written.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        emit: Callable[[AnyRecord], None],
        clock: Clock,
        keep: Callable[[Failure, BaseException], None] | None = None,
        box: BlackBox | None = None,
    ) -> None:
        self._settings = settings
        self._process = process
        self._emit = emit
        self._clock = clock
        self._keep = keep
        self._limits = settings.limits
        self._redactor = Redactor(settings.redact)
        # In a pool process, where only the run at hand may fail, few: what is remembered of it would look like a leak.
        self._most_written = 16 if process.role is Role.CHILD else _REMEMBERED
        # By task id, what was written of that run: its try, how it ended, and in the main process when it began.
        self.written: OrderedDict[str, set[tuple[int, Outcome, float | None]]] = OrderedDict()
        self._all_counters_at_s = 0.0
        self._resident_at_s = -RESIDENT_EVERY_S
        self._resident = MemoryState()
        self._repeats = Repeats(settings.capture_budget)
        self._parameters: dict[str, tuple[str, ...]] = {}
        # Captures in brief share their frames. By their address, the task and the outcome: the group, and the frames.
        self._groups: dict[tuple[int, str, Outcome], tuple[str, list[Frame]]] = {}
        self._floods: dict[str, _Flood] = {}
        self._refused_left_out = 0
        #: Where failures that repeat wait. Only where one task runs at a time does the black box tell of each run.
        self.backlog = Backlog(box, self._write_repeat) if box is not None and process.role is Role.CHILD else None

    @property
    def counters(self) -> dict[str, int]:
        """What the process's account says: captures that were in brief, refused messages that were only counted."""
        counters = {"cut:captures": self._repeats.brief, "cut:refused_messages": self._refused_left_out}
        return {name: count for name, count in counters.items() if count}

    # --- in the process that runs the task

    def failure(
        self,
        sender: Any = None,
        task_id: str = "",
        exception: BaseException | None = None,
        args: Any = None,
        kwargs: Any = None,
        traceback: Any = None,
        einfo: Any = None,
        started_s: float | None = None,
        **_: Any,
    ) -> None:
        """
        ``task_failure``: the traceback is alive, and is cleared right after this handler.

        Who knows when the run began, by the monotonic clock, says it in ``started_s``: else Celery's stack is asked.
        """
        if class_name(exception) in _TOLD_BY_MAIN or isinstance(traceback, str):
            # solo, threads and gevent: the worker's own part speaks in the same process.
            self.main_failure(
                sender=sender, task_id=task_id, exception=exception, args=args, kwargs=kwargs, traceback=traceback
            )
            return
        error = exception
        caught = sys.exc_info()[1]
        if caught is not exception and caught is not None and is_stand_in(exception, caught):
            error = caught  # what Celery could not pickle, it replaced by a wrapper
        if error is None:
            return
        request = getattr(sender, "request", None)
        outcome = Outcome.TIME_LIMIT if is_named(error, "SoftTimeLimitExceeded") else Outcome.FAILED
        # Celery has formatted the traceback by now, and so has asked an error with a `__str__` of its own.
        said = getattr(einfo, "traceback", None)
        said = said if type(said) is str and error is exception else ""
        self._record(sender, task_id, request, error, outcome, args=args, kwargs=kwargs, said=said, started_s=started_s)

    def batch_failed(self, task: Any, task_id: str, request: Any, error: BaseException, args: Any, note: str) -> None:
        """Several messages were handed to one call, and it failed."""
        outcome = Outcome.TIME_LIMIT if is_named(error, "SoftTimeLimitExceeded") else Outcome.FAILED
        self._record(task, task_id, request, error, outcome, args=args, kwargs={}, note=note)

    def soft_limit_struck(self, task: Any, task_id: str, request: Any, frame: FrameType) -> Struck:
        """A soft time limit interrupts a run. Whether the task lets that end it is not known yet."""
        scrubber = Scrubber()
        capture = capture_frames(
            frame,
            limits=self._limits,
            redactor=self._redactor,
            in_app=self._settings.in_app,
            outermost="trace_task",
            raised=_SOFT_LIMIT,
            arguments=Arguments(field(request, "args"), field(request, "kwargs"), self._parameters_of(task)),
            scrubber=scrubber,
        )
        return Struck(task_id, self._clock.now_s(), capture, scrubber)

    def soft_limit_ignored(self, task: Any, request: Any, struck: Struck, state: str, duration_s: float) -> None:
        """A run has ended otherwise than by the soft time limit that had struck in it: the task caught the error."""
        retries = retries_of(request)
        if not self._settings.failures or self._is_written(struck.task_id, retries, Outcome.TIME_LIMIT):
            return
        self._note(struck.task_id, retries, Outcome.TIME_LIMIT)
        later_s = max(0.0, self._clock.now_s() - struck.at_s)
        self._write(
            text(getattr(task, "name", "")),
            struck.task_id,
            retries,
            Outcome.TIME_LIMIT,
            _SOFT_LIMIT,
            capture=struck.capture,
            task=context_of(request, self._redactor, self._limits, struck.scrubber),
            memory=self._memory(),
            pid=self._process.pid,
            at_s=struck.at_s,
            duration_s=duration_s,
            note=f"The task caught the error of the soft time limit and went on for {duration(later_s)}: {state}",
        )

    def retry(self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
        """``task_retry``: the error that led to it, or the ``Retry`` itself."""
        task_id = text(field(request, "id"))
        cause = getattr(reason, "exc", None)
        error = cause if isinstance(cause, BaseException) else reason
        if not isinstance(error, BaseException):
            note = "cancelled by the worker, such as after a lost connection to the broker; it is delivered again"
            self._record_without(sender, task_id, request, Outcome.RETRIED, None, note=note)
        elif traceback_of(error) is None and self._process.role is Role.MAIN:
            self._record_without(
                sender, task_id, request, Outcome.RETRIED, describe(error, self._redactor, self._limits.string)
            )
        else:
            if traceback_of(error) is None and isinstance(reason, BaseException) and traceback_of(reason) is not None:
                error = reason  # `retry(exc=...)` with an error that was never raised
            self._record(sender, task_id, request, error, Outcome.RETRIED)

    def internal_error(
        self,
        sender: Any = None,
        task_id: str = "",
        args: Any = None,
        kwargs: Any = None,
        request: Any = None,
        exception: BaseException | None = None,
        **_: Any,
    ) -> None:
        """``task_internal_error``: something around the task's body broke, or an eager task's error propagates."""
        if exception is None:
            return
        outcome = Outcome.INTERNAL_ERROR
        if field(request, "is_eager") and not passed_through(exception, "handle_error_state"):
            outcome = Outcome.TIME_LIMIT if is_named(exception, "SoftTimeLimitExceeded") else Outcome.FAILED
        self._record(sender, task_id, request, exception, outcome, args=args, kwargs=kwargs)

    def postrun(
        self,
        task: Any = None,
        task_id: str = "",
        state: str | None = None,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        retval: Any = None,
        **_: Any,
    ) -> None:
        """
        ``task_postrun``, or what is heard in its place.

        It is the last moment of a run that is being killed, and the only one of a rejected run.

        While ``SystemExit`` passes (a hard time limit, a revoke, ``sys.exit``), the frames are reachable
        for about a tenth of a second before the process is killed.
        """
        if request is None:
            request = getattr(task, "request", None)
        if state in ("REJECTED", "IGNORED"):
            if self._settings.rejected and isinstance(retval, BaseException):
                self._record(task, task_id, request, retval, Outcome.REJECTED, args=args, kwargs=kwargs)
            return
        if state is not None:
            return
        error = sys.exc_info()[1]
        if error is None or isinstance(error, Exception):
            return  # an `Exception` reaches task_failure or task_internal_error
        self._record(task, task_id, request, error, Outcome.LOST, args=args, kwargs=kwargs)

    # --- in the worker's main process

    def main_failure(
        self,
        sender: Any = None,
        task_id: str = "",
        exception: BaseException | None = None,
        args: Any = None,
        kwargs: Any = None,
        traceback: Any = None,
        **_: Any,
    ) -> None:
        """``task_failure`` where the task did not run: a hard time limit, a lost child, a rejection."""
        if exception is None:
            return
        name = class_name(exception)
        note = ""
        if name == "TimeLimitExceeded":
            outcome = Outcome.TIME_LIMIT
        elif name in ("WorkerLostError", "Terminated"):
            outcome = Outcome.LOST
        elif is_named(exception, "Reject"):
            if not self._settings.rejected:
                return
            outcome = Outcome.REJECTED
        else:
            outcome = Outcome.FAILED
        message = message_being_handled()
        self._record_without(
            sender,
            task_id,
            getattr(message, "_context", None) or getattr(sender, "request", None),
            outcome,
            describe(exception, self._redactor, self._limits.string),
            retries=retries_of_message(message),
            args=args,
            kwargs=kwargs,
            traceback_text=traceback if isinstance(traceback, str) else "",
            pid=whole(getattr(message, "worker_pid", None)),
            started_at_s=getattr(message, "time_start", None),
            note=note,
        )

    def revoked(
        self,
        sender: Any = None,
        request: Any = None,
        terminated: bool | None = None,
        signum: Any = None,
        expired: bool | None = None,
        **_: Any,
    ) -> None:
        """``task_revoked``: terminated while it ran, or discarded before it began."""
        task_id = text(field(request, "id"))
        how = "terminated" if terminated else "expired" if expired else "revoked"
        note = "terminated while it ran" if terminated else f"{how} before it began"
        if signum:
            note += f", signal {signum}"[:60]
        message = message_being_handled()
        self._record_without(
            sender,
            task_id,
            request,
            Outcome.REVOKED,
            ExceptionInfo("TaskRevokedError", "celery.exceptions", how),
            args=getattr(message, "args", None) if message is not None else field(request, "args"),
            kwargs=getattr(message, "kwargs", None) if message is not None else field(request, "kwargs"),
            pid=whole(getattr(message, "worker_pid", None)) if terminated else 0,
            started_at_s=getattr(message, "time_start", None) if terminated else None,
            note=note,
        )

    def unknown(self, message: Any = None, name: str = "", id: str = "", **_: Any) -> None:
        """The message names a task that this worker does not have."""
        self._refuse("on_unknown_task", message, ExceptionInfo("NotRegistered", "celery.exceptions", name), name, id)

    def refused(self, way: str, message: Any, error: BaseException | None) -> None:
        """
        Celery has refused a message before it was a task.

        Args:
            way: The consumer's method that refuses it; see :mod:`celery_trace.runtime.refused_messages`.
            message: Kombu's message. Only a body of JSON is decoded.
            error: Why, where Celery says so.
        """
        headers = getattr(message, "headers", None)
        headers = headers if isinstance(headers, Mapping) else {}
        properties = getattr(message, "properties", None)
        properties = properties if isinstance(properties, Mapping) else {}
        body = _json_body(message) if "task" not in headers else None
        told = body if isinstance(body, Mapping) else headers  # protocol 1 has both in the body
        name = text(told.get("task"))[:_MOST_NAME]
        task_id = (text(told.get("id")) or text(properties.get("correlation_id")))[:_MOST_NAME]
        if way == "on_unknown_task":
            self.unknown(message, name, task_id)
            return
        if error is None:
            exception = ExceptionInfo(
                "UnknownMessage", "celery.worker", "The message is in no format that Celery knows"
            )
        else:
            exception = describe(error, self._redactor, self._limits.string)
            if (
                way == "on_decode_error"
                and getattr(message, "content_type", None) != _JSON
                and not is_named(error, "ContentDisallowed")
            ):
                # A decoder of YAML, for one, quotes the line where it gave up.
                exception = ExceptionInfo(exception.type, exception.module, _UNQUOTED)
        self._refuse(way, message, exception, name, task_id)

    def tell_left_out(self) -> None:
        """Say on the last record of a flood of refused messages how many more there were; called now and then."""
        for flood in self._floods.values():
            last, left_out = flood.last, flood.left_out
            if last is not None and left_out != flood.told:
                flood.told = left_out
                more = f"{left_out} more messages were refused in this way within a minute, and are only counted"
                self._emit(replace(last, note=f"{last.note}. {more}"))

    def _refuse(self, way: str, message: Any, exception: ExceptionInfo, name: str, task_id: str) -> None:
        if not self._settings.failures:
            return
        now_s = self._clock.monotonic_s()
        flood = self._floods.get(way)
        if flood is None or now_s - flood.began_s >= 60.0:
            self.tell_left_out()
            flood = self._floods[way] = _Flood(now_s)
        if flood.written >= MOST_REFUSED_A_MINUTE:
            flood.left_out += 1
            self._refused_left_out += 1
            return
        flood.written += 1
        headers = getattr(message, "headers", None)
        headers = headers if isinstance(headers, Mapping) else {}
        delivery = getattr(message, "delivery_info", None) or {}
        body = _json_body(message)
        args, kwargs = (body[0], body[1]) if isinstance(body, list | tuple) and len(body) >= 2 else (None, None)
        retries = whole(headers.get("retries"))
        outcome = Outcome.FAILED if way == "on_unknown_task" else Outcome.REJECTED
        scrubber = Scrubber()
        capture = self._arguments_only(None, args, kwargs, scrubber)
        note = _REFUSED[way]
        if way != "on_unknown_task":
            note = f"{note}; {scrubber.text(self._redactor.text(_shape_of(message)))}"
        self._note(task_id, retries, outcome)
        flood.last = self._write(
            name or _NO_NAME,
            task_id,
            retries,
            outcome,
            ExceptionInfo(exception.type, exception.module, scrubber.text(exception.message)),
            capture=capture,
            task=context_of(
                {**headers, "delivery_info": delivery, "headers": headers}, self._redactor, self._limits, scrubber
            ),
            note=note,
        )

    # --- writing it down

    def _record(
        self,
        task: Any,
        task_id: str,
        request: Any,
        error: BaseException,
        outcome: Outcome,
        *,
        args: Any = None,
        kwargs: Any = None,
        said: str = "",
        started_s: float | None = None,
        note: str = "",
    ) -> None:
        """Write a failure with its frames."""
        retries = retries_of(request)
        if not self._settings.failures or self._is_written(task_id, retries, outcome):
            return
        args = args if args is not None else field(request, "args")
        kwargs = kwargs if kwargs is not None else field(request, "kwargs")
        name = text(getattr(task, "name", ""))
        arguments = Arguments(args, kwargs, self._parameters_of(task))
        started_s = time_start() if started_s is None else started_s
        duration_s = self._clock.monotonic_s() - started_s if started_s is not None else None
        finished = finished_before(error)
        if finished is not None:
            note = _joined(note, f"The task had finished; {finished[0]}")
        sighting = sight(error, self._repeats, self._limits, said)
        if sighting.repeat is not None:
            # Its objects are not kept: a thousand of them would drive out those whose locals were captured.
            repeat = Waiting(
                sighting.repeat, name, task_id, retries, outcome, arguments, request, self._clock.now_s(), duration_s,
                note,
            )  # fmt: skip
            self._note(task_id, retries, outcome)
            backlog = self.backlog
            # A run that is being killed has no later.
            if backlog is None or outcome is Outcome.LOST or not may_wait(args, kwargs) or not backlog.add(repeat):
                self._write_repeat(repeat)
            return
        scrubber = Scrubber()
        capture = capture_exception(
            error,
            limits=self._limits,
            redactor=self._redactor,
            in_app=self._settings.in_app,
            arguments=arguments,
            said=said,
            scrubber=scrubber,
            repeats=self._repeats,
            sighting=sighting,
        )
        captured_s = time.thread_time()
        self._note(task_id, retries, outcome)
        failure = self._write(
            name,
            task_id,
            retries,
            outcome,
            info_of(capture),
            capture=capture,
            task=context_of(request, self._redactor, self._limits, scrubber),
            memory=self._memory(),
            pid=self._process.pid,
            duration_s=duration_s,
            note=note,
            returned=self._returned(finished[1], scrubber) if finished is not None else "",
            killed=outcome is Outcome.LOST,
        )
        if self._keep is not None:
            self._keep(failure, error)
        self._repeats.charge(time.thread_time() - captured_s)

    def _write_repeat(self, seen: Waiting) -> None:
        """Write a failure that repeats, in brief."""
        scrubber = Scrubber()
        capture = capture_repeat(
            seen.repeat, seen.arguments, limits=self._limits, redactor=self._redactor, scrubber=scrubber
        )
        self._write(
            seen.name,
            seen.task_id,
            seen.retries,
            seen.outcome,
            info_of(capture),
            capture=capture,
            task=context_of(seen.request, self._redactor, self._limits, scrubber),
            memory=self._memory(),
            pid=self._process.pid,
            at_s=seen.at_s,
            duration_s=seen.duration_s,
            note=_joined(seen.note, capture.brief),
            killed=seen.outcome is Outcome.LOST,
        )

    def _record_without(
        self,
        task: Any,
        task_id: str,
        request: Any,
        outcome: Outcome,
        exception: ExceptionInfo | None,
        *,
        retries: int | None = None,
        args: Any = None,
        kwargs: Any = None,
        traceback_text: str = "",
        pid: int = 0,
        started_at_s: Any = None,
        note: str = "",
    ) -> None:
        """Write a failure whose frames are out of reach here."""
        retries = retries_of(request) if retries is None else retries
        run = number(started_at_s)
        if not self._settings.failures or self._is_written(task_id, retries, outcome, run):
            return
        args = args if args is not None else field(request, "args")
        kwargs = kwargs if kwargs is not None else field(request, "kwargs")
        # What the arguments tell to be a secret is in the error's words and in the traceback too.
        scrubber = Scrubber()
        capture = self._arguments_only(task, args, kwargs, scrubber)
        if exception is not None:
            exception = ExceptionInfo(exception.type, exception.module, scrubber.text(exception.message))
        self._note(task_id, retries, outcome, run)
        self._write(
            text(getattr(task, "name", "")) or text(field(request, "task")),
            task_id,
            retries,
            outcome,
            exception,
            capture=capture,
            task=context_of(request, self._redactor, self._limits, scrubber),
            traceback_text=scrubber.text(self._redactor.traceback(traceback_text[-_TRACEBACK_CHARACTERS:])),
            pid=pid,
            duration_s=max(0.0, self._clock.now_s() - run) if run is not None else None,
            note=note,
            killed=pid != 0 and outcome in _KILLED,
        )

    def _write(
        self,
        name: str,
        task_id: str,
        retries: int,
        outcome: Outcome,
        exception: ExceptionInfo | None,
        *,
        capture: Capture | None,
        task: TaskContext,
        memory: MemoryState | None = None,
        traceback_text: str = "",
        pid: int = 0,
        at_s: float | None = None,
        duration_s: float | None = None,
        note: str = "",
        returned: str = "",
        killed: bool = False,
    ) -> Failure:
        process = self._process
        at_s = self._clock.now_s() if at_s is None else at_s
        failure = Failure(
            id=failure_id(task_id, retries) if task_id else new_id(),
            process=process.uid,
            kind=Kind.TASK,
            name=name,
            task_id=task_id,
            retries=retries,
            outcome=outcome,
            witness="main" if process.role is Role.MAIN else "child",
            exception=exception,
            traceback_text=traceback_text,
            fingerprint=self._group_of(name, capture, exception, outcome),
            worker=process.worker,
            pid=pid,
            hostname=process.host,
            at_s=at_s,
            duration_s=duration_s,
            capture=capture,
            task=task,
            memory=memory,
            note=note,
            returned=returned,
            kills=[kill_of(process, pid, at_s)] if killed else [],
        )
        self._emit(failure)
        return failure

    def _note(self, task_id: str, retries: int, outcome: Outcome, run: float | None = None) -> None:
        """Remember what is being written, for :meth:`_is_written`."""
        self.written.setdefault(task_id, set()).add((retries, outcome, run))
        if len(self.written) > self._most_written:
            self.written.popitem(last=False)

    def _is_written(self, task_id: str, retries: int, outcome: Outcome, run: float | None = None) -> bool:
        """
        Celery says some ends twice, such as an ``on_failure`` that raises again while its error is handled.

        ``run`` tells a redelivered run from the one before where no ``task_prerun`` does: in the main process.
        """
        return (retries, outcome, run) in self.written.get(task_id, ())

    # --- what is known of the run

    def _returned(self, value: Any, scrubber: Scrubber) -> str:
        """What a task returned, as short text."""
        capture = capture_exception(
            _Nothing(),
            limits=self._limits,
            redactor=self._redactor,
            arguments=((value,), {}, ("returned",)),
            scrubber=scrubber,
        )
        return scrubber.text(rendered(capture.heap, capture.heap[capture.args].items[0], _RETURNED_CHARACTERS))

    def _arguments_only(self, task: Any, args: Any, kwargs: Any, scrubber: Scrubber) -> Capture | None:
        if args is None and kwargs is None:
            return None
        capture = capture_exception(
            _Nothing(),
            limits=self._limits,
            redactor=self._redactor,
            arguments=(args, kwargs, self._parameters_of(task)),
            scrubber=scrubber,
        )
        return Capture(
            heap=capture.heap,
            args=capture.args,
            kwargs=capture.kwargs,
            cut_values=capture.cut_values,
            redacted_values=capture.redacted_values,
            took_s=capture.took_s,
            bytes=capture.bytes,
        )

    def _group_of(self, name: str, capture: Capture | None, exception: ExceptionInfo | None, outcome: Outcome) -> str:
        if capture is None or not capture.brief:
            return fingerprint(Kind.TASK, name, capture, exception, outcome)
        frames = capture.exceptions[0].frames
        known = self._groups.get((id(frames), name, outcome))
        if known is None:
            if len(self._groups) >= _REMEMBERED:
                self._groups.clear()
            group = fingerprint(Kind.TASK, name, capture, exception, outcome)
            known = self._groups[id(frames), name, outcome] = group, frames
        return known[0]

    def _parameters_of(self, task: Any) -> tuple[str, ...]:
        """The names of the task function's positional parameters, so that a positional password is known as one."""
        name = getattr(task, "name", None)
        if not isinstance(name, str):
            return ()
        known = self._parameters.get(name)
        if known is None:
            if len(self._parameters) >= 1024:
                self._parameters.clear()
            known = self._parameters[name] = parameters(getattr(task, "run", None))
        return known

    def _memory(self) -> MemoryState:
        """The process's memory: all counters now and then, as they cost half a millisecond, else its resident size."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._all_counters_at_s:
            self._all_counters_at_s = now_s + ALL_COUNTERS_EVERY_S
            return read_memory()
        if now_s - self._resident_at_s >= RESIDENT_EVERY_S:
            self._resident_at_s = now_s
            self._resident = MemoryState(rss_bytes=address_space_bytes()[1])
        return self._resident


def _json_body(message: Any) -> Any:
    """
    A message's body, where it is JSON of a moderate size; else None.

    Nothing else is decoded here: Celery did not get as far, and a pickle runs code.
    """
    if getattr(message, "content_type", _JSON) != _JSON:
        return None
    try:
        return message.payload if len(getattr(message, "body", None) or "") <= _MOST_BODY_BYTES else None
    except Exception:
        return None


def _shape_of(message: Any) -> str:
    """How a body is encoded, and its size; never what is in it."""
    kind = text(getattr(message, "content_type", None))[:80] or "none"
    encoding = text(getattr(message, "content_encoding", None))[:40] or "none"
    try:
        size = f"{len(message.body)} bytes"
    except Exception:
        size = "of unknown size"
    return f"content type {kind}, encoding {encoding}, body {size}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


class _Nothing(Exception):
    """Carries no frames: what is captured are the arguments."""
