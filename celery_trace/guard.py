"""
The task always wins: one guard around everything that we do in somebody else's process.

Whatever goes wrong inside a guarded body is ours alone: it is counted, logged once
per place, and swallowed. What is *theirs* passes through: a soft time limit, a
``SystemExit`` or a ``KeyboardInterrupt`` that lands while we measure belongs to the task.
"""

from __future__ import annotations

import logging
from collections import Counter
from types import TracebackType

logger = logging.getLogger("celery_trace")

#: How often our own code failed, by place. Shown on the monitor's statistics.
own_errors: Counter[str] = Counter()


def _belongs_to_the_task(error: BaseException) -> bool:
    """A time limit raised by a signal handler inside our code was meant for the task, not for us."""
    if not isinstance(error, Exception):
        return True
    return type(error).__name__ == "SoftTimeLimitExceeded"


class Guard:
    """
    A context manager that keeps our errors from the task.

    Reusable and re-entrant; it holds no state of the body. ``place`` names the body
    in the log and in :data:`own_errors`.
    """

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        if _belongs_to_the_task(error):
            return False
        report(self.place, error)
        return True


def swallow(place: str, error: Exception) -> None:
    """
    Report an error that came up in code of ours before a run; what belongs to the task is raised again.

    Raises:
        SoftTimeLimitExceeded: As ``error``: it was meant for the task, which has not begun yet.
    """
    if _belongs_to_the_task(error):
        raise error
    report(place, error)


def report(place: str, error: BaseException) -> None:
    """Count an error of ours and log it, in full, the first time that this place fails."""
    own_errors[place] += 1
    if own_errors[place] == 1:
        logger.warning(
            "celery-trace: %s failed (%s: %s). The task is not affected; more of the same are only counted.",
            place,
            type(error).__name__,
            error,
            exc_info=error,
        )
