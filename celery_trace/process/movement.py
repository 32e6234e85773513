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

from celery_trace.process.thread_state import clock_of
from celery_trace.process.waits import Wait, examine

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

    #: The system's number of the thread; 0 if unknown.
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


class Movement:
    """
    Compares the samples of a process's threads.

    Args:
        stuck_s: From when on a run may be stuck, seconds. Before a run has lasted for half of
            that, its thread is not examined.
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
        self._watched: dict[int, _Watched] = {}
        self._soft_limits: dict[int, float] = {}

    def soft_limit_reached(self, thread: int, at_s: float) -> None:
        """The soft time limit of a thread's run was reached. Called from a signal handler."""
        self._soft_limits[thread] = at_s

    def look(
        self, stacks: Mapping[int, Stack], frames: Mapping[int, FrameType], began: Mapping[int, float], now_s: float
    ) -> dict[str, ThreadSample]:
        """
        Compare the stacks of threads with those of the last sample.

        Args:
            stacks: By thread.
            frames: The frames of all threads, which the stacks were read from.
            began: When the run in each of these threads began, seconds since the epoch.
            now_s: The time of this sample, likewise.
        """
        before = self._watched
        # Of many runs, a sample has a few.
        self._watched = {thread: known for thread, known in before.items() if began.get(thread) == known.began_s}
        seen: list[int] = []
        for thread, stack in stacks.items():
            instruction = frames[thread].f_lasti
            known = before.get(thread)
            try:
                if known is None or known.began_s != began[thread]:
                    clock_id = clock_of(thread)
                    known = _Watched(clock_id, began[thread], stack, instruction, now_s)
                    ran = True
                else:
                    ran = known.step(stack, instruction, now_s)
            except OSError:  # the thread has ended, and another one has its number
                self._watched.pop(thread, None)
                continue
            if ran and self._locals_mark is not None:
                known.compare_locals(self._locals_mark(thread), now_s)
            if self._is_due(known, now_s):
                self._examined_at_s = now_s
                known.examined(examine(thread, frames, self._scrub), now_s)
            self._watched[thread] = known
            seen.append(thread)
        limits = self._soft_limits
        return {str(thread): self._watched[thread].sample(limits.get(thread, 0.0)) for thread in seen}

    def _is_due(self, known: _Watched, now_s: float) -> bool:
        return (
            now_s - known.began_s >= self._examine_after_s
            and now_s - known.examined_at_s >= self._examine_every_s
            and not 0 <= now_s - self._examined_at_s < self._pause_s
        )


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
