"""
The task always wins: one guard around all of our code in the user's process.

An error inside a guarded body is counted, logged once per place, and swallowed. Exceptions for the task pass through: a
soft time limit, a ``SystemExit`` or a ``KeyboardInterrupt`` that is raised while we measure.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger("celery_trace")

#: How often a failed start is retried, seconds.
AGAIN_S = 10.0

#: How often our own code failed, by place. Shown on the monitor's statistics.
own_errors: Counter[str] = Counter()


def _belongs_to_the_task(error: BaseException) -> bool:
    """Whether an exception is meant for the task: a signal handler may raise a time limit inside our code."""
    if not isinstance(error, Exception):
        return True
    return type(error).__name__ == "SoftTimeLimitExceeded"


class Guard:
    """
    A context manager that keeps our errors from the task.

    Reusable and re-entrant; it has no state. ``place`` is the name of the body
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
    Report an error of our code before a run; an exception for the task is raised again.

    Raises:
        SoftTimeLimitExceeded: The ``error``: it was meant for the task, which has not begun yet.
    """
    if _belongs_to_the_task(error):
        raise error
    report(place, error)


def report(place: str, error: BaseException, what_next: str = "Further ones are only counted") -> None:
    """
    Count an error of ours and log it, in full, the first time that this place fails.

    Args:
        place: What failed.
        error: How.
        what_next: A sentence without its period.
    """
    own_errors[place] += 1
    if own_errors[place] == 1:
        logger.warning(
            "celery-trace: %s failed (%s: %s). The task is not affected. %s.",
            place,
            type(error).__name__,
            error,
            what_next,
            exc_info=error,
        )


class Beginnings:
    """
    Starts parts of ours; each that fails is retried until it succeeds.

    Logs at most two lines for a part: that it failed, and that it works.
    """

    def __init__(self) -> None:
        self._failed: dict[str, tuple[Callable[[], object], int]] = {}

    @property
    def waiting(self) -> bool:
        """Whether something is still to be retried."""
        return bool(self._failed)

    def begin(self, part: str, make: Callable[[], object]) -> bool:
        """
        Start a part now. Returns whether that succeeded.

        Raises:
            BaseException: One that is meant for the task.
        """
        try:
            make()
        except BaseException as error:
            if _belongs_to_the_task(error):
                raise
            report(part, error, f"It is retried every {AGAIN_S:.0f} s")
            _, tries = self._failed.get(part, (make, 0))
            self._failed[part] = make, tries + 1
            return False
        _, tries = self._failed.pop(part, (make, 0))
        if tries:
            logger.warning("celery-trace: %s works now, after %d failed attempts.", part, tries)
        return True

    def again(self) -> None:
        """Retry what has failed; called every :data:`AGAIN_S`."""
        for part, (make, _) in list(self._failed.items()):
            self.begin(part, make)
