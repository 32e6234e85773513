"""
The runs in progress of a process: the fast path around every run.

When a run begins, it is written into the black box and the heap's sampler gets its tag. When it ends, it is added to
the counts of its task. ``_open_runs.c`` does the same in a tenth of the time. This module replaces it where there is
no extension module; a contract test runs both.
"""

from __future__ import annotations

import math
import struct
import threading
import time
from collections.abc import Callable
from mmap import mmap
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from celery_trace import os_threads
from celery_trace.model import Histogram, Site

#: What :meth:`OpenRuns.end` returns: the run began after the counts' period; it was added; it took far longer than most
#: and is written as a record; a sample is due and it is written as a record.
NEXT_PERIOD, ADDED, OUTLIER, SCATTERED = -1, 0, 1, 2

#: A place in the black box: a byte for "taken", when the run began, its thread, its retries; and task id,
#: kind and name as text, separated by zero bytes. A name that does not fit is cut.
PLACE: Final = struct.Struct("<BdQi491s")
#: How many runs have ended.
COUNT: Final = struct.Struct("<q")
#: Places in a black box. More concurrent runs exist only under gevent, where one of them has a stack.
MOST_PLACES: Final = 64
_NO_PLACE: Final = -1
#: The heap sampler's tag of no run.
NO_TAG: Final = 0
#: Characters that can't be encoded are written as escapes.
VISIBLE: Final = "backslashreplace"

#: Runs, failed, retried, total seconds, seconds of the longest, and runs by bucket of :class:`Histogram`.
Counted = tuple[int, int, int, float, float, list[int]]


class PlainCounts:
    """
    A task's runs in one period.

    Args:
        label: What the black box shows for each run.
    """

    def __init__(self, label: bytes) -> None:
        self.label = label
        #: The heap sampler's tag of each run.
        self.tag = 0
        #: When the period ends, seconds since the epoch.
        self.ends_at_s = 0.0
        #: From when on a run is written as a sample, by the monotonic clock.
        self.scatter_due_s = 0.0
        #: The duration bucket from which a run is an outlier.
        self.slow_bucket = Histogram.BUCKETS
        #: Whether something was added that is not written yet.
        self.dirty = False
        self._lock = os_threads.rlock()  # re-entrant: a finalizer may contain a traced block
        self._clear()

    def _clear(self) -> None:
        self._runs = self._failed = self._retried = 0
        self._duration_s = self._duration_max_s = 0.0
        self._durations = [0] * Histogram.BUCKETS

    def read(self) -> Counted:
        """The counts of this period so far."""
        with self._lock:
            return (
                self._runs, self._failed, self._retried, self._duration_s, self._duration_max_s, list(self._durations),
            )  # fmt: skip

    def take(self, ends_at_s: float) -> Counted:
        """The counts. A new period begins, which ends at ``ends_at_s``."""
        with self._lock:
            counted = self.read()
            self.ends_at_s = ends_at_s
            self.dirty = False
            self._clear()
            return counted

    def add(self, token: PlainToken, failed: bool, retried: bool) -> int:
        """Add a run that has ended, unless it began after this period."""
        with self._lock:
            if token.started_at_s >= self.ends_at_s:
                return NEXT_PERIOD
            bucket = Histogram.bucket(token.duration_s)
            self._runs += 1
            self._durations[bucket] += 1
            self._duration_s += token.duration_s
            self._duration_max_s = max(self._duration_max_s, token.duration_s)
            self._failed += failed
            self._retried += retried and not failed
            self.dirty = True
            return (
                OUTLIER if bucket >= self.slow_bucket else SCATTERED if token.started_s >= self.scatter_due_s else ADDED
            )


class PlainToken(Struct):
    """A run in progress, from :meth:`OpenRuns.begin` to :meth:`OpenRuns.end`."""

    totals: Any
    task_id: str
    retries: int
    started_at_s: float  # since the epoch
    shared: int  # the most concurrent runs
    place: int = _NO_PLACE
    started_s: float = 0.0  # by the monotonic clock
    duration_s: float = 0.0  # once it has ended
    tag_before: int | None = None  # the thread's tag before this run
    owner: object = None
    observed: Any = None  # the probes that observe the run, and their state
    why: str | None = None  # why a probe wants the run written as a record
    top: list[Site] | None = None  # the run's top differences
    special: bool = False  # its end needs more than to be counted
    #: The request, and a function that reads queue and root id from it, for the few runs that are written as records.
    origin: object = None
    describe: Callable[[object], tuple[str, str]] | None = None


class PlainOpenRuns:
    """All runs in progress of a process."""

    def __init__(self) -> None:
        #: Returns the time, seconds since the epoch; None for the system's clock.
        self.now: Callable[[], float] | None = None
        #: Returns a monotonic time, seconds; None for the system's clock.
        self.monotonic: Callable[[], float] | None = None
        #: Returns the greenlet's number; None if each run has a thread.
        self.ident: Callable[[], int] | None = None
        #: Called with the tag of a run that begins; ``leave`` is called at its end with what ``enter`` has returned, or
        #: with :data:`NO_TAG` if no run is in progress then.
        self.enter: Callable[[int], int] | None = None
        self.leave: Callable[[int], object] | None = None
        #: The counts of the run that began last; None while nothing runs.
        self.latest: Any = None
        #: Runs in progress, and the most that there were at once.
        self.count = 0
        self.most = 1
        #: Whether nothing else is called when a run begins or ends; see :mod:`celery_trace.runtime.tracers`.
        self.quick = False
        #: When a sample of the stacks is due, by the monotonic clock.
        self.due_s = math.inf
        self._missed: list[tuple[int, PlainToken]] = []
        #: Runs that have ended.
        self.ended = 0
        self._buffer: memoryview | None = None
        self._at = 0
        self._threads: list[int] = []  # that have a place; 0 for a free one
        self._tokens: dict[int, PlainToken] = {}  # by place
        self._lock = os_threads.rlock()

    def write_to(self, target: mmap | bytearray | None, at: int = 0) -> None:
        """
        Write runs into a buffer from now on; into none if ``target`` is None.

        Args:
            target: The buffer, such as a memory-mapped file.
            at: The offset of the places, bytes. The number of runs that have ended is written before it, if
                there is space.
        """
        with self._lock:
            if self._buffer is not None:
                self._buffer.release()
            self._buffer, self._at, self._threads, self._tokens = None, at, [], {}
            if target is not None:
                buffer = memoryview(target)
                if buffer.nbytes < at + MOST_PLACES * PLACE.size:
                    buffer.release()
                    raise ValueError("the buffer is too small for the places")
                self._buffer = buffer
                self._write_ended()

    def _write_ended(self) -> None:
        if self._buffer is not None and self._at >= COUNT.size:
            COUNT.pack_into(self._buffer, self._at - COUNT.size, self.ended)

    def begin(self, totals: Any, task_id: str, retries: int) -> PlainToken:
        """A run begins in this thread. A nested one, such as an eager task's, has no place of its own."""
        at_s = self.now() if self.now is not None else time.time()
        with self._lock:
            self.count += 1
            self.most = max(self.most, self.count)
            self.latest = totals
            token = PlainToken(totals, task_id, retries, at_s, self.count, owner=self)
            if self._buffer is not None:
                token.place = self._take_place(token)
        if self.enter is not None:
            token.tag_before = self.enter(totals.tag)
        token.started_s = self._monotonic_s()
        return token

    def _monotonic_s(self) -> float:
        return self.monotonic() if self.monotonic is not None else time.perf_counter()

    def _take_place(self, token: PlainToken) -> int:
        thread = self.ident() if self.ident is not None else threading.get_ident()
        if self._buffer is None or thread in self._threads:
            return _NO_PLACE
        if 0 in self._threads:
            place = self._threads.index(0)
        elif len(self._threads) < MOST_PLACES:
            place = len(self._threads)
            self._threads.append(0)
        else:
            return _NO_PLACE
        text = token.task_id.encode("utf-8", VISIBLE) + token.totals.label
        at = self._at + place * PLACE.size
        PLACE.pack_into(self._buffer, at, False, token.started_at_s, thread, token.retries, text)
        self._buffer[at] = True  # last: a process that is killed before leaves no half-written run
        self._threads[place] = thread
        self._tokens[place] = token
        return place

    def end(self, token: PlainToken, failed: bool, retried: bool) -> int:
        """A run has ended. Returns what :meth:`add` returns."""
        token.duration_s = self._monotonic_s() - token.started_s
        if token.tag_before is not None and self.leave is not None:
            # Coroutines of a thread end in any order: the tag before may be that of a run that has ended.
            self.leave(NO_TAG if token.owner is self and self.count == 1 else token.tag_before)
        token.shared = max(token.shared, self.count)
        with self._lock:
            self.ended += 1
            self._write_ended()
            if token.owner is self:  # and not another recorder's
                self._leave(token)
        token.owner = None
        return self.add(token, failed, retried)

    def _leave(self, token: PlainToken) -> None:
        if token.place != _NO_PLACE and self._buffer is not None and token.place < len(self._threads):
            if token.started_s <= self.due_s < token.started_s + token.duration_s and len(self._missed) < MOST_PLACES:
                self._missed.append((self._threads[token.place], token))
            self._buffer[self._at + token.place * PLACE.size] = False
            self._threads[token.place] = 0
            self._tokens.pop(token.place, None)
        token.place = _NO_PLACE
        self.count -= 1
        if not self.count:
            self.latest = None

    def add(self, token: PlainToken, failed: bool, retried: bool) -> int:
        """Add a run that has ended to its counts: :data:`NEXT_PERIOD` if it began later, or whether to write it."""
        return token.totals.add(token, failed, retried)  # type: ignore[no-any-return]

    def in_progress(self) -> list[tuple[int, PlainToken]]:
        """The runs in the buffer, each with its thread or greenlet."""
        with self._lock:
            return [(self._threads[place], token) for place, token in sorted(self._tokens.items())]

    def take_missed(self) -> list[tuple[int, PlainToken]]:
        """
        The runs that ended while a sample was overdue, each with its thread: they had begun before :attr:`due_s`, and
        did not let another thread run until they ended.
        """
        with self._lock:
            missed, self._missed = self._missed, []
            return missed


if TYPE_CHECKING:
    Counts = PlainCounts
    OpenRuns = PlainOpenRuns
    Token = PlainToken
else:
    try:
        from celery_trace.process._open_runs import Counts, OpenRuns, Token
    except ImportError:  # no extension module for this interpreter
        Counts, OpenRuns, Token = PlainCounts, PlainOpenRuns, PlainToken
