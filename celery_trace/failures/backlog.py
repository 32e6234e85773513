"""
Failures that repeat wait for each other, up to a dozen or so, and are written one right behind the other.

Between two tasks the processor forgets us; what one record costs is then several times what it costs in a row of them.
Until it is written, a failure stands in the black box with its task and its id, so that not even a killed process
leaves one out. See ``docs/decisions/0018-failures-in-a-row.md``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.failures.repeats import Repeat
from celery_trace.guard import swallow
from celery_trace.model import Outcome
from celery_trace.process.blackbox import BlackBox

#: So many wait at most.
_MOST: Final = 16
#: Values of these types are what they are for ever, and hold on to nothing.
_PLAIN: Final[frozenset[type]] = frozenset({type(None), bool, int, float, str})
#: Arguments, and characters of each, that a failure which waits may hold on to.
_MOST_ARGUMENTS: Final = 50
_MOST_CHARACTERS: Final = 1024


class Waiting(NamedTuple):
    """One failure, as it was seen."""

    repeat: Repeat
    name: str
    task_id: str
    retries: int
    outcome: Outcome
    arguments: Arguments
    request: Any
    at_s: float
    duration_s: float | None
    note: str = ""


def may_wait(args: Any, kwargs: Any) -> bool:
    """Whether a run's arguments are the same later: plain values, which nobody can change."""
    if type(args) is not tuple and type(args) is not list:
        return False
    named: Mapping[Any, Any] = kwargs if type(kwargs) is dict else {}
    if kwargs and not named:
        return False
    if len(args) + len(named) > _MOST_ARGUMENTS:
        return False
    try:
        values = [*args, *chain.from_iterable(named.items())] if named else args
        return _PLAIN.issuperset(map(type, values)) and not any(
            type(value) is str and len(value) > _MOST_CHARACTERS for value in values
        )
    except RuntimeError:  # another thread changes them
        return False


class Backlog:
    """
    The failures of one process that wait. Safe across threads.

    Args:
        box: Says of each that it waits, should the process be killed.
        write: Writes one.
    """

    def __init__(self, box: BlackBox, write: Callable[[Waiting], None]) -> None:
        self._box = box
        self._write = write
        self._waiting: deque[tuple[int, Waiting]] = deque()
        self._lock = threading.RLock()

    def add(self, waiting: Waiting) -> bool:
        """Have the failure of this thread's run wait. False, with nothing done, if it can't."""
        place = self._box.failed()
        if place is None:
            return False
        self._waiting.append((place, waiting))
        if len(self._waiting) >= _MOST:
            self.flush()
        return True

    def flush(self) -> None:
        """
        Write what waits.

        Raises:
            SoftTimeLimitExceeded: It struck meanwhile, and is the task's; what is not yet written still waits.
        """
        if not self._waiting:
            return
        with self._lock:
            while self._waiting:
                first = self._waiting[0]
                place, waiting = first
                try:
                    self._write(waiting)
                except Exception as error:
                    swallow("writing a failure that waited", error)
                # Written before it is taken out: twice is one in the store. A finalizer may have come in between.
                if self._waiting and self._waiting[0] is first:
                    self._waiting.popleft()
                    self._box.told(place)
