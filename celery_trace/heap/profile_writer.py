"""Writes the memory that each task retains by call stack, with the peaks of its runs, every few minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from celery_trace.heap.picks import UNTAGGED
from celery_trace.heap.stacks import KeptStacks
from celery_trace.heap.survivors import IN_FLIGHT_RUNS
from celery_trace.heap.watched_process import WatchedProcess
from celery_trace.intervals import PROFILE_FIRST_S, PROFILE_S
from celery_trace.model import HeapProfile


class ProfileWriter:
    """
    The profiles of one process.

    Args:
        watched: The process.
        emit: Takes the profiles.
        now_s: Monotonic time.
    """

    def __init__(self, watched: WatchedProcess, emit: Callable[[HeapProfile], None], now_s: float) -> None:
        self._watched = watched
        self._emit = emit
        #: What each task retains by stack.
        self.kept = KeptStacks(watched.sampler.stack, watched.own)
        self._due_s = now_s + PROFILE_FIRST_S

    def is_due(self, now_s: float) -> bool:
        """Whether profiles are to be written."""
        return now_s >= self._due_s

    def write(self, runs: Mapping[int, int], now_s: float) -> None:
        """Write the profiles that have changed."""
        self._due_s = now_s + PROFILE_S
        watched, counts = self._watched, self._watched.counts
        alone = not watched.runs_several and watched.most_open() == 1
        peaks = {tag: watched.sampler.peaks(tag) for tag in runs if tag != UNTAGGED} if alone else {}
        for tag, profile in self.kept.changed(peaks):
            kind, name = watched.tags.name_of(tag)
            observed = counts.earlier(tag) + max(0, counts.in_stretch(tag, runs) - IN_FLIGHT_RUNS)
            self._emit(
                HeapProfile(
                    process=watched.record.uid,
                    kind=kind,
                    name=name,
                    at_s=watched.clock.now_s(),
                    release=watched.record.release,
                    runs=observed,
                    bytes=profile.bytes,
                    other_bytes=profile.other_bytes,
                    frames=profile.frames,
                    stacks=profile.stacks,
                    peaks=peaks.get(tag, {}),
                )
            )
