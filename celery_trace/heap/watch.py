"""
Watches the heap of one process: reads the sample at intervals, judges the survivors, and writes windows.

One call before and one after each run give the sampler the run's tag. Everything else happens on the ticker's thread,
in small steps, so that no task waits for it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.guard import report
from celery_trace.heap import retainers
from celery_trace.heap.differences import is_the_programs
from celery_trace.heap.duty import Allowance, DutyCycle
from celery_trace.heap.long_runs import LEAST_BYTES as LEAST_BYTES_OF_LONG_RUN
from celery_trace.heap.long_runs import LongRuns, is_of_long_run, task_of
from celery_trace.heap.picks import IGNORED, UNTAGGED, Pick, Stack
from celery_trace.heap.resources import ResourceWatch
from celery_trace.heap.sampler import Sampler, open_sampler
from celery_trace.heap.stacks import KeptStacks
from celery_trace.heap.survivors import IN_FLIGHT_RUNS, HeapHistory, Key, Place
from celery_trace.heap.verdict import FEW_RELEASED, GROWS, Judgement, judge
from celery_trace.heap.windows import shares, site_at
from celery_trace.intervals import PROFILE_FIRST_S, PROFILE_S
from celery_trace.model import (
    RUN_NOTHING,
    SHARE_THREADS,
    Evidence,
    HeapProfile,
    Holder,
    Kind,
    ProcessRecord,
    Role,
    Stage,
    Verdict,
    Window,
    new_id,
    stable_id,
)
from celery_trace.settings import Settings
from celery_trace.text.code_owner import CodeOwner, is_our_own, project_roots
from celery_trace.text.format import duration
from celery_trace.text.format import size as format_size

if TYPE_CHECKING:
    from celery_trace.heap.traced import TracedSampler

#: Mean distance of two picks, bytes, when sampling begins; the sampler doubles it as picks become many.
MEAN_BYTES: Final = 4096.0
#: The distance up to which it is doubled because picks cost too much: for few runs, for many, and for each run of a
#: task, so that a leak of a kilobyte a run still has some sixty picks.
COARSE_BYTES: Final = 8192.0
COARSEST_BYTES: Final = 65536.0
BYTES_PER_RUN: Final = 16.0
#: Picks become fewer when they take more than this share of the process's processor time, in budgets.
PICKS_SHARE: Final = 1.0
#: What a stretch may spend on them at its start, processor seconds: its first runs are sampled finely.
SAVED_FOR_PICKS_S: Final = 2.0
#: The share of the budget that looks may take; above it the pauses between them become longer.
LOOKS_SHARE: Final = 0.3
#: Allocations outside of tasks are positioned by time: a "run" of the process is so many seconds.
PROCESS_RUN_S: Final = 2.0
#: A stretch over its budget ends after so many seconds in a process that runs no tasks: a busy worker's main process
#: bounds the rate of all its children.
SHORT_STRETCH_S: Final = 20.0
#: The name for allocations outside of tasks.
PROCESS: Final = "(process)"

#: A site that keeps less a run, or has kept less in all, is not reported (bytes).
LEAST_BYTES_PER_RUN: Final = 16
LEAST_BYTES: Final = 4096
#: From this size on, a process that runs no tasks reports what it holds even if that does not grow (bytes).
LARGE_BYTES: Final = 16 * 2**20
#: Sites that are judged in one look, the largest ones.
MOST_SITES: Final = 300
#: The same when the process ends.
MOST_SITES_AT_END: Final = 12
#: Blocks from which the search for a holder starts.
MOST_BLOCKS: Final = 20
YOUNGEST_BLOCKS: Final = 4
#: A holder is searched for again after so many times the runs.
SEARCH_AGAIN: Final = 2.0
#: An unchanged row is written again after so many seconds.
REPEAT_S: Final = 60.0
#: How long a process that ends may still search for a holder, seconds.
SEARCH_AT_END_S: Final = 0.1
#: One look continues a search until its passes have taken so long, seconds.
QUICK_S: Final = 0.1
#: The share of the time that searches may take, in budgets: the next one waits until the last one is paid off.
SEARCHES_SHARE: Final = 3.0
#: Sites that keep so much a run are searched at once, bytes.
URGENT_BYTES: Final = 2**20
#: Observed runs of a task that retained nothing, before that is reported.
CLEAN_RUNS: Final = 40
#: Points of a site's curve.
MOST_POINTS: Final = 40
_GROWS: Final = Verdict.GROWING
_LEAKS: Final = Verdict.LEAKING
#: Roles of processes that run several at once.
_SHARED_BY_RUNS: Final = SHARE_THREADS | {Role.THREADS}
#: A pause in which another thread gets the GIL, seconds; with a pause of zero it often doesn't.
_BREATH_S: Final = 5e-5


#: The tags of this process. The sampler counts runs and marks functions by them as long as the process lives, so a
#: later watch uses the same ones.
_tags: dict[tuple[Kind, str], int] = {}
_names: list[tuple[Kind, str]] = [(Kind.PROCESS, PROCESS)]


def _with_point(growth: list[tuple[float, int]], point: tuple[float, int]) -> list[tuple[float, int]]:
    """A curve with one more point, thinned out when it gets long."""
    growth = [*growth, point]
    return growth if len(growth) <= MOST_POINTS else [*growth[:-1:2], growth[-1]]


def _nothing(_: object) -> None:
    """Does nothing: there is no tag to restore, or no consumer."""


class _Site(Struct):
    """What was found and reported about a site."""

    stack: Stack
    found: retainers.Found | None = None
    searched_at_runs: int = 0
    judgement: Judgement = Judgement(Verdict.TOO_FEW_RUNS, 0.0, "")
    verdict: Verdict | None = None  # written last
    written_holder: Holder = Holder()  # written last
    events: int = 0  # at that time
    written_s: float = 0.0
    growth: list[tuple[float, int]] = []

    @property
    def holder(self) -> Holder:
        """The holder, as far as it is known."""
        return self.found.holder if self.found is not None else Holder()


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
        sampler: Sampler | TracedSampler,
        most_open: Callable[[], int] = lambda: 1,
        emit_profile: Callable[[HeapProfile], None] = _nothing,
    ) -> None:
        self._most_open = most_open
        self._emit_profile = emit_profile
        self._process = process
        self._emit = emit
        self._clock = clock
        self._sampler = sampler
        self._own = CodeOwner(settings.in_app, project_roots())
        self._pid = os.getpid()
        self._least_runs = settings.memory_recheck_runs
        self._places: dict[int, Place | None] = {}
        self._history = HeapHistory(self._place_of)
        self._kept = KeptStacks(sampler.stack, self._own)
        self._long_runs = LongRuns()
        self._profile_due_s = time.monotonic() + PROFILE_FIRST_S
        self._sites: dict[Key, _Site] = {}
        self._covering_site: dict[tuple[str, ...], Key] = {}  # the holder's path: the site that reports it
        self._began_s = time.monotonic()
        self._pause_s = sampler.pace.first_pause_s
        self._due_s = self._began_s + sampler.pace.first_pause_s
        self._mean_bytes = MEAN_BYTES
        self._calls = 0
        self._judged_calls = -1
        self._pick_s = 0.0
        self._stretch_runs: dict[int, int] = {}  # tag: its runs when this stretch began
        self._observed: dict[int, int] = {}  # tag: its runs in earlier stretches
        self._clean: dict[int, int] = {}  # tag: observed runs that were reported to retain nothing
        self._search: Iterator[dict[Key, retainers.Found] | None] | None = None
        self._search_s = 0.0  # what the search in progress has cost
        self._search_after_s = self._began_s  # when the next one may begin
        self._collections = 0  # full collections by the last count
        self._proving = 0  # the number of the last one during which no search held references
        self._resources = ResourceWatch(process, emit, clock, sampler, self._own, _names.__getitem__)
        self._closed = False
        self._on = False
        self._lost_hooks = False
        self._is_frozen: bool | None = None  # not read yet
        self._cost_s = 0.0
        self._has_company = process.role in _SHARED_BY_RUNS
        pace = sampler.pace
        longest_over_s = pace.longest_over_s
        if process.role in RUN_NOTHING:
            longest_over_s = min(longest_over_s, SHORT_STRETCH_S)
        self.duty = DutyCycle(
            settings.memory_budget, clock, fewest_runs=pace.fewest_runs, longest_over_s=longest_over_s
        )
        #: How often :meth:`look` wants to be called, seconds.
        self.look_s = pace.look_s
        #: Sets this thread's tag when a run begins, and restores the previous one when it has ended.
        self.run: Callable[[int], int] = sampler.run
        self.restore: Callable[[int], object] = sampler.restore
        if process.role in SHARE_THREADS:
            # Runs share threads, so allocations are attributed by the functions in their stacks.
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
        key = (kind, name)
        tag = _tags.get(key)
        if tag is None:
            tag = _tags[key] = len(_names)
            _names.append(key)
            for function in code:
                if self._own(function.co_filename):
                    self._sampler.mark(function, tag)
        return tag

    def stop_at(self, code: CodeType) -> None:
        """Set the function around every run: frames outside of it are left out of stacks."""
        self._sampler.stop_at(code)

    def _count_run(self, tag: int) -> int:
        self._sampler.restore(self._sampler.run(tag))
        return UNTAGGED

    # --- looking ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Do what is due: switch sampling on or off, judge, or take a step of a search. Called every :attr:`look_s`."""
        if self._closed or os.getpid() != self._pid:
            return
        before = self._sampler.run(IGNORED)  # what this thread allocates is ours
        started_s = time.thread_time()
        try:
            self._account()
            self._resources.look(self._runs(), self._heap_bytes, busy=self._search is not None)
            if self._search is not None:
                self._quick_steps()  # it holds references to what it has found, so it continues while sampling is off
                return
            if not self._on:
                if self.duty.may_begin():
                    self._start()
                return
            if not self._sampler.is_on():
                self._start_again()
                return
            now_s = time.monotonic()
            is_over = self.duty.is_over(self._runs_per_task())
            if now_s >= self._due_s or is_over:  # the sample is lost at the end of a stretch
                if self._calls != self._judged_calls:
                    self._judged_calls = self._calls
                    self._judge(now_s, ends=is_over)
                    self._pause_s = self._pause_after(time.thread_time() - started_s)
                    self._quick_steps()
                self._due_s = now_s + self._pause_s
            if is_over:
                self._stop()
        finally:
            if self._process.role in SHARE_THREADS:
                self._sampler.restore(before)  # the ticker may be a greenlet, and this the thread that runs all tasks
            self.duty.spend(time.thread_time() - started_s)

    def _pause_after(self, look_s: float) -> float:
        """The pause that a look of this duration (processor seconds) needs to stay within its share of the budget."""
        pace = self._sampler.pace
        wanted_s = look_s / (LOOKS_SHARE * self.duty.budget)
        return min(max(wanted_s, pace.first_pause_s), pace.longest_pause_s, 1.5 * self._pause_s)

    def judge(self) -> None:
        """Judge at once, due or not, and search to the end. Slow on a large heap."""
        before = self._sampler.run(IGNORED)
        try:
            self._judge(time.monotonic())
            while self._search is not None:
                self._step()
        finally:
            self._sampler.restore(before)

    def close(self) -> None:
        """The process ends: judge once more, for short-lived processes, and stop sampling."""
        if self._closed:
            return
        if os.getpid() == self._pid and self._on:
            before = self._sampler.run(IGNORED)
            try:
                self._judge(time.monotonic(), last=True)
                self._search_before_the_end()
            finally:
                self._sampler.restore(before)
        elif os.getpid() == self._pid:
            self._write_profiles(self._runs())
        self._closed = True
        if self._sampler.note_collection in gc.callbacks:
            gc.callbacks.remove(self._sampler.note_collection)
        if os.getpid() == self._pid:
            self._sampler.stop()

    def _search_before_the_end(self) -> None:
        """Find the holder of the largest site of a short-lived process, if that is quick."""
        until_s = time.monotonic() + SEARCH_AT_END_S
        while self._search is not None and time.monotonic() < until_s:
            self._step()

    @property
    def is_open(self) -> bool:
        """Whether it watches this process."""
        return not self._closed and os.getpid() == self._pid

    @property
    def is_searching(self) -> bool:
        """Whether a search for holders is in progress."""
        return self._search is not None

    @property
    def state(self) -> str:
        """What it does now: ``sampling``, or ``paused: next stretch in 40 s``."""
        return "sampling" if self._on else f"paused: next stretch in {duration(round(self.duty.wait_s()))}"

    def conditions(self) -> dict[str, int]:
        """Conditions that impair the watch, for the process's statistics; each is 1, or missing."""
        found = {
            "gc_off": not retainers.collects(),
            "frozen": self._is_frozen,
            "tracemalloc": is_the_programs(),
            "hooks_lost": self._lost_hooks,
        }
        return {f"heap:{name}": 1 for name, is_so in found.items() if is_so}

    # --- stretches --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._sampler.start(MEAN_BYTES)
        self._on = True
        self._mean_bytes = MEAN_BYTES
        self._places.clear()
        self._stretch_runs = self._runs()
        self._history.begin(self._stretch_runs)
        self.duty.begin_stretch()
        self._cost_s = self._sampler.cost_s()
        self._picking = Allowance(PICKS_SHARE * self.duty.budget, time.process_time(), saved_s=SAVED_FOR_PICKS_S)
        stats = self._sampler.stats()
        self._calls, self._pick_s = stats["calls"], stats["pick_s"]

    def _stop(self) -> None:
        self._kept.end_stretch()
        runs = self._runs()
        for tag in runs:
            self._observed[tag] = self._observed.get(tag, 0) + self._in_stretch(tag, runs)
        self._on = False
        self._sampler.stop()

    def _start_again(self) -> None:
        """Another tool has removed the hooks, so the sample has missed what was freed since."""
        self._lost_hooks = isinstance(self._sampler, Sampler)
        self._sampler.stop()
        self._start()

    def _account(self) -> None:
        if not self._on:
            return
        stats = self._sampler.stats()
        pick_s = stats["pick_s"] - self._pick_s
        self.duty.spend((stats["calls"] - self._calls) * self._cost_s + pick_s)
        if self._picking.exceeds(pick_s, time.process_time()) and stats["mean_bytes"] < self._coarsest_bytes():
            self._sampler.coarsen()
        self._calls, self._pick_s = stats["calls"], stats["pick_s"]

    def _coarsest_bytes(self) -> float:
        """The distance of picks that still shows a leak, by how often each task has run in this stretch."""
        if self._process.role in RUN_NOTHING:
            return COARSEST_BYTES
        return min(max(COARSE_BYTES, BYTES_PER_RUN * self._runs_per_task()), COARSEST_BYTES)

    def _runs(self) -> dict[int, int]:
        """How many runs of each tag have begun; for the process itself, its age in units of ``PROCESS_RUN_S``."""
        runs = {tag: self._sampler.runs(tag) for tag in range(1, len(_names))}
        runs[UNTAGGED] = int((time.monotonic() - self._began_s) / PROCESS_RUN_S)
        return runs

    def _heap_bytes(self) -> float:
        return sum(evidence.bytes for evidence in self._history.evidence().values())

    def _runs_per_task(self) -> float:
        runs = self._runs()
        gained = [number for tag in runs if tag != UNTAGGED and (number := self._in_stretch(tag, runs)) > 0]
        return sum(gained) / len(gained) if gained else 0.0

    def _in_stretch(self, tag: int, runs: Mapping[int, int]) -> int:
        """Runs of a tag in the stretch in progress; none between two stretches."""
        return runs[tag] - self._stretch_runs.get(tag, 0) if self._on else 0

    # --- judging ----------------------------------------------------------------------------------------

    def _place_of(self, stack: int) -> Place | None:
        """The innermost of the user's own lines in a stack; the innermost line if there is none."""
        if stack not in self._places:
            frames = self._sampler.stack(stack)
            lines = tuple((file, line) for file, line, _ in frames)
            place: Place | None = None
            if lines and not is_our_own(lines):
                place = lines[self._own.first(lines)]
            self._places[stack] = place
        return self._places[stack]

    def _picks(self) -> Iterator[Pick]:
        for pick in self._sampler.picks():
            if pick.tag != UNTAGGED:
                yield pick
            else:
                yield pick._replace(run=max(0, int((pick.born_s - self._began_s) / PROCESS_RUN_S)))

    def _judge(self, now_s: float, *, last: bool = False, ends: bool = False) -> None:
        """
        Read the sample and judge the largest sites.

        Args:
            now_s: Monotonic time.
            last: The process ends, so a site with too few runs for a verdict is reported too: others add to it.
            ends: The stretch ends, and its sample is lost.
        """
        if self._is_frozen is None:  # once, as it counts them all; usually it is done before the first task
            self._is_frozen = gc.get_freeze_count() > 0
        stats = self._sampler.stats()
        runs = self._runs()
        self._count_collections(stats["collections"])
        in_flight = max(IN_FLIGHT_RUNS, 2 * self._most_open())
        picks = self._long_runs.look(self._picks(), runs, in_flight, now_s)
        self._history.look(
            picks,
            runs | self._long_runs.slices(now_s),
            self._proving,
            thinned=stats["mean_bytes"] != self._mean_bytes,
            in_flight=in_flight,
            breathe=_yield_gil,
        )
        self._mean_bytes = stats["mean_bytes"]
        evidence = self._history.evidence()
        for key in sorted(evidence, key=lambda key: -evidence[key].bytes)[: MOST_SITES_AT_END if last else MOST_SITES]:
            if key not in self._sites and self._is_worth_a_row(key, evidence[key], last):
                alive = self._history.alive.get(key)
                self._sites[key] = _Site(self._sampler.stack(alive[0].stack) if alive else ())
        self._judge_sites(evidence, runs, now_s)
        of_ended_runs = {key: alive for key, alive in self._history.alive.items() if not is_of_long_run(key[0])}
        self._resources.find_openers(of_ended_runs)
        if self._search is None:
            self._prepare_search(evidence, last)
        self._write_clean(runs, 1 if last else CLEAN_RUNS)
        if last or ends or now_s >= self._profile_due_s:
            replaced = {key for key, one in evidence.items() if one.released > FEW_RELEASED}
            self._kept.look(
                (pick for alive in of_ended_runs.values() for pick in alive),
                lambda pick: (pick.tag, self._place_of(pick.stack)) in replaced,
            )
            if last or now_s >= self._profile_due_s:
                self._profile_due_s = now_s + PROFILE_S
                self._write_profiles(runs)
        if self._sampler.sweep():
            self._places.clear()

    def _is_large(self, key: Key, evidence: Evidence) -> bool:
        """Whether a process that runs no tasks reports the site for its size alone."""
        return self._process.role in RUN_NOTHING and key[0] == UNTAGGED and evidence.bytes >= LARGE_BYTES

    def _is_covered(self, key: Key, site: _Site) -> bool:
        """
        Whether a line of a library is covered by a larger site of the same holder.

        A message that a worker holds was allocated at some twenty lines of Celery's and the broker's.
        """
        if key[0] != UNTAGGED or self._own(key[1][0]) or not site.holder.path:
            return False
        holder = tuple(step.partition("[")[0] for step in site.holder.path[:-1])
        return self._covering_site.setdefault(holder, key) != key

    def _is_worth_a_row(self, key: Key, evidence: Evidence, last: bool) -> bool:
        """Whether a site is to be reported from now on."""
        least_bytes = LEAST_BYTES_OF_LONG_RUN if is_of_long_run(key[0]) else LEAST_BYTES
        if evidence.bytes_per_run < LEAST_BYTES_PER_RUN or evidence.bytes < least_bytes:
            return False
        if self._is_large(key, evidence):
            return True
        verdict = judge(evidence, least_runs=self._least_runs).verdict
        if verdict is Verdict.TOO_FEW_RUNS:
            return last and evidence.events > 0
        return verdict is not Verdict.STEADY

    def _judge_sites(self, evidence: Mapping[Key, Evidence], runs: dict[int, int], now_s: float) -> None:
        known = [(key, site) for key, site in self._sites.items() if key in evidence]
        for key, site in sorted(known, key=lambda one: -evidence[one[0]].bytes):
            site.judgement = judge(evidence[key], site.holder, least_runs=self._least_runs)
            if is_of_long_run(key[0]):
                self._write_long_run(key, site, evidence[key], now_s)
                continue
            # Outside of tasks a suspicion alone gets no row.
            grows = site.verdict is not None or site.judgement.verdict in (_GROWS, _LEAKS)
            is_held = bool(site.holder.path) and self._is_large(key, evidence[key])
            if (key[0] != UNTAGGED or grows or is_held) and not self._is_covered(key, site):
                self._write(key, site, evidence[key], runs, now_s)
                _yield_gil()

    def _prepare_search(self, evidence: Mapping[Key, Evidence], last: bool) -> None:
        """Search the holders of all growing sites, in the same passes over the heap."""
        waits = not last and time.monotonic() < self._search_after_s
        wanted = {}
        for key, site in self._sites.items():
            runs = evidence[key].runs
            grows = site.judgement.confidence >= GROWS and site.judgement.verdict in (Verdict.SUSPECT, Verdict.GROWING)
            unknown = site.found is None and (last or self._is_large(key, evidence[key]))
            if runs < SEARCH_AGAIN * site.searched_at_runs or not (grows or unknown):
                continue
            if waits and evidence[key].bytes_per_run < URGENT_BYTES:
                continue
            blocks = self._blocks_of(key)
            if blocks:
                wanted[key] = blocks
                site.searched_at_runs = runs
        if wanted:
            self._count_collections(self._sampler.stats()["collections"])
            self._search = retainers.search(
                self._sampler.referrers,
                wanted,
                plain=self._sampler.plain(block for blocks in wanted.values() for block in blocks),
                sees_all=self._sampler.sees_all,
                holding_frames=self._sampler.holding_frames,
            )

    def _count_collections(self, number: int) -> None:
        """Survivors of a full collection are not garbage, unless a search held references during it."""
        if number > self._collections and self._search is None:
            self._proving = number
        self._collections = number

    def _blocks_of(self, key: Key) -> list[tuple[int, int]]:
        """
        Some blocks of a site: the youngest, which are at the head of a chain, and others of all ages, one of each run.

        A first run may retain many more, such as a connection, under another holder.
        """
        of_runs = {pick.run: pick for pick in sorted(self._history.alive.get(key, ()))}
        blocks = [(pick.address, pick.size) for pick in sorted(of_runs.values(), reverse=True)]
        return [*blocks[:YOUNGEST_BLOCKS], *blocks[YOUNGEST_BLOCKS :: len(blocks) // MOST_BLOCKS + 1]]

    def _quick_steps(self) -> None:
        """Passes of the search in progress, several if they are quick: a chain may grow faster than one a second."""
        began_s = time.thread_time()
        while self._search is not None:
            started_s = time.monotonic()
            self._step()
            if time.thread_time() >= began_s + QUICK_S:
                break
            time.sleep(time.monotonic() - started_s)  # give the GIL to waiting tasks
        self._search_s += time.thread_time() - began_s
        if self._search is None:
            self._search_after_s = time.monotonic() + self._search_s / (SEARCHES_SHARE * self.duty.budget)
            self._search_s = 0.0

    def _step(self) -> None:
        """One pass over the heap of the search in progress."""
        if self._search is None:
            return
        try:
            found = next(self._search)
        except Exception as error:
            self._end_search()
            report("heap watch: search for a holder", error)
            return
        if found is not None:
            self._end_search()
            for key, one in found.items():
                self._sites[key].found = one
            self._judge_sites(self._history.evidence(), self._runs(), time.monotonic())

    def _end_search(self) -> None:
        self._count_collections(self._sampler.stats()["collections"])
        self._search = None

    def _write_clean(self, runs: dict[int, int], fewest: int) -> None:
        """
        Report that observed runs of a task have retained nothing, which refutes reports of other processes.

        It is repeated after twice as many runs: a single process may have to refute a rare leak.

        Args:
            runs: How many runs of each tag have begun.
            fewest: Observed runs that are worth a report.
        """
        reported = {tag for tag, _ in self._sites}
        for tag, number in runs.items():
            observed = self._observed.get(tag, 0) + self._in_stretch(tag, runs) - IN_FLIGHT_RUNS
            if tag == UNTAGGED or tag in reported or observed < max(fewest, 2 * self._clean.get(tag, 0)):
                continue
            self._clean[tag] = observed
            kind, name = _names[tag]
            self._emit(
                Window(
                    id=new_id(),
                    investigation=stable_id("heap", self._process.uid, kind, name),
                    process=self._process.uid,
                    kind=kind,
                    name=name,
                    stage=Stage.SAMPLED,
                    verdict=Verdict.STEADY,
                    at_s=self._clock.now_s(),
                    runs=observed,
                    run_number=number,
                    role=self._process.role,
                    release=self._process.release,
                    evidence=Evidence(runs=observed),
                )
            )

    # --- writing ----------------------------------------------------------------------------------------

    def _write_profiles(self, runs: Mapping[int, int]) -> None:
        """What each task retains by call stack, if that has changed, and the peaks of its runs."""
        alone = not self._has_company and self._most_open() == 1
        peaks = {tag: self._sampler.peaks(tag) for tag in runs if tag != UNTAGGED} if alone else {}
        for tag, profile in self._kept.changed(peaks):
            kind, name = _names[tag]
            observed = self._observed.get(tag, 0) + max(0, self._in_stretch(tag, runs) - IN_FLIGHT_RUNS)
            self._emit_profile(
                HeapProfile(
                    process=self._process.uid,
                    kind=kind,
                    name=name,
                    at_s=self._clock.now_s(),
                    release=self._process.release,
                    runs=observed,
                    bytes=profile.bytes,
                    other_bytes=profile.other_bytes,
                    frames=profile.frames,
                    stacks=profile.stacks,
                    peaks=peaks.get(tag, {}),
                )
            )

    def _write_long_run(self, key: Key, site: _Site, evidence: Evidence, now_s: float) -> None:
        """Report what a run in progress holds, once it grows, and when that has ended."""
        lasted_s = self._long_runs.lasted_s(key[0], now_s)
        grows = lasted_s > 0 and site.judgement.verdict in (_GROWS, _LEAKS)
        verdict = _GROWS if grows else Verdict.STEADY
        is_new = verdict is not site.verdict or site.holder != site.written_holder
        if (site.verdict is None and not grows) or not (is_new or (grows and now_s - site.written_s >= REPEAT_S)):
            return
        size = round(evidence.bytes)
        why = f"{format_size(size)} in one run of {duration(lasted_s)}" if grows else "the run has released it"
        site.verdict, site.written_holder, site.written_s = verdict, site.holder, now_s
        site.growth = _with_point(site.growth, (self._clock.now_s(), size))
        tag, place = key
        self._emit_window(
            (task_of(tag), place),
            site,
            Stage.RUN,
            verdict,
            runs=1,
            run_number=self._sampler.runs(task_of(tag)),
            blocks=evidence.picks,
            rate=evidence.bytes,
            total=size,
            note=why,
        )

    def _write(self, key: Key, site: _Site, evidence: Evidence, runs: dict[int, int], now_s: float) -> None:
        tag, judgement = key[0], site.judgement
        is_new = judgement.verdict is not site.verdict or site.holder != site.written_holder
        has_more = evidence.events > 1.25 * site.events
        if not (is_new or has_more or (now_s - site.written_s >= REPEAT_S and evidence.events != site.events)):
            return
        site.verdict, site.written_holder, site.events, site.written_s = (
            judgement.verdict,
            site.holder,
            evidence.events,
            now_s,
        )
        rate = evidence.bytes_per_run
        total = round(evidence.bytes + rate * self._unobserved(tag, runs))
        site.growth = _with_point(site.growth, (self._clock.now_s(), total))
        self._emit_window(
            key,
            site,
            Stage.SAMPLED,
            judgement.verdict,
            runs=evidence.runs,
            run_number=runs[tag],
            blocks=evidence.events,
            rate=rate,
            total=total,
            note=judgement.why,
            evidence=evidence,
        )

    def _emit_window(
        self,
        key: Key,
        site: _Site,
        stage: Stage,
        verdict: Verdict,
        *,
        runs: int,
        run_number: int,
        blocks: int,
        rate: float,
        total: int,
        note: str,
        evidence: Evidence | None = None,
    ) -> None:
        tag, (file, line) = key
        kind, name = _names[tag]
        found = site.found or retainers.Found(Holder())
        self._emit(
            Window(
                id=new_id(),
                investigation=stable_id("heap", self._process.uid, kind, name, file, line, stage),
                process=self._process.uid,
                kind=kind,
                name=name,
                stage=stage,
                verdict=verdict,
                at_s=self._clock.now_s(),
                runs=runs,
                run_number=run_number,
                kept_blocks_per_run=round(blocks / runs, 3) if runs else 0.0,
                kept_bytes_per_run=rate,
                sites=[site_at(file, line, site.stack, size=rate, blocks=blocks)],
                types=shares(found.types, total),
                retained_by=found.holder.path,
                bounded=found.holder.bound,
                concurrent=self._most_open(),
                by_site=self._has_company,
                note=note,
                role=self._process.role,
                release=self._process.release,
                evidence=evidence,
                holder=found.holder,
                growth=site.growth,
            )
        )

    def _unobserved(self, tag: int, runs: Mapping[int, int]) -> int:
        """Runs of a tag while nothing was sampled."""
        return max(0, runs[tag] - self._observed.get(tag, 0) - self._in_stretch(tag, runs))


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
