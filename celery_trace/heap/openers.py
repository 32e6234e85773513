"""
The line that opened what was not closed: files, sockets, threads, child processes and event loops.

The kernel counts them but knows no lines. Each is held by a Python object that has parts of its own, and some of these
are in the heap sample, with the line that allocated them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from celery_trace.heap.picks import Pick, Stack
from celery_trace.heap.retainers import Referrers
from celery_trace.text.code_owner import CodeOwner, is_our_own

#: The types of the objects, by module and name; a module that was not imported has made none.
_TYPES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "fds": (
        ("_io", "FileIO"),
        ("_io", "_BufferedIOBase"),
        ("_io", "TextIOWrapper"),
        ("_socket", "socket"),
        ("select", "epoll"),
        ("mmap", "mmap"),
        ("selectors", "_BaseSelectorImpl"),
        ("subprocess", "Popen"),
        ("asyncio.base_events", "BaseEventLoop"),
        ("multiprocessing.connection", "_ConnectionBase"),
        ("sqlite3", "Connection"),
    ),
    "threads": (
        ("threading", "Thread"),
        ("concurrent.futures.thread", "ThreadPoolExecutor"),
        ("multiprocessing.pool", "Pool"),
    ),
    "children": (
        ("subprocess", "Popen"),
        ("multiprocessing.process", "BaseProcess"),
        ("billiard.process", "BaseProcess"),
        ("asyncio.base_subprocess", "BaseSubprocessTransport"),
    ),
}
#: Functions of the standard library below which parts of such an object are made.
_MAKERS: Final[dict[str, frozenset[str]]] = {
    "fds": frozenset({
        "socket.__init__", "create_connection", "socketpair", "socket.accept", "SSLSocket._create", "Popen.__init__",
        "BaseEventLoop.__init__", "BaseSelectorEventLoop.__init__", "_BaseSelectorImpl.__init__",
        "EpollSelector.__init__", "NamedTemporaryFile", "TemporaryFile", "Path.open", "Pipe",
    }),
    "threads": frozenset({"Thread.__init__", "Thread.start", "ThreadPoolExecutor._adjust_thread_count"}),
    "children": frozenset({"Popen.__init__", "BaseProcess.__init__", "BaseProcess.start"}),
}  # fmt: skip
#: Picks that are examined, the youngest ones, and referrers of each.
_MOST_PICKS: Final = 400
_MOST_REFERRERS: Final = 3
#: A line counts with so many of them, and this share of all.
_LEAST: Final = 2
_SHARE: Final = 0.5

RESOURCES: Final = frozenset(_TYPES)


class _Made(NamedTuple):
    """A pick that belongs to such an object."""

    place: tuple[str, int]
    stack: Stack


def opened_at(
    resource: str, picks: Iterable[Pick], stack_of: Callable[[int], Stack], referrers: Referrers, own: CodeOwner
) -> Stack:
    """
    Where most of the objects that hold a resource were made.

    Args:
        resource: One of :data:`RESOURCES`.
        picks: Survivors of the task, or of all tasks if the resource is not attributed to one.
        stack_of: The stack of a pick, by its number.
        referrers: The pass over the heap.
        own: Recognises the user's own files.

    Returns:
        The stack of one of them, the innermost frame first; empty if no line dominates.
    """
    youngest = sorted(picks, reverse=True)[:_MOST_PICKS]
    held = _held_by(resource, youngest, referrers)
    made: list[_Made] = []
    for pick in youngest:
        stack = stack_of(pick.stack)
        lines = tuple((file, line) for file, line, _ in stack)
        if not lines or is_our_own(lines):
            continue
        first = own.first(lines)
        if pick.address in held or any(function in _MAKERS[resource] for _, _, function in stack[:first]):
            made.append(_Made(lines[first], stack))
    if not made:
        return ()
    place, number = Counter(one.place for one in made).most_common(1)[0]
    if number < max(_LEAST, _SHARE * len(made)):
        return ()
    return next(one.stack for one in made if one.place == place)


def _held_by(resource: str, picks: Sequence[Pick], referrers: Referrers) -> set[int]:
    """The addresses of the picks that are such an object, or are held by one."""
    kinds = tuple(kind for module, name in _TYPES[resource] if (kind := getattr(sys.modules.get(module), name, None)))
    matches = referrers([(pick.address, pick.size) for pick in picks], _MOST_REFERRERS, False) if picks else []
    return {address for address, thing, referrer in matches if _is_one(thing, kinds) or _is_one(referrer, kinds)}


def _is_one(thing: object, kinds: tuple[type, ...]) -> bool:
    """``isinstance``, without reading the object's ``__class__``."""
    return any(kind in type.__dict__["__mro__"].__get__(type(thing)) for kind in kinds)
