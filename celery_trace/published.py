"""
When a message was published: a header that publishers add, and what readers make of it.

Anybody who can publish can write any value into a header, and the clocks of two hosts differ. So a value that can't be
a time of this message is refused, and a time that is a little ahead of the reader's clock counts as now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

#: The header: seconds since the epoch. Also an attribute of the task's ``request``.
HEADER: Final = "trace_published"
#: Clocks of two hosts differ by less than this; a header that is further ahead is forged, seconds.
SKEW_S: Final = 300.0
#: No message waits for longer than this, seconds.
OLDEST_S: Final = 400 * 86_400.0

#: What a header can be instead of a time, as counted: a value that is no time, and a clock that is ahead.
REFUSED, AHEAD = "header_refused", "clock_ahead"


class Waiting(NamedTuple):
    """
    Since when a message waits to be run.

    Attributes:
        since_s: When it was published, seconds since the epoch, or its ETA if that is later, which may be in the
            future; None if it is unknown.
        problem: :data:`REFUSED`, :data:`AHEAD` or empty.
    """

    since_s: float | None
    problem: str = ""


def stamp(headers: dict[str, object]) -> None:
    """Add the header. A retry carries the header of the message before it, which is replaced."""
    headers[HEADER] = time.time()


def waiting(headers: Mapping[str, object], eta_s: float | None, now_s: float) -> Waiting:
    """
    Since when a message waits.

    Args:
        headers: The message's.
        eta_s: Its ETA, seconds since the epoch.
        now_s: The reader's clock, seconds since the epoch.
    """
    sent_s, problem = published_s(headers, now_s)
    return Waiting(sent_s if sent_s is None or eta_s is None else max(sent_s, eta_s), problem)


def published_s(headers: Mapping[str, object], now_s: float) -> tuple[float | None, str]:
    """
    When a message was published, seconds since the epoch, but not after ``now_s``; None if unknown.

    Returns:
        That, and what is wrong with the header: :data:`REFUSED`, :data:`AHEAD` or empty.
    """
    value = headers.get(HEADER)
    if value is None:
        return None, ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, REFUSED
    if not now_s - OLDEST_S < value < now_s + SKEW_S:  # an integer may be too large for a float
        return None, REFUSED
    sent_s = float(value)
    return (now_s, AHEAD) if sent_s > now_s else (sent_s, "")


def eta_of(headers: Mapping[str, object]) -> float | None:
    """A message's ETA, seconds since the epoch; None if it has none that can be read. Without a zone it is UTC."""
    value = headers.get("eta")
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
