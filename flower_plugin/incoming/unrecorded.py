"""Workers that record nothing, as they say themselves in events: their store can't say it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.spool.unrecorded import EVENT, EVENT_S

#: A worker that has not repeated it for so long records again, or is gone, seconds.
OVER_S = 3 * EVENT_S
#: Anybody on the broker can send events: so many workers are kept, and so many characters of each text.
MOST_WORKERS, MOST_CHARACTERS = 100, 300


class Unrecorded(Struct, frozen=True, kw_only=True):
    """A worker that can't write its records: why, what to do, and how many failures wait in its main process."""

    worker: str
    at_s: float
    why: str
    next: str
    waiting: int


class UnrecordedWorkers:
    """Written by the thread of the events, read by the pages."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, Unrecorded] = {}

    def heard(self, event: Mapping[str, object]) -> None:
        """Take note of an event, if it is one of these. Its time is when it came: clocks of others may be wrong."""
        if not isinstance(event, Mapping) or event.get("type") != EVENT:
            return
        worker, why, advice, waiting = (event.get(name) for name in ("hostname", "why", "next", "waiting"))
        if not isinstance(worker, str) or not isinstance(why, str) or not isinstance(advice, str):
            return
        worker, still = worker[:MOST_CHARACTERS], self._still()
        if worker not in still and len(still) >= MOST_WORKERS:
            return
        self._said = still | {
            worker: Unrecorded(
                worker=worker,
                at_s=self._clock.monotonic_s(),
                why=why[:MOST_CHARACTERS],
                next=advice[:MOST_CHARACTERS],
                waiting=waiting if type(waiting) is int else 0,
            )
        }

    def now(self) -> list[Unrecorded]:
        """Those that said so lately, by name."""
        return sorted(self._still().values(), key=lambda one: one.worker)

    def _still(self) -> dict[str, Unrecorded]:
        since_s = self._clock.monotonic_s() - OVER_S
        return {worker: one for worker, one in self._said.items() if one.at_s >= since_s}
