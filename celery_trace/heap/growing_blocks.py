"""
One block that grows: a text that each run replaces by a longer one, or a buffer that is resized.

Its picks look like those of a value that is always replaced, as the block is freed and allocated again each time. What
grows is the size of the largest block of a line. Each look at which it had grown is an event; unlike births, what has
grown is known although the block was replaced, or while nothing was sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from msgspec import Struct

from celery_trace.heap.picks import Pick
from celery_trace.model import Evidence

#: A site, as the caller identifies it.
Key = TypeVar("Key", bound=Hashable)

#: A block that is this much larger than the distance of picks has a pick with few exceptions, and a weight close to its
#: size. A resized one has a pick for each part, of which some are small.
SURE: Final = 1.05
NEARLY_SURE: Final = 1.5
#: The size has changed if the difference is at least this share of it, and so many bytes. The estimate of a resized
#: block may be off by more.
CHANGED: Final = 0.005
CHANGED_BYTES: Final = 1024
SHRUNK: Final = 0.1
#: Of a site with more than this share of its memory in one block, that block is judged.
MAIN_SHARE: Final = 0.5
#: Steps of growth that are kept; beyond, neighbours become one.
MOST_STEPS: Final = 64
#: Recent growth and shrinking are compared; a look's weight is multiplied by this at each further one.
_FADING: Final = 0.8


class Step(Struct):
    """Growth between two looks."""

    run: float  # in the middle between them
    size: float  # bytes


class GrowingBlock:
    """
    The largest block of one site over the looks.

    Args:
        run: Runs that had begun when it was first seen.
        size: Its size then, bytes.
    """

    def __init__(self, run: int, size: float) -> None:
        self._begin = run
        self._last_run = run
        self._base = size
        self._top = size
        self._steps: list[Step] = []
        self._grown = self._shrunk = 0.0  # recently
        #: Its picks by the last look; empty while nothing is known of it.
        self.picks: list[Pick] = []

    def look(self, run: int, size: float) -> None:
        """
        Note its size.

        Args:
            run: Runs of the task that have begun.
            size: Of the largest block that is alive, bytes; 0 for none.
        """
        change = size - self._top
        if change >= max(CHANGED_BYTES, CHANGED * self._top):
            self._steps.append(Step((self._last_run + run) / 2, change))
            self._turn(change, 0.0)
            self._top = size
        elif -change >= max(CHANGED_BYTES, SHRUNK * self._top):
            self._turn(0.0, -change)
            self._shrink(run, size)
        self._last_run = run
        if len(self._steps) > MOST_STEPS:
            self._steps = [_together(*self._steps[at : at + 2]) for at in range(0, len(self._steps), 2)]

    def _turn(self, grown: float, shrunk: float) -> None:
        if grown:
            self._grown *= _FADING
            self._shrunk *= _FADING
        self._grown += grown
        self._shrunk += shrunk

    def _shrink(self, run: int, size: float) -> None:
        while self._steps and self._top > size:
            last = self._steps.pop()
            self._top -= last.size
        if self._top < size:
            self._steps.append(Step(run, size - self._top))
        elif size < self._base:
            self._begin, self._base = run, size
        self._top = size

    @property
    def size(self) -> float:
        """Bytes by the last look."""
        return self._top

    @property
    def steps(self) -> int:
        """Looks at which it had grown."""
        return len(self._steps)

    def evidence(self) -> Evidence:
        """Its growth; the events are divided between early and late as the bytes are."""
        middle = (self._begin + self._last_run) / 2
        grown = self._top - self._base
        if grown <= 0 or not self._steps:
            return Evidence()
        early = round(len(self._steps) * sum(step.size for step in self._steps if step.run <= middle) / grown)
        return Evidence(
            runs=max(1, self._last_run - self._begin),
            early=early,
            late=len(self._steps) - early,
            bytes=grown,
            picks=len(self._steps),
            released=min(1.0, self._shrunk / self._grown) if self._grown else float(self._shrunk > 0),
            one_block=True,
        )


def _together(step: Step, later: Step | None = None) -> Step:
    return step if later is None else Step((step.run + later.run) / 2, step.size + later.size)


class GrowingBlocks(Generic[Key]):
    """The largest block of each site of one process that has a large one."""

    def __init__(self) -> None:
        self._known: dict[Key, GrowingBlock] = {}

    def begin(self) -> None:
        """A stretch of sampling begins: a block that is not seen need not be gone."""
        for block in self._known.values():
            block.picks = []

    def look(self, parts: Mapping[Key, Sequence[Pick]], run_of: Callable[[Key], int]) -> None:
        """
        Note the sizes.

        Args:
            parts: Of each site, the live picks for which :func:`is_part` holds.
            run_of: How many runs of a site's task have begun.
        """
        for key, block in self._known.items():
            if block.picks and key not in parts:
                block.look(run_of(key), 0.0)
                block.picks = []
        for key, picks in parts.items():
            size, largest = _largest(picks)
            if not largest:
                continue
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = GrowingBlock(run_of(key), size)
            known.look(run_of(key), size)
            known.picks = largest

    def grown(self) -> list[Key]:
        """The sites of which a block has grown."""
        return [key for key, block in self._known.items() if block.steps]

    def main(self, key: Key, picks: Sequence[Pick]) -> GrowingBlock | None:
        """
        A site's largest block, if it has most of the site's memory.

        Args:
            key: A site.
            picks: Its picks that count.
        """
        block = self._known[key]
        own = {pick.serial for pick in block.picks}
        others = sum(pick.weight for pick in picks if pick.serial not in own)
        return block if block.size > MAIN_SHARE * (block.size + others) else None


def is_part(pick: Pick) -> bool:
    """Whether a pick is of a large block, with a weight close to its size, or may be a part of one."""
    return bool(pick.resized) or pick.weight <= SURE * pick.size


def _largest(picks: Sequence[Pick]) -> tuple[float, list[Pick]]:
    """The size of the largest block, as its picks estimate it, and those; empty if the estimate is uncertain."""
    blocks: dict[int, list[Pick]] = defaultdict(list)
    for pick in picks:
        blocks[pick.address].append(pick)
    sizes = {address: sum(pick.weight for pick in some) for address, some in blocks.items()}
    largest = max(sizes, key=sizes.__getitem__)
    if sizes[largest] > NEARLY_SURE * sum(pick.size for pick in blocks[largest]):
        return 0.0, []
    return sizes[largest], blocks[largest]
