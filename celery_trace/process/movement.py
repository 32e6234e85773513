"""
Since when a thread does nothing new: the evidence that a run is stuck, taken with each sample of its stack.

A stack that looks the same twice is no evidence. Between two samples, a loop may have gone round many times. So each
sample also compares the instruction, the processor time and the local variables of the thread. The processor time of a
thread that waits in one system call stays exactly the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final

from msgspec import Struct

from celery_trace.process.frames import RunFrames
from celery_trace.process.thread_state import clock_of
from celery_trace.process.waits import Wait, chain, examine

#: File, line and function of each frame, innermost first.
Stack = list[tuple[str, int, str]]

#: What a thread waits for is looked up once its run has lasted for this share of ``stuck_s``,
_EXAMINE_FROM: Final = 0.5
#: and again this often, seconds, at most. At least as often as this share of ``stuck_s``.
_EXAMINE_S: Final = 5.0
_EXAMINE_SHARE: Final = 0.25
#: Of several threads, one is looked up at a time, and after so long the next: where there are many, it takes longer.
_PAUSE_S: Final = 0.25
#: A loop that alternates between more places than these makes progress.
_MOST_PLACES: Final = 4


class ThreadSample(Struct, frozen=True, array_like=True):
    """What a sample shows of one thread in addition to its stack. Times are seconds since the epoch."""

    #: The system's number of the thread; 0 if unknown, or if no thread runs it now.
    native_id: int
    #: Since when each sample shows one of the same few places.
    place_since_s: float
    #: Since when the innermost function is at the same instruction too.
    still_since_s: float
    #: Since when the thread has used no processor time at all: it has not run.
    quiet_since_s: float
    #: Since when no local variable has changed. None if they can't be read.
    locals_since_s: float | None
    #: The share of the time in which it used the processor or waited for its turn, from 0 to 1, when it was last
    #: examined.
    busy: float = 0.0
    #: What the thread waits for, as far as the process can tell; None before it was looked up.
    wait: Wait | None = None
    #: Since when it waits for the result of the same task; 0 if it does not.
    result_since_s: float = 0.0
    #: When the run's soft time limit was reached; 0 if it was not.
    soft_limit_at_s: float = 0.0
    #: Whether its greenlet or coroutine is suspended, until what it waits for happens and the thread is free.
    suspended: bool = False
    #: The number of another run that has kept the thread of a suspended one for a while; 0 if none has.
    behind: int = 0


class _Watched:
    """
    One thread, from sample to sample.

    ``places`` are the few places that it has been at since it came to a new one, each with the mark of its local
    variables when it was there last. A loop that calls functions alternates between some.
    """

    __slots__ = (
        "began_s", "busy", "clock_id", "cpu_s", "examined_at_s", "instruction", "locals_since_s", "marked", "place",
        "place_since_s", "places", "quiet_since_s", "result_since_s", "stack", "still_since_s", "wait", "wanted_s",
    )  # fmt: skip

    def __init__(self, clock_id: int, began_s: float, stack: Stack, instruction: int, now_s: float) -> None:
        self.clock_id = clock_id
        self.began_s = began_s
        self.stack = stack
        self.instruction = instruction
        self.place = _place_of(stack)
        self.places: dict[int, int | None] = {self.place: None}
        self.marked = False
        self.cpu_s = time.clock_gettime(clock_id)
        self.busy = 0.0
        self.wanted_s = self.cpu_s  # processor seconds, and seconds for which it waited for its turn
        self.place_since_s = self.still_since_s = self.quiet_since_s = self.locals_since_s = now_s
        self.examined_at_s = now_s
        self.wait: Wait | None = None
        self.result_since_s = 0.0

    def step(self, stack: Stack, instruction: int, now_s: float) -> bool:
        """Note where the thread is now. Returns whether it has run since the last sample."""
        cpu_s = time.clock_gettime(self.clock_id)
        ran, self.cpu_s = cpu_s != self.cpu_s, cpu_s
        if ran:
            self.quiet_since_s = now_s
        if instruction != self.instruction or stack != self.stack:
            self.still_since_s = now_s
            self.place = _place_of(stack)
            if self.place not in self.places:
                self._move(now_s)
            self.stack, self.instruction = stack, instruction
        return ran

    def _move(self, now_s: float) -> None:
        if len(self.places) >= _MOST_PLACES:
            self.places.clear()
        self.places[self.place] = None
        self.place_since_s = self.locals_since_s = now_s
        self.marked = False

    def examined(self, wait: Wait, now_s: float) -> None:
        """Note what the thread waits for, as it was looked up now."""
        before, self.wait = self.wait, wait
        wanted_s = self.cpu_s + _delay_s(_native_id(self.clock_id))
        # What it waited for its turn is not known before it is examined for the first time.
        used_s = self.cpu_s - self.wanted_s if before is None else wanted_s - self.wanted_s
        self.busy = min(1.0, max(0.0, used_s / max(now_s - self.examined_at_s, 1e-3)))
        self.wanted_s, self.examined_at_s = wanted_s, now_s
        if not self.wait.result_id:
            self.result_since_s = 0.0
        elif before is None or before.result_id != self.wait.result_id:
            self.result_since_s = now_s

    def compare_locals(self, mark: int, now_s: float) -> None:
        """Note the mark of the local variables at this place."""
        before = self.places[self.place]
        if before is not None and before != mark:
            self.locals_since_s = now_s
        self.places[self.place] = mark
        self.marked = True

    def sample(self, soft_limit_at_s: float) -> ThreadSample:
        """What is known now."""
        return ThreadSample(
            _native_id(self.clock_id),
            self.place_since_s,
            self.still_since_s,
            self.quiet_since_s,
            self.locals_since_s if self.marked else None,
            self.busy,
            self.wait,
            self.result_since_s,
            soft_limit_at_s if soft_limit_at_s >= self.began_s else 0.0,
        )


class _Suspended:
    """A run that no thread runs, from sample to sample. Its processor time is not known, but whether it had a turn."""

    __slots__ = ("began_s", "examined_at_s", "since_s", "turn", "wait")

    def __init__(self, began_s: float, turn: object, now_s: float) -> None:
        self.began_s = began_s
        self.turn = turn
        self.since_s = self.examined_at_s = now_s
        self.wait: Wait | None = None

    def step(self, turn: object, now_s: float) -> None:
        """Note where the run is now."""
        if turn != self.turn:
            self.turn, self.since_s = turn, now_s

    def examined(self, wait: Wait, now_s: float) -> None:
        """Note what the run waits for."""
        self.wait, self.examined_at_s = wait, now_s

    def sample(self, soft_limit_at_s: float, behind: int) -> ThreadSample:
        """What is known now."""
        return ThreadSample(
            0, self.since_s, self.since_s, self.since_s, None, wait=self.wait,
            soft_limit_at_s=soft_limit_at_s if soft_limit_at_s >= self.began_s else 0.0, suspended=True, behind=behind,
        )  # fmt: skip


class Movement:
    """
    Compares the samples of a process's runs.

    Args:
        stuck_s: From when on a run may be stuck, seconds. Before a run has lasted for half of
            that, it is not examined.
        locals_mark: Returns a number that changes when a local variable of a thread's functions does; None where there
            is no extension module for it.
        scrub: Removes secrets from a text, such as the name of a thread.
    """

    def __init__(
        self,
        stuck_s: float,
        locals_mark: Callable[[int], int] | None = None,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._examine_after_s = stuck_s * _EXAMINE_FROM
        self._examine_every_s = min(_EXAMINE_S, stuck_s * _EXAMINE_SHARE)
        self._pause_s = min(_PAUSE_S, self._examine_every_s / 4)
        self._examined_at_s = 0.0
        self._locals_mark = locals_mark
        self._scrub = scrub
        self._watched: dict[int, _Watched | _Suspended] = {}
        self._soft_limits: dict[int, float] = {}
        self._keeps: dict[int, tuple[int, float]] = {}  # by thread: the run that it runs, and since when

    def soft_limit_reached(self, thread: int, at_s: float) -> None:
        """The soft time limit of a thread's run was reached. Called from a signal handler."""
        self._soft_limits[thread] = at_s

    def look(
        self,
        stacks: Mapping[int, Stack],
        places: Mapping[int, RunFrames],
        frames: Mapping[int, FrameType],
        began: Mapping[int, float],
        now_s: float,
    ) -> dict[str, ThreadSample]:
        """
        Compare the stacks of runs with those of the last sample.

        Args:
            stacks: By the number of the run: its thread or, where runs share one, of its greenlet or coroutine.
            places: The same, as frames.
            frames: The innermost frames of all threads.
            began: When each run in progress began, seconds since the epoch, by the same number.
            now_s: The time of this sample, likewise.
        """
        before = self._watched
        # Of many runs, a sample has a few.
        self._watched = {number: known for number, known in before.items() if began.get(number) == known.began_s}
        self._keeps = {thread: keeper for thread, keeper in self._keeps.items() if keeper[0] in began}
        seen: list[int] = []
        for number, stack in stacks.items():
            place = places[number]
            known = self._watched.pop(number, None)
            self._note_turn(number, place, now_s)
            try:
                if place.runs:
                    known = self._step(known, place.thread, began[number], stack, frames, now_s)
                else:
                    known = _step_suspended(known, began[number], place.turn, now_s)
            except (OSError, KeyError):  # the thread has ended, and another one may have its number
                continue
            if self._is_due(known, now_s):
                self._examined_at_s = now_s
                inner = place.frames if not place.runs else chain(frames[place.thread])
                known.examined(examine(inner, frames, self._scrub), now_s)
            self._watched[number] = known
            seen.append(number)
        return {str(number): self._sample(number, places[number], now_s) for number in seen}

    def _step(
        self,
        known: _Watched | _Suspended | None,
        thread: int,
        began_s: float,
        stack: Stack,
        frames: Mapping[int, FrameType],
        now_s: float,
    ) -> _Watched:
        """
        The thread of a run is where it is now.

        Raises:
            KeyError: The thread has ended.
            OSError: Likewise.
        """
        instruction = frames[thread].f_lasti
        clock_id = clock_of(thread)
        if type(known) is _Watched and known.clock_id == clock_id:
            ran = known.step(stack, instruction, now_s)
        else:
            known = _Watched(clock_id, began_s, stack, instruction, now_s)
            ran = True
        if ran and self._locals_mark is not None:
            known.compare_locals(self._locals_mark(thread), now_s)
        return known

    def _note_turn(self, number: int, place: RunFrames, now_s: float) -> None:
        if number == place.thread:
            return
        keeper, _ = self._keeps.get(place.thread, (0, 0.0))
        if place.runs and keeper != number:
            self._keeps[place.thread] = number, now_s
        elif not place.runs and keeper == number:
            del self._keeps[place.thread]

    def _sample(self, number: int, place: RunFrames, now_s: float) -> ThreadSample:
        known, limit_s = self._watched[number], self._soft_limits.get(number, 0.0)
        if isinstance(known, _Watched):
            return known.sample(limit_s)
        keeper, since_s = self._keeps.get(place.thread, (0, 0.0))
        keeps = keeper in self._watched and now_s - since_s >= self._examine_every_s
        return known.sample(limit_s, keeper if keeps else 0)

    def _is_due(self, known: _Watched | _Suspended, now_s: float) -> bool:
        return (
            now_s - known.began_s >= self._examine_after_s
            and now_s - known.examined_at_s >= self._examine_every_s
            and not 0 <= now_s - self._examined_at_s < self._pause_s
        )


def _step_suspended(known: _Watched | _Suspended | None, began_s: float, turn: object, now_s: float) -> _Suspended:
    if type(known) is not _Suspended:
        return _Suspended(began_s, turn, now_s)
    known.step(turn, now_s)
    return known


def _place_of(stack: Stack) -> int:
    """
    The functions of a stack and, but for the innermost one, the lines that they are at.

    The innermost line does not count: a loop has several.
    """
    return hash((*stack[0][::2], *stack[1:])) if stack else 0


def _native_id(clock_id: int) -> int:
    """The system's number of a thread, from the number of its clock: on Linux its complement, and three bits."""
    return ~(clock_id >> 3)


def _delay_s(native_id: int) -> float:
    """For how long a thread has waited for its turn, seconds: on a machine with too much to do. 0 if unknown."""
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", "rb") as file:
            return int(file.read(128).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
