"""
Garbage collection of the monitor without long pauses.

Flower keeps a hundred thousand tasks in memory. A full collection scans all their objects and blocks the loop for half
a second. So live objects are frozen every few seconds and later collections scan only new ones. A full collection runs
once an hour, as cycles among frozen objects are found only then.
"""

from __future__ import annotations

import gc

from celery_trace.clock import Clock

#: Interval of collections, seconds.
COLLECT_EVERY_S = 5.0

#: Interval of full collections, seconds.
FULL_EVERY_S = 3600.0


class GarbageCollection:
    """
    Runs the collector. Does nothing if the application has disabled it.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._full_at_s = clock.monotonic_s() + FULL_EVERY_S
        self._frozen = self._closed = False

    def collect(self) -> None:
        """Collect new objects and freeze the rest; once an hour, collect all objects."""
        if self._closed or not gc.isenabled():
            return
        if self._clock.monotonic_s() >= self._full_at_s:
            self._full_at_s = self._clock.monotonic_s() + FULL_EVERY_S
            gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._frozen = True

    def close(self) -> None:
        """Unfreeze all objects. Idempotent."""
        self._closed = True
        if self._frozen:
            self._frozen = False
            gc.unfreeze()
