"""
The monitor's garbage collector, led so that it holds no page up for long.

Flower remembers a hundred thousand tasks. Each time they have grown by a quarter, the interpreter looks at every object
of theirs for garbage, and for half a second nothing is answered. Here what is alive is set aside every few seconds, so
that a collection only looks at what is new. Now and then everything is looked at after all: a cycle that became garbage
while it was set aside is found only then.
"""

from __future__ import annotations

import gc

from celery_trace.clock import Clock

#: How often what is alive is set aside, seconds.
TIDY_EVERY_S = 5.0

#: How often everything is looked at, seconds.
THOROUGH_EVERY_S = 3600.0


class GarbageRounds:
    """
    Calls for the collector. Where the application has switched it off, nothing is done.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._thorough_at_s = clock.monotonic_s() + THOROUGH_EVERY_S
        self._frozen = self._closed = False

    def tidy(self) -> None:
        """Collect what is new and set the rest aside; once an hour, collect everything."""
        if self._closed or not gc.isenabled():
            return
        if self._clock.monotonic_s() >= self._thorough_at_s:
            self._thorough_at_s = self._clock.monotonic_s() + THOROUGH_EVERY_S
            gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._frozen = True

    def close(self) -> None:
        """Put back what was set aside. A second call does nothing."""
        self._closed = True
        if self._frozen:
            self._frozen = False
            gc.unfreeze()
