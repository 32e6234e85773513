"""
Observes soft time limits, also those that the task catches.

The pool sends the process a signal, and billiard's handler raises ``SoftTimeLimitExceeded()`` in the task. Replaced is
the name that the handler calls to make the error. The handler and the traceback stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from celery_trace.guard import report


def install(reached: Callable[[FrameType], None]) -> Callable[[], None] | None:
    """
    Call ``reached`` with the frame that a soft time limit interrupts, in this pool process.

    It is called from a signal handler, in the middle of any code of this thread.

    Returns:
        A function that undoes it; None, with nothing changed, if this version of billiard works differently.
    """
    from billiard import pool  # loaded by any pool process

    made = getattr(pool, "SoftTimeLimitExceeded", None)
    if not isinstance(made, type) or not callable(getattr(pool, "soft_timeout_sighandler", None)):
        return None

    def make(*args: object) -> object:
        try:
            handler = sys._getframe(1)
            if handler.f_code.co_name == "soft_timeout_sighandler" and handler.f_back is not None:
                reached(handler.f_back)
        except Exception as error:
            report("soft time limit", error)
        return made(*args)

    def undo() -> None:
        if pool.SoftTimeLimitExceeded is make:
            pool.SoftTimeLimitExceeded = made

    pool.SoftTimeLimitExceeded = make
    return undo
