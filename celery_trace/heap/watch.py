"""
Watches the heap of one process: reads the sample at intervals and has it judged, searched and written.

One call before and one after each run give the sampler the run's tag. Everything else happens on the ticker's thread,
in small steps, so that no task waits for it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Final

from celery_trace.clock import Clock
from celery_trace.heap import retainers
from celery_trace.heap.differences import is_the_programs
from celery_trace.heap.duty import DutyCycle
from celery_trace.heap.holder_search import Found, HolderSearch
from celery_trace.heap.long_runs import LongRuns, is_of_long_run
from celery_trace.heap.picks import IGNORED, UNTAGGED, Pick, Stack
from celery_trace.heap.places import Places
from celery_trace.heap.profile_writer import ProfileWriter
from celery_trace.heap.resources import ResourceWatch
from celery_trace.heap.run_counts import RunCounts
from celery_trace.heap.sampler import HeapSampler, open_sampler
from celery_trace.heap.sampling import Sampling
from celery_trace.heap.sites import SiteTable, urgent_tags
from celery_trace.heap.survivors import IN_FLIGHT_RUNS, HeapHistory, Key
from celery_trace.heap.tags import TAGS
from celery_trace.heap.verdict import FEW_RELEASED
from celery_trace.heap.watched_process import WatchedProcess
from celery_trace.heap.window_writer import WindowWriter
from celery_trace.model import Evidence, HeapProfile, Kind, ProcessRecord, Window
from celery_trace.settings import Settings
from celery_trace.text.code_owner import CodeOwner, project_roots
from celery_trace.text.format import duration

#: Observed runs of a task that retained nothing, before that is reported.
CLEAN_RUNS: Final = 40
#: A pause in which another thread gets the GIL, seconds; with a pause of zero it often doesn't.
_BREATH_S: Final = 5e-5


def _nothing(_: object) -> None:
    """Does nothing: there is no tag to restore, or no consumer."""


class HeapWatch:
    """
    The heap of one process.

    Methods may be called from any thread. :meth:`look` and :meth:`close` are called by the ticker and at the end.

    Args:
        settings: ``memory_budget`` and ``in_app`` are used.
        process: The process's record.
        emit: Takes the windows.
        clock: Time for records.
        sampler: The process's sampler.
        most_open: Returns the most concurrent runs so far.
        emit_profile: Takes what is kept by call stack.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        emit: Callable[[Window], None],
        clock: Clock,
        sampler: HeapSampler,
        most_open: Callable[[], int] = lambda: 1,
        emit_profile: Callable[[HeapProfile], None] = _nothing,
    ) -> None:
        now_s = time.monotonic()
        self._pid = os.getpid()
        self._sampler = sampler
        self._counts = RunCounts(sampler.runs, TAGS, now_s)
        self._own = CodeOwner(settings.in_app, project_roots())
        self._watched = WatchedProcess(process, clock, sampler, self._own, TAGS, self._counts, most_open)
        self._sampling = Sampling(sampler, process.role, settings.memory_budget, clock)
        self._places = Places(sampler.stack, self._own)
        self._history = HeapHistory(self._places.of, knows_blocks=sampler.knows_blocks)
        self._long_runs = LongRuns()
        self._sites = SiteTable(self._own, settings.memory_recheck_runs, runs_nothing=self._watched.runs_nothing)
        self._search = HolderSearch(sampler, settings.memory_budget, self._note_holders)
        self._writer = WindowWriter(self._watched, emit)
        self._profiles = ProfileWriter(self._watched, emit_profile, now_s)
        self._resources = ResourceWatch(self._watched, emit)
        self._pause_s = sampler.pace.first_pause_s
        self._due_s = now_s + self._pause_s
        self._urgent: dict[int, int] = {}  # tasks whose next run is judged at once, with their runs by the last look
        self._closed = False
        self._is_frozen: bool | None = None  # not read yet
        self._pace = sampler.pace
        #: Sets this thread's tag when a run begins, and restores the previous one when it has ended.
        self.run: Callable[[int], int] = sampler.run
        self.restore: Callable[[int], object] = sampler.restore
        if self._watched.runs_share_threads:
            self.run, self.restore = self._count_run, _nothing
        if sampler.note_collection not in gc.callbacks:  # a forked child has its parent's
            gc.callbacks.append(sampler.note_collection)
        self._start()

    # --- tasks ------------------------------------------------------------------------------------------

    def tag(self, kind: Kind, name: str, code: Iterable[CodeType] = ()) -> int:
        """
        The number of a task, route or block, for :attr:`run`.

        Args:
            kind: What it is.
            name: Its name.
            code: Its functions; where runs share a thread, what is allocated below them is attributed to it.
        """
        tag = TAGS.find(kind, name)
        if tag is None:
            tag = TAGS.add(kind, name)
            for function in code:
                if self._own(function.co_filename):
                    self._sampler.mark(function, tag)
        return tag

    def stop_at(self, codes: Iterable[CodeType]) -> None:
        """Set the functions around every run and around what is between runs: frames outside are left out of stacks."""
        self._sampler.stop_at(*codes)

    def _count_run(self, tag: int) -> int:
        self._sampler.restore(self._sampler.run(tag))
        return UNTAGGED

    # --- state ------------------------------------------------------------------------------------------

    @property
    def duty(self) -> DutyCycle:
        """What the watch has cost, and when it samples."""
        return self._sampling.duty

    @property
    def is_open(self) -> bool:
        """Whether it watches this process."""
        return not self._closed and os.getpid() == self._pid

    @property
    def is_searching(self) -> bool:
        """Whether a search for holders is in progress."""
        return self._search.is_on

    @property
    def look_s(self) -> float:
        """How often :meth:`look` wants to be called now, seconds."""
        return self._pace.look_s if self._search.is_on else self._pace.calm_look_s

    @property
    def state(self) -> str:
        """What it does now: ``sampling``, or ``paused: next stretch in 40 s``."""
        return "sampling" if self._sampling.is_on else f"paused: next stretch in {duration(round(self.duty.wait_s()))}"

    def conditions(self) -> dict[str, int]:
        """Conditions that impair the watch, for the process's statistics; each is 1, or missing."""
        found = {
            "gc_off": not retainers.collects(),
            "frozen": self._is_frozen,
            "tracemalloc": is_the_programs(),
            "hooks_lost": self._sampling.lost_hooks,
        }
        return {f"heap:{name}": 1 for name, is_so in found.items() if is_so}

    # --- looking ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Do what is due: switch sampling on or off, judge, or take a step of a search. Called every :attr:`look_s`."""
        if not self.is_open:
            return
        before = self._sampler.run(IGNORED)  # what this thread allocates is ours
        started_s = time.thread_time()
        try:
            self._look(started_s)
        finally:
            if self._watched.runs_share_threads:
                self._sampler.restore(before)  # the ticker may be a greenlet, and this the thread that runs all tasks
            self.duty.spend(time.thread_time() - started_s)

    def _look(self, started_s: float) -> None:
        now_s = time.monotonic()
        runs = self._counts.now(now_s)
        runs_per_task = self._counts.per_task(runs)
        if self._sampling.is_on:
            self._sampling.account(runs_per_task)
        self._resources.look(runs, self._heap_bytes, busy=self._search.is_on)
        if self._search.is_on:
            self._search.quick_steps()  # it holds references to what it found, so it continues while sampling is off
        elif not self._sampling.is_on:
            if self.duty.may_begin():
                self._start()
        elif not self._sampler.is_on():
            self._sampling.drop_sample()
            self._start()
        else:
            is_urgent = any(runs[tag] > number for tag, number in self._urgent.items())
            self._look_at_sample(now_s, started_s, is_urgent=is_urgent, is_over=self.duty.is_over(runs_per_task))

    def _look_at_sample(self, now_s: float, started_s: float, *, is_urgent: bool, is_over: bool) -> None:
        """Judge if that is due; the sample is lost at the end of a stretch."""
        if now_s >= self._due_s or is_urgent or is_over:
            if self._sampling.has_moved():
                self._judge(now_s, ends=is_over)
                self._pause_s = self._sampling.pause_after(time.thread_time() - started_s)
                self._search.quick_steps()
            self._due_s = now_s + self._pause_s
        if is_over:
            self._stop()

    def judge(self) -> None:
        """Judge at once, due or not, and search to the end. Slow on a large heap."""
        before = self._sampler.run(IGNORED)
        try:
            self._judge(time.monotonic())
            self._search.finish()
        finally:
            self._sampler.restore(before)

    def close(self) -> None:
        """The process ends: judge once more, for short-lived processes, and stop sampling."""
        if self._closed:
            return
        is_ours = os.getpid() == self._pid
        now_s = time.monotonic()
        if is_ours and self._sampling.is_on:
            before = self._sampler.run(IGNORED)
            try:
                self._judge(now_s, last=True)
                self._search.steps_at_the_end()
            finally:
                self._sampler.restore(before)
        elif is_ours:
            self._profiles.write(self._counts.now(now_s), now_s)
        self._closed = True
        if self._sampler.note_collection in gc.callbacks:
            gc.callbacks.remove(self._sampler.note_collection)
        if is_ours:
            self._sampler.stop()

    # --- stretches --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._sampling.start()
        self._places.clear()
        runs = self._counts.now(time.monotonic())
        self._counts.begin_stretch(runs)
        self._history.begin(runs)

    def _stop(self) -> None:
        self._profiles.kept.end_stretch()
        self._counts.end_stretch(self._counts.now(time.monotonic()))
        self._sampling.stop()

    def _heap_bytes(self) -> float:
        return sum(evidence.bytes for evidence in self._history.evidence().values())

    # --- judging ----------------------------------------------------------------------------------------

    def _judge(self, now_s: float, *, last: bool = False, ends: bool = False) -> None:
        """
        Read the sample and judge the largest sites.

        Args:
            now_s: Monotonic time.
            last: The process ends.
            ends: The stretch ends, and its sample is lost.
        """
        if self._is_frozen is None:  # once, as it counts them all; usually it is done before the first task
            self._is_frozen = gc.get_freeze_count() > 0
        runs = self._counts.now(now_s)
        self._read_sample(runs, now_s, last=last)
        evidence = self._history.evidence()
        self._urgent = {tag: runs[tag] for tag in urgent_tags(evidence)}
        self._sites.add(evidence, self._stack_of, last=last)
        self._write_sites(evidence, runs, now_s)
        of_ended_runs = {key: alive for key, alive in self._history.alive.items() if not is_of_long_run(key[0])}
        self._resources.find_openers(of_ended_runs)
        if not self._search.is_on:
            waits = not last and self._search.waits
            wanted = self._sites.to_search(evidence, self._history.alive, last=last, waits=waits)
            if wanted:
                self._search.begin(wanted, self._history.alive)
        self._writer.write_clean(runs, self._sites.tags(), 1 if last else CLEAN_RUNS)
        is_due = last or self._profiles.is_due(now_s)
        if is_due or ends:
            replaced = {key for key, one in evidence.items() if one.released > FEW_RELEASED}
            self._profiles.kept.look(
                (pick for alive in of_ended_runs.values() for pick in alive),
                lambda pick: (pick.tag, self._places.of(pick.stack)) in replaced,
            )
        if is_due:
            self._profiles.write(runs, now_s)
        if self._sampler.sweep():
            self._places.clear()

    def _read_sample(self, runs: Mapping[int, int], now_s: float, *, last: bool) -> None:
        stats = self._sampler.stats()
        self._search.count_collections(stats["collections"])
        # At the end no run is in progress, but what the last one has left may be replaced by the next.
        in_flight = 1 if last else max(IN_FLIGHT_RUNS, 2 * self._watched.most_open())
        picks: list[Pick] = self._long_runs.look(self._counts.positioned(self._sampler.picks()), runs, in_flight, now_s)
        self._history.look(
            picks,
            {**runs, **self._long_runs.slices(now_s)},
            self._search.proving,
            thinned=self._sampling.was_thinned(stats["mean_bytes"]),
            in_flight=in_flight,
            breathe=_yield_gil,
        )

    def _stack_of(self, key: Key) -> Stack:
        alive = self._history.alive.get(key)
        return self._sampler.stack(alive[0].stack) if alive else ()

    def _write_sites(self, evidence: Mapping[Key, Evidence], runs: Mapping[int, int], now_s: float) -> None:
        for key, site in self._sites.judge(evidence):
            if is_of_long_run(key[0]):
                lasted_s = self._long_runs.lasted_s(key[0], now_s)
                self._writer.write_long_run(key, site, evidence[key], runs, lasted_s=lasted_s, now_s=now_s)
            else:
                self._writer.write(key, site, evidence[key], runs, now_s)
                _yield_gil()

    def _note_holders(self, found: Found) -> None:
        """A search has ended."""
        self._sites.found(found)
        now_s = time.monotonic()
        self._write_sites(self._history.evidence(), self._counts.now(now_s), now_s)


#: The watch of this process: there is one sampler.
_current: HeapWatch | None = None


def _yield_gil() -> None:
    time.sleep(_BREATH_S)


def watch_heap(
    settings: Settings,
    process: ProcessRecord,
    emit: Callable[[Window], None],
    clock: Clock,
    most_open: Callable[[], int] = lambda: 1,
    emit_profile: Callable[[HeapProfile], None] = _nothing,
) -> HeapWatch | None:
    """
    Watch this process's heap from now on.

    Returns:
        None if another watch of this process is still open.

    Raises:
        CannotSample: This interpreter's heap can't be sampled.
    """
    global _current  # noqa: PLW0603 - one sampler a process
    if _current is not None and _current.is_open:
        return None
    sampler = open_sampler()
    _current = HeapWatch(settings, process, emit, clock, sampler, most_open, emit_profile=emit_profile)
    return _current
