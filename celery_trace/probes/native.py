"""
What tracemalloc cannot see: file descriptors, threads and bare mappings that a run leaves behind.

Looked at in every second run, later in one of four, by readings that cost a microsecond; counted exactly, run by
run, only when most of those grew. A verdict takes a second count later, as for the heap.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.model import Kind, Stage, Verdict, Window, new_id
from celery_trace.probes import counters

RESOURCES: Final = ("fds", "threads", "mmap")
_NOUN: Final = {"fds": "file descriptors", "threads": "threads", "mmap": "bytes of mappings"}

#: Of so many cheap looks, so many have to show growth before a resource is counted exactly.
_LOOKS = 8
_GROWN_LOOKS = 6
#: Runs that are counted exactly.
_COUNTED_RUNS = 8
#: A mapping smaller than a page does not exist; a run that allocates more small blocks than this may have made
#: CPython map an arena, and its mappings say nothing.
_PAGE_BYTES = 4096
_ARENA_BLOCKS = 500


class Levels(Struct, frozen=True):
    """How much of each resource the process holds."""

    fds: int
    threads: int
    mmap: int


def glance() -> Levels:
    """A cheap reading that rises when a resource leaks: the lowest free descriptor, Python's threads, mappings."""
    try:
        descriptor = os.dup(0)
        os.close(descriptor)
    except OSError:
        descriptor = 0
    virtual_bytes, _ = counters.address_space_bytes()
    return Levels(descriptor, threading.active_count(), virtual_bytes - counters.mapped_by_malloc_bytes())


def count() -> Levels:
    """An exact reading, some tens of microseconds."""
    virtual_bytes, _ = counters.address_space_bytes()
    return Levels(
        counters.open_descriptors() or 0,
        counters.native_threads() or 0,
        virtual_bytes - counters.mapped_by_malloc_bytes(),
    )


class NativeServices(Struct, frozen=True, kw_only=True):
    """What all watches of a process share."""

    process: str
    emit: Callable[[Window], None]
    clock: Clock
    recheck_runs: int
    blocks: Callable[[], int]


class ResourceWatch:
    """
    The resources of one name in one process.

    Call :meth:`open` before and :meth:`settle` after the runs for which :meth:`wants` says so.
    """

    __slots__ = (
        "_before", "_blocks", "_counted", "_decided", "_due_run", "_investigation", "_kind", "_looks", "_masks",
        "_name", "_offered", "_rate", "_services", "_suspect_run", "counting",
    )  # fmt: skip

    def __init__(self, services: NativeServices, kind: Kind, name: str) -> None:
        self._services = services
        self._kind = kind
        self._name = name
        self._before = Levels(0, 0, 0)
        self._blocks = 0
        self._masks = dict.fromkeys(RESOURCES, 0)
        self._offered = 0
        self._looks = -1  # the first look sees what the first run opens for good
        #: The resource that is being counted exactly; "" while none is suspected.
        self.counting = ""
        self._counted: list[int] = []
        self._rate = 0.0
        self._due_run = 0
        self._suspect_run = 0
        self._decided: set[str] = set()
        self._investigation = ""

    def wants(self, run_number: int) -> bool:
        """Whether to look at this run."""
        if self.counting:
            return run_number >= self._due_run
        self._offered += 1
        return not self._offered & (1 if self._offered < 24 else 3)

    def open(self) -> None:
        """Before a run."""
        self._blocks = self._services.blocks()
        self._before = count() if self.counting else glance()

    def settle(self, run_number: int) -> None:
        """After it, when all that hung on it is over."""
        now = count() if self.counting else glance()
        blocks = self._services.blocks() - self._blocks
        grown = {
            "fds": now.fds - self._before.fds,
            "threads": now.threads - self._before.threads,
            "mmap": now.mmap - self._before.mmap,
        }
        if blocks > _ARENA_BLOCKS or grown["threads"] > 0 or grown["mmap"] < _PAGE_BYTES:
            grown["mmap"] = min(0, grown["mmap"])  # an arena of CPython's, or a thread's stack
        if self.counting:
            self._count(grown[self.counting], run_number)
        else:
            self._look(grown, run_number)

    def _look(self, grown: dict[str, int], run_number: int) -> None:
        self._looks += 1
        for resource in RESOURCES:
            if resource in self._decided:
                continue
            mask = (self._masks[resource] << 1 | (grown[resource] > 0)) & ((1 << _LOOKS) - 1)
            self._masks[resource] = mask
            if self._looks >= _LOOKS and mask.bit_count() >= _GROWN_LOOKS:
                self.counting = resource
                self._counted = []
                self._rate = 0.0
                self._due_run = self._suspect_run = run_number
                self._investigation = new_id()
                return

    def _count(self, grown: int, run_number: int) -> None:
        self._counted.append(grown)
        if len(self._counted) < _COUNTED_RUNS:
            return
        counted, self._counted = self._counted, []
        resource = self.counting
        hits = sum(one > 0 for one in counted)
        rate = statistics.fmean(counted) if resource != "mmap" else statistics.median(counted)
        if hits < 0.75 * len(counted) or (self._rate and rate < 0.5 * self._rate):
            if self._rate:
                self._write(Verdict.STEADY, 0.0, run_number)
            self._masks[resource] = 0
            self.counting = ""
            return
        verdict = Verdict.LEAKING if self._rate else Verdict.GROWING
        self._write(verdict, rate, run_number)
        self._rate = rate
        if verdict is Verdict.LEAKING:
            self._suspect_run = run_number
        self._due_run = self._suspect_run + self._services.recheck_runs * (1 if verdict is Verdict.GROWING else 3)

    def _write(self, verdict: Verdict, rate: float, run_number: int) -> None:
        resource = self.counting
        note = f"{rate:.0f} {_NOUN[resource]} a run" if rate >= 2 else f"{rate:.2g} {_NOUN[resource]} a run"
        if resource == "fds" and rate:
            note += _newest_descriptors()
        self._services.emit(
            Window(
                id=new_id(),
                investigation=self._investigation,
                process=self._services.process,
                kind=self._kind,
                name=self._name,
                stage=Stage.NATIVE,
                verdict=verdict,
                at_s=self._services.clock.now_s(),
                runs=_COUNTED_RUNS,
                run_number=run_number,
                kept_blocks_per_run=0.0 if resource == "mmap" else rate,
                kept_bytes_per_run=rate if resource == "mmap" else 0.0,
                native=resource,
                note=note if rate else f"no more {_NOUN[resource]} than before",
            )
        )


def _newest_descriptors() -> str:
    """What the highest-numbered descriptors are, such as ``: mostly /dev/null``; sockets by that word alone."""
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
