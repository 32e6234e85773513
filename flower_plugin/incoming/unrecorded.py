"""Workers that can't write their records. They report it in events, as they can't reach the store."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.spool.unrecorded import EVENT, EVENT_S

#: A worker that has not repeated the event for so long has recovered or is gone, seconds.
OVER_S = 3 * EVENT_S
#: Limits on workers and characters, as any client of the broker can send events.
MOST_WORKERS, MOST_CHARACTERS = 100, 300


class Unrecorded(Struct, frozen=True, kw_only=True):
    """A worker that can't write its records: reason, advice, and number of failures waiting in its main process."""

    worker: str
    at_s: float
    why: str
    next: str
    waiting: int


class UnrecordedWorkers:
    """Updated by the event thread, read by pages."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reports: dict[str, Unrecorded] = {}

    def receive(self, event: Mapping[str, object]) -> None:
        """Process an event, if it is one of these. Uses the time of receipt: clocks of other hosts may be wrong."""
        if not isinstance(event, Mapping) or event.get("type") != EVENT:
            return
        worker, why, advice, waiting = (event.get(name) for name in ("hostname", "why", "next", "waiting"))
        if not isinstance(worker, str) or not isinstance(why, str) or not isinstance(advice, str):
            return
        worker, current = worker[:MOST_CHARACTERS], self._current()
        if worker not in current and len(current) >= MOST_WORKERS:
            return
        self._reports = current | {
            worker: Unrecorded(
                worker=worker,
                at_s=self._clock.monotonic_s(),
                why=why[:MOST_CHARACTERS],
                next=advice[:MOST_CHARACTERS],
                waiting=waiting if type(waiting) is int else 0,
            )
        }

    def now(self) -> list[Unrecorded]:
        """Workers with a recent report, by name."""
        return sorted(self._current().values(), key=lambda one: one.worker)

    def _current(self) -> dict[str, Unrecorded]:
        since_s = self._clock.monotonic_s() - OVER_S
        return {worker: one for worker, one in self._reports.items() if one.at_s >= since_s}
