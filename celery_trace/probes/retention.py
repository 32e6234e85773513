"""
What retains it: the way from a surviving object up its referrers to a module, class, thread, generator or frame.

Referrers are asked for level by level, all objects of a level at once, as each question walks the
whole heap. For texts and bytes, which the collector does not know, the lengths of containers are
compared instead. Both are bounded in time and say so when they give up.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import time
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from celery_trace.evidence import key_step
from celery_trace.model import TypeCount
from celery_trace.probes.census import size_of, type_name
from celery_trace.probes.source import is_ours

#: Containers whose length may be read: exactly these types, as a subclass may have a ``__len__`` of its own.
_SIZED: frozenset[type] = frozenset({dict, list, set, deque, OrderedDict, defaultdict, bytearray})
_TEXT: frozenset[type] = frozenset({str, bytes})
_KIND_BITS = 4
_KIND_MASK = (1 << _KIND_BITS) - 1
#: Each of them by a number that fits those bits; the last number is everything else's.
_KINDS: dict[type, int] = {kind: number for number, kind in enumerate(sorted(_SIZED, key=lambda kind: kind.__name__))}
_LRU = type(functools.lru_cache(lambda: None))
_HEAP_TYPE = 1 << 9

#: Modules whose objects hold a run only for as long as it lasts: Celery's stack of requests, and our own.
_ONLY_IN_FLIGHT = ("celery_trace.", "celery.utils.threads", "celery.app.task")

#: Objects that one level of the walk takes along, and levels.
_WIDTH = 12
_DEPTH = 14


#: Attributes by which caches, pools and queues say how much they hold at most.
_BOUNDS = ("maxsize", "max_size", "_maxsize", "_max_size", "_Cache__maxsize", "maxlen", "max_entries", "capacity")


class Retention(NamedTuple):
    """The path, root first; the bound of a holder that has one; and a remark when the search gave up."""

    path: list[str]
    bounded: str
    note: str


def short_name(kind: type) -> str:
    """The type's name without its module."""
    return type_name(kind).rpartition(".")[2]


def _length(thing: Any) -> int:
    """The length of an exactly known container; -1 elsewhere, as a user's ``__len__`` must not run."""
    return len(thing) if type(thing) in _SIZED or type(thing) in (tuple, frozenset) else -1


def bound_of(thing: Any) -> str:
    """``lru_cache (500/500)``, ``deque (maxlen=500)``, ``TTLCache (maxsize=100)``; "" for a holder without a bound."""
    kind = type(thing)
    if kind is _LRU:
        info = thing.cache_info()
        return "" if info.maxsize is None else f"lru_cache ({info.currsize}/{info.maxsize})"
    if kind is deque:
        return "" if thing.maxlen is None else f"deque ({len(thing)}/{thing.maxlen})"
    attributes = _attributes(thing)
    for name in _BOUNDS:
        limit = attributes.get(name)
        if isinstance(limit, int | float) and 0 < limit < float("inf"):
            return f"{short_name(kind)} ({name.lstrip('_').replace('Cache__', '')}={limit})"
    return ""


def _attributes(thing: Any) -> dict[str, Any]:
    """An instance's own attributes, without running any of its code."""
    if not type(thing).__flags__ & _HEAP_TYPE or issubclass(type(thing), type | types.ModuleType):
        return {}
    try:
        found = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        found = {}
    found = dict(found) if type(found) is dict else {}
    for base in type(thing).__mro__:
        for name, slot in list(vars(base).items()):
            if type(slot) is types.MemberDescriptorType and name not in found:
                try:
                    found[name] = slot.__get__(thing)
                except AttributeError:
                    continue
    return found


class _Namespaces:
    """Which dict is the namespace of which module or class; made once a walk."""

    def __init__(self) -> None:
        self.modules = {
            id(vars(module)): name for name, module in list(sys.modules.items()) if isinstance(module, types.ModuleType)
        }


class _Step(NamedTuple):
    thing: Any
    child: _Step | None


def who_retains(
    things: Sequence[Any],
    *,
    within_s: float,
    ignore: Iterable[Any] = (),
    inside: str = "",
    clock: Callable[[], float] = time.thread_time,
) -> Retention:
    """
    Name what keeps objects alive.

    Args:
        things: One to a few objects of one sort; the walk starts from all of them and the first root found wins.
        within_s: Time that the walk may take, seconds. Checked between levels, so one level can go over.
        ignore: Objects that hold ``things`` only because we look at them.
        inside: ``things`` is a container; what it holds, to stand at the end of the path.
        clock: For tests.
    """
    started_s = clock()
    namespaces = _Namespaces()
    level = [_Step(thing, None) for thing in list(things)[:4]]
    seen = {id(step.thing) for step in level}
    hidden = {id(thing) for thing in ignore} | {id(things), id(level), id(seen), id(namespaces.modules)}
    furthest = level[0] if level else None
    note = ""
    for _ in range(_DEPTH):
        if not level:
            break
        if clock() - started_s > within_s:
            note = f"gave up after {within_s * 1000:.0f} ms"
            break
        targets = {id(step.thing): step for step in level}
        held = [step.thing for step in level]
        hidden |= {id(targets), id(held), id(level)}
        referrers = gc.get_referrers(*held)
        hidden.add(id(referrers))
        upper: list[_Step] = []
        hidden.add(id(upper))
        for referrer in referrers:
            identity = id(referrer)
            if identity in seen or identity in hidden or _is_scaffolding(referrer):
                continue
            seen.add(identity)
            child = _which(referrer, targets)
            if child is None:
                continue
            step = _Step(referrer, child)
            hidden.add(id(step))
            if _is_root(referrer, namespaces):
                return _describe(step, namespaces, inside, "")
            upper.append(step)
        if not upper:
            break
        upper.sort(key=_interest)
        level = upper[:_WIDTH]
        furthest = level[0]
    if furthest is None:
        return Retention([], "", note)
    return _describe(furthest, namespaces, inside, note or "held from C code or from a running frame")


def _which(referrer: Any, targets: dict[int, _Step]) -> _Step | None:
    for referent in gc.get_referents(referrer):
        step = targets.get(id(referent))
        if step is not None:
            return step
    return None


def _is_scaffolding(thing: Any) -> bool:
    """Whether an object refers to the survivors only because we, or the interpreter, are at work."""
    if issubclass(type(thing), types.FrameType):
        return is_ours(thing.f_code.co_filename)
    if type(thing) is types.CellType:
        return False
    module = getattr(type(thing), "__module__", "") if type(thing) is not type else ""
    return isinstance(module, str) and module.startswith(_ONLY_IN_FLIGHT)


def _is_root(thing: Any, namespaces: _Namespaces) -> bool:
    if type(thing) is dict:
        return id(thing) in namespaces.modules and not namespaces.modules[id(thing)].startswith("celery_trace")
    return issubclass(type(thing), type | types.ModuleType | threading.Thread)


def _interest(step: _Step) -> int:
    """What to follow first: containers and instances before frames and tracebacks."""
    if issubclass(type(step.thing), types.FrameType | types.TracebackType):
        return 2
    return 1 if type(step.thing) is tuple else 0


def _describe(step: _Step, namespaces: _Namespaces, inside: str, note: str) -> Retention:
    """Put a chain of objects, root first, in words."""
    chain = []
    walk: _Step | None = step
    while walk is not None:
        chain.append(walk.thing)
        walk = walk.child
    path: list[str] = []
    bounded = ""
    name = ""
    for index, thing in enumerate(chain):
        child = chain[index + 1] if index + 1 < len(chain) else None
        text = _node(thing, chain[index - 1] if index else None, index, namespaces)
        bounded = bounded or bound_of(thing)
        if child is None and not inside:
            path.append(_leaf(thing, chain[index - 1] if index else None, name, namespaces))
            break
        if text:
            path.append(f"{name}: {text.partition('[')[0]}" if name else text)
        if child is None:
            path.append(inside)
            break
        is_name = id(thing) in namespaces.modules or _is_namespace_of(thing, chain[index - 1] if index else None)
        edge = _edge(thing, child, is_name=is_name)
        # A namespace dict, a cell or a closure's tuple is a way through, not a place: the name goes on to the next.
        name = edge if text or edge else name
    return Retention(path, bounded, note)


def _node(thing: Any, parent: Any, index: int, namespaces: _Namespaces) -> str:
    """What an object of the chain is called; "" for those that are only a way through."""
    kind = type(thing)
    if kind is dict and id(thing) in namespaces.modules:
        return f"{namespaces.modules[id(thing)]} (module)"
    if issubclass(type(thing), types.ModuleType):
        return f"{thing.__dict__.get('__name__', '?')} (module)"
    if issubclass(type(thing), type):
        return f"{type_name(thing)} (class)"
    if issubclass(type(thing), threading.Thread):
        return f"{short_name(kind)} (thread)"
    if issubclass(type(thing), types.FunctionType):
        return f"{thing.__qualname__}() (function)"
    if issubclass(type(thing), types.MethodType):
        return f"{short_name(type(thing.__self__))}.{getattr(thing.__func__, '__name__', '?')} (bound method)"
    if issubclass(type(thing), types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
        return f"{thing.__qualname__}() (suspended {kind.__name__.replace('_', ' ')})"
    if issubclass(type(thing), types.FrameType):
        return f"{thing.f_code.co_name}() (frame)"
    if kind is _LRU:
        info = thing.cache_info()
        size = info.currsize if info.maxsize is None else f"{info.currsize}/{info.maxsize}"
        return f"lru_cache ({size})"
    if kind is types.CellType or _is_namespace_of(thing, parent) or (kind is tuple and index and len(thing) < 8):
        return ""
    if kind is dict and index == 0 and _thread_local(thing):
        return "thread local of a living thread"
    bound = bound_of(thing)
    if bound:
        return bound
    length = _length(thing)
    return f"{short_name(kind)}[{length}]" if length >= 0 and index else short_name(kind)


def _is_namespace_of(thing: Any, parent: Any) -> bool:
    """Whether a dict is merely where its parent keeps its attributes."""
    if type(thing) is not dict or parent is None:
        return False
    if issubclass(type(parent), type):
        return not any(value is thing for value in vars(parent).values())
    return type(parent) not in _SIZED and not any(value is thing for value in _attributes(parent).values())


def _thread_local(namespace: dict[Any, Any]) -> bool:
    return any(type(key) is str and key.startswith("_thread._localdummy") for key in list(namespace)[:64])


def _leaf(thing: Any, holder: Any, name: str, namespaces: _Namespaces) -> str:
    count = 1
    if id(holder) in namespaces.modules:
        return f"{name}: {short_name(type(thing))}"
    if holder is not None and _length(holder) >= 0:
        values = dict.values(holder) if issubclass(type(holder), dict) else holder
        count = sum(type(value) is type(thing) for value in list(values)) or 1
    elif name:
        return f"{name}: {short_name(type(thing))}"
    return f"{short_name(type(thing))} × {count}"


def _edge(parent: Any, child: Any, *, is_name: bool) -> str:
    """
    The name by which ``parent`` refers to ``child``: a variable, an attribute, a key that is a text.

    ``is_name`` says that the keys of ``parent`` are names in code. Any other key is data.
    """
    kind = type(parent)
    if issubclass(type(parent), dict):
        for key, value in list(parent.items()):
            if value is child:
                return "" if type(key) is not str else str(key)[:60] if is_name else key_step(key)
        return ""
    if issubclass(type(parent), type):
        return next((str(name) for name, value in list(vars(parent).items()) if value is child), "")
    if issubclass(type(parent), types.FunctionType):
        for name, cell in zip(parent.__code__.co_freevars, parent.__closure__ or (), strict=False):
            if cell is child or _content(cell) is child:
                return str(name)
        if child is parent.__closure__:
            return ", ".join(parent.__code__.co_freevars)[:60]
        if child is parent.__defaults__ or child is parent.__kwdefaults__:
            return "default argument"
        return ""
    if kind in _SIZED or kind is tuple:
        return ""
    return next((name for name, value in _attributes(parent).items() if value is child), "")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


# --- what the collector does not know -----------------------------------------------------------------


class Lengths:
    """
    The lengths of the process's containers at one moment, to see later which of them grew.

    All containers that the collector tracks, and those below the user's modules that it does not (a dict of texts
    is not tracked). Holds identities, no objects, and numbers alone: a heap has a hundred thousand of them, and what
    the collector tracks of ours would set it to work.
    """

    def __init__(self, user_modules: Callable[[str], bool], *, within_s: float = 0.08) -> None:
        self._user_modules = user_modules
        kinds = _KINDS
        # What is tracked is listed second: it is most, and comes in one go.
        self.lengths: dict[int, int] = {id(thing): _reading(thing) for thing in self._below_modules(within_s)}
        self.lengths.update(
            {
                id(thing): len(thing) << _KIND_BITS | kind
                for thing in gc.get_objects()
                if (kind := kinds.get(type(thing))) is not None and len(thing) > 3
            }
        )

    def _below_modules(self, within_s: float) -> Iterable[Any]:
        until_s = time.thread_time() + within_s
        queue: deque[tuple[Any, int]] = deque()
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) if type(module) is types.ModuleType else None
            if file and self._user_modules(file):
                queue.append((vars(module), 0))
        seen: set[int] = set()
        while queue:
            thing, depth = queue.popleft()
            if len(seen) > 30_000 or (not len(seen) % 512 and time.thread_time() > until_s):
                return
            for child in gc.get_referents(thing):
                if id(child) in seen or issubclass(type(child), types.ModuleType | types.CodeType):
                    continue
                kind = type(child)
                seen.add(id(child))
                if kind in _SIZED or kind is _LRU:
                    yield child
                if depth < 5 and (kind not in _SIZED or len(child) < 2_000) and kind not in _TEXT:
                    queue.append((child, depth + 1))

    def grown(self, least: int, *, ignore: Iterable[Any] = ()) -> list[tuple[Any, int]]:
        """Containers that are longer now by at least ``least`` entries, with by how many, most first."""
        earlier, kinds, step = self.lengths, _KINDS, least << _KIND_BITS
        # Another container may live at the same address by now; mostly it is of another type, and its reading ends
        # in other bits.
        things = [
            thing
            for thing in gc.get_objects()
            if (before := earlier.get(id(thing))) is not None
            and (kind := kinds.get(type(thing))) is not None
            and before & _KIND_MASK == kind
            and (len(thing) << _KIND_BITS) - before >= step - kind
        ]
        things += self._below_modules(0.08)
        seen = {id(earlier), id(things), id(ignore)} | {id(thing) for thing in ignore}
        seen.add(id(seen))
        found: list[tuple[Any, int]] = []
        for thing in things:
            before = earlier.get(id(thing))
            if before is None or id(thing) in seen or (_reading(thing) ^ before) & _KIND_MASK:
                continue
            seen.add(id(thing))
            gained = measure(thing) - (before >> _KIND_BITS)
            if gained >= least:
                found.append((thing, gained))
        return sorted(found, key=lambda pair: -pair[1])


class BoundedCaches:
    """
    How full each ``lru_cache`` and ``deque`` with a bound is at one moment, to see later which of them was filling.

    One pass over what the collector tracks: some 50 ms for a million objects.

    Args:
        run_number: When it was, for the caller.
    """

    def __init__(self, run_number: int) -> None:
        self.run_number = run_number
        self._entries = {id(cache): measure(cache) for cache in self._all()}

    @staticmethod
    def _all() -> list[Any]:
        kinds = (_LRU, deque)
        return [thing for thing in gc.get_objects() if type(thing) in kinds and bound_of(thing)]

    def filled(self, least: int) -> str:
        """The bound of the cache that gained most entries since, at least so many; empty where there is none."""
        gained = [(measure(cache) - self._entries.get(id(cache), 0), cache) for cache in self._all()]
        most, cache = max(gained, key=lambda entry: entry[0], default=(0, None))
        return bound_of(cache) if cache is not None and most >= least else ""


def _reading(thing: Any) -> int:
    """A container's length, and in the lowest bits which type it is of."""
    return measure(thing) << _KIND_BITS | _KINDS.get(type(thing), _KIND_MASK)


def measure(thing: Any) -> int:
    """How many entries a container of a known type holds, or a cache."""
    return int(thing.cache_info().currsize) if type(thing) is _LRU else len(thing)


def sample_of(container: Any, count: int) -> list[Any]:
    """The last entries of a container: the values of a dict, the items of anything else."""
    if issubclass(type(container), dict):
        return [value for _, value in zip(range(count), reversed(container.values()), strict=False)]
    if issubclass(type(container), list | deque):
        return [value for _, value in zip(range(count), reversed(container), strict=False)]
    if issubclass(type(container), set):
        return [value for _, value in zip(range(count), container, strict=False)]
    return []


def content_types(container: Any, gained: int) -> list[TypeCount]:
    """What a grown container gained, by type, judged by its last entries."""
    if issubclass(type(container), bytearray):
        return [TypeCount(short_name(type(container)), 1, gained)]
    entries = sample_of(container, min(gained, 500))
    rows: dict[type, list[int]] = {}
    for entry in entries:
        row = rows.setdefault(type(entry), [0, 0])
        row[0] += 1
        row[1] += size_of(entry)
    factor = gained / len(entries) if entries else 1.0
    counts = [
        TypeCount(type_name(kind), round(count * factor), round(total * factor))
        for kind, (count, total) in rows.items()
    ]
    return sorted(counts, key=lambda row: -row.bytes)
