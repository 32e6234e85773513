"""Traces single runs with tracemalloc: their "Top 10 differences" (:mod:`celery_trace.heap.differences`)."""

from __future__ import annotations

from math import inf

from celery_trace.heap.differences import TracedRun, Tracing, top_differences
from celery_trace.process.open_runs import Token
from celery_trace.runtime.probes.probe import Host, Probe


class TraceProbe(Probe):
    """Traces all runs in the mode ``always``, those of blocks, and those of a name for a while."""

    name = "traced runs"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._everything = host.settings.memory == "always"
        self._until_s: dict[str, float] = {}
        self._running: set[TracedRun] = set()

    def trace(self, name: str, until_s: float = inf) -> None:
        """Trace the runs of a name until a time of the monotonic clock."""
        self._until_s[name] = until_s
        self.host.offer_runs()

    def measure(self, name: str, mode: str, until_s: float) -> None:
        """Begin to trace the runs of a name, or stop."""
        if mode == "always":
            self.trace(name, until_s)
        elif self._until_s.pop(name, None) is not None:
            self.host.offer_runs()

    @property
    def wants_runs(self) -> bool:
        """Whether any run is traced."""
        return self._everything or bool(self._until_s)

    def before_run(self, token: Token) -> TracedRun | None:
        """Start tracing, if this run is to be traced."""
        name = token.totals.name
        if not self._everything:
            until_s = self._until_s.get(name, 0.0)
            if self.host.clock.monotonic_s() >= until_s:
                if self._until_s.pop(name, None) is not None:
                    self.host.offer_runs()
                return None
        run = TracedRun()
        self._running.add(run)
        run.begin()
        return run

    def after_run(self, token: Token, observed: object) -> None:
        """Stop tracing and sum up the run."""
        if isinstance(observed, TracedRun) and observed in self._running:
            self._running.discard(observed)
            token.top = top_differences(observed.end())
            token.totals.traced += 1
            token.why = "traced"

    def close(self) -> None:
        """Stop tracing the runs in progress."""
        while self._running:
            self._running.pop().stop()

    def after_fork(self) -> None:
        """The child of a traced run may never end that run: stop tracing there."""
        Tracing.after_fork()
        self.close()
