"""Time as a collaborator: code gets a clock passed in, so that a test can set it."""

from __future__ import annotations

import time
from typing import Final, Protocol

#: When this process, or the one that it was forked from, began to import. A newer file may differ from the code.
IMPORTED_AT_S: Final = time.time()


class Clock(Protocol):
    """The interface of a clock."""

    def now_s(self) -> float:
        """Wall clock, seconds since the epoch. May step back."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start. Never steps back; means nothing in another process."""


class SystemClock:
    """The machine's clock."""

    now_s = staticmethod(time.time)
    monotonic_s = staticmethod(time.monotonic)


class FakeClock:
    """A clock that moves only by :meth:`advance`."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._monotonic_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_s += seconds
        self._monotonic_s += seconds

    def step_back(self, seconds: float) -> None:
        """Turn the wall clock back, as NTP does; the monotonic one stays."""
        self._now_s -= seconds
