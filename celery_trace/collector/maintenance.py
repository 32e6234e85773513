"""What the collector does for the store besides writing records: the leak table, pruning, and space given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_trace.clock import Clock
from celery_trace.settings import Settings

if TYPE_CHECKING:
    from celery_trace.stores import Store

#: How often the store is looked at for what is too much or too old, seconds. At a hundred failures a second some
#: three thousand come in between.
PRUNE_EVERY_S = 30.0
#: How long the collector prunes, or gives space back, between two rounds, seconds. Records wait for that.
AT_ONCE_S = 0.1
#: How often an idle collector looks whether space can be given back, seconds.
GIVE_BACK_EVERY_S = 10.0


class Maintenance:
    """
    Looks after one store, in steps between rounds.

    Args:
        settings: What is kept.
        clock: Tells when it is time.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._counted_s = self._gave_back_s = float("-inf")
        self._pruned_s = clock.monotonic_s()  # not at the start, for which a worker waits

    def after_records(self, store: Store) -> None:
        """Bring the leak table up to date."""
        from celery_trace.stores import leak_rows

        leak_rows.refresh(store, most_s=0.1)
        if self._is_time(self._counted_s, leak_rows.COUNT_ON_EVERY_S):
            leak_rows.update_run_counts(store)
            self._counted_s = self._clock.monotonic_s()

    def after_round(self, store: Store, idle: bool) -> None:
        """Prune, every now and then and for a moment; when idle, give free space back to the disk."""
        if self._is_time(self._pruned_s, PRUNE_EVERY_S):
            pruned = store.prune(self._settings, self._clock.now_s(), most_s=AT_ONCE_S)
            if pruned.finished:  # else the next round goes on
                self._pruned_s = self._clock.monotonic_s()
        elif idle and self._is_time(self._gave_back_s, GIVE_BACK_EVERY_S) and not store.give_back(most_s=AT_ONCE_S):
            self._gave_back_s = self._clock.monotonic_s()

    def _is_time(self, last_s: float, every_s: float) -> bool:
        return self._clock.monotonic_s() - last_s >= every_s
