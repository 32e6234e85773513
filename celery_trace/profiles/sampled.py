"""
Where the time of runs goes: samples of their stacks in one process, added up by task and stack.

**The weight of a sample.** When a sample is due depends on nothing that runs, and the intervals vary at random. A
sample stands for half the time since the one before it and half the time until the next one. So the time of a task is
right on average, also if its runs are shorter than the interval: of many such runs, samples hit as many as their share
of the time. The black box takes more samples while a run lasts; they are not counted here, because an interval that
depends on what runs distorts the shares, whatever the weights.

**Runs that cannot be sampled.** The sampling thread needs the interpreter (the GIL). A run that does not release it
is over when the sample is taken. So the sample counts for the run in which it was due
(:attr:`celery_trace.process.open_runs.OpenRuns.due_s`): its time is known, its stack is not. For the same reason a run
that began after the sample was due is not counted. Within a run, time of less than the interpreter's switch interval
(5 ms) before a blocking call is shown at that call.

**Processor time** is read from the clock of each thread, so its sum is exact. It is attributed to the first stack that
is sampled while the thread does not wait; where the kernel does not show that, to the next stack.

Where runs share a thread, as greenlets and coroutines do, its clock counts all of them. There, the time of the samples
in which the thread is running counts as processor time of the run that it runs. Work of less than the interpreter's
switch interval between two waits is not seen.

**Locks.** A thread that waits in a futex waits for a lock or for another thread; if the futex is the interpreter's, it
waits for the interpreter. In a process with one running thread, that means only that it was sampled. Of runs that share
a thread, this is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.heap.picks import Stack
from celery_trace.heap.source_reader import SourceReader
from celery_trace.heap.stacks import MOST_STACKS, FrameTable, from_the_task
from celery_trace.model import TIMES, UNSEEN, Kind, Measure, ProcessRecord, TimeProfile, TimeStack
from celery_trace.process.blackbox import MOST_FRAMES, SampledStack
from celery_trace.process.open_runs import Token
from celery_trace.process.thread_state import ThreadClock, ThreadState, native_id, state_of
from celery_trace.text.code_owner import CodeOwner

#: Names with a profile in one process; the time of further ones is counted, not shown.
MOST_NAMES: Final = 500
#: Stacks of one name in memory. If there are more, the largest half is kept; the others become one sum.
MOST_IN_MEMORY: Final = 400
#: Stacks of all names when they are written; each takes up to half a kilobyte. If there are more, each name gets its
#: part.
MOST_OF_ALL: Final = 4000
#: Profiles that are written at a time, those with the most new time. At the end of the process all are.
MOST_AT_ONCE: Final = 40
#: Threads of which the processor time is followed, those that ran a task last.
MOST_THREADS: Final = 64

_READY: Final = (ThreadState.RUNS, ThreadState.WAITS_FOR_GIL)
_US: Final = 1_000_000
_UNSEEN: Final = (UNSEEN.file, UNSEEN.line, UNSEEN.function)
#: The outermost frame of a stack of which the outer frames were not read.
_DEEPER: Final = ("", 0, "outer frames of a deep stack")


class Totals(Protocol):
    """What is known of a name that has run."""

    kind: Kind
    name: str

    @property
    def all_runs(self) -> int:
        """Runs that have ended since the start of the process."""


class Seconds(Struct):
    """Time by measure."""

    wall: float = 0.0
    cpu: float = 0.0
    lock: float = 0.0

    def add(self, other: Seconds) -> None:
        """Add another time."""
        self.wall += other.wall
        self.cpu += other.cpu
        self.lock += other.lock


class _NameTimes:
    """The time of one name since it began, by stack."""

    def __init__(self, totals: Totals, now_s: float) -> None:
        self.totals = totals
        self.measures = {Measure.WALL}
        self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Drop what was added up."""
        self.began_s = now_s
        self.runs_before = self.totals.all_runs
        self.written_wall_s = 0.0
        #: Processor time that is not part of the total yet, because no stack was sampled to which it belongs.
        self.cpu_due_s = 0.0
        self.total = Seconds()
        self._places: dict[tuple[str, int, str], int] = {}
        self._frames: list[tuple[str, int, str]] = []
        self._stacks: dict[tuple[int, ...], Seconds] = {}

    def add(self, stack: Stack, seconds: Seconds) -> None:
        """Add time to a stack (innermost first)."""
        self.total.add(seconds)
        self._seconds(self._key(stack)).add(seconds)
        self.trim(MOST_IN_MEMORY, MOST_IN_MEMORY // 2)

    def _key(self, stack: Stack) -> tuple[int, ...]:
        row = []
        for frame in stack:
            place = self._places.setdefault(frame, len(self._frames))
            if place == len(self._frames):
                self._frames.append(frame)
            row.append(place)
        return tuple(row)

    def _seconds(self, key: tuple[int, ...]) -> Seconds:
        found = self._stacks.get(key)
        if found is None:
            found = self._stacks[key] = Seconds()
        return found

    @property
    def stacks(self) -> int:
        """Stacks in memory."""
        return len(self._stacks)

    def trim(self, most: int, left: int) -> None:
        """If there are more than so many stacks, keep so many of the largest. The total stays."""
        if len(self._stacks) <= most:
            return
        largest = self.largest()[:left]
        self._places, self._frames, self._stacks = {}, [], {}
        for stack, seconds in largest:
            self._seconds(self._key(stack)).add(seconds)

    def largest(self) -> list[tuple[Stack, Seconds]]:
        """The stacks (innermost first), the largest first."""
        ordered = sorted(self._stacks.items(), key=_size)
        return [(tuple(self._frames[place] for place in key), seconds) for key, seconds in ordered]


class _Pending(Struct, frozen=True):
    """The latest sample of a run. Its weight is known at the next one."""

    times: _NameTimes
    stack: Stack
    stands_for: float
    cpu_share: float
    lock_share: float


class _Thread(Struct):
    """The processor time of a thread at the last sample."""

    clock: ThreadClock
    read_s: float


class StackTimes:
    """
    Adds up the samples of one process.

    Args:
        process: Whose; for the records.
        own: Recognises the user's own files.
        clock: Time.
        state: Says what a thread does.
    """

    def __init__(
        self,
        process: ProcessRecord,
        own: CodeOwner,
        clock: Clock,
        state: Callable[[int], ThreadState] = state_of,
    ) -> None:
        self._process = process
        self._own = own
        self._clock = clock
        self._state = state
        self._names: dict[tuple[Kind, str], _NameTimes] = {}
        self._threads: dict[int, _Thread] = {}
        self._pending: list[_Pending] = []
        self._at_s = clock.monotonic_s()
        self._before_s = 0.0  # the interval before the latest sample
        self._resumed: tuple[float, float] | None = None
        #: Seconds of runs of names beyond :data:`MOST_NAMES`.
        self.left_out_s = 0.0

    # --- samples ----------------------------------------------------------------------------------------

    def resume(self, due_s: float, interval_s: float) -> None:
        """
        The process was idle, and a run begins: the next sample counts as if samples had been taken all the time.

        Called in the thread of the run.

        Args:
            due_s: When the next sample is due, by the monotonic clock: at random within the interval, so that it does
                not depend on when the run began.
            interval_s: The interval.
        """
        self._resumed = due_s - interval_s, interval_s

    def look(self, stacks: Sequence[SampledStack], missed: Sequence[tuple[int, Token]], due_s: float) -> None:
        """
        Add a sample.

        Args:
            stacks: The stacks of the runs in progress.
            missed: The runs that ended while the sample was overdue, each with its thread.
            due_s: When the sample was due, by the monotonic clock.
        """
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self._settle(self._at_s)
            self._at_s, self._before_s = resumed
        self._settle(self._clock.monotonic_s())
        own_threads = [one.thread for one in stacks if one.runs_in == one.thread]
        used_s = self._processor_time([*own_threads, *(thread for thread, _ in missed)])
        overdue: set[int] = set()
        for thread, token in missed:
            if thread not in overdue:
                overdue.add(thread)
                self._note((_UNSEEN,), token, used_s.get(thread), ThreadState.WAITS, 1.0, 0.0)
        counted = [one for one in stacks if one.thread not in overdue and one.token.started_s <= due_s]
        states = [self._state_of(one) for one in counted]
        ready = sum(state in _READY for state in states)
        for one, state in zip(counted, states, strict=True):
            frames = one.frames[: one.inside]
            if one.inside == len(one.frames) == MOST_FRAMES:
                frames = [*frames, _DEEPER]
            if one.runs_in != one.thread:
                self._note_shared(tuple(frames), one, state)
                continue
            used = used_s.get(one.thread)
            lock_share = 0.0
            if state is ThreadState.WAITS_FOR_LOCK:
                lock_share = 1.0
            elif state is ThreadState.WAITS_FOR_GIL and ready > 1 and self._before_s:
                lock_share = max(0.0, 1.0 - (used or 0.0) / self._before_s)
            self._note(tuple(frames), one.token, used, state, one.stands_for, lock_share)

    def _settle(self, now_s: float) -> None:
        """The weight of the latest sample is known now: half the time before it, and half the time since."""
        gap_s = max(0.0, now_s - self._at_s)
        weight_s = (self._before_s + gap_s) / 2
        for one in self._pending:
            wall_s = weight_s * one.stands_for
            one.times.add(one.stack, Seconds(wall_s, wall_s * one.cpu_share, wall_s * one.lock_share))
        self._pending = []
        self._at_s, self._before_s = now_s, gap_s

    def _note(
        self, stack: Stack, token: Token, used_s: float | None, state: ThreadState, stands_for: float, lock_share: float
    ) -> None:
        times = self._times_of(token.totals)
        if times is None:
            self.left_out_s += self._before_s * stands_for
            return
        if used_s is not None:
            times.measures.add(Measure.CPU)
            times.cpu_due_s += used_s
        if state is not ThreadState.UNKNOWN and stack != (_UNSEEN,):
            times.measures.add(Measure.LOCK)
        if state in (ThreadState.UNKNOWN, ThreadState.RUNS, ThreadState.WAITS_FOR_GIL) and times.cpu_due_s:
            times.add(stack, Seconds(cpu=times.cpu_due_s))
            times.cpu_due_s = 0.0
        self._pending.append(_Pending(times, stack, stands_for, 0.0, lock_share))

    def _note_shared(self, stack: Stack, one: SampledStack, state: ThreadState) -> None:
        """
        A run that shares its thread. The thread's clock counts all of its runs, so processor time is sampled too: of
        the run that the thread runs.
        """
        times = self._times_of(one.token.totals)
        if times is None:
            self.left_out_s += self._before_s * one.stands_for
            return
        if one.runs_in and state is not ThreadState.UNKNOWN:
            times.measures.add(Measure.CPU)
        self._pending.append(_Pending(times, stack, one.stands_for, float(state in _READY), 0.0))

    def _times_of(self, totals: Totals) -> _NameTimes | None:
        key = totals.kind, totals.name
        found = self._names.get(key)
        if found is None and len(self._names) < MOST_NAMES:
            found = self._names[key] = _NameTimes(totals, self._clock.now_s())
        return found

    def _state_of(self, one: SampledStack) -> ThreadState:
        if not one.runs_in:
            return ThreadState.WAITS
        if one.runs_in != one.thread:
            return self._state(native_id(one.runs_in))
        known = self._threads.get(one.thread)
        return self._state(known.clock.native_id) if known is not None else ThreadState.UNKNOWN

    def _processor_time(self, running: Sequence[int]) -> dict[int, float]:
        """
        The processor time of running threads since the last sample. Of threads that ran a task before it is read too,
        so that what they do between runs counts for none.
        """
        used: dict[int, float] = {}
        for thread in running:
            if thread not in self._threads:
                try:
                    clock = ThreadClock(thread)
                    self._threads[thread] = _Thread(clock, math.nan)
                except OSError:
                    continue
        for thread, known in list(self._threads.items()):
            try:
                read_s = known.clock.read_s()
            except OSError:  # the thread has ended
                del self._threads[thread]
                continue
            if thread in running and not math.isnan(known.read_s):
                used[thread] = max(0.0, min(read_s - known.read_s, self._before_s))
            known.read_s = read_s
        surplus = max(0, len(self._threads) - MOST_THREADS)
        for thread in [thread for thread in self._threads if thread not in running][:surplus]:
            del self._threads[thread]
        return used

    # --- records ----------------------------------------------------------------------------------------

    def changed(self, *, at_end: bool = False) -> Iterator[TimeProfile]:
        """
        The profiles with new time, as records; they count as written afterwards.

        Args:
            at_end: The process ends: all of them, and the latest sample is complete.
        """
        if at_end:
            self._settle(self._clock.monotonic_s())
        now_s = self._clock.now_s()
        reader = SourceReader()
        fresh = [times for times in self._names.values() if times.total.wall > times.written_wall_s]
        fresh.sort(key=lambda times: times.written_wall_s - times.total.wall)
        for times in fresh[: None if at_end else MOST_AT_ONCE]:
            yield self._record(times, now_s, reader)
            times.written_wall_s = times.total.wall
        if sum(times.stacks for times in self._names.values()) > MOST_OF_ALL:
            part = MOST_OF_ALL // len(self._names)
            for times in self._names.values():
                times.trim(part, part)
        pending = {id(one.times) for one in self._pending}
        for key, times in list(self._names.items()):
            if _hour(times.began_s) == _hour(now_s) or times.total.wall > times.written_wall_s:
                continue
            if times.total.wall or id(times) in pending:
                times.begin(now_s)
            else:  # it has not run for an hour
                del self._names[key]

    def _record(self, times: _NameTimes, now_s: float, reader: SourceReader) -> TimeProfile:
        table = FrameTable(self._own, reader)
        rows: dict[Stack, Seconds] = {}
        for stack, seconds in times.largest():
            shown = stack if stack[-1:] == (_DEEPER,) else from_the_task(stack, self._own)
            rows.setdefault(shown, Seconds()).add(seconds)
        stacks = []
        for stack, seconds in sorted(rows.items(), key=_size)[:MOST_STACKS]:
            row = table.row(stack) if stack else None
            if row is not None:
                stacks.append(TimeStack(row, *_microseconds(seconds)))
        wall_us, cpu_us, lock_us = _microseconds(times.total)
        cpu_us += round(times.cpu_due_s * _US)
        return TimeProfile(
            process=self._process.uid,
            kind=times.totals.kind,
            name=times.totals.name,
            began_s=times.began_s,
            at_s=now_s,
            release=self._process.release,
            runs=times.totals.all_runs - times.runs_before,
            wall_us=max(wall_us, sum(row.wall_us for row in stacks)),
            cpu_us=max(cpu_us, sum(row.cpu_us for row in stacks)),
            lock_us=max(lock_us, sum(row.lock_us for row in stacks)),
            measures=[measure for measure in TIMES if measure in times.measures],
            frames=table.frames,
            stacks=stacks,
        )


def _size(row: tuple[object, Seconds]) -> float:
    """For sorting: the largest stacks first, those with much processor time too."""
    return -row[1].wall - row[1].cpu


def _hour(at_s: float) -> int:
    return int(at_s) // TimeProfile.HOUR_S


def _microseconds(seconds: Seconds) -> tuple[int, int, int]:
    return round(seconds.wall * _US), round(seconds.cpu * _US), round(seconds.lock * _US)
