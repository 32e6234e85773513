"""What measuring may cost a process, what it has cost, and how many runs are measured to stay within that."""

from __future__ import annotations

import time

#: Seconds of measuring that a process may spend ahead of its budget, so that a short life is measured too: to begin
#: with a suspicion, and to end what was begun, as half an investigation has cost and tells nothing.
CREDIT_S = 0.5
CREDIT_TO_END_S = 1.0

#: Of the budget, what the gate may use, and that of busy time only: a worker that stands idle saves nothing up for the
#: moment when its queue is full. The rest is for investigations. A leak is not found later for it: where the latest
#: measured runs grew, the next ones are all measured.
_GATE_SHARE = 0.3

#: One run in so many is measured at the least.
_MOST_SKIPPED = 1_000

#: What one measured run is taken to cost at most, seconds; an investigation's steps are no measure of the gate.
_MOST_A_RUN_S = 0.002

#: What a run costs that is not measured, seconds: taken for granted, as two looks at the clock would double it.
QUIET_RUN_S = 1.5e-6

#: Measured runs after which it is asked anew how many may be.
_ADJUST_AFTER = 64


class Budget:
    """
    The account of one process.

    Args:
        share: Of the process's time, what measuring may take in the long run.
    """

    __slots__ = (
        "_cpu_mark_s", "_every", "_gated", "_mark_s", "_mark_spent_s", "_ran_s", "_runs", "_share", "_started_s",
        "countdown", "spent_s",
    )  # fmt: skip

    def __init__(self, share: float) -> None:
        #: Seconds that measuring has cost so far; whoever measures adds to it.
        self.spent_s = 0.0
        self._share = share
        self._started_s = time.perf_counter()
        self._every = 1
        #: The run that is to be measured next, counted from the last one: above 1, the next may pass unmeasured. Who
        #: lets one pass takes 1 off, and tells of it by and by with :meth:`passed`.
        self.countdown = 1
        self._mark_s = self._started_s
        self._mark_spent_s = self._ran_s = 0.0
        self._cpu_mark_s = time.process_time()
        self._runs = self._gated = 0

    def start(self) -> None:
        """Begin the account here, as if nothing had been measured."""
        Budget.__init__(self, self._share)

    def covers(self, *, beginning: bool, now_s: float = 0.0) -> bool:
        """
        Whether no more was spent than the budget and the credit allow; more credit to end something than to begin.

        Args:
            now_s: By ``time.perf_counter()``; asked here where it is left out.
        """
        credit_s = CREDIT_S if beginning else CREDIT_TO_END_S
        return self.spent_s <= credit_s + self._share * ((now_s or time.perf_counter()) - self._started_s)

    @property
    def samples(self) -> bool:
        """Whether only some of the runs are measured."""
        return self._every > 1

    def skips(self) -> bool:
        """Whether the run that begins is not to be measured; if so, it is counted here, else by :meth:`is_due`."""
        if self.countdown <= 1:
            return False
        self.countdown -= 1
        self.passed(1)
        return True

    def passed(self, runs: int) -> None:
        """Count runs that were let pass."""
        self._runs += runs
        self.spent_s += runs * QUIET_RUN_S

    def is_due(self, run_number: int) -> bool:
        """Count a run that begins. Whether it is one of those that are measured."""
        self._runs += 1
        self.countdown -= 1
        if self.countdown > 0:
            return False
        # Not every nth exactly: a task that leaks in every tenth run must not fall between.
        self.countdown = self._every + (run_number * 7919 >> 3) % 3 - 1 if self._every > 1 else 1
        return True

    def count_measured(self, now_s: float) -> None:
        """Count a run that is measured, and now and then choose anew one in how many is."""
        self._gated += 1
        if self._gated < _ADJUST_AFTER:
            return
        cpu_s = time.process_time()
        if self._runs:
            # What waits in a run is busy too; what measured runs tell of that holds for all.
            in_runs_s = self._ran_s / self._gated * self._runs
            busy_s = min(now_s - self._mark_s, max(cpu_s - self._cpu_mark_s, in_runs_s))
            allowed_s = self._share * _GATE_SHARE * busy_s
            each_s = min((self.spent_s - self._mark_spent_s) / self._gated, _MOST_A_RUN_S)
            most = allowed_s / each_s if each_s > 0 else self._runs
            self._every = max(1, min(_MOST_SKIPPED, round(self._runs / most))) if most > 0 else _MOST_SKIPPED
        self._mark_s = now_s
        self._cpu_mark_s = cpu_s
        self._mark_spent_s = self.spent_s
        self._ran_s = 0.0
        self._gated = self._runs = 0

    def measured_run_took(self, seconds: float) -> None:
        """Note how long a run took that was measured, with its waiting."""
        self._ran_s += seconds

    def forgive_waiting(self, wall_s: float, cpu_s: float) -> None:
        """
        Take the waiting since then (``perf_counter`` and ``thread_time``) out of what measuring cost.

        On a busy machine much of a long step is waiting for the processor, which costs the task as much
        whether we are there or not.
        """
        waited_s = (time.perf_counter() - wall_s) - (time.thread_time() - cpu_s)
        self.spent_s -= max(0.0, waited_s)
