"""
The runs in progress of a process: what happens around every one of them, and so has to be cheap.

A run is noted in the black box and told to the heap's sampler when it begins. When it ends it is added to the counts
of its task. ``_open_runs.c`` does the same in a tenth of the time; what is here takes its place where there is no
extension module, and a contract test holds both to it.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from celery_trace.model import Histogram

#: What :meth:`OpenRuns.end` returns: the run began after the counts' period; nothing further; it took far longer than
#: most; it is time for one to be written by itself.
NEXT_PERIOD, ADDED, OUTLIER, SCATTERED = -1, 0, 1, 2

#: A place in the black box: the byte that says "taken", when the run began, in which thread, its retries; and task id,
#: kind and name as text with zero bytes between. A name that does not fit loses its end.
PLACE: Final = struct.Struct("<BdQi491s")
#: Places in a black box. More runs are in progress at once only under gevent, where one of them has a stack.
MOST_PLACES: Final = 64
_NO_PLACE: Final = -1
#: Characters that have no bytes are written as their escapes.
VISIBLE: Final = "backslashreplace"

#: Runs, failed, retried, seconds in all, the longest's seconds, and runs by bucket of :class:`Histogram`.
Counted = tuple[int, int, int, float, float, list[int]]


class PlainCounts:
    """
    A task's runs in one period.

    Args:
        label: What the black box says of each run.
    """

    def __init__(self, label: bytes) -> None:
        self.label = label
        #: What the heap's sampler is told of each run.
        self.tag = 0
        #: When the period ends, seconds since the epoch.
        self.ends_at_s = 0.0
        #: From when on a run is written by itself, by the monotonic clock.
        self.scatter_due_s = 0.0
        #: The duration bucket from which a run is an outlier.
        self.slow_bucket = Histogram.BUCKETS
        #: Whether something was added that is not written.
        self.dirty = False
        self._lock = threading.RLock()  # re-entrant: a finalizer may itself be a traced block
        self._clear()

    def _clear(self) -> None:
        self._runs = self._failed = self._retried = 0
        self._duration_s = self._duration_max_s = 0.0
        self._durations = [0] * Histogram.BUCKETS

    def read(self) -> Counted:
        """What was counted so far in this period."""
        with self._lock:
            return (
                self._runs, self._failed, self._retried, self._duration_s, self._duration_max_s, list(self._durations),
            )  # fmt: skip

    def take(self, ends_at_s: float) -> Counted:
        """What was counted; a new period begins, which ends at ``ends_at_s``."""
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
    shared: int  # the most runs that were in progress at once
    place: int = _NO_PLACE
    started_s: float = 0.0  # by the monotonic clock
    duration_s: float = 0.0  # once it has ended
    tag_before: Any = None  # what the heap's sampler was told before
    owner: Any = None
    observed: Any = None  # the probes that observe the run, and their state
    why: str | None = None  # why a probe wants the run written as a record
    top: Any = None  # the run's top differences
    #: Where the run came from, and what reads queue and root id out of that, for the few runs kept by themselves.
    origin: Any = None
    describe: Callable[[Any], tuple[str, str]] | None = None


class PlainOpenRuns:
    """All runs in progress of a process."""

    def __init__(self) -> None:
        #: Tells the time, seconds since the epoch; None for the system's clock.
        self.now: Callable[[], float] | None = None
        #: Tells a time to measure with, seconds; None for the system's clock.
        self.monotonic: Callable[[], float] | None = None
        #: Tells this greenlet's number; None where each run has a thread.
        self.ident: Callable[[], int] | None = None
        #: Is told the tag of a run that begins, and when it ends what that call has returned.
        self.enter: Callable[[int], Any] | None = None
        self.leave: Callable[[Any], object] | None = None
        #: The counts of what began last; None while nothing runs.
        self.latest: Any = None
        #: Runs in progress, and the most there were at once.
        self.count = 0
        self.most = 1
        self._buffer: memoryview | None = None
        self._at = 0
        self._threads: list[int] = []  # that have a place; 0 for a free one
        self._lock = threading.RLock()

    def write_to(self, target: Any, at: int = 0) -> None:
        """
        Note runs in a writable buffer from now on; in none where ``target`` is None.

        Args:
            target: The buffer, such as a memory-mapped file.
            at: Where its places begin, bytes.
        """
        with self._lock:
            if self._buffer is not None:
                self._buffer.release()
            self._buffer, self._at, self._threads = None, at, []
            if target is not None:
                buffer = memoryview(target)
                if buffer.nbytes < at + MOST_PLACES * PLACE.size:
                    buffer.release()
                    raise ValueError("there is no room for the places")
                self._buffer = buffer

    def begin(self, totals: Any, task_id: str, retries: int) -> PlainToken:
        """A run begins in this thread. One inside of another, such as an eager task's, has no place of its own."""
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
        self._buffer[at] = True  # last: a death in the middle shows no half of a run
        self._threads[place] = thread
        return place

    def end(self, token: PlainToken, failed: bool, retried: bool) -> int:
        """A run has ended: what :meth:`add` returns."""
        token.duration_s = self._monotonic_s() - token.started_s
        if token.tag_before is not None and self.leave is not None:
            self.leave(token.tag_before)
        token.shared = max(token.shared, self.count)
        if token.owner is self:  # and not another recorder's
            with self._lock:
                self._leave(token)
        token.owner = None
        return self.add(token, failed, retried)

    def _leave(self, token: PlainToken) -> None:
        if token.place != _NO_PLACE and self._buffer is not None and token.place < len(self._threads):
            self._buffer[self._at + token.place * PLACE.size] = False
            self._threads[token.place] = 0
        token.place = _NO_PLACE
        self.count -= 1
        if not self.count:
            self.latest = None

    def add(self, token: PlainToken, failed: bool, retried: bool) -> int:
        """Add a run that has ended to its counts: :data:`NEXT_PERIOD` if that can't be, or whether to write it."""
        return token.totals.add(token, failed, retried)  # type: ignore[no-any-return]

    def threads(self) -> list[int]:
        """The threads or greenlets whose runs are noted in the buffer."""
        return [thread for thread in self._threads if thread]


if TYPE_CHECKING:
    Counts = PlainCounts
    OpenRuns = PlainOpenRuns
    Token = PlainToken
else:
    try:
        from celery_trace.process._open_runs import Counts, OpenRuns, Token
    except ImportError:  # no extension module for this interpreter
        Counts, OpenRuns, Token = PlainCounts, PlainOpenRuns, PlainToken
