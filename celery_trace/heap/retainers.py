"""
What keeps survivors alive: the path from sampled blocks through their referrers to a module, class or thread.

Each level is one pass over the heap in C (some 40 ms for a million objects), with a pause after each. The walk starts
from several blocks at once: the holder is where their paths meet, such as the list that every run appends to. A key of
a dict is data: it is put in brackets, so that it can be redacted and hidden from roles that may not see values.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, TypeGuard, TypeVar

from msgspec import Struct

from celery_trace.heap.evidence import key_step
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
UNCOLLECTED: Final = f"{NO_ROOT} that is not collected, as garbage collection is off here"

#: Containers of which the length may be read: exactly these types, as a subclass may have a ``__len__`` of its own.
_SIZED: Final = (dict, list, set, frozenset, tuple, deque, OrderedDict, defaultdict, bytearray)
_DICTS: Final = (dict, OrderedDict, defaultdict)
#: A key is not searched among more entries.
_MOST_KEYS: Final = 10_000
_LRU: Final = type(functools.lru_cache(lambda: None))
_HEAP_TYPE: Final = 1 << 9
#: Read from a class without calling its metaclass, which may have code of its own.
_flags_of: Final = type.__dict__["__flags__"].__get__
_bases_of: Final = type.__dict__["__mro__"].__get__
_module_of: Final = type.__dict__["__module__"].__get__
_qualname_of: Final = type.__dict__["__qualname__"].__get__
_namespace_of: Final = type.__dict__["__dict__"].__get__
#: And from a module, which may load itself when an attribute is read.
_globals_of: Final[Callable[[object], dict[str, object]]] = vars(types.ModuleType)["__dict__"].__get__
#: Has the attributes that a thread-local has in one thread.
_THREAD_LOCAL: Final = "_thread._localdummy"
#: Attributes that give the bound of caches, pools and queues.
_BOUNDS: Final = (
    "maxsize",
    "max_size",
    "_maxsize",
    "_max_size",
    "_Cache__maxsize",
    "maxlen",
    "max_entries",
    "capacity",
)
#: Never the user's data: an object refers to these without holding them.
_SHARED: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
)
#: Reported types of what a holder holds, and objects of a type that are measured.
_MOST_TYPES: Final = 5
_MOST_WEIGHED: Final = 8
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
) -> Iterator[dict[Key, Found] | None]:
    """
    Find what keeps the objects in some blocks alive, for several sites in the same passes over the heap.

    Args:
        referrers: The pass over the heap.
        blocks: By site, the address and size (bytes) of some dozens of its blocks.
        plain: Addresses of those blocks that hold a text, bytes or a number.
        sees_all: Whether a pass visits all objects, so that an object it does not find has no referrer.
        holding_frames: Finds the local variables of running functions that refer to one of some objects.

    Yields:
        None after each pass, so that the caller can pause; at last what was found, by site.
    """
    modules = {
        id(_globals_of(module)): name
        for name, module in list(sys.modules.items())
        if issubclass(type(module), types.ModuleType)
    }
    walks = {key: _Walk(modules, plain, holding_frames, sees_all=sees_all) for key in blocks}
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
        self, modules: dict[int, str], plain: Collection[int], holding_frames: HoldingFrames, *, sees_all: bool
    ) -> None:
        self.things: list[object] = []
        self.nodes: list[_Node] = []
        self.starts = 0  # blocks in which an object was found
        self._plain = plain
        self._sees_all = sees_all
        self._holding_frames = holding_frames
        self._recycled = 0  # of those, the ones that come from a free list
        self._unseen = 0  # of those, the ones to which no object refers
        self._ends: dict[int, int] = {}  # objects to which only our own lists refer, and how many of those
        self._level: list[int] = []
        self._best: int | None = None
        self._more_levels = MORE_LEVELS
        self._index: dict[int, int] = {}
        self._held = {number for number, held in _held.items() if held() is not None}
        self._namespaces: set[int] = set()  # dicts with keys that are names of attributes or variables
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
        if _is_a(thing, types.FrameType):
            return is_ours(thing.f_code.co_filename)
        if type(thing) is types.CellType or type(thing) is type:
            return False
        module = _module_of(type(thing))
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
        self._namespaces = {id(thing) for above, thing in pairwise(chain) if _is_namespace_of(thing, above)}
        self._namespaces.update(
            id(thing)
            for over, _, thing in zip(chain, chain[1:], chain[2:], strict=False)
            if issubclass(type(over), threading.local) and type(thing) is dict
        )
        self._namespaces |= self._modules.keys()
        meeting = self._meeting(root)
        things = chain[: meeting + 2]
        path = [*([frame] if frame else []), *self._path(things, variable)]
        bound, full = self._bound(chain[: meeting + 1])
        holder = chain[meeting]
        return Found(
            Holder(
                path=path,
                bound=bound,
                full=full,
                searched=True,
                recycled=self._recycled >= MOSTLY_RECYCLED * self.starts,
            ),
            types=_types_in([] if id(holder) in self._namespaces else entries_of(holder), holder, things[-1]),
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

    def _path(self, chain: list[object], name: str) -> list[str]:
        path: list[str] = []
        for index, thing in enumerate(chain):
            above = chain[index - 1] if index else None
            if index == len(chain) - 1 and index:
                path.append(self._leaf(thing, above, name))
                break
            text = self._text(thing, above)
            if text:
                path.append(f"{name}: {text}" if name else text)
            edge = self._edge(thing, chain[index + 1]) if index + 1 < len(chain) else ""
            # A namespace, a cell or a closure's tuple is no step of its own: its name goes to the next.
            name = edge if text or edge else name
        return path

    def _text(self, thing: object, above: object) -> str:
        """The text of a step of the path; empty for an object that is left out."""
        kind = type(thing)
        if kind is dict and id(thing) in self._modules:
            return f"{self._modules[id(thing)]} (module)"
        code = _text_of_code(thing)
        if code:
            return code
        if kind is types.CellType or id(thing) in self._namespaces or _is_inner_dict(thing, above):
            return ""
        if kind is tuple and above is not None and length_of(thing) < 8:
            return ""
        bound, _ = bound_of(thing)
        if bound:
            return bound
        length = length_of(thing)
        name = "lru_cache" if kind is _LRU else short_name(kind)
        return f"{name}[{length}]" if length >= 0 else name

    def _leaf(self, thing: object, holder: object, name: str) -> str:
        kind = short_name(type(thing))
        if length_of(holder) >= 0 and id(holder) not in self._namespaces:
            return f"{kind} × {_count_of(holder, type(thing))}"
        return f"{name}: {kind}" if name else kind

    def _edge(self, above: object, thing: object) -> str:
        """The attribute or variable by which one object refers to the next; empty for an entry of a container."""
        if _is_dict(above) and id(above) in self._namespaces:
            return _name_of(thing, above)
        if _is_a(above, type):
            return "" if id(thing) in self._namespaces else _name_of(thing, _namespace_of(above))
        if _is_a(above, types.FunctionType):
            return _edge_of_function(above, thing)
        if _is_dict(above) and len(above) <= _MOST_KEYS:
            key = next((key for key, value in list(dict.items(above)) if value is thing), None)
            return key_step(key) if type(key) is str else ""
        return _name_of(thing, attributes(above))


def _is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """``isinstance``, without reading the object's ``__class__``."""
    return issubclass(type(thing), kind)


def _is_dict(thing: object) -> TypeGuard[dict[object, object]]:
    """Whether it is exactly a kind of dict without code of the user's."""
    return _is_one_of(type(thing), _DICTS)


def _is_sized(thing: object) -> TypeGuard[Collection[object]]:
    """Whether its length may be read; see :data:`_SIZED`."""
    return _is_one_of(type(thing), _SIZED)


def _text_of_code(thing: object) -> str:
    """The text of a module, class, thread, function or something that is running; empty for anything else."""
    kind = type(thing)
    if _is_a(thing, types.ModuleType):
        return f"{_globals_of(thing).get('__name__', '?')} (module)"
    if _is_a(thing, type):
        return f"{type_name(thing)} (class)"
    if _is_a(thing, threading.Thread):
        return f"{short_name(kind)} (thread)"
    if _is_a(thing, types.FunctionType):
        return f"{thing.__qualname__}() (function)"
    if _is_a(thing, types.MethodType):
        function = thing.__func__
        name = function.__name__ if type(function) is types.FunctionType else short_name(type(function))
        return f"{short_name(type(thing.__self__))}.{name} (bound method)"
    if _is_a(thing, types.GeneratorType) or _is_a(thing, types.CoroutineType) or _is_a(thing, types.AsyncGeneratorType):
        return f"{thing.__qualname__}() (suspended {kind.__name__.replace('_', ' ')})"
    if _is_a(thing, types.FrameType):
        return f"{thing.f_code.co_name}() (frame)"
    return ""


def _edge_of_function(function: types.FunctionType, thing: object) -> str:
    """The variable or default by which a function refers to an object."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if cell is thing or _content(cell) is thing:
            return name
    if thing is function.__closure__:
        return ", ".join(function.__code__.co_freevars)[:60]
    if thing is function.__defaults__ or thing is function.__kwdefaults__:
        return "default argument"
    return ""


def _name_of(thing: object, namespace: Mapping[str, object] | Mapping[object, object]) -> str:
    """The name of an object in a namespace; or of one of its type, as the head of a list may have moved on."""
    found = [(name, value) for name, value in list(namespace.items()) if type(name) is str]
    of_its_type = [name for name, value in found if type(value) is type(thing)]
    return next((name for name, value in found if value is thing), of_its_type[0] if len(of_its_type) == 1 else "")


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


def _is_namespace_of(thing: object, above: object) -> bool:
    """Whether a dict has the attributes of the object above: its keys are names; those of any other dict are data."""
    kind = type(above)
    if type(thing) is not dict:
        return False
    if issubclass(kind, type):
        return any(one is thing for one in gc.get_referents(_namespace_of(above)))
    if issubclass(kind, types.ModuleType):
        return _globals_of(above) is thing
    if issubclass(kind, types.FunctionType):
        return above.__dict__ is thing
    return type_name(kind) == _THREAD_LOCAL or _attributes_in_dict(above) is thing


def _is_inner_dict(thing: object, above: object) -> bool:
    """Whether a dict is not an entry or attribute of the object above, but part of it."""
    if type(thing) is not dict or above is None:
        return False
    if issubclass(type(above), type):
        return not any(value is thing for value in _namespace_of(above).values())
    return not _is_sized(above) and not any(value is thing for value in attributes(above).values())


def _is_one_of(kind: type, kinds: tuple[type, ...]) -> bool:
    """``kind in kinds``, without calling a metaclass's equality or hash."""
    return any(kind is one for one in kinds)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _types_in(entries: list[object], holder: object, item: object) -> list[tuple[str, int, int]]:
    """The types of a container's contents; for any other holder, of what was found."""
    if type(holder) is _LRU:
        return [(type_name(type(item)), length_of(holder), weight_of(item) * length_of(holder))]
    if not entries:
        return [(type_name(type(item)), 1, weight_of(item))]
    rows = []
    kinds = {id(type(entry)): type(entry) for entry in entries}
    for number, count in Counter(id(type(entry)) for entry in entries).most_common(_MOST_TYPES):
        weighed = [entry for entry in entries if id(type(entry)) == number][-_MOST_WEIGHED:]
        mean = sum(map(weight_of, weighed)) / len(weighed)
        rows.append((type_name(kinds[number]), count, round(mean * count)))
    return sorted(rows, key=lambda row: -row[2])


def weight_of(thing: object, most: int = 200) -> int:
    """
    The size of an object with its contents, bytes, without modules, classes and functions.

    Args:
        thing: The object.
        most: The most objects that are measured.
    """
    seen = {id(thing)}
    queue = deque([thing])
    total = 0
    while queue and most > 0:
        one = queue.popleft()
        most -= 1
        total += _size_of(one)
        for referent in gc.get_referents(one):
            if id(referent) not in seen and not issubclass(type(referent), _SHARED):
                seen.add(id(referent))
                queue.append(referent)
    return total


def _size_of(thing: object) -> int:
    """``sys.getsizeof`` without running code of the user's."""
    kind = type(thing)
    try:
        return sys.getsizeof(thing) if not _flags_of(kind) & _HEAP_TYPE else object.__sizeof__(thing) + 16
    except Exception:  # some C types refuse
        return 0


def _count_of(holder: object, kind: type) -> int:
    if type(holder) is _LRU:
        return length_of(holder)
    return sum(type(entry) is kind for entry in entries_of(holder)) or 1


def entries_of(container: object) -> list[object]:
    """The values of a dict or the items of another known container; empty for anything else."""
    if _is_dict(container):
        return list(dict.values(container))
    return list(container) if _is_sized(container) and type(container) is not bytearray else []


def length_of(thing: object) -> int:
    """The entries of a known kind of container or a cache; -1 for others, as their ``__len__`` may run code."""
    if type(thing) is _LRU:
        return int(thing.cache_info().currsize)
    return len(thing) if _is_sized(thing) else -1


def bound_of(thing: object) -> tuple[str, bool]:
    """The bound of a holder as text, such as ``lru_cache (300/500)``, and whether it is reached; empty without one."""
    if type(thing) is _LRU:
        info = thing.cache_info()
        if info.maxsize is None:
            return "", False
        return f"lru_cache ({info.currsize}/{info.maxsize})", info.currsize >= info.maxsize
    if type(thing) is deque:
        if thing.maxlen is None:
            return "", False
        return f"deque ({len(thing)}/{thing.maxlen})", len(thing) >= thing.maxlen
    found = attributes(thing)
    for name in _BOUNDS:
        limit = found.get(name)
        if (type(limit) is int or type(limit) is float) and 0 < limit < math.inf:
            held = max((length_of(value) for value in found.values()), default=-1)
            label = name.lstrip("_").replace("Cache__", "")
            return f"{short_name(type(thing))} ({label}={limit})", held >= limit
    return "", False


def attributes(thing: object) -> dict[str, object]:
    """An instance's own attributes, without running any of its code."""
    if not _flags_of(type(thing)) & _HEAP_TYPE or issubclass(type(thing), type | types.ModuleType):
        return {}
    found = {name: value for name, value in (_attributes_in_dict(thing) or {}).items() if type(name) is str}
    for base in _bases_of(type(thing)):
        for name, slot in list(_namespace_of(base).items()):
            if type(slot) is types.MemberDescriptorType and name not in found:
                try:
                    found[name] = slot.__get__(thing)
                except AttributeError:
                    continue
    return found


def _attributes_in_dict(thing: object) -> dict[object, object] | None:
    """The real ``__dict__`` of an instance; a class may define that name otherwise, as proxies do."""
    if not _flags_of(type(thing)) & _HEAP_TYPE:
        return None
    for base in _bases_of(type(thing)):
        slot = _namespace_of(base).get("__dict__")
        if type(slot) is types.GetSetDescriptorType:
            found = slot.__get__(thing)
            return found if type(found) is dict else None
    return None


def type_name(kind: type) -> str:
    """Module and qualified name of a type; the name alone for a built-in one."""
    module, name = _module_of(kind), str(_qualname_of(kind))
    return name if type(module) is not str or module == "builtins" else f"{module}.{name}"


def short_name(kind: type) -> str:
    """The type's name without its module."""
    return type_name(kind).rpartition(".")[2]
