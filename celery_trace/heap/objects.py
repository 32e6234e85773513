"""
Reads any object without running its code: its type, length, bound, attributes, contents and size.

A user's class may define ``__class__``, ``__len__``, ``__eq__`` or a metaclass with code of its own, so that even
``isinstance`` could run it.
"""

from __future__ import annotations

import functools
import gc
import math
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from typing import Final, TypeGuard, TypeVar

T = TypeVar("T")

#: Containers of which the length may be read: exactly these types, as a subclass may have a ``__len__`` of its own.
_SIZED: Final = (dict, list, set, frozenset, tuple, deque, OrderedDict, defaultdict, bytearray)
_DICTS: Final = (dict, OrderedDict, defaultdict)
LRU: Final = type(functools.lru_cache(lambda: None))
_HEAP_TYPE: Final = 1 << 9
#: Read from a class without calling its metaclass, which may have code of its own.
_flags_of: Final = type.__dict__["__flags__"].__get__
_bases_of: Final = type.__dict__["__mro__"].__get__
module_of: Final = type.__dict__["__module__"].__get__
_qualname_of: Final = type.__dict__["__qualname__"].__get__
namespace_of: Final = type.__dict__["__dict__"].__get__
#: And from a module, which may load itself when an attribute is read.
globals_of: Final[Callable[[object], dict[str, object]]] = vars(types.ModuleType)["__dict__"].__get__
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


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """``isinstance``, without reading the object's ``__class__``."""
    return issubclass(type(thing), kind)


def is_dict(thing: object) -> TypeGuard[dict[object, object]]:
    """Whether it is exactly a kind of dict without code of the user's."""
    return _is_one_of(type(thing), _DICTS)


def is_sized(thing: object) -> TypeGuard[Collection[object]]:
    """Whether its length may be read; see :data:`_SIZED`."""
    return _is_one_of(type(thing), _SIZED)


def _is_one_of(kind: type, kinds: tuple[type, ...]) -> bool:
    """``kind in kinds``, without calling a metaclass's equality or hash."""
    return any(kind is one for one in kinds)


def type_name(kind: type) -> str:
    """Module and qualified name of a type; the name alone for a built-in one."""
    module, name = module_of(kind), str(_qualname_of(kind))
    return name if type(module) is not str or module == "builtins" else f"{module}.{name}"


def short_name(kind: type) -> str:
    """The type's name without its module."""
    return type_name(kind).rpartition(".")[2]


def attributes(thing: object) -> dict[str, object]:
    """An instance's own attributes, without running any of its code."""
    if not _flags_of(type(thing)) & _HEAP_TYPE or issubclass(type(thing), type | types.ModuleType):
        return {}
    found = {name: value for name, value in (attributes_in_dict(thing) or {}).items() if type(name) is str}
    for base in _bases_of(type(thing)):
        for name, slot in list(namespace_of(base).items()):
            if type(slot) is types.MemberDescriptorType and name not in found:
                try:
                    found[name] = slot.__get__(thing)
                except AttributeError:
                    continue
    return found


def attributes_in_dict(thing: object) -> dict[object, object] | None:
    """The real ``__dict__`` of an instance; a class may define that name otherwise, as proxies do."""
    if not _flags_of(type(thing)) & _HEAP_TYPE:
        return None
    for base in _bases_of(type(thing)):
        slot = namespace_of(base).get("__dict__")
        if type(slot) is types.GetSetDescriptorType:
            found = slot.__get__(thing)
            return found if type(found) is dict else None
    return None


def entries_of(container: object) -> list[object]:
    """The values of a dict or the items of another known container; empty for anything else."""
    if is_dict(container):
        return list(dict.values(container))
    return list(container) if is_sized(container) and type(container) is not bytearray else []


def length_of(thing: object) -> int:
    """The entries of a known kind of container or a cache; -1 for others, as their ``__len__`` may run code."""
    if type(thing) is LRU:
        return int(thing.cache_info().currsize)
    return len(thing) if is_sized(thing) else -1


def bound_of(thing: object) -> tuple[str, bool]:
    """The bound of a holder as text, such as ``lru_cache (300/500)``, and whether it is reached; empty without one."""
    if type(thing) is LRU:
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


def count_of(holder: object, kind: type) -> int:
    if type(holder) is LRU:
        return length_of(holder)
    return sum(type(entry) is kind for entry in entries_of(holder)) or 1


def types_in(entries: list[object], holder: object, item: object) -> list[tuple[str, int, int]]:
    """The types of a container's contents; for any other holder, of what was found."""
    if type(holder) is LRU:
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
