"""
A fair sample of the live heap: the extension module, and what it hands out.

``_sampler.c`` picks about one allocation in so many bytes, weights it, and forgets it when it is freed. What is left
is a sample of what is alive, with the line and the task that allocated it and its age.
"""

from __future__ import annotations

import importlib
import os
import shutil
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from celery_trace.heap.picks import CannotSample, Pace, Pick, Stack

if TYPE_CHECKING:
    from celery_trace.heap.traced import TracedSampler

#: ``serial, address, size, weight, born_s, tag, run, collections, stack, resized`` as ``Record`` in ``_sampler.c`` has
#: them.
RECORD: Final = struct.Struct("=QQQddIIIiI4x")

#: A program pays more for a call of the hooks than a tight loop does: other code has used the processor's caches and
#: predictions. Measured by benchmarks/heap_cost.py, which compares both: 1.4 to 1.9.
_IN_A_PROGRAM: Final = 1.7

#: The bounds of what is believed of that cost, seconds: more is another process that had the processor meanwhile.
_LEAST_COST_S: Final = 3e-9
_MOST_COST_S: Final = 1e-8


class Sampler:
    """
    The one sampler of this process.

    All methods need the GIL, as everything in Python does; none may be called in a subinterpreter.

    Raises:
        CannotSample: There is no extension module for this interpreter.
    """

    #: Whether :meth:`referrers` has seen all objects when it returns.
    sees_all = True
    pace = Pace(look_s=1.0, first_pause_s=2.0, longest_pause_s=20.0, fewest_runs=250, longest_over_s=600.0)

    def __init__(self) -> None:
        self._c = _extension("_sampler")
        self._referrers = _extension("_referrers").referrers
        self.run = self._c.run
        self.restore = self._c.restore
        self.runs = self._c.runs
        self.note_collection = self._c.note_collection
        self._pid = 0

    def start(self, mean_bytes: float, seed: int = 0) -> None:
        """
        Take about one pick in ``mean_bytes`` bytes from now on. Nothing happens if it is on.

        The mean doubles whenever some thousands of picks are alive. Once another tool has removed the hooks, this
        puts them back, and forgets what was picked before.
        """
        self._c.start(float(mean_bytes), seed)
        self._pid = os.getpid()

    def stop(self) -> None:
        """Stop, and forget every pick."""
        self._c.stop()

    def coarsen(self) -> None:
        """Double ``mean_bytes``, and thin out what was picked accordingly."""
        self._c.coarsen()

    def plain(self, blocks: Iterable[tuple[int, int]]) -> set[int]:
        """
        Addresses of picked blocks that hold a text, bytes or a number.

        Such an object is never part of a cycle: where none that the collector knows refers to it, it is no garbage.
        """
        return set(self._c.plain([address for address, _ in blocks]))

    def is_on(self) -> bool:
        """Whether allocations are seen: False when stopped, and once another tool has removed the hooks."""
        return bool(self._c.is_on())

    def why_off(self) -> str:
        """Why it is off, for people; empty when it is on."""
        if self.is_on():
            return ""
        if self._pid != os.getpid():
            return "the process was forked" if self._pid else "it was not started"
        return "it was stopped, or another tool has replaced Python's allocators"

    def mark(self, code: CodeType, tag: int) -> bool:
        """In threads without a tag, allocations below this function have ``tag``. False when there are too many."""
        return bool(self._c.mark(code, tag))

    def peaks(self, tag: int) -> dict[int, int]:
        """
        What runs of a tag held at most of what they allocated, as the picks tell: how many fell in each bucket.

        Counted are runs that began and ended while it was on. It is right where one run is in progress at a time.
        The buckets are those of :mod:`celery_trace.heap.needs`.
        """
        counts = memoryview(self._c.peaks(tag)).cast("I")
        return {bucket: count for bucket, count in enumerate(counts) if count}

    def stop_at(self, code: CodeType) -> None:
        """
        End stacks with a frame of this function, which stands around every run.

        What is outside of it is the same for all, and to walk it is most of what a pick costs. Where a marked function
        is looked for, the whole stack is walked.
        """
        self._c.stop_at(code)

    def picks(self) -> Iterator[Pick]:
        """What is alive of the sample, at the moment of the call."""
        return map(Pick._make, RECORD.iter_unpack(self._c.picks()))

    def stack(self, number: int) -> Stack:
        """The frames of a pick, innermost first; empty where they are not known."""
        return tuple((code.co_filename, line, code.co_qualname) for code, line in self._c.stack(number))

    def holding_frames(self, objects: list[Any]) -> list[tuple[int, CodeType, str]]:
        """
        Which local variables of functions that run, in any thread, refer to one of some objects.

        Returns:
            The object's position in the list, the function's code and the variable's name; no more than 64.
        """
        found: list[tuple[int, CodeType, str]] = self._c.holding_frames(objects)
        return found

    def sweep(self) -> bool:
        """Forget stacks that no pick has any more, if they are many. True if the numbers of stacks have changed."""
        return bool(self._c.sweep())

    def stats(self) -> dict[str, Any]:
        """Counters since the process began, and ``live``, ``stacks`` and ``mean_bytes`` as they are now."""
        found: dict[str, Any] = self._c.stats()
        return found

    def cost_s(self) -> float:
        """What the hooks add to one allocation and its release, seconds. Takes 0.1 ms; 0 while it is off."""
        if not self.is_on():
            return 0.0
        return min(max(_LEAST_COST_S, float(self._c.cost()) * _IN_A_PROGRAM), _MOST_COST_S)

    def referrers(self, blocks: list[tuple[int, int]], most: int, climb: bool = False) -> list[tuple[int, Any, Any]]:
        """
        What refers to an object that lies in one of the blocks, of all objects that the garbage collector knows.

        Args:
            blocks: Address and size of each block, bytes.
            most: Referrers of one block, at most.
            climb: Go up chains of objects of one type, such as a linked list, to their end in the same pass.

        Returns:
            The block's address, the object in it or the upper end of the chain that leads to it, and the object that
            refers to that; None for the last where a list, dict or set keeps its entries in the block, and where
            nothing refers to the chain's end.
        """
        found: list[tuple[int, Any, Any]] = self._referrers(blocks, most, climb)
        return found


def _extension(name: str) -> Any:
    """
    An extension module of this package.

    Raises:
        CannotSample: This interpreter has none.
    """
    why = _no_extension()
    if why:
        raise CannotSample(why)
    try:
        return importlib.import_module(f"celery_trace.heap.{name}")
    except ImportError as error:
        hint = "" if _compiler() else "; install a C compiler and Python's headers, then celery-trace again"
        raise CannotSample(f"the extension module celery_trace.heap.{name} can't be loaded: {error}{hint}") from None


def _no_extension() -> str:
    """Why this interpreter can't have the extension modules; empty where it can."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is not CPython"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this is a free-threaded build of Python"
    if not (3, 11) <= sys.version_info[:2] <= (3, 15):
        return f"Python {sys.version_info[0]}.{sys.version_info[1]} is not known to it yet"
    return ""


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def open_sampler() -> Sampler | TracedSampler:
    """
    The best sampler that this interpreter can have: by the extension modules, else by tracemalloc.

    Raises:
        CannotSample: It can have neither.
    """
    try:
        return Sampler()
    except CannotSample:
        from celery_trace.heap.traced import TracedSampler

        return TracedSampler()


def availability() -> str:
    """Why this interpreter's heap can't be sampled by the extension modules; empty where it can."""
    try:
        Sampler()
    except CannotSample as error:
        return str(error)
    return ""
