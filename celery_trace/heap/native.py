"""
What the sampled heap does not include: file descriptors, threads, child processes, and memory of C code.

The process's levels are read every few seconds, with the number of runs of each task. A level that rises and stays is
growth. It is attributed to the task with the runs that explain it best, by least squares, or to the process if
several explain it equally well, as when they run in turns.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from celery_trace.process import counters

#: What is watched, with the least growth that is reported.
LEAST: Final[dict[str, float]] = {"fds": 8, "threads": 8, "children": 8, "malloc": 8 * 2**20}
NOUN: Final = {
    "fds": "file descriptors",
    "threads": "threads",
    "children": "child processes",
    "malloc": "bytes of C memory",
}
#: How often the levels are read, seconds.
EVERY_S: Final = 5.0
#: Readings that are kept; beyond that every second one is dropped.
MOST_READINGS: Final = 48
#: Readings needed for a verdict, and for a final one.
FEWEST_READINGS: Final = 6
ENOUGH_READINGS: Final = 12
#: A task explains growth when its runs account for this share of the variation, and it is attributed to the task
#: when no other one does nearly as well.
EXPLAINS: Final = 0.5
NEARLY: Final = 0.9
#: Runs of that task: a few runs correlate with growth by chance.
FEWEST_RUNS: Final = 20
#: The share of the growth that each quarter of the time must have: growth, not a step.
A_QUARTER: Final = 0.05
#: Of the growth of C memory, the share that Python's own objects must leave unexplained.
UNEXPLAINED: Final = 0.4


class Levels(Struct, frozen=True):
    """How much of each resource the process holds."""

    fds: int
    threads: int
    malloc: int  # bytes of the C allocator and of mappings of its own
    children: int = 0  # processes, including zombies


class LevelReading(Struct, frozen=True):
    """The levels at one time, and how often each tag had run."""

    levels: Levels
    heap_bytes: float  # the size of Python's own survivors, as sampled
    runs: dict[int, int]

    def level(self, resource: str) -> float:
        """The level of a resource; for C memory, without what Python's own survivors explain."""
        level = float(getattr(self.levels, resource))
        return level - self.heap_bytes if resource == "malloc" else level


class LevelGrowth(Struct, frozen=True):
    """A resource that grows."""

    resource: str
    tag: int  # 0 for the process
    per_run: float  # in the resource's unit
    runs: int
    final: bool  # seen for long enough


def read_levels() -> Levels:
    """
    The process's levels; some tens of microseconds, and a millisecond where threads came or went.

    A thread counts as a thread: its stack and the C allocator's reserve for it are not counted as C memory.
    """
    virtual_bytes, _ = counters.address_space_bytes()
    live_bytes = counters.byte_counter()()
    threads = counters.native_threads() or 0
    not_kept = counters.mapped_by_malloc_bytes() + threads * counters.stack_bytes() + counters.reserved_bytes(threads)
    return Levels(
        counters.open_descriptors() or 0,
        threads,
        live_bytes + max(0, virtual_bytes - not_kept),
        counters.child_processes(),
    )


class _LineFit(Struct):
    """Sums of least squares: the steps of a level against the runs of each tag between two readings."""

    steps: float = 0.0  # sum of squared steps
    runs: dict[int, float] = {}  # by tag: sum of squared runs
    both: dict[int, float] = {}  # by tag: sum of step times runs
    ran: dict[int, int] = {}  # by tag: runs

    def add(self, step: float, ran: Mapping[int, int]) -> None:
        self.steps += step * step
        for tag, number in ran.items():
            self.ran[tag] = self.ran.get(tag, 0) + number
            self.runs[tag] = self.runs.get(tag, 0.0) + number * number
            self.both[tag] = self.both.get(tag, 0.0) + number * step

    def best(self) -> int:
        """The tag with the runs that explain the steps best; 0 if none does, or several do equally."""
        shares = sorted(
            (
                (self.both[tag] ** 2 / (squares * self.steps), tag)
                for tag, squares in self.runs.items()
                if tag and self.ran[tag] >= FEWEST_RUNS and self.steps and self.both[tag] > 0
            ),
            reverse=True,
        )
        if not shares or shares[0][0] < EXPLAINS or (len(shares) > 1 and shares[1][0] > NEARLY * shares[0][0]):
            return 0
        return shares[0][1]


class NativeWatch:
    """The series of readings of one process."""

    def __init__(self) -> None:
        self._readings: list[LevelReading] = []  # evenly spaced over the time
        self._each = 1
        self._fits = {resource: _LineFit() for resource in LEAST}
        self._count = 0
        self._last: LevelReading | None = None

    def add(self, levels: Levels, heap_bytes: float, runs: Mapping[int, int]) -> None:
        """Note a reading."""
        reading = LevelReading(levels, heap_bytes, dict(runs))
        last, self._last = self._last, reading
        if last is not None:
            ran = {tag: number - last.runs.get(tag, 0) for tag, number in runs.items()}
            for resource, fit in self._fits.items():
                fit.add(reading.level(resource) - last.level(resource), ran)
        if self._count % self._each == 0:
            self._readings.append(reading)
        self._count += 1
        if len(self._readings) > MOST_READINGS:
            self._readings = self._readings[::2]
            self._each *= 2

    def growth(self) -> list[LevelGrowth]:
        """What grows, by all readings; empty while there are few."""
        if self._count < FEWEST_READINGS or self._last is None:
            return []
        readings = [*self._readings, self._last] if self._last is not self._readings[-1] else self._readings
        found = []
        for resource, fit in self._fits.items():
            gained = growth_of(readings, resource)
            if gained > 0:
                tag = fit.best()
                runs = max(1, readings[-1].runs.get(tag, 0) - readings[0].runs.get(tag, 0))
                found.append(LevelGrowth(resource, tag, gained / runs, runs, self._count >= ENOUGH_READINGS))
        return found


def growth_of(readings: Sequence[LevelReading], resource: str) -> float:
    """
    The lasting growth of a resource, in its unit; 0 if it is too small or does not last.

    Args:
        readings: In order of time.
        resource: A key of :data:`LEAST`.
    """
    levels = [reading.level(resource) for reading in readings]
    gained = levels[-1] - levels[0]
    if resource == "malloc" and gained < UNEXPLAINED * (readings[-1].levels.malloc - readings[0].levels.malloc):
        return 0.0  # most of it is Python's, which is reported by line
    middle, last = len(levels) // 2, len(levels) - 1
    rises = min(levels[middle:]) > max(levels[: middle // 2 + 1])
    # A pool of threads or connections that is opened once is a step, within one quarter of the time.
    marks = [levels[last * quarter // 4] for quarter in range(5)]
    goes_on = all(after - before >= A_QUARTER * gained for before, after in pairwise(marks))
    return gained if rises and goes_on and gained >= LEAST[resource] else 0.0


def describe(growth: LevelGrowth) -> str:
    """``1.2 file descriptors a run: mostly /dev/null``."""
    if growth.resource == "malloc":
        return "memory that no Python object explains"
    text = f"{growth.per_run:.2g} {NOUN[growth.resource]} a run"
    return text + _newest_descriptors() if growth.resource == "fds" else text


def _newest_descriptors() -> str:
    """What the highest-numbered descriptors are, such as ``: mostly /dev/null``; sockets just as "sockets"."""
    kinds: Counter[str] = Counter()
    try:
        numbers = sorted((int(name) for name in os.listdir("/proc/self/fd")), reverse=True)[:20]
    except OSError:
        return ""
    for number in numbers:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        kinds[target.partition(":")[0] if not target.startswith("/") else target] += 1
    most = kinds.most_common(1)
    return f": mostly {most[0][0]}" if most and most[0][1] > 1 else ""
