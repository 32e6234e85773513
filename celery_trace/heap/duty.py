"""The duty cycle: sampling is switched off for a while when it has cost more than its share of the process's time."""

from __future__ import annotations

from typing import Final

from celery_trace.clock import Clock

#: After a pause the budget of so many seconds must be saved up, so that a stretch is long enough.
SAVED_S: Final = 20.0


class Allowance:
    """
    Whether one part of the work costs too much: over its share of the time now, and overall.

    A burst is allowed; its cost is saved afterwards.

    Args:
        share: Of the time, such as 0.002.
        now_s: The time, by a clock that only goes forward: monotonic, or the process's processor time.
        saved_s: The share of so much time may be spent from the start.
    """

    def __init__(self, share: float, now_s: float, *, saved_s: float = SAVED_S) -> None:
        self._share = share
        self._saved_s = saved_s
        self._began_s = self._last_s = now_s
        self._spent_s = 0.0
        #: How many times its share the last cost was.
        self.times_over = 0.0

    def exceeds(self, spent_s: float, now_s: float) -> bool:
        """Note what was spent since the last call, processor seconds."""
        self._spent_s += spent_s
        passed_s, self._last_s = now_s - self._last_s, now_s
        allowed_s = self._share * (now_s - self._began_s + self._saved_s)
        self.times_over = spent_s / max(self._share * passed_s, 1e-9)
        return spent_s > self._share * passed_s and self._spent_s > allowed_s


class DutyCycle:
    """
    Decides when sampling is on, from what it has cost.

    The share holds over the life of the process, and over any stretch and the pause after it.

    Args:
        budget: The share of the process's time that may be spent, such as 0.01.
        clock: Monotonic time.
        fewest_runs: A stretch over its budget continues until its tasks have run so often, on average: a shorter one
        shows nothing for its cost. The pause afterwards compensates.
        longest_over_s: Or until it has lasted so long.
    """

    def __init__(self, budget: float, clock: Clock, *, fewest_runs: int, longest_over_s: float) -> None:
        self._fewest_runs = fewest_runs
        self._longest_over_s = longest_over_s
        #: The share of the process's time that may be spent.
        self.budget = budget
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._stretch_began_s = self._began_s
        self._spent_before_s = 0.0
        #: Processor seconds spent so far.
        self.spent_s = 0.0

    def spend(self, seconds: float) -> None:
        """Note processor time that sampling or judging took."""
        self.spent_s += seconds

    def begin_stretch(self) -> None:
        """Sampling is switched on."""
        self._stretch_began_s = self._clock.monotonic_s()
        self._spent_before_s = self.spent_s

    def is_over(self, runs_per_task: float) -> bool:
        """
        Whether the stretch in progress has to end.

        Args:
            runs_per_task: How often each task that ran has run in this stretch, on average.
        """
        lived_s = self._clock.monotonic_s() - self._stretch_began_s
        if self.spent_s - self._spent_before_s <= self.budget * lived_s or self.spent_s <= self._allowed_s():
            return False
        return runs_per_task >= self._fewest_runs or lived_s >= self._longest_over_s

    def may_begin(self) -> bool:
        """Whether the next stretch may begin: what was spent is within the budget again."""
        return self.wait_s() <= 0.0

    def wait_s(self) -> float:
        """Seconds until the next stretch may begin; 0 if it may."""
        lived_s = self._clock.monotonic_s() - self._began_s
        return max(0.0, self.spent_s / self.budget + SAVED_S - lived_s)

    def _allowed_s(self) -> float:
        return self.budget * (self._clock.monotonic_s() - self._began_s)
