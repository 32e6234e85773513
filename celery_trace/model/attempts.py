"""The tries of one message: each execution that is known, with its outcome."""

from __future__ import annotations

from msgspec import Struct


class Attempt(Struct, kw_only=True):
    """
    One execution of a task's message.

    ``retries`` is 0 for the first try; a message that is delivered again is executed again with the same number.
    ``outcome`` is ``succeeded``, ``running``, ``unknown`` or one of a failure. Times are seconds since the epoch, None
    if unknown.
    """

    retries: int
    outcome: str = "unknown"
    started_at: float | None = None
    ended_at: float | None = None
    redelivered: bool = False
    worker: str = ""
    pid: int = 0
    failure: str = ""  # the id of its failure
    run: str = ""  # the id of its single run
    error: str = ""  # its exception in one line
