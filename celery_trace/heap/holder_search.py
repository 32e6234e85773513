"""The search for holders of one process, a pass over the heap at a time, so that no task waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from celery_trace.guard import report
from celery_trace.heap import retainers
from celery_trace.heap.picks import Block, Pick
from celery_trace.heap.sampler import HeapSampler
from celery_trace.heap.survivors import Key

#: How long a process that ends may still search for a holder, seconds.
SEARCH_AT_END_S: Final = 0.1
#: One look continues a search until its passes have taken so long, seconds.
QUICK_S: Final = 0.1
#: The share of the time that searches may take, in budgets: the next one waits until the last one is paid off.
SEARCHES_SHARE: Final = 3.0

_NONE: Final[Mapping[Key, Sequence[Pick]]] = MappingProxyType({})

Found = Mapping[Key, retainers.Found]


class HolderSearch:
    """
    Searches for the holders of some sites at a time.

    Args:
        sampler: Reads the heap.
        budget: The share of the process's time that may be spent on sampling.
        on_found: Takes what a search has found.
    """

    def __init__(self, sampler: HeapSampler, budget: float, on_found: Callable[[Found], None]) -> None:
        self._sampler = sampler
        self._budget = budget
        self._on_found = on_found
        self._passes: Iterator[Found | None] | None = None
        self._spent_s = 0.0  # what the search in progress has cost
        self._not_before_s = time.monotonic()
        self._collections = 0  # full collections by the last count
        #: The number of the last full collection during which no search held references; its survivors are no garbage.
        self.proving = 0

    @property
    def is_on(self) -> bool:
        """Whether a search is in progress."""
        return self._passes is not None

    @property
    def waits(self) -> bool:
        """Whether the next search is not due yet, as the last one was expensive."""
        return time.monotonic() < self._not_before_s

    def begin(self, wanted: Mapping[Key, Sequence[Block]], alive: Mapping[Key, Sequence[Pick]] = _NONE) -> None:
        """
        Search the holders of some blocks of each site, in the same passes over the heap.

        Args:
            wanted: The blocks of each site.
            alive: All survivors of the sites.
        """
        self.count_collections(self._sampler.stats()["collections"])
        self._passes = retainers.search(
            self._sampler.referrers,
            wanted,
            plain=self._sampler.plain(block for blocks in wanted.values() for block in blocks),
            sees_all=self._sampler.sees_all,
            holding_frames=self._sampler.holding_frames,
            born={key: {pick.address: pick.run for pick in alive.get(key, ())} for key in wanted},
            codes={key: self._sampler.codes(alive[key][0].stack) for key in wanted if alive.get(key)},
        )

    def count_collections(self, number: int) -> None:
        """Note how many full collections have ended. What a search held during one may be garbage all the same."""
        if number > self._collections and self._passes is None:
            self.proving = number
        self._collections = number

    def step(self) -> None:
        """One pass over the heap, if a search is in progress."""
        if self._passes is None:
            return
        try:
            found = next(self._passes)
        except Exception as error:
            self._end()
            report("heap watch: search for a holder", error)
            return
        if found is not None:
            self._end()
            self._on_found(found)

    def _end(self) -> None:
        self.count_collections(self._sampler.stats()["collections"])
        self._passes = None

    def quick_steps(self) -> None:
        """Several passes if a search is in progress and they are quick: a chain may grow faster than one a second."""
        if self._passes is None:
            return
        began_s = time.thread_time()
        while self._passes is not None:
            started_s = time.monotonic()
            self.step()
            if time.thread_time() >= began_s + QUICK_S:
                break
            time.sleep(time.monotonic() - started_s)  # give the GIL to waiting tasks
        self._spent_s += time.thread_time() - began_s
        if self._passes is None:
            self._not_before_s = time.monotonic() + self._spent_s / (SEARCHES_SHARE * self._budget)
            self._spent_s = 0.0

    def finish(self) -> None:
        """Search to the end. Slow on a large heap."""
        while self._passes is not None:
            self.step()

    def steps_at_the_end(self) -> None:
        """Find the holder of the largest site of a short-lived process, if that is quick."""
        until_s = time.monotonic() + SEARCH_AT_END_S
        while self._passes is not None and time.monotonic() < until_s:
            self.step()
