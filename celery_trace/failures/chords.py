"""The chords that a process's tasks belong to, from their requests."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from celery_trace.clock import Clock
from celery_trace.failures.celery_request import field, text
from celery_trace.model import Chord

#: Chords of which it is remembered that they were written.
_MOST_KNOWN: Final = 1000
#: Members of one record, and values that are read to find them.
_MOST_MEMBERS: Final = 500
_MOST_READ: Final = 5000
_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ChordNotes:
    """
    Writes each chord of this process once.

    Args:
        write: Takes the records.
        clock: Their time.
    """

    def __init__(self, write: Callable[[Chord], None], clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._known: OrderedDict[str, None] = OrderedDict()

    def unlock(self, request: object) -> None:
        """A ``celery.chord_unlock`` looks again later."""
        unlock = text(field(request, "id"))
        if not self._is_new(unlock):
            return
        args, kwargs = field(request, "args"), field(request, "kwargs")
        args = list(args) if isinstance(args, list | tuple) else []
        kwargs = kwargs if isinstance(kwargs, Mapping) else {}
        body = args[1] if len(args) > 1 else kwargs.get("callback")
        members, complete = _ids_below(kwargs.get("result"))
        self._note(request, text(args[0]) if args else text(kwargs.get("group_id")), body, members, complete, unlock)

    def member(self, request: object, task_id: str) -> None:
        """A member of a chord lasts, or has failed. Other tasks are not noted."""
        body = field(request, "chord")
        if body and self._is_new(task_id):
            self._note(request, text(field(request, "group")), body, [task_id[:200]], False, "")

    def _is_new(self, task_id: str) -> bool:
        if not task_id or task_id in self._known:
            return False
        self._known[task_id] = None
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return True

    def _note(self, request: object, group: str, body: object, members: list[str], complete: bool, unlock: str) -> None:
        body = body if isinstance(body, Mapping) else {}
        options = body.get("options")
        self._write(
            Chord(
                group=group[:200],
                at_s=self._clock.now_s(),
                root_id=(text(field(request, "trace_request")) or text(field(request, "root_id")))[:200],
                unlock=unlock[:200],
                body=text(body.get("task"))[:200],
                body_id=text(options.get("task_id") if isinstance(options, Mapping) else None)[:200],
                members=members,
                complete=complete,
            )
        )


def _ids_below(value: object) -> tuple[list[str], bool]:
    """The ids of tasks in nested lists, and whether these are all."""
    found: dict[str, None] = {}
    left, read = [value], 0
    while left and read < _MOST_READ and len(found) < _MOST_MEMBERS:
        one = left.pop()
        read += 1
        if isinstance(one, list | tuple):
            left.extend(reversed(one[:_MOST_READ]))
        elif isinstance(one, str) and _ID.fullmatch(one):
            found[one] = None
    return list(found), not left and bool(found)
