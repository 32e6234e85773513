"""
How a container has filled, by the order of its entries.

A list has its oldest entries first, and so has a dict. Some of its entries were sampled, so the runs that added these
are known, and each one's position is the exact number of entries before it. So even the first search for a holder shows
how many entries each half of the runs has added, without an error of sampling: a table that fills with keys adds fewer
and fewer, a leak does not.
"""

from __future__ import annotations

import gc
import types
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from celery_trace.heap.objects import is_dict
from celery_trace.model import EntryGrowth

#: Entries of which the order is read.
MOST_ENTRIES: Final = 20_000
#: Entries that are looked into if too few of them are sampled blocks themselves.
MOST_OPENED: Final = 1_000
#: Sampled entries, and runs between the first and the last of them, that it takes.
FEWEST_POINTS: Final = 6
FEWEST_RUNS: Final = 40
#: The share of neighbours that may be in the wrong order: an entry may have been replaced.
DISORDER: Final = 0.1
#: Bytes between the start of a block and the object in it: none, or one or two headers.
_HEADERS: Final = (0, 16, 32)

#: The run that a sampled entry was born in, and its position.
Point = tuple[int, int]


def births_by_object(born: Mapping[int, int]) -> dict[int, int]:
    """The runs of blocks, by the addresses at which an object in them may begin."""
    return {address + header: run for address, run in born.items() for header in _HEADERS}


def entry_growth(holder: object, births: Mapping[int, int]) -> EntryGrowth | None:
    """
    How many entries each half of the runs has added to a container.

    Args:
        holder: A list, deque or dict; None is returned for others.
        births: The runs that sampled objects were born in, by address.
    """
    entries = _entries(holder)
    points = [(run, at) for at, parts in enumerate(entries) if (run := _run_of(parts, births)) is not None]
    if len(points) < FEWEST_POINTS and len(entries) <= MOST_OPENED:
        opened = ([*parts, *gc.get_referents(*parts)] for parts in entries)
        points = [(run, at) for at, parts in enumerate(opened) if (run := _run_of(parts, births)) is not None]
    return growth_by(points)


def growth_by(points: Sequence[Point]) -> EntryGrowth | None:
    """The entries of both halves of the runs between some points; None if these are too few, or in no order."""
    if len(points) < FEWEST_POINTS:
        return None
    disordered = sum(later < earlier for (earlier, _), (later, _) in pairwise(points))
    points = sorted(points)
    (first_run, first), (last_run, last) = points[0], points[-1]
    if disordered > DISORDER * len(points) or last_run - first_run < FEWEST_RUNS or last <= first:
        return None
    early = round(_position_at((first_run + last_run) / 2, points)) - first
    return EntryGrowth(early=max(0, early), late=max(0, last - first - early), runs=last_run - first_run)


def _position_at(run: float, points: Sequence[Point]) -> float:
    """The number of entries by a run, between the points around it."""
    (before_run, before), (after_run, after) = next(
        (one, other) for one, other in pairwise(points) if one[0] <= run <= other[0]
    )
    return before + (after - before) * (run - before_run) / (after_run - before_run or 1)


def _entries(holder: object) -> list[tuple[object, ...]]:
    """The entries of a container in their order; those of a dict with their keys."""
    if is_dict(holder):
        return [*dict.items(holder)] if len(holder) <= MOST_ENTRIES else []
    if type(holder) is list or type(holder) is deque:
        return [(entry,) for entry in holder] if len(holder) <= MOST_ENTRIES else []
    return []


def _run_of(parts: Iterable[object], births: Mapping[int, int]) -> int | None:
    """The run in which the first of some objects was born that was sampled."""
    return next((births[id(part)] for part in parts if id(part) in births), None)


def evicts(step: str, codes: Iterable[types.CodeType]) -> bool:
    """
    Whether code removes entries of a container with ``popitem``, as that of caches with a limit does.

    Args:
        step: The container's step in the path, such as ``_pages: OrderedDict[40]``.
        codes: The functions that allocated what it holds.
    """
    name = step.partition(": ")[0]
    return any("popitem" in code.co_names and name in code.co_names for code in codes)
