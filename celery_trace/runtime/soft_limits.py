"""
Hears when a soft time limit strikes, also where the task catches the error and goes on.

The pool sends a signal to the process, whose handler in billiard raises ``SoftTimeLimitExceeded()`` in the task. What
is replaced here is the name by which that handler makes the error. The handler and the traceback stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery_trace.guard import report


def hear(struck: Callable[[FrameType], None]) -> Callable[[], None] | None:
    """
    Call ``struck`` with the frame that a soft time limit interrupts, in this pool process.

    It is called from a signal handler: it may find any code of this thread half-way through.

    Returns:
        What undoes it; None, with nothing changed, where this billiard does it in another way.
    """
    from billiard import pool  # loaded by any pool process

    made = getattr(pool, "SoftTimeLimitExceeded", None)
    if not isinstance(made, type) or not callable(getattr(pool, "soft_timeout_sighandler", None)):
        return None

    def make(*args: Any) -> Any:
        try:
            handler = sys._getframe(1)
            if handler.f_code.co_name == "soft_timeout_sighandler" and handler.f_back is not None:
                struck(handler.f_back)
        except Exception as error:
            report("soft time limit", error)
        return made(*args)

    def undo() -> None:
        if pool.SoftTimeLimitExceeded is make:
            pool.SoftTimeLimitExceeded = made

    pool.SoftTimeLimitExceeded = make
    return undo
