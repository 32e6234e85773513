"""Maintenance of the store by the collector: the leak table, pruning, and freeing disk space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_trace.clock import Clock
from celery_trace.settings import Settings

if TYPE_CHECKING:
    from celery_trace.stores import Store

#: How often the store is pruned, seconds. At a hundred failures a second, some three thousand arrive in between.
PRUNE_EVERY_S = 30.0
#: Time limit for pruning or freeing space between two rounds, seconds. Records wait meanwhile.
AT_ONCE_S = 0.1
#: How often an idle collector checks whether disk space can be freed, seconds.
GIVE_BACK_EVERY_S = 10.0


class Maintenance:
    """
    Maintains one store, in steps between rounds.

    Args:
        settings: The retention settings.
        clock: Times the steps.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._counted_s = self._gave_back_s = float("-inf")
        self._pruned_s = clock.monotonic_s()  # not at the start, as a worker waits for that

    def after_records(self, store: Store) -> None:
        """Update the leak table."""
        from celery_trace.stores import leak_rows

        leak_rows.refresh(store, most_s=0.1)
        if self._is_time(self._counted_s, leak_rows.COUNT_ON_EVERY_S):
            leak_rows.update_run_counts(store)
            self._counted_s = self._clock.monotonic_s()

    def after_round(self, store: Store, idle: bool) -> None:
        """Prune from time to time, briefly; when idle, free unused space of the file."""
        if self._is_time(self._pruned_s, PRUNE_EVERY_S):
            pruned = store.prune(self._settings, self._clock.now_s(), most_s=AT_ONCE_S)
            if pruned.finished:  # otherwise the next round continues
                self._pruned_s = self._clock.monotonic_s()
        elif idle and self._is_time(self._gave_back_s, GIVE_BACK_EVERY_S) and not store.give_back(most_s=AT_ONCE_S):
            self._gave_back_s = self._clock.monotonic_s()

    def _is_time(self, last_s: float, every_s: float) -> bool:
        return self._clock.monotonic_s() - last_s >= every_s
