"""The log records of a run before its failure."""

from __future__ import annotations

from msgspec import Struct


class LogLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One log record of a run, redacted.

    Attributes:
        at_s: Seconds since the epoch.
        cut: How many characters of its text are left out.
    """

    at_s: float
    level: str
    logger: str
    text: str
    file: str = ""
    line: int = 0
    cut: int = 0


class LogTail(Struct, frozen=True):
    """The last log records of a run, oldest first, and how many earlier ones are not kept."""

    lines: list[LogLine]
    left_out: int
