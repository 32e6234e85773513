"""Reports growth outside of Python's heap: descriptors, threads, child processes and memory of C code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from celery_trace.heap import native, openers
from celery_trace.heap.picks import UNTAGGED, Pick, Stack
from celery_trace.heap.survivors import Key
from celery_trace.heap.watched_process import WatchedProcess
from celery_trace.heap.windows import site_at
from celery_trace.model import Stage, Verdict, Window, new_id, stable_id


class ResourceWatch:
    """
    The resources of one process.

    Args:
        watched: The process.
        emit: Takes the windows.
    """

    def __init__(self, watched: WatchedProcess, emit: Callable[[Window], None]) -> None:
        self._watched = watched
        self._process = watched.record
        self._emit = emit
        self._levels = native.NativeWatch()
        self._growing: dict[str, native.LevelGrowth] = {}  # what was reported to grow
        self._opened: dict[str, Stack] = {}  # where that was opened
        self._due_s = 0.0
        self._runs: dict[int, int] = {}

    def look(self, runs: dict[int, int], heap_bytes: Callable[[], float], *, busy: bool) -> None:
        """
        Read the levels, if that is due and the process has done something, and report what grows.

        Args:
            runs: How many runs of each tag have begun.
            heap_bytes: The size of Python's own survivors.
            busy: Whether the process works although no run has begun.
        """
        now_s = time.monotonic()
        if now_s < self._due_s or (runs == self._runs and not busy):
            return
        self._due_s = now_s + native.EVERY_S
        self._runs = runs
        self._levels.add(native.read_levels(), heap_bytes(), runs)
        growing = {growth.resource: growth for growth in self._levels.growth()}
        for resource in {*growing, *self._growing}:
            self._report(resource, growing.get(resource))

    def find_openers(self, alive: Mapping[Key, Sequence[Pick]]) -> None:
        """
        Find the line that opened what grows.

        Args:
            alive: The survivors of each site.
        """
        for resource in self._growing.keys() & openers.RESOURCES - self._opened.keys():
            growth = self._growing[resource]
            picks = [pick for (tag, _), some in alive.items() if growth.tag in (UNTAGGED, tag) for pick in some]
            stack = openers.opened_at(
                resource, picks, self._watched.sampler.stack, self._watched.sampler.referrers, self._watched.own
            )
            if stack:
                self._opened[resource] = stack
                self._write(growth, _verdict_of(growth))

    def _report(self, resource: str, growth: native.LevelGrowth | None) -> None:
        before = self._growing.get(resource)
        if growth is None:
            if before is not None:
                del self._growing[resource]
                self._write(before, Verdict.STEADY)  # it was released, so it was no leak
            return
        if before is not None and before.tag == growth.tag and before.final == growth.final:
            return
        self._growing[resource] = growth
        if before is not None and before.tag != growth.tag:
            self._opened.pop(resource, None)  # another task's line
        self._write(growth, _verdict_of(growth))

    def _write(self, growth: native.LevelGrowth, verdict: Verdict) -> None:
        kind, name = self._watched.tags.name_of(growth.tag)
        in_bytes = growth.resource == "malloc"
        self._emit(
            Window(
                id=new_id(),
                investigation=stable_id("native", self._process.uid, kind, name, growth.resource),
                process=self._process.uid,
                kind=kind,
                name=name,
                stage=Stage.NATIVE,
                verdict=verdict,
                at_s=self._watched.clock.now_s(),
                runs=growth.runs,
                run_number=self._runs.get(growth.tag, 0),
                kept_blocks_per_run=0.0 if in_bytes else growth.per_run,
                kept_bytes_per_run=growth.per_run if in_bytes else 0.0,
                sites=[site_at(*self._place_of(stack), stack)] if (stack := self._opened.get(growth.resource)) else [],
                native=growth.resource,
                role=self._process.role,
                release=self._process.release,
                note=native.describe(growth),
            )
        )

    def _place_of(self, stack: Stack) -> tuple[str, int]:
        lines = tuple((file, line) for file, line, _ in stack)
        return lines[self._watched.own.first(lines)]


def _verdict_of(growth: native.LevelGrowth) -> Verdict:
    return Verdict.LEAKING if growth.final else Verdict.GROWING
