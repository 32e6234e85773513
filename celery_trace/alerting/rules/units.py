"""The units of a rule's threshold: how it is parsed, shown, and written in a form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from celery_trace.text.format import duration, percent, size
from celery_trace.text.parse import (
    read_bytes,
    read_seconds,
    read_share,
    read_whole,
    written_bytes,
    written_seconds,
    written_share,
)

TIME = "a time: seconds, or text such as '30s', '10m', '4h', '2d' (at most 366d)"


class Unit(NamedTuple):
    """A unit of ``above``."""

    name: str
    parse: Callable[[object], float | None]  # None: not allowed
    allowed: str
    in_words: Callable[[float], str]
    exact: Callable[[float], str]  # text that ``parse`` reads back
    hint: str  # examples for a form


def _exact_count(value: float) -> str:
    return str(int(value))


BYTES = Unit(
    "bytes", read_bytes, "a size: bytes, or text such as '512 B', '100 KiB', '1.5 GiB'", size, written_bytes,
    "a size: 512 B, 1.5 GiB",
)  # fmt: skip
SHARE = Unit(
    "share", read_share, "a share: a number from 0 to 1, or text such as '20%'", percent, written_share, "a share: 20%"
)
COUNT = Unit("count", read_whole, "a whole number, 0 or greater", "{:g}".format, _exact_count, "a whole number: 0")
SECONDS = Unit("seconds", read_seconds, TIME, duration, written_seconds, "a time: 15m, 24h")
