"""
A fair sample of the live heap, by the extension module.

``_sampler.c`` picks about one allocation in so many bytes, weights it, and drops it when it is freed. What is left
is a sample of what is alive, with the line and the task that allocated it and its age.
"""

from __future__ import annotations

import importlib
import shutil
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Final, TypeAlias

from celery_trace.heap.picks import Block, CannotSample, Match, Pace, Pick, SamplerStats, Stack

if TYPE_CHECKING:
    from celery_trace.heap.traced import TracedSampler

#: ``serial, address, size, weight, born_s, tag, run, collections, stack, resized`` as ``Record`` in ``_sampler.c`` has
#: them.
RECORD: Final = struct.Struct("=QQQddIIIiI4x")

#: In a program a call of the hooks costs more than in a tight loop, as other code uses the processor's caches and
#: branch predictor. Measured by benchmarks/heap_cost.py, which compares both: 1.4 to 1.9.
_IN_A_PROGRAM: Final = 1.7

#: Bounds of a plausible cost, seconds: more means that another process had the processor.
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
    #: Whether a pick has the address of its own block.
    knows_blocks = True
    pace = Pace(
        look_s=1.0, first_pause_s=2.0, longest_pause_s=20.0, fewest_runs=250, longest_over_s=600.0, calm_look_s=2.0
    )

    def __init__(self) -> None:
        self._c = _extension("_sampler")
        self._referrers = _extension("_referrers").referrers
        self.run = self._c.run
        self.restore = self._c.restore
        self.runs = self._c.runs
        self.note_collection = self._c.note_collection

    def start(self, mean_bytes: float, seed: int = 0) -> None:
        """
        Take about one pick in ``mean_bytes`` bytes from now on. Does nothing if it is on.

        The mean doubles whenever some thousands of picks are alive. Once another tool has removed the hooks, this
        installs them again, and drops earlier picks.
        """
        self._c.start(float(mean_bytes), seed)

    def stop(self) -> None:
        """Stop and drop all picks."""
        self._c.stop()

    def coarsen(self) -> None:
        """Double ``mean_bytes``, and thin out what was picked accordingly."""
        self._c.coarsen()

    def plain(self, blocks: Iterable[Block]) -> set[int]:
        """
        Addresses of picked blocks that hold a text, bytes or a number.

        Such an object is never part of a cycle: if no object that the collector knows refers to it, it is not garbage.
        """
        return set(self._c.plain([address for address, _ in blocks]))

    def is_on(self) -> bool:
        """Whether allocations are seen: False when stopped, and once another tool has removed the hooks."""
        return bool(self._c.is_on())

    def mark(self, code: CodeType, tag: int) -> bool:
        """In threads without a tag, give allocations below this function ``tag``. False if there are too many."""
        return bool(self._c.mark(code, tag))

    def peaks(self, tag: int) -> dict[int, int]:
        """
        The peaks of a tag's runs, by their own picks: the number of runs by bucket.

        Runs that began and ended while it was on are counted. The figures are right if runs do not overlap.
        The buckets are those of :mod:`celery_trace.heap.needs`.
        """
        counts = memoryview(self._c.peaks(tag)).cast("I")
        return {bucket: count for bucket, count in enumerate(counts) if count}

    def stop_at(self, *codes: CodeType) -> None:
        """
        End stacks with a frame of one of these functions, which are around every run and what is between runs.

        The frames outside of them are always the same, and walking them is most of the cost of a pick. In search of a
        marked function, the whole stack is walked. Between the runs of a thread fewer picks are taken from now on, each
        of which stands for more.
        """
        self._c.stop_at(*codes)

    def picks(self) -> Iterator[Pick]:
        """The picks that are alive now."""
        return map(Pick._make, RECORD.iter_unpack(self._c.picks()))

    def stack(self, number: int) -> Stack:
        """The frames of a pick, innermost first; empty if unknown."""
        return tuple((code.co_filename, line, code.co_qualname) for code, line in self._c.stack(number))

    def codes(self, number: int) -> list[CodeType]:
        """The functions of a pick's stack, innermost first; empty if unknown."""
        return [code for code, _ in self._c.stack(number)]

    def holding_frames(self, objects: list[object]) -> list[tuple[int, CodeType, str]]:
        """
        Which local variables of functions that run, in any thread, refer to one of some objects.

        Returns:
            The object's position in the list, the function's code and the variable's name; no more than 64.
        """
        found: list[tuple[int, CodeType, str]] = self._c.holding_frames(objects)
        return found

    def sweep(self) -> bool:
        """Drop unused stacks, if they are many. True if the numbers of stacks have changed."""
        return bool(self._c.sweep())

    def stats(self) -> SamplerStats:
        """The counters of this process."""
        found: SamplerStats = self._c.stats()
        return found

    def cost_s(self) -> float:
        """What the hooks add to one allocation and its release, seconds. Takes 0.1 ms; 0 while it is off."""
        if not self.is_on():
            return 0.0
        return min(max(_LEAST_COST_S, float(self._c.cost()) * _IN_A_PROGRAM), _MOST_COST_S)

    def referrers(self, blocks: list[Block], most: int, climb: bool = False) -> list[Match]:
        """
        What refers to an object that lies in one of the blocks, of all objects that the garbage collector knows.

        Args:
            blocks: Address and size of each block, bytes.
            most: Referrers of one block, at most.
            climb: Follow chains of objects of one type, such as a linked list, to their end in the same pass.

        Returns:
            The block's address, the object in it or the upper end of the chain that leads to it, and the object that
            refers to that; the last is None if a list, dict or set keeps its entries in the block, or if nothing
            refers to the end of the chain.
        """
        found: list[Match] = self._referrers(blocks, most, climb)
        return found


def locals_mark() -> Callable[[int], int] | None:
    """
    A function that returns a number for a thread, which changes when a local variable of the 16 functions that are
    innermost there does. It needs no sampler. None if there is no extension module for this interpreter.
    """
    try:
        found: Callable[[int], int] = _extension("_sampler").locals_mark
    except CannotSample:
        return None
    return found


def _extension(name: str) -> ModuleType:
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
    """Why this interpreter can't use the extension modules; empty if it can."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is not CPython"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this is a free-threaded build of Python"
    if not (3, 11) <= sys.version_info[:2] <= (3, 15):
        return f"Python {sys.version_info[0]}.{sys.version_info[1]} is not supported yet"
    return ""


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


#: Either sampler; both have the same interface.
HeapSampler: TypeAlias = "Sampler | TracedSampler"


def open_sampler() -> HeapSampler:
    """
    The best sampler for this interpreter: the extension modules, else tracemalloc.

    Raises:
        CannotSample: There is neither.
    """
    try:
        return Sampler()
    except CannotSample:
        from celery_trace.heap.traced import TracedSampler

        return TracedSampler()


def availability() -> str:
    """Why this interpreter's heap can't be sampled by the extension modules; empty if it can."""
    try:
        Sampler()
    except CannotSample as error:
        return str(error)
    return ""
