"""
Estimates the memory of a group of objects, in bounded time and without running the user's code.

``sys.getsizeof`` would call a class's own ``__sizeof__``; only those written in C are called here. Long containers are
sampled and scaled, so the result is an estimate, and too low for memory hidden in C code.
"""

from __future__ import annotations

import gc
import time
import types
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

from celery_trace.failures.capture.anatomy import mro, namespace

#: Limits of one estimate: objects, and seconds.
OBJECTS = 4000
TIME_S = 0.002
_SAMPLE = 200
_TYPICAL_BYTES = 1024
# Objects shared with the rest of the process are not kept alive by us.
_SHARED = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)
# By identity: comparing or hashing a type would run its metaclass.
_CONTAINERS = frozenset(map(id, (list, tuple, dict, set, frozenset, deque)))


def estimate_bytes(values: Iterable[object]) -> int:
    """Estimated bytes of the values and all objects that they refer to, each object once."""
    deadline_s = time.perf_counter() + TIME_S
    seen: set[int] = set()
    todo: deque[tuple[Any, float]] = deque((value, 1.0) for value in values)
    total = typical = weights = 0.0
    looked = 0
    while todo and looked < OBJECTS:
        value, weight = todo.popleft()
        kind = type(value)
        # Never isinstance: it reads the object's __class__, on which a lazy proxy would load its object.
        if id(value) in seen or issubclass(kind, _SHARED):
            continue
        seen.add(id(value))
        looked += 1
        size = shallow_bytes(value)
        total += weight * size
        typical += weight * min(size, _TYPICAL_BYTES)
        weights += weight
        if looked % 64 == 0 and time.perf_counter() > deadline_s:
            break
        if id(kind) in _CONTAINERS or issubclass(kind, dict):
            length = len(value) if id(kind) in _CONTAINERS else dict.__len__(value)
            if not length:
                continue
            share = weight * length / min(length, _SAMPLE)
            if issubclass(kind, dict):
                sample = list(islice((item for pair in dict.items(value) for item in pair), 2 * _SAMPLE))
            else:
                sample = list(islice(kind.__iter__(value), _SAMPLE))
            todo.extend((item, share) for item in sample)
        elif gc.is_tracked(value):
            todo.extend((item, weight) for item in gc.get_referents(value))
    if todo and weights:
        # Objects that were not visited are assumed to be as large as the others, except the few large ones.
        total += typical / weights * sum(weight for _value, weight in todo)
    return int(total)


def shallow_bytes(value: object) -> int:
    """The size of one object itself, from its C code; 64 if only a user's method could tell."""
    for base in mro(type(value)):
        found = namespace(base).get("__sizeof__")
        if found is None:
            continue
        if not isinstance(found, types.MethodDescriptorType | types.WrapperDescriptorType):
            return 64
        try:
            return int(found(value))
        except Exception:
            return 64
    return 64
