"""Where the time of runs goes: the record of a process, from samples of the stacks of its tasks."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from msgspec import Struct, field

from celery_trace.model.capture import Line
from celery_trace.model.records import Kind, Record, stable_id


class Measure(StrEnum):
    """What a profile adds up by call stack."""

    MEMORY = "memory"  # bytes that runs retain
    WALL = "wall"  # the time that runs took
    CPU = "cpu"  # of it, processor time
    LOCK = "lock"  # of it, time in which a run waited for a lock or for the interpreter


#: The measures of a :class:`TimeProfile`.
TIMES = (Measure.WALL, Measure.CPU, Measure.LOCK)

#: The frame of runs that ended while a sample was overdue: their time is known, their stack is not.
UNSEEN = Line(file="", line=0, function="runs that ended before their stack was read")


class TimeStack(Struct, frozen=True, array_like=True, gc=False):
    """
    The time (microseconds) that runs spent in one call stack.

    ``frames`` are indexes into the profile's table, the outermost first.
    """

    frames: list[int]
    wall_us: int
    cpu_us: int = 0
    lock_us: int = 0


class TimeProfile(Record, frozen=True, kw_only=True, tag="time"):
    """
    Where the time of one name's runs went in one process since ``began_s``, by call stack.

    A process writes it every few minutes. What it has written in an hour is added up: the latest replaces the earlier
    ones, and after the hour it begins again.
    """

    process: str
    kind: Kind
    name: str
    began_s: float
    at_s: float
    release: str = ""
    runs: int = 0  # that have ended since it began
    wall_us: int = 0  # of all stacks, also of those that are not listed
    cpu_us: int = 0
    lock_us: int = 0
    measures: list[Measure] = field(default_factory=list)  # those that could be measured
    frames: list[Line] = field(default_factory=list)
    stacks: list[TimeStack] = field(default_factory=list)  # the largest first

    HOUR_S: ClassVar[int] = 3600

    @property
    def key(self) -> str:
        return stable_id("time", self.process, self.kind, self.name, int(self.began_s) // self.HOUR_S)
