"""
The last log records of each run, for its failure.

They are seen where Python's logging hands a record to its handlers, as a handler of ours would miss loggers that do not
propagate, would be removed by ``dictConfig``, and would keep ``basicConfig`` and the handler of last resort from their
work. A record is looked at after its handlers, in the thread that logs: most have formatted it by then, and their text
is used. Otherwise its arguments are written without running code of theirs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from celery_trace import os_threads
from celery_trace.failures.capture import Arguments, capture_exception, describe
from celery_trace.failures.capture.anatomy import is_instance, type_name
from celery_trace.failures.capture.render import text as rendered
from celery_trace.failures.capture.texts import BEYOND, cleaned, encodable
from celery_trace.guard import Guard
from celery_trace.model.logs import LogLine, LogTail
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Limits

#: Characters of a record's text that are kept.
MOST_TEXT: Final = 1000
#: Characters that the records of one run take, and those of all runs.
MOST_OF_RUN, MOST_OF_ALL = 64 * 1024, 512 * 1024
#: Runs with kept records; most processes have one at a time.
MOST_RUNS: Final = 200
#: A longer format is not applied.
_LONGEST_FORMAT: Final = 16 * 1024
_NAME_CHARACTERS: Final = 200
_LIMITS: Final = Limits(bytes=16 * 1024, nodes=200, depth=3, breadth=20, string=400)
_OWN: Final = "celery_trace"

#: A run: its task id or the id of its request, and its retries.
RunKey = tuple[str, int]
#: The run of the calling thread, or None.
FindRun = Callable[[], RunKey | None]


class _Kept(NamedTuple):
    """A record as it is kept: exact texts and numbers, nothing of the user's."""

    at_s: float
    level: str
    logger: str
    text: str
    file: str
    line: int
    cut: int


class _Run:
    """The records of one run."""

    __slots__ = ("characters", "left_out", "records")

    def __init__(self) -> None:
        self.records: deque[_Kept] = deque()
        self.characters = 0
        self.left_out = 0

    def add(self, record: _Kept, most: int) -> None:
        self.records.append(record)
        self.characters += len(record.text)
        while len(self.records) > most or (self.characters > MOST_OF_RUN and len(self.records) > 1):
            self.characters -= len(self.records.popleft().text)
            self.left_out += 1


class RunLogs:
    """
    Keeps the last log records of the runs of a process, in memory. Thread-safe.

    Args:
        most: How many records of a run are kept.
        redactor: Removes secrets from the records of a failure, and from values that no handler has formatted.

    Attributes:
        find: Functions that find the run of the calling thread; the first that finds one counts.
        passed_over: Names of loggers that only report the failure itself, such as ``django.request``.
        spent_s: Processor seconds that it has taken.
    """

    def __init__(self, most: int, redactor: Redactor) -> None:
        self.find: list[FindRun] = []
        self.passed_over: set[str] = set()
        self.spent_s = 0.0
        self._most = most
        self._redactor = redactor
        self._runs: OrderedDict[RunKey, _Run] = OrderedDict()
        self._characters = 0
        # Re-entrant: a finalizer that runs inside may log.
        self._lock = os_threads.rlock()
        self._guard = Guard("log records")
        self._undo: Callable[[], None] | None = None

    def attach(self) -> None:
        """Begin to look at log records. Another call does nothing."""
        if self._undo is not None or not self._most:
            return
        before = logging.Logger.callHandlers
        watching, note = True, self.note

        def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
            before(self, record)
            if watching:
                note(record)

        def undo() -> None:
            nonlocal watching
            watching = False
            if logging.Logger.callHandlers is call_handlers:  # else another program has replaced it since
                logging.Logger.callHandlers = before  # type: ignore[method-assign]

        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        self._undo = undo

    def detach(self) -> None:
        """Look at no further records, and forget those that are kept."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
        with self._lock:
            self._runs.clear()
            self._characters = 0

    # --- in the thread that logs

    def note(self, record: logging.LogRecord) -> None:
        """Keep a record of a run. It costs nothing beyond a look-up outside of runs."""
        with self._guard:
            for find in self.find:
                run = find()
                if run is not None:
                    break
            else:
                return
            started_s = time.thread_time()
            if not _is_ours(record.name) and record.name not in self.passed_over:
                self._keep(run, self._kept(record))
            self.spent_s += time.thread_time() - started_s

    def _kept(self, record: logging.LogRecord) -> _Kept:
        text = self._text_of(record)
        error = record.exc_info[1] if type(record.exc_info) is tuple else None
        if error is not None:
            text += f" ({type_name(type(error)).rpartition('.')[2]})"
        return _Kept(
            at_s=_number(record.created),
            level=_exact(record.levelname)[:20],
            logger=_exact(record.name)[:_NAME_CHARACTERS],
            text=text[: MOST_TEXT + BEYOND],
            file=_exact(record.pathname)[:1000],
            line=record.lineno if type(record.lineno) is int else 0,
            cut=max(0, len(text) - MOST_TEXT - BEYOND),
        )

    def _text_of(self, record: logging.LogRecord) -> str:
        formatted = record.__dict__.get("message")  # by the formatter of a handler
        if type(formatted) is str:
            return formatted
        message = self._shown(record.msg) if type(record.msg) is not str else record.msg
        arguments = record.args
        if not arguments or len(message) > _LONGEST_FORMAT:
            return message
        shown = self._arguments(arguments)
        try:
            return message % shown
        except (TypeError, ValueError, KeyError, OverflowError, MemoryError):
            return f"{message} {shown!r}"

    def _arguments(self, arguments: object) -> tuple[object, ...] | dict[str, object]:
        """A record's arguments, those that are no plain values as texts."""
        if type(arguments) is dict and all(type(key) is str for key in arguments):
            return {key: self._argument(value) for key, value in list(arguments.items())[:50]}
        if type(arguments) is tuple:
            return tuple(self._argument(value) for value in arguments[:50])
        return (_Shown(self._shown(arguments)),)

    def _argument(self, value: object) -> object:
        if value is None or type(value) is float or type(value) is bool:
            return value
        if type(value) is int:
            return value if value.bit_length() < 1024 else _Shown("<int>")
        if type(value) is str:
            return value[: 2 * MOST_TEXT]
        return _Shown(self._shown(value))

    def _shown(self, value: object) -> str:
        if is_instance(value, BaseException):
            return describe(value, self._redactor, MOST_TEXT).message
        capture = capture_exception(
            _NoError(), limits=_LIMITS, redactor=self._redactor, arguments=Arguments((value,), {})
        )
        return rendered(capture.heap, capture.heap[capture.args].items[0], 400)

    def _keep(self, key: RunKey, record: _Kept) -> None:
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = _Run()
            self._characters -= run.characters
            run.add(record, self._most)
            self._characters += run.characters
            self._runs.move_to_end(key)
            while len(self._runs) > 1 and (len(self._runs) > MOST_RUNS or self._characters > MOST_OF_ALL):
                self._characters -= self._runs.popitem(last=False)[1].characters

    # --- at a failure

    def of(self, task_id: str, retries: int, scrubber: Scrubber | None = None) -> LogTail:
        """
        The last records of a run, redacted. They are kept, as a run may write two failures.

        Args:
            scrubber: Has the secrets that were found in the run's values.
        """
        with self._lock:
            run = self._runs.get((task_id, retries))
            records, left_out = (list(run.records), run.left_out) if run is not None else ([], 0)
        return LogTail([self._line(record, scrubber) for record in records], left_out)

    def _line(self, record: _Kept, scrubber: Scrubber | None) -> LogLine:
        text, cut = cleaned(record.text, MOST_TEXT, self._redactor)
        return LogLine(
            at_s=record.at_s,
            level=encodable(record.level),
            logger=self._redactor.text(encodable(record.logger)),
            text=scrubber.text(text) if scrubber is not None else text,
            file=encodable(record.file),
            line=record.line,
            cut=record.cut + cut,
        )


def task_in_progress() -> RunKey | None:
    """The Celery task of the calling thread or greenlet."""
    state = sys.modules.get("celery._state")
    task = state._task_stack.top if state is not None else None
    request = task.request_stack.top if task is not None else None
    task_id = getattr(request, "id", None)
    if type(task_id) is not str:
        return None
    retries = getattr(request, "retries", 0)
    return task_id, retries if type(retries) is int else 0


class _Shown:
    """A value's text: its ``str`` and its ``repr``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _NoError(Exception):
    """An error without frames: only values are captured with it."""


def _is_ours(logger: object) -> bool:
    return type(logger) is str and (logger == _OWN or logger.startswith(_OWN + "."))


def _exact(value: object) -> str:
    return value if type(value) is str else ""


def _number(value: object) -> float:
    return value if type(value) is float else 0.0
