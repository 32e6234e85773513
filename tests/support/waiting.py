"""Waiting for something to become true, with a deadline and a reason when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


class NotInTime(AssertionError):
    """What a test waited for did not happen before its deadline."""


def wait_until(
    look: Callable[[], Value],
    what: str,
    *,
    timeout_s: float = 60.0,
    every_s: float = 0.05,
    explain: Callable[[], str] | None = None,
) -> Value:
    """
    Look again and again until the answer is true.

    Args:
        look: Gives a true value once it has happened; what it raises passes through.
        what: The thing waited for, for the message.
        explain: Called when time is up; its text (a log's end, say) is added to the message.

    Returns:
        The first true answer.

    Raises:
        NotInTime: The deadline passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            reason = f"\n{explain()}" if explain else ""
            raise NotInTime(f"{what}: not within {timeout_s:g} s; the last look gave {answer!r}.{reason}")
        time.sleep(every_s)
