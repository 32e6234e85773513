"""How often something may happen that strangers can cause at will."""

from __future__ import annotations

import threading

from celery_trace.clock import Clock, SystemClock


class RateLimit:
    """
    So many in each span of time; what is beyond is counted.

    Args:
        most: How many are allowed in a span.
        span_s: Its length, seconds. A new one begins with the first request after the last one's end.
        clock: Tells the time.
    """

    def __init__(self, most: int, span_s: float, clock: Clock | None = None) -> None:
        self._most = most
        self._span_s = span_s
        self._clock = clock or SystemClock()
        self._began_s = float("-inf")
        self._used = 0
        self._lock = threading.Lock()
        #: How many were refused so far.
        self.refused = 0

    def allow(self) -> bool:
        """Whether one more may happen now."""
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
