"""Samples the heap of the process (:mod:`celery_trace.heap.watch`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType

from celery_trace.heap.watch import HeapWatch, watch_heap
from celery_trace.model import RUN_NOTHING
from celery_trace.runtime.probes.probe import Host, Probe
from celery_trace.runtime.rollups import RunTotals


class HeapProbe(Probe):
    """
    The heap watch, from the start in the modes ``auto`` and ``always``, for a while where that is ordered.

    Runs are not offered to it: the sampler's calls are made by :class:`celery_trace.process.open_runs.OpenRuns`.
    """

    name = "heap watch"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.heap: HeapWatch | None = None
        self._until_s = 0.0  # of a watch that was ordered
        self._spent_before_s = 0.0  # by watches that were ordered
        self._boundaries: tuple[CodeType, ...] = ()

    def start(self) -> None:
        """
        Sample the heap from now on, if the settings or an order want that.

        Raises:
            Unavailable: The heap can't be sampled here.
        """
        host = self.host
        if host.settings.memory not in {"auto", "always"} and not self._until_s:
            return
        self.heap = watch_heap(
            host.settings, host.process, host.write, host.clock, lambda: host.open_runs.most, emit_profile=host.write
        )
        if self.heap is None:
            return
        host.open_runs.enter, host.open_runs.leave = self.heap.run, self.heap.restore
        self.heap.stop_at(self._boundaries)
        for totals in host.totals():
            self.new_name(totals)
        self.call_every(self.heap.look_s)

    def stop_at(self, *codes: CodeType) -> None:
        """Set the functions around every run and around what is between runs: stacks end there."""
        self._boundaries = codes
        if self.heap is not None:
            self.heap.stop_at(codes)

    def new_name(self, totals: RunTotals) -> None:
        """Give the name a tag of the sampler."""
        if self.heap is not None:
            totals.tag = self.heap.tag(totals.kind, totals.name, self.host.code_of(totals.kind, totals.name))

    def every(self) -> None:
        """Look at the sample; end an ordered watch on time."""
        if self.heap is None:
            return
        if self._until_s and self.host.clock.monotonic_s() > self._until_s:
            self._until_s = 0.0
            heap = self._detach()
            heap.close()
            self._spent_before_s += heap.duty.spent_s
            return
        self.heap.look()
        self.call_every(self.heap.look_s)

    def _detach(self) -> HeapWatch:
        heap, self.heap = self.heap, None
        assert heap is not None
        self.host.open_runs.enter = self.host.open_runs.leave = None
        return heap

    def measure(self, name: str, mode: str, until_s: float) -> None:  # noqa: ARG002 - the watch is of all names
        """Watch the heap for a while where the settings don't."""
        if mode != "auto" or self.host.process.role in RUN_NOTHING or (self.heap is not None and not self._until_s):
            return
        self._until_s = max(until_s, self._until_s)
        if self.heap is None:
            self.host.begin(self.name, self.start)

    def counters(self) -> Mapping[str, int]:
        """What limits the watch here."""
        return self.heap.conditions() if self.heap is not None else {}

    def close(self) -> None:
        """Judge once more and stop sampling."""
        if self.heap is not None:
            self.heap.close()

    def after_fork(self) -> None:
        """The child samples its own heap."""
        if self.heap is not None:
            self._detach()

    @property
    def is_busy(self) -> bool:
        """Whether a search for retainers is in progress."""
        return self.heap is not None and self.heap.is_searching

    @property
    def overhead_s(self) -> float:
        """What the watch counts itself: the hooks of allocations are part of it."""
        return self._spent_before_s + (self.heap.duty.spent_s if self.heap is not None else 0.0)
