"""
Long runs: what a run in progress holds, without waiting for its end.

What a run allocates counts as retained once later runs of the task have begun. A run that feeds a queue all day has no
later ones. After half a minute its memory is judged separately, by the time since its start instead of the number of
runs. It is reported as growing, never as a leak: the run may release everything when it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from celery_trace.heap.picks import UNTAGGED, Pick

#: The age of a run's oldest survivor from which the run is judged separately, seconds.
LONG_S: Final = 30.0
#: A slice of such a run, seconds; births are compared over slices instead of runs.
SLICE_S: Final = 2.0
#: A site of a run that holds less is not reported: most runs hold something (bytes).
LEAST_BYTES: Final = 16 * 2**20
#: Added to a task's tag, the tag of what its long run holds; larger than all tags of tasks.
_OF_LONG_RUN: Final = 1 << 16


def is_of_long_run(tag: int) -> bool:
    """Whether a tag is that of a long run, and its positions are slices of time."""
    return tag >= _OF_LONG_RUN


def task_of(tag: int) -> int:
    """The tag of the task."""
    return tag % _OF_LONG_RUN


class _LongRun(Struct):
    number: int  # the sampler's number of the run
    began_s: float  # when its oldest survivor was born


class LongRuns:
    """The runs in progress of one process that are judged separately, at most one of each task."""

    def __init__(self) -> None:
        self._runs: dict[int, _LongRun] = {}

    def look(self, picks: Iterable[Pick], runs: Mapping[int, int], in_flight: int, now_s: float) -> list[Pick]:
        """
        The picks, those of long runs with a tag of their own and a slice instead of the run.

        Args:
            picks: All that are alive.
            runs: How many runs of each tag have begun.
            in_flight: Runs of a task that have to begin before an earlier one is no longer in flight.
            now_s: Monotonic time.
        """
        picks = list(picks)
        self._end(runs, in_flight)
        for (tag, run), born_s in _oldest(picks, runs, in_flight).items():
            if now_s - born_s >= LONG_S and tag not in self._runs:
                self._runs[tag] = _LongRun(run, born_s)
        return [self._placed(pick) for pick in picks] if self._runs else picks

    def slices(self, now_s: float) -> dict[int, int]:
        """How many slices each long run has lasted, by its own tag."""
        return {tag + _OF_LONG_RUN: int((now_s - run.began_s) / SLICE_S) for tag, run in self._runs.items()}

    def lasted_s(self, tag: int, now_s: float) -> float:
        """How long the run of such a tag has lasted, seconds; 0 where it has ended."""
        run = self._runs.get(task_of(tag))
        return now_s - run.began_s if run is not None else 0.0

    def _end(self, runs: Mapping[int, int], in_flight: int) -> None:
        """Runs that were followed by enough others are judged normally."""
        self._runs = {tag: run for tag, run in self._runs.items() if run.number > runs.get(tag, 0) - in_flight}

    def _placed(self, pick: Pick) -> Pick:
        run = self._runs.get(pick.tag)
        if run is None or run.number != pick.run:
            return pick
        return pick._replace(tag=pick.tag + _OF_LONG_RUN, run=max(1, int((pick.born_s - run.began_s) / SLICE_S)))


def _oldest(picks: Iterable[Pick], runs: Mapping[int, int], in_flight: int) -> dict[tuple[int, int], float]:
    """When the oldest survivor of each run in flight was born."""
    oldest: dict[tuple[int, int], float] = {}
    for pick in picks:
        if pick.tag != UNTAGGED and pick.run > runs.get(pick.tag, 0) - in_flight:
            key = (pick.tag, pick.run)
            oldest[key] = min(pick.born_s, oldest.get(key, pick.born_s))
    return oldest
