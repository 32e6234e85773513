"""How often each task has run: in all, in the stretch of sampling in progress, and while the heap was sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from celery_trace.heap.picks import UNTAGGED, Pick
from celery_trace.heap.tags import TagTable

#: Allocations outside of tasks are positioned by time: a "run" of the process is so many seconds.
PROCESS_RUN_S: Final = 2.0


class RunCounts:
    """
    The runs of one process by tag.

    Args:
        runs_of: How many runs of a tag have begun.
        tags: All tags.
        began_s: When the process's own "runs" begin, monotonic time.
    """

    def __init__(self, runs_of: Callable[[int], int], tags: TagTable, began_s: float) -> None:
        self._runs_of = runs_of
        self._tags = tags
        self._began_s = began_s
        self._at_start: dict[int, int] | None = None  # when this stretch began; None between two stretches
        self._earlier: dict[int, int] = {}  # runs in earlier stretches

    def now(self, now_s: float) -> dict[int, int]:
        """How many runs of each tag have begun; for the process itself, its age in units of ``PROCESS_RUN_S``."""
        runs = {tag: self._runs_of(tag) for tag in self._tags.all_but_process()}
        runs[UNTAGGED] = self._process_run(now_s)
        return runs

    def positioned(self, picks: Iterable[Pick]) -> Iterator[Pick]:
        """The picks, those outside of tasks with the process's "run" in which they were born."""
        for pick in picks:
            yield pick._replace(run=max(0, self._process_run(pick.born_s))) if pick.tag == UNTAGGED else pick

    def _process_run(self, at_s: float) -> int:
        return int((at_s - self._began_s) / PROCESS_RUN_S)

    def begin_stretch(self, runs: Mapping[int, int]) -> None:
        """A stretch begins. One in progress has lost its sample and is not counted."""
        self._at_start = dict(runs)

    def end_stretch(self, runs: Mapping[int, int]) -> None:
        """The stretch in progress ends; its runs were observed."""
        for tag in runs:
            self._earlier[tag] = self._earlier.get(tag, 0) + self.in_stretch(tag, runs)
        self._at_start = None

    def in_stretch(self, tag: int, runs: Mapping[int, int]) -> int:
        """Runs of a tag in the stretch in progress; none between two stretches."""
        return runs[tag] - self._at_start.get(tag, 0) if self._at_start is not None else 0

    def earlier(self, tag: int) -> int:
        """Runs of a tag in earlier stretches."""
        return self._earlier.get(tag, 0)

    def unobserved(self, tag: int, runs: Mapping[int, int]) -> int:
        """Runs of a tag while nothing was sampled."""
        return max(0, runs[tag] - self.earlier(tag) - self.in_stretch(tag, runs))

    def per_task(self, runs: Mapping[int, int]) -> float:
        """How often each task that ran has run in this stretch, on average."""
        gained = [number for tag in runs if tag != UNTAGGED and (number := self.in_stretch(tag, runs)) > 0]
        return sum(gained) / len(gained) if gained else 0.0
