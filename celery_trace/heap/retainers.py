"""
What keeps survivors alive: the path from sampled blocks through their referrers to a module, class or thread.

Each level is one pass over the heap in C (some 40 ms for a million objects), with a pause after each. The walk starts
from several blocks at once: the holder is where their paths meet, such as the list that every run appends to. A key of
a dict is data: it is put in brackets, so that it can be redacted and hidden from roles that may not see values.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeVar

from msgspec import Struct

from celery_trace.heap.entry_order import births_by_object, entry_growth, evicts
from celery_trace.heap.objects import bound_of, entries_of, globals_of, is_a, length_of, module_of, types_in
from celery_trace.heap.paths import PathText
from celery_trace.heap.picks import Block, Match
from celery_trace.model import Holder
from celery_trace.text.code_owner import is_ours

#: A site, as the caller identifies it.
Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")
#: Finds what refers to objects in blocks; see ``_referrers.c``.
Referrers = Callable[[list[Block], int, bool], list[Match]]

#: Levels of the walk, objects per level, and referrers of one object. What a library keeps is deep:
#: an object with its attributes in a dict is two levels, and the channels of Celery's result consumer are 13 below.
DEPTH: Final = 16
WIDTH: Final = 48
MOST_REFERRERS: Final = 6
#: From this level on a pass climbs chains: a short path keeps the names of all its steps.
CLIMB_FROM: Final = 3
#: If a level has so few objects, such as an app that everything refers to, more of their referrers are read.
FEW: Final = 8
MOST_REFERRERS_OF_FEW: Final = 48
#: Sites with holders that are described before the caller can pause.
DESCRIBED_AT_ONCE: Final = 8
#: A root counts if the paths of this share of the found blocks lead to it. A bounded cache may hold as many of the
#: blocks as the real holder, so up to the second share the walk continues for some more levels.
ENOUGH: Final = 0.3
SURE: Final = 0.6
MORE_LEVELS: Final = 3

#: No root was reached: without a reference it is garbage, unless C code or a frame holds it.
NO_ROOT: Final = "no module, class or thread refers to it: held from C code or by a frame, or garbage"
#: The path ends at live objects without a referrer that the garbage collector knows.
OUTSIDE: Final = "no Python object refers to it: held from C code or by a running frame"
#: The share of the found blocks for which that must hold.
MOST: Final = 0.5
#: The share from which a site is made of objects from free lists.
MOSTLY_RECYCLED: Final = 0.8
#: Entries of the dicts with a table that comes from a free list too.
_SMALL_DICT: Final = 5
#: The bound of a container whose limit is only known to the code that fills it.
EVICTED: Final = "a cache that removes its oldest entries"
UNCOLLECTED: Final = f"{NO_ROOT} that is not collected, as garbage collection is off here"

#: How far above what it holds an object with a bound may be: instance, its namespace, the container inside.
_BOUND_WITHIN: Final = 3
#: Objects of these modules hold something only during a run: Celery's stack of requests, and our own.
_ONLY_IN_FLIGHT: Final = ("celery_trace.", "celery.utils.threads", "celery.app.task")


#: Objects that only a frame holds, for as long as the process lives, such as the loop of a scheduler; see :func:`hold`.
_held: dict[int, weakref.ref[object]] = {}

#: Modules that refer to much of a program but are not the place to look for it.
_INFRASTRUCTURE: Final = ("celery.", "kombu.", "billiard.", "django.", "asyncio.", "threading", "weakref", "abc")

#: The lists of searches in progress, which refer to the objects in question.
_walking: set[int] = set()


def collects() -> bool:
    """Whether automatic garbage collection is on in this process."""
    return gc.isenabled() and gc.get_threshold()[0] > 0


def hold(thing: object) -> None:
    """Treat this object as a root, like a module: only the frame of an endless loop refers to it."""
    with contextlib.suppress(TypeError):  # it can't be weakly referenced
        _held[id(thing)] = weakref.ref(thing)


#: Of some objects, those that a local variable of a running function refers to: position, its code, the variable.
HoldingFrames = Callable[[list[object]], list[tuple[int, types.CodeType, str]]]


def _no_frames(_: list[object]) -> list[tuple[int, types.CodeType, str]]:
    """Frames can't be read."""
    return []


class _Node(Struct):
    """An object on the path; ``_Walk.things`` has the object itself."""

    below: int  # index of the object that it refers to; -1 for a survivor
    blocks: int  # how many blocks lead here


class Found(Struct, frozen=True):
    """The holder, and what it holds."""

    holder: Holder
    types: list[tuple[str, int, int]] = []  # type, how many of it are held, and their bytes with contents; most first
    length: int = -1  # entries of the container that holds them; -1 if it is not a container


def search(
    referrers: Referrers,
    blocks: Mapping[Key, Sequence[Block]],
    *,
    plain: Collection[int] = (),
    sees_all: bool = True,
    holding_frames: HoldingFrames = _no_frames,
    born: Mapping[Key, Mapping[int, int]] = MappingProxyType({}),
    codes: Mapping[Key, Sequence[types.CodeType]] = MappingProxyType({}),
) -> Iterator[dict[Key, Found] | None]:
    """
    Find what keeps the objects in some blocks alive, for several sites in the same passes over the heap.

    Args:
        referrers: The pass over the heap.
        blocks: By site, the address and size (bytes) of some dozens of its blocks.
        plain: Addresses of those blocks that hold a text, bytes or a number.
        sees_all: Whether a pass visits all objects, so that an object it does not find has no referrer.
        holding_frames: Finds the local variables of running functions that refer to one of some objects.
        born: The runs in which blocks of each site were allocated, by address; of more than the given ones.
        codes: Functions that allocated the blocks of each site.

    Yields:
        None after each pass, so that the caller can pause; at last what was found, by site.
    """
    modules = {
        id(globals_of(module)): name
        for name, module in list(sys.modules.items())
        if issubclass(type(module), types.ModuleType)
    }
    walks = {
        key: _Walk(
            modules, plain, holding_frames, births_by_object(born.get(key, {})), codes.get(key, ()), sees_all=sees_all
        )
        for key in blocks
    }
    _walking.update(id(walk.things) for walk in walks.values())
    try:
        yield from _rise(referrers, blocks, walks)
    finally:  # it may be dropped between two passes
        _walking.difference_update(id(walk.things) for walk in walks.values())


def _rise(
    referrers: Referrers, blocks: Mapping[Key, Sequence[Block]], walks: dict[Key, _Walk]
) -> Iterator[dict[Key, Found] | None]:
    matches = referrers([block for some in blocks.values() for block in some], MOST_REFERRERS, False)
    for key, walk in walks.items():
        walk.begin(blocks[key], matches)
    del matches
    for level in range(DEPTH):
        asked = {key: walk.asks() for key, walk in walks.items()}
        wanted = {address: (address, 1) for some in asked.values() for address in some}
        if not wanted:
            break
        yield None
        most = MOST_REFERRERS if len(wanted) > FEW else MOST_REFERRERS_OF_FEW
        matches = referrers(list(wanted.values()), most, level >= CLIMB_FROM)
        for key, walk in walks.items():
            walk.rise(asked[key], matches)
        del matches
    found: dict[Key, Found] = {}
    for number, (key, walk) in enumerate(walks.items()):
        if number % DESCRIBED_AT_ONCE == 0:
            yield None
        found[key] = walk.describe()
        walk.things.clear()
    yield found


class _Walk:
    """The objects of one search, all in one list, so that only one referrer of ours has to be left out."""

    def __init__(
        self,
        modules: dict[int, str],
        plain: Collection[int],
        holding_frames: HoldingFrames,
        births: dict[int, int],
        codes: Sequence[types.CodeType],
        *,
        sees_all: bool,
    ) -> None:
        self.things: list[object] = []
        self.nodes: list[_Node] = []
        self.starts = 0  # blocks in which an object was found
        self._plain = plain
        self._sees_all = sees_all
        self._holding_frames = holding_frames
        self._births = births  # of objects, by address
        self._codes = codes
        self._recycled = 0  # of those, the ones that come from a free list
        self._unseen = 0  # of those, the ones to which no object refers
        self._ends: dict[int, int] = {}  # objects to which only our own lists refer, and how many of those
        self._level: list[int] = []
        self._best: int | None = None
        self._more_levels = MORE_LEVELS
        self._index: dict[int, int] = {}
        self._held = {number for number, held in _held.items() if held() is not None}
        self._modules = modules  # by the address of their globals

    def _add(self, thing: object, below: int, blocks: int) -> int:
        index = self._index.get(id(thing))
        if index is None:
            index = self._index[id(thing)] = len(self.things)
            self.things.append(thing)
            self.nodes.append(_Node(below, blocks))
            return index
        return -1

    def begin(self, blocks: Sequence[Block], matches: list[Match]) -> None:
        """The first level: the objects in the blocks and what refers to them."""
        own = {address for address, _ in blocks}
        matches = [match for match in matches if match[0] in own]
        weak = {address for address, thing, _ in matches if is_a(thing, weakref.ReferenceType)}
        if weak and 2 * len({address for address, _, _ in matches} - weak) >= len(weak):
            # What holds a weak reference keeps only that alive. What it refers to was allocated on the same line.
            own -= weak
            matches = [match for match in matches if match[0] not in weak]
        first: dict[int, int] = {}  # block to the object in it
        level = self._level
        counted: Counter[int] = Counter()
        for block, referent, _ in matches:
            if block not in first:
                first[block] = self._add(referent, -1, 1)
        buffers = {address for address, _, referrer in matches if referrer is None}
        held = {address: referent for address, referent, _ in matches}
        self._recycled = sum(_is_recycled(thing, address in buffers) for address, thing in held.items())
        self._unseen = sum(address in self._plain and address not in first for address in own)
        self.starts = len(first) + self._unseen
        for block, index in first.items():  # some are found by the buffer of their entries
            if index >= 0 and block in self._births:
                self._births[id(self.things[index])] = self._births[block]
        seen: set[tuple[int, int]] = set()
        for block, referent, referrer in matches:
            below = first[block]
            if below < 0 or self.things[below] is not referent:
                continue
            if referrer is None:
                if below not in level:
                    level.append(below)  # found by its buffer; its referrers are searched next
                continue
            if referrer is referent or self._is_left_out(referrer) or (block, id(referrer)) in seen:
                continue
            seen.add((block, id(referrer)))
            counted[self._joined(referrer, below, level)] += 1
        for index, count in counted.items():
            self.nodes[index].blocks = count
            if self.nodes[index].below < 0:
                # A container with its own buffer among the blocks: what it holds is more informative.
                self.nodes[index].below = next(
                    first[block]
                    for block, _, referrer in matches
                    if referrer is self.things[index] and first[block] not in (index, -1)
                )

    def asks(self) -> list[int]:
        """The addresses of the objects for the next pass, which finds their referrers; none once the walk is over."""
        roots = [index for index in self._level if self._is_root(self.things[index])]
        # Of equal ones a module, as users look there first; the program's own before Celery's.
        root = max(roots, key=lambda index: (self.nodes[index].blocks, self._preference(index)), default=None)
        if root is not None and (self._best is None or self.nodes[root].blocks > self.nodes[self._best].blocks):
            self._best = root
        if self._best is not None and self.nodes[self._best].blocks >= ENOUGH * self.starts:
            if self.nodes[self._best].blocks >= SURE * self.starts or self._more_levels == 0:
                return []
            self._more_levels -= 1
        # Where most paths meet, containers before frames.
        open_ones = sorted(
            set(self._level) - set(roots), key=lambda index: (-self.nodes[index].blocks, _interest(self.things[index]))
        )
        return [id(self.things[index]) for index in open_ones[:WIDTH]]

    def rise(self, asked: list[int], matches: list[Match]) -> None:
        """The next level: the referrers of the last one."""
        below_of = {address: self._index[address] for address in asked}
        level: list[int] = []
        ours = Counter(address for address, _, referrer in matches if id(referrer) in _walking)
        theirs = {address for address, _, referrer in matches if id(referrer) not in _walking}
        self._ends |= {below_of[address]: ours[address] for address in below_of.keys() - theirs}
        climbed: set[tuple[int, int]] = set()  # the chains' ends, and from where
        for address, referent, referrer in matches:
            start = below_of.get(address)
            if start is None or self._is_left_out(referent) or self._is_left_out(referrer):
                continue
            below = start
            if id(referent) != address:
                if (id(referent), start) not in climbed:
                    climbed.add((id(referent), start))
                    self._reach(referent, start, self.nodes[start].blocks, level)
                below = self._index[id(referent)]
            if referrer is not None:
                self._reach(referrer, below, self.nodes[start].blocks, level)
        self._level = level

    def _reach(self, thing: object, below: int, blocks: int, level: list[int]) -> None:
        """The paths of so many blocks lead to an object; it is of this level unless it was found before."""
        known = self._index.get(id(thing))
        if known is None:
            level.append(self._add(thing, below, blocks))
        elif known in level:
            node = self.nodes[known]
            node.blocks += blocks
            if blocks > self.nodes[node.below].blocks:
                node.below = below
        elif known == self._best and self.nodes[below].blocks > self.nodes[known].blocks:
            self.nodes[known] = _Node(below, self.nodes[below].blocks)  # on a path of more blocks
        elif self.nodes[known].below < 0 and length_of(thing) >= 0 and not self._leads_to(below, known):
            self.nodes[known] = _Node(below, blocks)  # found by its own buffer; what it holds says more
            level.append(known)

    def _leads_to(self, index: int, other: int) -> bool:
        """Whether the way down from one object passes another."""
        while index >= 0 and index != other:
            index = self.nodes[index].below
        return index == other

    def _joined(self, referrer: object, below: int, level: list[int]) -> int:
        index = self._index.get(id(referrer))
        if index is None:
            index = self._add(referrer, below, 0)
            level.append(index)
        return index

    def _is_left_out(self, thing: object) -> bool:
        """Whether a reference to survivors is only our own or the interpreter's."""
        if id(thing) in _walking:
            return True
        if is_a(thing, types.FrameType):
            return is_ours(thing.f_code.co_filename)
        if type(thing) is types.CellType or type(thing) is type:
            return False
        module = module_of(type(thing))
        return type(module) is str and module.startswith(_ONLY_IN_FLIGHT)

    def _is_root(self, thing: object) -> bool:
        if type(thing) is dict:
            name = self._modules.get(id(thing))
            return name is not None and not name.startswith("celery_trace")
        return issubclass(type(thing), type | types.ModuleType | threading.Thread) or id(thing) in self._held

    def _preference(self, index: int) -> int:
        name = self._modules.get(id(self.things[index]), "")
        return bool(name) + bool(name and not name.startswith(_INFRASTRUCTURE))

    # --- words -----------------------------------------------------------------------------------------

    def describe(self) -> Found:
        """What was found, once the walk is over."""
        root, frame, variable = self._best, "", ""
        if root is None:
            root, frame, variable = self._held_by_a_frame()
        if root is None:
            outside = self._is_held_from_outside()
            why = OUTSIDE if outside else NO_ROOT if collects() else UNCOLLECTED
            return Found(Holder(searched=True, why=why, outside=outside))
        chain: list[object] = []
        at = root
        while at >= 0:
            chain.append(self.things[at])
            at = self.nodes[at].below
        text = PathText(chain, self._modules)
        meeting = self._meeting(root)
        things = chain[: meeting + 2]
        path = [*([frame] if frame else []), *text.steps(things, variable)]
        bound, full = self._bound(chain[: meeting + 1])
        if not bound and len(path) > 1 and evicts(path[-2], self._codes):
            bound = EVICTED
        holder = chain[meeting]
        has_entries = id(holder) not in text.namespaces
        return Found(
            Holder(
                path=path,
                bound=bound,
                full=full,
                searched=True,
                recycled=self._recycled >= MOSTLY_RECYCLED * self.starts,
                entries=entry_growth(holder, self._births) if has_entries else None,
            ),
            types=types_in(entries_of(holder) if has_entries else [], holder, things[-1]),
            length=length_of(holder),
        )

    def _is_held_from_outside(self) -> bool:
        """
        Whether most paths end at objects without a referrer that the garbage collector knows.

        Garbage that waits for the collector refers to itself, so its path has no end.
        """
        # One more reference is that of the call.
        ends = [index for index, ours in self._ends.items() if sys.getrefcount(self.things[index]) > ours + 1]
        blocks = self._unseen + sum(self.nodes[index].blocks for index in ends)
        return self._sees_all and self.starts > 0 and blocks >= MOST * self.starts

    def _held_by_a_frame(self) -> tuple[int | None, str, str]:
        """Of the ends of paths, the one with most blocks that a running function refers to."""
        ends = [index for index in self._ends if self.nodes[index].blocks >= MOST * self.starts]
        found = [
            (self.nodes[ends[at]].blocks, ends[at], code, variable)
            for at, code, variable in self._holding_frames([self.things[index] for index in ends])
            if not is_ours(code.co_filename)
        ]
        if not found:
            return None, "", ""
        _, root, code, variable = max(found, key=lambda one: one[0])
        return root, f"{code.co_qualname}() (frame)", variable

    def _meeting(self, root: int) -> int:
        """How many steps below the root the last common object of all paths is: the holder."""
        most = self.nodes[root].blocks
        steps, at = 0, root
        while True:
            below = self.nodes[at].below
            if below < 0 or self.nodes[below].below < 0 or self.nodes[below].blocks < max(2, ENOUGH * most):
                break
            at = below
            steps += 1
        return self._innermost_container(root, steps) if most == 1 else steps

    def _innermost_container(self, root: int, steps: int) -> int:
        """With one block no paths meet: take the container with most entries."""
        best, most, at, step = steps, -1, root, 0
        while at >= 0 and self.nodes[at].below >= 0:
            entries = length_of(self.things[at]) if id(self.things[at]) not in self._modules else 0
            if entries >= max(0, most):
                best, most = step, entries
            at = self.nodes[at].below
            step += 1
        return best

    def _bound(self, chain: list[object]) -> tuple[str, bool]:
        for thing in reversed(chain[-_BOUND_WITHIN - 1 :]):
            bound, full = bound_of(thing)
            if bound:
                return bound, full
        return "", False


def _is_recycled(thing: object, is_buffer: bool) -> bool:
    """Whether the block of an object, or of its entries, comes from one of the interpreter's free lists."""
    kind = type(thing)
    if kind is dict:
        return not is_buffer or length_of(thing) <= _SMALL_DICT
    return kind is float or kind is tuple or (kind is list and not is_buffer)


def _interest(thing: object) -> int:
    if issubclass(type(thing), types.FrameType | types.TracebackType):
        return 2
    return 1 if type(thing) is tuple else 0
