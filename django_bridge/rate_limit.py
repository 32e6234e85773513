"""A rate limit for events that anyone can cause."""

from __future__ import annotations

import threading

from celery_trace.clock import Clock, SystemClock


class RateLimit:
    """
    Allows a number of events per time span, and counts refused ones.

    Args:
        most: Events allowed per span.
        span_s: Length of a span, seconds. A new one starts with the first event after the end of the last.
        clock: The clock.
    """

    def __init__(self, most: int, span_s: float, clock: Clock | None = None) -> None:
        self._most = most
        self._span_s = span_s
        self._clock = clock or SystemClock()
        self._began_s = float("-inf")
        self._used = 0
        self._lock = threading.Lock()
        #: Refused events so far.
        self.refused = 0

    def allow(self) -> bool:
        """Whether an event is allowed now."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s - self._began_s >= self._span_s:
                self._began_s = now_s
                self._used = 0
            if self._used < self._most:
                self._used += 1
                return True
            self.refused += 1
            return False
