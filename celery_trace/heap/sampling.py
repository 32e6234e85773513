"""Stretches of sampling: switches the sampler on and off, counts what it costs, and coarsens it if that is too much."""

from __future__ import annotations

import time
from typing import Final

from celery_trace.clock import Clock
from celery_trace.heap.duty import Allowance, DutyCycle
from celery_trace.heap.sampler import HeapSampler, Sampler
from celery_trace.model import RUN_NOTHING, Role

#: Mean distance of two picks, bytes, when sampling begins; the sampler doubles it as picks become many.
MEAN_BYTES: Final = 4096.0
#: The same in a process that runs no tasks, which allocates far more than its children do for a run.
MEAN_BYTES_OF_MAIN: Final = 16384.0
#: The distance up to which it is doubled because picks cost too much: for few runs, for many, and for each run of a
#: task, so that a leak of a kilobyte a run still has some sixty picks.
COARSE_BYTES: Final = 8192.0
COARSEST_BYTES: Final = 65536.0
BYTES_PER_RUN: Final = 16.0
#: Picks become fewer when they take more than this share of the process's processor time, in budgets.
PICKS_SHARE: Final = 1.0
#: The processor time that counts as saved when a stretch begins, seconds, so that its first runs are sampled finely.
SAVED_FOR_PICKS_S: Final = 2.0
#: The same two in a process that runs no tasks: a busy worker's main process bounds the rate of all its children.
PICKS_SHARE_OF_MAIN: Final = 0.25
SAVED_FOR_PICKS_OF_MAIN_S: Final = 0.5
#: The share of the budget that looks may take; above it the pauses between them become longer.
LOOKS_SHARE: Final = 0.3
#: A stretch over its budget ends after so many seconds in a process that runs no tasks.
SHORT_STRETCH_S: Final = 10.0


def coarsest_bytes(role: Role, runs_per_task: float) -> float:
    """
    The distance of picks that still shows a leak.

    Args:
        role: Of the process.
        runs_per_task: How often each task has run in this stretch, on average.
    """
    if role in RUN_NOTHING:
        return COARSEST_BYTES
    return min(max(COARSE_BYTES, BYTES_PER_RUN * runs_per_task), COARSEST_BYTES)


class Sampling:
    """
    The sampler of one process over its stretches.

    Args:
        sampler: The process's sampler.
        role: Of the process.
        budget: The share of the process's time that sampling may take.
        clock: Monotonic time.
    """

    def __init__(self, sampler: HeapSampler, role: Role, budget: float, clock: Clock) -> None:
        pace = sampler.pace
        self._sampler = sampler
        self._role = role
        self.duty = DutyCycle(
            budget,
            clock,
            fewest_runs=pace.fewest_runs,
            longest_over_s=min(pace.longest_over_s, SHORT_STRETCH_S) if role in RUN_NOTHING else pace.longest_over_s,
        )
        #: Whether a stretch is in progress.
        self.is_on = False
        #: Whether another tool has removed the hooks once.
        self.lost_hooks = False
        self._pause_s = pace.first_pause_s
        self._mean_bytes = MEAN_BYTES
        self._calls = 0
        self._seen_calls = -1
        self._pick_s = 0.0
        self._cost_s = 0.0

    def start(self) -> None:
        """A stretch begins."""
        self._mean_bytes = MEAN_BYTES_OF_MAIN if self._role in RUN_NOTHING else MEAN_BYTES
        self._sampler.start(self._mean_bytes)
        self.is_on = True
        self.duty.begin_stretch()
        self._cost_s = self._sampler.cost_s()
        share, saved_s = PICKS_SHARE, SAVED_FOR_PICKS_S
        if self._role in RUN_NOTHING:
            share, saved_s = PICKS_SHARE_OF_MAIN, SAVED_FOR_PICKS_OF_MAIN_S
        self._picking = Allowance(share * self.duty.budget, time.process_time(), saved_s=saved_s)
        stats = self._sampler.stats()
        self._calls, self._pick_s = stats["calls"], stats["pick_s"]

    def stop(self) -> None:
        """The stretch ends, and its sample is lost."""
        self.is_on = False
        self._sampler.stop()

    def drop_sample(self) -> None:
        """Another tool has removed the hooks, so the sample has missed what was freed since."""
        self.lost_hooks = isinstance(self._sampler, Sampler)
        self._sampler.stop()

    def account(self, runs_per_task: float) -> None:
        """Spend what the hooks have cost since the last call, and have fewer picks if they cost too much."""
        stats = self._sampler.stats()
        pick_s = stats["pick_s"] - self._pick_s
        self.duty.spend((stats["calls"] - self._calls) * self._cost_s + pick_s)
        if self._picking.exceeds(pick_s, time.process_time()):
            mean_bytes = stats["mean_bytes"]
            wanted = min(mean_bytes * self._picking.times_over, coarsest_bytes(self._role, runs_per_task))
            while mean_bytes < wanted:
                self._sampler.coarsen()
                mean_bytes *= 2
        self._calls, self._pick_s = stats["calls"], stats["pick_s"]

    def has_moved(self) -> bool:
        """Whether anything was allocated or freed since the last call, as of the last :meth:`account`."""
        moved = self._calls != self._seen_calls
        self._seen_calls = self._calls
        return moved

    def was_thinned(self, mean_bytes: float) -> bool:
        """Whether the whole sample was thinned out since the last call, by its present distance of picks."""
        thinned = mean_bytes != self._mean_bytes
        self._mean_bytes = mean_bytes
        return thinned

    def pause_after(self, look_s: float) -> float:
        """
        The pause that a look needs to stay within its share of the budget.

        Args:
            look_s: How long the look took, processor seconds.

        Returns:
            Seconds; at most half as long again as the last pause.
        """
        pace = self._sampler.pace
        wanted_s = look_s / (LOOKS_SHARE * self.duty.budget)
        self._pause_s = min(max(wanted_s, pace.first_pause_s), pace.longest_pause_s, 1.5 * self._pause_s)
        return self._pause_s
