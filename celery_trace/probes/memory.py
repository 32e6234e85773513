"""
The memory probe: called around every run of a traced process, some microseconds each.

On the usual path it reads two exact counters and feeds the gate of that name. Only where a name is suspected do
its next runs go through an :class:`~celery_trace.probes.investigation.Investigation`. It measures what it
costs, and measures fewer runs when that would pass its budget.

A task's run is settled only when the next one begins: until then its result and Celery's own
bookkeeping of it are alive and would look like growth.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import weakref
from array import array
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from celery_trace.clock import Clock
from celery_trace.guard import report
from celery_trace.model import Kind, ProcessRecord, Role, Site, Window
from celery_trace.probes import counters
from celery_trace.probes.budget import Budget
from celery_trace.probes.census import NOTHING_KEPT, USUAL_BLOCK_BYTES, CensusWindow, Kept
from celery_trace.probes.differences import TracedRun, top_differences
from celery_trace.probes.gate import Gate
from celery_trace.probes.investigation import Investigation, Step
from celery_trace.probes.lease import FolderLease, Lease, Note
from celery_trace.probes.locate import LocateWindow
from celery_trace.probes.native import NativeServices, ResourceWatch
from celery_trace.probes.others import Others
from celery_trace.probes.overlap import OverlapWatch
from celery_trace.probes.plan import Plan, Services
from celery_trace.probes.source import OwnCode
from celery_trace.settings import Settings

#: The first runs of a name in a process, which are all measured: a leak shows early, and they cost a millisecond. Where
#: they cost more (on a fragmented heap reading the C allocator's bytes takes milliseconds) the budget ends it.
_FIRST_RUNS = 160

#: How long a heap stays frozen for the next run of a name, and how long tracing stays on for it, seconds.
_FROZEN_S = 10.0
_TRACED_S = 2.0

#: Runs after which the first signs of growth are noted for a process to come.
_EARLY_RUNS = 6

#: Roles in which one run at a time is the rule, and where nothing else happens between two runs.
_ONE_AT_A_TIME = frozenset({Role.CHILD, Role.SOLO, Role.WEB})

#: Roles in which other threads or greenlets are at work beside a run even when no other run is: they take in messages
#: and send results. A difference over a run is never that run's there.
_NEVER_ALONE = frozenset({Role.THREADS, Role.GREEN})


#: Asking an enumeration for its member costs more than a look into a dictionary.
_TASK: Final = Kind.TASK


class Measured(NamedTuple):
    """What is known of one run as soon as it ends; None where it was not measured."""

    kept_blocks: int | None
    kept_bytes: int | None  # small blocks at their usual size plus exact bytes of the C allocator
    top: list[Site]
    concurrent: int


_MUCH = 1 << 40


def _nothing() -> None:
    """Nothing is held."""


#: How deep runs may be nested in each other before they share their place for numbers.
_SLOTS = 64

_UNMEASURED = Measured(None, None, [], 1)


def available_counters() -> list[str]:
    """Which exact counters this interpreter and C library offer."""
    return counters.available()


class _Name:
    """One name's state in this process."""

    __slots__ = (
        "burst",
        "gate",
        "investigation",
        "kind",
        "name",
        "quiet",
        "resting",
        "rests",
        "runs",
        "swept",
        "watch",
        "word",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, plan: Plan, watch: ResourceWatch) -> None:
        self.kind = kind
        self.name = name
        self.runs = 0
        self.watch = watch
        self.gate = Gate(plan.gate)
        self.burst = _FIRST_RUNS  # runs that are measured whatever the sampling says
        self.quiet = False  # whether nothing is to be seen of its next runs, but for those that the sampling takes
        self.investigation: Investigation | None = None
        self.resting = 0  # run number until which the gate stays shut after a false alarm
        self.rests = 0
        self.swept = False
        self.word: Note | None = None  # what an earlier process found out


class Passing(Protocol):
    """Who lets runs pass by the probe, one at a time."""

    thread: int

    @property
    def running(self) -> object | None:
        """What runs now, in that thread; None while nothing does."""


class _Listener(Gate):
    """A gate that only notes what it is fed, in arrays of its own, as new objects would be what it hears of next."""

    __slots__ = ("blocks", "bytes", "count")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.blocks = array("q", [0] * 16)
        self.bytes = array("q", [0] * 16)

    def feed(self, blocks: int, live_bytes: int) -> bool:
        self.blocks[self.count % 16] = blocks
        self.bytes[self.count % 16] = live_bytes
        self.count += 1
        return False

    def usual(self) -> Kept:
        """The median of what was heard lately."""
        heard = min(self.count, 16)
        return Kept(sorted(self.blocks[:heard])[heard // 2], sorted(self.bytes[:heard])[heard // 2])


class _IdleInvestigation:
    """Looks at runs that do nothing, through the same path as any other."""

    over = False
    step = Step.CENSUS

    def __init__(self, window: CensusWindow) -> None:
        self.window = window

    def wants(self, run_number: int) -> bool:  # noqa: ARG002
        """All of them."""
        return not self.window.enough

    def advance(self, run_number: int) -> None:
        """Nothing follows."""

    def progress(self, run_number: int, gate: Gate) -> None:
        """And nothing is handed on."""


class Token:
    """A run in progress. Passed back to :meth:`MemoryProbe.after`, from whichever thread."""

    __slots__ = (
        "after_failure",
        "gated",
        "nested",
        "shared",
        "slot",
        "stage",
        "started_s",
        "state",
        "top",
        "tracing",
        "watched",
        "whose",
    )  # fmt: skip

    def __init__(self, state: _Name, whose: int, slot: int) -> None:
        self.state = state
        self.whose = whose
        self.slot = slot
        self.started_s = 0.0  # by `time.perf_counter()`; of runs that are measured
        self.top: list[Site] | None = None  # what a traced run gained and gave back
        self.after_failure = False  # of another name: its traceback is let go of in the middle of this run
        self.gated = False
        self.watched = False
        self.nested = False
        self.shared = 1  # the most runs that were in progress at once
        self.stage: CensusWindow | LocateWindow | None = None
        self.tracing: TracedRun | None = None

    @property
    def runs(self) -> int:
        """How many runs of this name the process has begun by now; its own number, if none began since."""
        return self.state.runs


#: A run that has begun. Of one that nothing is to be seen of there is no more than its name.
Begun: TypeAlias = Token | _Name


class MemoryProbe:
    """
    Measures the runs of one process.

    Methods may be called from any thread; an ``after`` may come from another one than its ``before``. Nothing is
    raised that is not the caller's: own errors go to :mod:`celery_trace.guard`.

    Args:
        settings: ``memory``, ``memory_budget``, ``memory_recheck_runs`` and ``in_app`` count here.
        process: The process's record; its role decides what may be blamed on one run.
        emit: Takes the windows.
        clock: Time for records and re-checks.
        lease: Shared knowledge of the host's processes; by default files in ``trace_dir/leases``.
        settled: Told what a measured run kept, in blocks and bytes, when what was in flight at its end is gone.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        emit: Callable[[Window], None],
        clock: Clock,
        lease: Lease | None = None,
        settled: Callable[[Kind, str, int, int], None] | None = None,
    ) -> None:
        self.budget = Budget(settings.memory_budget)
        self.plan = Plan.for_recheck(settings.memory_recheck_runs)
        self._mode = settings.memory
        self._clock = clock
        self._settled: Callable[[Kind, str, int, int], None] | None = None
        self._settle_late = process.role in _ONE_AT_A_TIME
        self._may_overlap = process.role not in (Role.CHILD, Role.SOLO)
        #: Whether runs overlap in this process, so that none is measured by itself any more.
        self._crowded = False
        self._pid = os.getpid()
        self._blocks = counters.block_counter()
        self._bytes = counters.byte_counter()
        self._own = OwnCode(settings.in_app)
        self._services = Services(
            process=process.uid,
            fleet=f"{os.getppid()}" if process.role is Role.CHILD else f"{os.getpid()}",
            emit=emit,
            clock=clock,
            lease=lease or FolderLease(settings.folder / "leases"),
            own=self._own,
            plan=self.plan,
            blocks=self._blocks,
            live_bytes=self._bytes,
        )
        self._others = Others(self._services)
        self.overlap = OverlapWatch(
            self._services, may_spend=self._may_spend, spent=self._spend, busy=self._is_investigating
        )
        self._native = NativeServices(
            process=process.uid,
            emit=emit,
            clock=clock,
            recheck_runs=self.plan.recheck_runs,
            blocks=self._blocks,
        )
        self._names: dict[Any, _Name] = {}
        # Four numbers a run: blocks and bytes at its start, blocks and bytes that it kept. In an array, as integers
        # that come to life during a run would be counted with it.
        self._numbers = array("q", [0] * 4 * _SLOTS)
        self._open: list[Token] = []
        self._pending: Token | None = None
        self._failed: _Name | None = None  # whose run was the last, if it failed
        #: The window that has frozen the heap, or traces, until the next run of its name; and until when.
        self._held: CensusWindow | LocateWindow | None = None
        self._held_until_s = 0.0
        self._overrides: dict[str, tuple[str, float]] = {}
        self._closed = False
        self._collections = 0
        self._collections_seen = 0
        #: Whether runs go one by one here, in the mode ``auto``; set when the probe is ready.
        self._calm = False
        #: The threads of the runs in progress that have no token, as nothing is to be seen of them.
        self._quiet: list[int] = []
        #: And who knows of such runs that pass by.
        self.passing: Passing | None = None
        #: Lets go of what we hold of earlier runs, so that it is not taken for what a run keeps.
        self.tidy: Callable[[], None] = _nothing
        self._idle = [NOTHING_KEPT, NOTHING_KEPT]  # by the gate: settled at once, settled late
        self._census_idle = [NOTHING_KEPT, NOTHING_KEPT]
        self._calibrate()
        self._crowded = process.role in _NEVER_ALONE
        self._calm = self._mode == "auto" and not self._may_overlap
        self._settled = settled  # from here on: the idle runs of the calibration are nobody's
        gc.callbacks.append(self._note_collection)
        _probes.add(self)

    # --- around a run ------------------------------------------------------------------------------------

    def before(self, kind: Kind, name: str) -> Begun | None:
        """A run begins. None when there is nothing to measure; pass it on to :meth:`after` all the same."""
        if self._closed:  # in a forked child too, by the hook at the end of this module
            return None
        budget = self.budget
        key = name if kind is _TASK else (kind.value, name)
        state = self._names.get(key)
        if (
            # Most runs of a busy process: not measured, and nothing is going on that they could disturb.
            state is not None
            and self._calm
            and not self._overrides
            and kind is _TASK
            and state.quiet
            and self._pending is None
            and self._held is None
            and not self._open
            and budget.skips()
        ):
            self._failed = None
            state.runs += 1
            self._quiet.append(get_ident())
            return state
        started_s = time.perf_counter()
        if state is None:
            state = self._names[key] = _Name(kind, name, self.plan, ResourceWatch(self._native, kind, name))
            if self._mode == "auto" or self._mode == "always":
                state.word = self._others.word(kind, name)
        token = Token(state, get_ident(), min(len(self._open), _SLOTS - 1) * 4)
        if self._open or self._quiet or (self.passing is not None and self.passing.running is not None):
            self._note_company(token)
        failed, self._failed = self._failed, None
        token.after_failure = failed is not None and failed is not state
        pending = self._pending
        if pending is not None:
            self._pending = None
            self._settle(pending, next_state=state)
        direct = pending is not None and pending.state is state
        pending = None  # or it would be freed during the run
        held = self._held
        if held is not None and started_s > self._held_until_s:
            self._let_go()
            held = None
        state.runs += 1
        self._open.append(token)
        alone = token.shared == 1 and not self._crowded and not token.after_failure
        mode = self._mode
        if self._overrides:
            mode = self._mode_of(name)
        if mode != "auto":
            if mode != "always":
                budget.spent_s += time.perf_counter() - started_s
                return token
            token.gated = True
            token.tracing = TracedRun()
        elif alone and not (held is not None and isinstance(held, LocateWindow)):
            # While another name's runs are traced, the traces themselves would be counted.
            token.gated = budget.is_due(state.runs)
            if state.burst > 0 and state.runs > state.resting and budget.covers(beginning=True, now_s=started_s):
                state.burst -= 1
                token.gated = True
        if (token.gated or state.watch.counting) and not token.nested and state.watch.wants(state.runs):
            token.watched = True
            state.watch.open()
        if token.gated:
            self.tidy()
            budget.count_measured(started_s)
            token.started_s = started_s
            numbers, slot = self._numbers, token.slot
            numbers[slot] = self._blocks()
            numbers[slot + 1] = self._bytes()
        if alone and state.investigation is not None:
            # After the readings above, so that the census does not find the two numbers.
            self._begin_stage(token, started_s, direct)
        if token.tracing is not None:
            self._start_tracing(token)
        budget.spent_s += time.perf_counter() - started_s
        return token

    def after(self, token: Begun | None, *, failed: bool = False) -> Measured:
        """A run ended. Gives what is known at once; an investigation settles when the next run begins."""
        if token is None:
            return _UNMEASURED
        if isinstance(token, _Name):
            if self._quiet:
                self._quiet.pop()
            if failed and self._settle_late:
                self._failed = token
            return _UNMEASURED
        started_s = time.perf_counter()
        if self._closed or os.getpid() != self._pid:
            return _UNMEASURED
        budget = self.budget
        running = self._open
        if running and running[-1] is token:
            running.pop()
        else:
            self._leave_out_of_order(token)
        if failed and self._settle_late:
            # A worker's child holds the error of a run, with all that its frames held, until the next run has ended.
            self._failed = token.state
        if self._crowded and self._mode == "auto":
            self.overlap.ended(token.state.kind, token.state.name, token.shared)
        top: list[Site] = []
        if token.tracing is not None:
            top = token.top = self._end_tracing(token)
        if token.stage is not None:
            self._end_stage(token)
        if not token.gated:
            if token.stage is not None or token.watched:
                self._end(token)
            budget.spent_s += time.perf_counter() - started_s
            return _UNMEASURED if token.shared == 1 and not top else Measured(None, None, top, token.shared)
        idle = self._idle[0]
        numbers, slot = self._numbers, token.slot
        numbers[slot + 2] = blocks = self._blocks() - numbers[slot] - idle.blocks
        numbers[slot + 3] = live_bytes = self._bytes() - numbers[slot + 1] - idle.bytes
        self._end(token)
        budget.measured_run_took(started_s - token.started_s)
        budget.spent_s += time.perf_counter() - started_s
        return Measured(blocks, live_bytes + blocks * USUAL_BLOCK_BYTES, top, token.shared)

    def _end(self, token: Token) -> None:
        if self._is_late(token) and not self._open:
            self._pending = token
        else:
            self._settle(token, next_state=None)

    def _is_late(self, token: Token) -> bool:
        return self._settle_late and not token.nested and token.state.kind is not Kind.BLOCK

    @property
    def rests(self) -> bool:
        """Whether runs go one by one here, and nothing is in hand that the next one would end or disturb."""
        return (
            self._calm
            and not self._closed
            and self._pending is None
            and self._held is None
            and not self._open
            and not self._quiet
            and not self._is_overridden()
        )

    def state_of(self, kind: Kind, name: str) -> _Name | None:
        """What is known of a name here; its ``quiet`` says whether its next runs may pass."""
        return self._names.get(name if kind is _TASK else (kind.value, name))

    def passed(self, state: _Name, runs: int) -> None:
        """So many runs passed that were neither begun nor ended here."""
        self._failed = None  # what an earlier run left behind is let go of by now
        state.runs += runs
        self.budget.passed(runs)

    def joined(self, state: _Name) -> Begun:
        """A run that was let pass goes on as one that had begun here; its thread asks."""
        self.passed(state, 1)
        self._quiet.append(get_ident())
        return state

    def set_mode(self, name: str, mode: str, until_monotonic_s: float) -> None:
        """Measure one name in another mode until then, on the clock given at the start."""
        self._overrides = {**self._overrides, name: (mode, until_monotonic_s)}

    def close(self) -> None:
        """
        The process ends: switch everything off. A second call does nothing.

        A process that is killed instead loses nothing: word of an investigation is left as it goes on.
        """
        if self._closed:
            return
        pending, self._pending = self._pending, None
        if pending is not None and os.getpid() == self._pid:
            self._settle(pending, next_state=None)
        self._closed = True
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._note_collection)
        self.overlap.close()
        for state in list(self._names.values()):
            if state.investigation is not None:
                state.investigation.abandon()
                state.investigation = None

    def forget(self) -> None:
        """In a forked child: undo in this copy what was on in the parent, and never measure again."""
        self._closed = True
        pending = self._pending
        for token in [*self._open, *([pending] if pending is not None else [])]:
            if token.stage is not None:
                token.stage.abandon()
            if token.tracing is not None:
                token.tracing.stop()
        self.overlap.close()
        self._open = []
        self._pending = None

    def _calibrate(self) -> None:
        """Learn what a run that does nothing seems to leave: our own token, and the readings' numbers."""
        settle_late = self._settle_late
        mode, self._mode = self._mode, "auto"
        for late in (False, True):
            self._settle_late = late
            listener = _Listener()
            state = self._names[""] = _Name(Kind.TASK, "", self.plan, ResourceWatch(self._native, Kind.TASK, ""))
            state.gate = listener
            state.burst = 1_000
            self._idle_runs(12, late)
            idle = listener.usual()
            census = _IdleInvestigation(CensusWindow(6, self._blocks, self._bytes))
            state.investigation = cast(Investigation, census)
            self._idle_runs(7, late)
            self._let_go()
            self._idle[late] = idle
            self._census_idle[late] = census.window.usual()
        del self._names[""]
        self._mode, self._settle_late = mode, settle_late
        self.budget.start()

    def _note_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"]:
            self._collections += 1

    def _idle_runs(self, runs: int, late: bool) -> None:
        for _ in range(runs):
            token = self.before(Kind.TASK, "")
            measured = self.after(token)
            if late and isinstance(token, Token):
                # Judged by the later of the two readings alone: the smaller would hide what it adds.
                self._numbers[token.slot + 2] = self._numbers[token.slot + 3] = _MUCH
            del token, measured
        pending, self._pending = self._pending, None
        if pending is not None and pending.stage is not None:
            pending.stage.abandon()

    # --- settling ----------------------------------------------------------------------------------------

    def _settle(self, token: Token, next_state: _Name | None) -> None:
        """The run and all that hung on it is over: judge it, and find out what its name's next runs are to be."""
        state = token.state
        self.tidy()
        self._judge(token, state, next_state)
        state.quiet = (
            self._is_left_alone(state)
            and not state.watch.counting
            # Runs that are all to be measured are not, while the gate is shut or the budget is spent.
            and (state.burst <= 0 or state.runs <= state.resting or not self.budget.covers(beginning=True))
        )

    def _is_left_alone(self, state: _Name) -> bool:
        """Whether no investigation is in progress, or none that the budget lets go on: a sampled run asks again."""
        investigation = state.investigation
        return investigation is None or not self.budget.covers(beginning=investigation.step is Step.CENSUS)

    def _judge(self, token: Token, state: _Name, next_state: _Name | None) -> None:
        """Judge a run by the smaller of its two readings."""
        if token.watched and token.shared == 1:
            state.watch.settle(state.runs)
        if token.stage is not None:
            self._settle_stage(token, next_state)
            return
        if token.shared > 1 or not token.gated:
            return
        numbers, slot = self._numbers, token.slot
        if next_state is None:
            blocks, live_bytes = numbers[slot + 2], numbers[slot + 3]
        else:
            idle = self._idle[1]
            blocks = self._blocks() - numbers[slot] - idle.blocks
            live_bytes = self._bytes() - numbers[slot + 1] - idle.bytes
        if self._settled is not None:
            # Not the smaller reading: garbage that a run leaves and a later one sees cleared away must add up to none.
            self._settled(state.kind, state.name, blocks, live_bytes + blocks * USUAL_BLOCK_BYTES)
        blocks, live_bytes = min(blocks, numbers[slot + 2]), min(live_bytes, numbers[slot + 3])
        if state.runs <= state.resting:
            return
        gate = state.gate
        if self._collections != self._collections_seen:
            # A collection of old garbage fell into this run, maybe of other tasks': what it freed is not this one's.
            self._collections_seen = self._collections
            blocks, live_bytes = max(blocks, 0), max(live_bytes, 0)
        suspicious = gate.feed(blocks, live_bytes)
        if state.investigation is not None:
            state.investigation.progress(state.runs, gate)
        elif suspicious or (state.word is not None and self._heed(state)):
            if gate.rising and not state.swept:
                self._sweep(state)
            elif self._others.have_settled(state.kind, state.name):
                state.gate.restart()
                state.resting = state.runs + self.plan.recheck_runs
            else:
                self._suspect(state, Kept(blocks, live_bytes))
        elif gate.seen == _EARLY_RUNS and gate.recent_share > 0.8:
            self._others.warn(state.kind, state.name, Kept(blocks, live_bytes))
        elif state.burst <= 0 and self.budget.samples and gate.promising:
            state.burst = self.plan.gate.samples

    def _sweep(self, state: _Name) -> None:
        """
        Clear young garbage away and have the low-water mark rise once more before it counts.

        In its first hundred runs a child's memory rises by some blocks a run whatever the task does: what Celery leaves
        for the collector of garbage piles up until that comes by for the first time, and the interpreter's free lists
        fill. An investigation would cost a thousand times as much, and find nothing.
        """
        state.swept = True
        if gc.isenabled():
            gc.collect(1)
        state.gate.restart()

    def _heed(self, state: _Name) -> bool:
        """Whether what an earlier process left, and what was seen since, are together enough for a suspicion."""
        gate, word = state.gate, state.word
        if word is None:
            return False
        if gate.seen == 4 and gate.recent_share >= 0.75 and word.fleet == self._services.fleet:
            state.word = None
            return True
        if gate.seen >= 4 * self.plan.gate.samples:
            # So many runs without a suspicion: what an earlier process saw leaking is mended.
            state.word = None
            self._others.take_back(state.kind, state.name, word, runs=gate.seen, run_number=state.runs)
        return False

    def _suspect(self, state: _Name, last: Kept) -> None:
        try:
            rare = state.gate.recent_share < 0.6
            state.investigation = Investigation(
                self._services, state.kind, state.name, run_number=state.runs, rare=rare, mean=last
            )
        except Exception as error:
            report("memory probe: suspicion", error)
        state.gate.restart()

    # --- the stages of an investigation --------------------------------------------------------------------

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.let_go()

    def _begin_stage(self, token: Token, now_s: float, direct: bool) -> None:
        investigation = token.state.investigation
        if investigation is None or not investigation.wants(token.state.runs):
            return
        if self._crowded or not self.budget.covers(beginning=investigation.step is Step.CENSUS, now_s=now_s):
            return  # the next run will do
        if token.nested and any(other.stage is not None for other in self._open):
            return
        stage = investigation.window
        if stage is None or (self._held is not None and self._held is not stage):
            return  # one at a time: a heap that is frozen for one is not thawed for another
        self.tidy()
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            self._held = None
            if isinstance(stage, LocateWindow):
                stage.open(direct=direct)
            else:
                stage.idle = self._census_idle[self._is_late(token)]
                stage.open()
            token.stage = stage
        except Exception as error:
            stage.abandon()
            report("memory probe: stage", error)
        finally:
            self.budget.forgive_waiting(wall_s, cpu_s)

    def _end_stage(self, token: Token) -> None:
        if isinstance(token.stage, CensusWindow):
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            token.stage.middle()
            self.budget.forgive_waiting(wall_s, cpu_s)

    def _settle_stage(self, token: Token, next_state: _Name | None) -> None:
        stage, token.stage = token.stage, None
        state = token.state
        investigation = state.investigation
        if stage is None:
            return
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            if token.shared > 1 or investigation is None or investigation.window is not stage:
                stage.abandon()
                return
            stage.settle(same_name_next=next_state is state)
            investigation.advance(state.runs)
            if investigation.over:
                self._rest(state)
            elif investigation.window is stage and not stage.enough:
                self._held = stage
                self._held_until_s = wall_s + (_TRACED_S if isinstance(stage, LocateWindow) else _FROZEN_S)
                if isinstance(stage, CensusWindow):
                    stage.resume()
        except Exception as error:
            stage.abandon()
            state.investigation = None
            self._rest(state)
            report("memory probe: investigation", error)
        finally:
            self.budget.forgive_waiting(wall_s, cpu_s)

    def _rest(self, state: _Name) -> None:
        """After a false alarm leave a name alone, for longer each time."""
        state.investigation = None
        state.resting = state.runs + min(self.plan.recheck_runs << min(state.rests, 5), 4_000)
        state.rests += 1
        state.gate.restart(warm_up=1)
        state.burst = self.plan.gate.slow_window * (self.plan.gate.slow_windows + 1)  # what its slower rule needs

    # --- the mode in which each run is traced ----------------------------------------------------------------

    def _is_overridden(self) -> bool:
        """Whether any name is to be measured in another mode now; forgets what has run out."""
        if self._overrides:
            now_s = self._clock.monotonic_s()
            self._overrides = {name: order for name, order in self._overrides.items() if now_s < order[1]}
        return bool(self._overrides)

    def _mode_of(self, name: str) -> str:
        override = self._overrides.get(name) if self._is_overridden() else None
        return self._mode if override is None else override[0]

    def _start_tracing(self, token: Token) -> None:
        tracing = token.tracing
        if tracing is not None:
            tracing.begin()

    def _end_tracing(self, token: Token) -> list[Site]:
        tracing, token.tracing = token.tracing, None
        if tracing is None:
            return []
        try:
            return top_differences(tracing.end())
        except Exception as error:
            tracing.stop()
            report("memory probe: tracing", error)
            return []

    # --- company -----------------------------------------------------------------------------------------

    def _note_company(self, token: Token) -> None:
        """Other runs are in progress: one that this thread is inside of is no company, all others are."""
        token.nested = True
        running, quiet = self._open, self._quiet
        if self.passing is not None and self.passing.running is not None:
            quiet = [*quiet, self.passing.thread]
        if all(other.whose == token.whose and other.state.kind is not Kind.REQUEST for other in running) and all(
            whose == token.whose for whose in quiet
        ):
            return
        count = len(running) + len(quiet) + 1
        token.shared = count
        for other in running:
            other.shared = max(other.shared, count)
        self._note_crowd()

    def _note_crowd(self) -> None:
        """Runs overlap here, as in a web server with threads: from now on the process is measured as a whole."""
        if self._crowded or not self._may_overlap:
            return
        self._crowded = True
        for state in list(self._names.values()):
            investigation, state.investigation = state.investigation, None
            if investigation is not None:
                investigation.abandon()

    def _leave_out_of_order(self, token: Token) -> None:
        """Not the latest to begin is the first to end: they ran side by side, as coroutines do."""
        running = self._open
        if token in running:
            running.remove(token)
            count = len(running) + 1
            for other in [*running, token]:
                other.shared = max(other.shared, count)
            self._note_crowd()

    # --- the process as a whole ----------------------------------------------------------------------------

    def _may_spend(self, beginning: bool) -> bool:
        return self.budget.covers(beginning=beginning)

    def _spend(self, seconds: float) -> None:
        self.budget.spent_s += seconds

    def _is_investigating(self) -> bool:
        """Whether a single run is being examined, so that nobody else may freeze, thaw or trace."""
        return self._held is not None or any(token.stage or token.tracing for token in list(self._open))


_probes: weakref.WeakSet[MemoryProbe] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for probe in list(_probes):
        probe.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
