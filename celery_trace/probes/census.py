"""
Census: what survives a collection after a run, counted exactly and named by type.

``gc.freeze()`` sets the whole heap aside in two microseconds, so that collecting and listing afterwards
touches only what this run made: milliseconds become tenths of them, on a heap of any size. Cyclic garbage nets out
because it is collected on both sides; what merely replaces an older value nets out because at the end
only those objects count that are still alive.
"""

from __future__ import annotations

import gc
import statistics
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from celery_trace.model import TypeCount
from celery_trace.probes.gate import GROWN_BLOCKS, grew

#: What a block of CPython's allocator is taken to weigh before its line is known, bytes.
USUAL_BLOCK_BYTES = 64

#: Growth of fewer bytes, and of no blocks, is as often freed memory that glibc keeps for the next request.
SLIGHT_BYTES = 4096

#: Objects of one run whose identity is remembered; a run that leaves more is sampled.
MOST_REMEMBERED = 20_000

#: Types that are how Python runs, not what the user keeps.
_MACHINERY = (types.FrameType, types.TracebackType, type(gc.callbacks), types.CellType)


class Kept(Struct, frozen=True):
    """What one run left behind, by the exact counters."""

    # A struct, not a named tuple: its constructor is C, so that what we allocate is attributed to our own line.

    blocks: int
    bytes: int

    @property
    def grew(self) -> bool:
        """Whether it is more than noise."""
        return grew(self.blocks, self.bytes)

    @property
    def is_slight(self) -> bool:
        """Whether it is no more than the C allocator keeps at hand after a run now and then, and counts as live."""
        return self.blocks < GROWN_BLOCKS and self.bytes < SLIGHT_BYTES

    @property
    def weight(self) -> int:
        """Bytes, with the small blocks at their usual size."""
        return max(0, self.blocks) * USUAL_BLOCK_BYTES + max(0, self.bytes)


NOTHING_KEPT = Kept(0, 0)


#: Objects that were set aside before anybody asked for it: from 3.12 on the interpreter freezes some at its start.
FROZEN_AT_START = gc.get_freeze_count() if gc.get_freeze_count() < 2_000 else 0


#: The interpreter's own function for it, "when hunting for leaks"; another one from 3.13 on.
_forget_attributes: Callable[[], object] | None = getattr(
    sys, "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache", None
)


class Collector:
    """
    The user's garbage collector, driven so that it is left as it was found.

    Where the user switched it off, nothing is collected: for such a process a cycle is a leak. Where the user froze
    objects, nothing is frozen or thawed, as thawing is all or nothing.
    """

    def __init__(self) -> None:
        self.frozen = False

    def freeze(self) -> bool:
        """
        Collect what is young, then set the present heap aside; False when the user has frozen objects.

        In that order, and once for all the runs until :meth:`thaw`: a run's garbage that is frozen stays for as long
        as the heap is frozen, so freezing before each run anew would let garbage look like growth. What old garbage
        is frozen here is the same at the beginning and at the end.
        """
        if self.frozen:
            self.collect(everything=True)
            return True
        if gc.get_freeze_count() > FROZEN_AT_START:
            self.collect(everything=False)
            return False
        self.collect(everything=False)
        gc.freeze()
        self.frozen = True
        self.collect(everything=True)  # nothing to find, but only this empties the free lists, as at the end of a run
        return True

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        if self.frozen:
            self.frozen = False
            gc.unfreeze()

    @staticmethod
    def collect(*, everything: bool) -> None:
        """
        Collect: everything that is not frozen, or only the younger generations. Empties the free lists.

        And the interpreter's cache of attributes: it holds on to each name that was looked up, thousands of them, so
        that tasks which look up names that they made (unpickling, matching on classes) seem to leak until it is full.
        """
        if gc.isenabled():
            gc.collect(2 if everything else 1)
        if _forget_attributes is not None:
            _forget_attributes()


class CensusWindow:
    """
    Some censused runs of one name.

    Call :meth:`open` before each run, :meth:`middle` after it while its result may still be alive,
    :meth:`settle` when that is gone too, and :meth:`resume` when all that follows from it is done. Two measures of a
    run's growth result: over the run itself, by the smaller of both readings; and from its beginning to the
    beginning of the next run *of the same name*, at which as much is in flight as at the first (a message, a request,
    a result that is on its way). What a run keeps shows in both.

    Args:
        runs: Runs to gather.
        blocks: Reads live blocks.
        live_bytes: Reads live bytes of the C allocator.
    """

    def __init__(self, runs: int, blocks: Callable[[], int], live_bytes: Callable[[], int]) -> None:
        self.wanted = runs
        self.kept: list[Kept] = []
        self.survivors: list[Any] = []
        self.skipped_types = False
        #: Called just before the last run, to see what that run alone changes.
        self.before_last: Callable[[], None] | None = None
        self._blocks = blocks
        self._bytes = live_bytes
        self.idle = NOTHING_KEPT  # what the readings leave behind when nothing runs between them
        self._collector = Collector()
        self._start = Kept(0, 0)
        self._middle: Kept | None = None
        self._between: list[Kept] = []  # from a run's end to the next beginning of one of its name
        self._over_runs: list[Kept] = []
        self._resumed: Kept | None = None
        self._known: set[int] | None = None
        self.remembered: dict[int, type] = {}
        self._frozen = False
        self._latest: dict[int, type] = {}
        self._newest: set[int] = set()  # all that came to life since the last run began
        self._whole = True  # frozen once, so that all that came to life since the first run is listed by itself
        self._listed: list[Any] | None = None  # that, from the last run to what follows from it
        self._alive: set[int] | None = None  # by the last listing
        self._in_flight: set[int] = set()  # by the first

    @property
    def enough(self) -> bool:
        """Whether all runs are gathered."""
        return len(self.kept) >= self.wanted

    def usual(self, centre: Callable[[Sequence[int]], float] = statistics.median) -> Kept:
        """The middle of the runs, or their mean."""
        return Kept(
            round(centre([kept.blocks for kept in self.kept])), round(centre([kept.bytes for kept in self.kept]))
        )

    def repeats(self, kept: Kept, *, first: bool = False) -> bool:
        """
        Whether growth over a run shows from one run's beginning to the next one's, too: at least half of it.

        The sum over such cycles is the difference of two states with the same in flight, so what a single run
        merely holds at its end does not add up in it. Blocks or bytes will do. It is the middle of the cycles: where
        other names run in between, what they keep and give back is in some of them as well.

        Args:
            kept: What a run seemed to keep.
            first: Most runs keep nothing, so take the mean, and the first run's cycle along.
        """
        cycles = [
            Kept(run.blocks + between.blocks, run.bytes + between.bytes)
            for run, between in zip(self._over_runs, self._between, strict=False)
        ]
        cycles = cycles[1:] if len(cycles) > 2 and not first else cycles
        if not cycles:
            return True
        blocks, live_bytes = [one.blocks for one in cycles], [one.bytes for one in cycles]
        centre = statistics.fmean if first else statistics.median
        return (kept.blocks > 2 and centre(blocks) >= 0.5 * kept.blocks) or (
            kept.bytes > 128 and centre(live_bytes) >= 0.5 * kept.bytes
        )

    def open(self) -> None:
        """Just before the run."""
        self._listed = None
        # Dear, and for nothing where what grew at first has stopped, such as the error of a failed run in flight.
        if self.before_last is not None and len(self.kept) >= self.wanted - 1 and self.kept[-1].grew:
            self.thaw()
            self.before_last()
        self._frozen = self._collector.freeze()
        if self._resumed is not None:
            now, before = self._read(), self._resumed
            self._between.append(Kept(now.blocks - before.blocks, now.bytes - before.bytes))
            if self._alive is not None:
                # What runs of other names left in between is not this one's.
                self._alive.update(map(id, gc.get_objects()))
        self._known = None
        if not self._frozen:
            alive = gc.get_objects()
            if len(alive) <= 300_000:
                self._known = set(map(id, alive))
            del alive
        self._middle = None
        self._start = self._read()

    def middle(self) -> None:
        """Just after the run."""
        self._collector.collect(everything=self._frozen)
        self._middle = self._read()

    def settle(self, *, same_name_next: bool = False) -> Kept:
        """
        When the run's result is gone: count, and remember who survived.

        Args:
            same_name_next: The next run begins now and is one of the same name.

        Returns:
            What this run kept.
        """
        self._collector.collect(everything=self._frozen)
        end = self._read()
        middle = self._middle or end
        idle, start = self.idle, self._start
        kept = Kept(
            min(end.blocks, middle.blocks) - start.blocks - idle.blocks,
            min(end.bytes, middle.bytes) - start.bytes - idle.bytes,
        )
        self.kept.append(kept)
        self._over_runs.append(Kept(end.blocks - start.blocks - idle.blocks, end.bytes - start.bytes - idle.bytes))
        if same_name_next:
            self._between.append(NOTHING_KEPT)
        self._resumed = None
        self._remember()
        if self.enough:
            if self._frozen and self._whole:
                self._listed = gc.get_objects()
            self.thaw()
        return kept

    def resume(self) -> None:
        """All that follows from a run is done: what comes to life from here on is not our own doing."""
        if len(self._between) < len(self.kept):
            self._collector.collect(everything=self._frozen)  # for the free lists, as at the next beginning
            self._resumed = self._read()

    def let_go(self) -> None:
        """The next run of this name is long in coming: thaw meanwhile."""
        self.thaw()
        self._alive = None

    def abandon(self) -> None:
        """Leave the collector as it was found, whatever happened."""
        self._collector.thaw()

    def thaw(self) -> None:
        """List the whole heap again: what the next run finds is no longer only what came to life since the first."""
        self._collector.thaw()
        self._whole = False

    def _read(self) -> Kept:
        return Kept(self._blocks(), self._bytes())

    def _remember(self) -> None:
        """
        Note which objects came to life with this run.

        Those that a run has in flight lie where those of the run before lay; what was alive at the end of the first
        run is therefore never counted among the later ones'.
        """
        if self._frozen:
            fresh = gc.get_objects()
        elif self._known is not None:
            known = self._known
            fresh = [thing for thing in gc.get_objects() if id(thing) not in known]
        else:
            self.skipped_types = True
            return
        self._known = None
        if self.before_last is not None:
            self._newest = {id(thing) for thing in fresh}
        # What the last run left is remembered only when the next is settled: until then it may be in flight.
        self.remembered.update(self._latest)
        # Powers of two, so that a sparser sample is part of a denser one.
        mask = (1 << (len(fresh) // MOST_REMEMBERED).bit_length()) - 1
        earlier = self._alive if self._frozen else None
        ours = self._ours()
        if self._alive is None and not self._in_flight:
            self._in_flight = {id(thing) for thing in fresh[-MOST_REMEMBERED:]}
            self._latest = {}
        else:
            in_flight = self._in_flight
            self._latest = {
                id(thing): type(thing)
                for thing in fresh
                if not id(thing) >> 5 & mask
                and id(thing) not in in_flight
                and id(thing) not in ours
                and (earlier is None or id(thing) not in earlier)
            }
        if self._frozen:
            self._alive = {id(thing) for thing in fresh if not id(thing) >> 5 & mask}
        del fresh

    @property
    def bookkeeping(self) -> list[Any]:
        """What is alive only because we look."""
        return [self, vars(self), *vars(self).values()]

    def _ours(self) -> set[int]:
        return {id(thing) for thing in self.bookkeeping}

    def find_survivors(self) -> list[Any]:
        """
        Those objects of all runs but the first and the last that still live; they are held until :meth:`release`.

        A value that every run replaces is in this list once, however many runs there were.
        """
        # Whatever is still young belongs to the runs about now, maybe at the address of something that has died.
        everything, self._listed = self._listed, None
        if everything is None:
            if not (self._frozen and self._whole):
                self.thaw()  # what is frozen is not listed, and some of it came to life in these runs
            everything = gc.get_objects()
        remembered, latest = self.remembered, self._latest
        mine = self._ours()
        self.survivors = [
            thing
            for thing in everything
            if id(thing) in remembered
            and id(thing) not in latest
            and type(thing) is remembered[id(thing)]
            and id(thing) not in mine
        ]
        return self.survivors

    def is_young(self, thing: Any) -> bool:
        """Whether an object came to life with the run that was settled last, or the next one's message."""
        return id(thing) in self._latest or id(thing) in self._newest

    def release(self) -> None:
        """Let the survivors go: holding them would be a leak of our own."""
        self.survivors = []
        self._listed = None
        self.remembered = {}
        self._latest = {}
        self._newest = set()
        self._alive = None
        self._in_flight = set()


def type_name(kind: type) -> str:
    """``module.QualName``; bare for built-in types."""
    # type's own descriptors: a metaclass may have overridden the attributes with something that runs code.
    name = type.__getattribute__(kind, "__qualname__")
    module = type.__dict__["__module__"].__get__(kind)
    if not isinstance(module, str) or module == "builtins":
        return str(name)
    return f"{module}.{name}"


def size_of(thing: Any) -> int:
    """``sys.getsizeof`` without running a user's ``__sizeof__``; 0 where it can't be told."""
    kind = type(thing)
    if kind.__flags__ & (1 << 9):  # a heap type: its __sizeof__ may be the user's
        for base in kind.__mro__:
            if "__sizeof__" in base.__dict__:
                if base.__flags__ & (1 << 9) and base.__module__ not in sys.stdlib_module_names:
                    return object.__sizeof__(thing)
                break
    try:
        return sys.getsizeof(thing)
    except (TypeError, ValueError):
        return 0


def is_machinery(thing: Any) -> bool:
    """Whether an object is how Python runs, or our own bookkeeping, and not what the user keeps."""
    kind = type(thing)
    return kind in _MACHINERY or (bool(kind.__flags__ & (1 << 9)) and type_name(kind).startswith("celery_trace."))


def count_types(things: Iterable[Any], *, runs: int, most: int = 10, least_share: float = 0.5) -> list[TypeCount]:
    """
    Survivors by type, by bytes, greatest first.

    Args:
        things: What survived ``runs`` runs.
        runs: How many runs made them.
        most: Most rows.
        least_share: A type with fewer survivors than this share of the runs is a value that rotates, not one that
            grows; it is left out.
    """
    counts: Counter[type] = Counter()
    sizes: Counter[type] = Counter()
    for thing in things:
        if is_machinery(thing):
            continue
        kind = type(thing)
        counts[kind] += 1
        sizes[kind] += size_of(thing)
    rows = [
        TypeCount(type_name(kind), count, sizes[kind])
        for kind, count in counts.items()
        if count >= max(1.0, runs * least_share)
    ]
    return sorted(rows, key=lambda row: (-row.bytes, row.type))[:most]
