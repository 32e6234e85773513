"""
Growth where several runs share a process: threads, greenlets, coroutines.

What the counters of a process gain while runs overlap belongs to none of them, so no run is ever blamed by a
difference. The process is watched as a whole; where it keeps growing, tracing is switched on for at most a second,
and what grew in proportion to the runs that ended is blamed by the code in its traceback: the task's, the view's.
What leads to nobody's code, or to several, is told as the process's own.

Everything here happens on the ticker's thread; only :meth:`OverlapWatch.ended` is called around runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from types import CodeType, FunctionType
from typing import Any

from msgspec import Struct

from celery_trace.model import Kind, Stage, TypeCount, Verdict, Window, new_id
from celery_trace.probes.census import USUAL_BLOCK_BYTES, Collector, Kept
from celery_trace.probes.locate import Rate, Reading, Tracing, difference, sites, total_of
from celery_trace.probes.plan import Services
from celery_trace.probes.retention import Lengths, Retention, content_types, measure, who_retains
from celery_trace.probes.source import Frames

#: Stands for the process where no task or route can be blamed.
PROCESS = "(process)"

#: How often the watch looks, seconds.
LOOK_S = 0.1

#: A mark is the least that was alive at any look while so many runs ended; what is in flight then is least, too.
_MARK_RUNS = 24
_MARK_LOOKS = 4
_MARKS = 5

#: Growth a run, bytes, from which on a process is suspected and a site counts.
_LEAST_BYTES = 256

#: Proof: the process is collected and read, and again so many runs later.
_PROOF_RUNS = 48
_PROOF_LOOKS = 4

#: A window of tracing takes at most so long, seconds, and has two halves. Several windows are added up until each
#: half has seen so many runs: what is in flight is a few runs' worth however many there were.
_TRACED_S = 1.0
_HALF_S = 0.2
_HALF_RUNS = 10
_MOST_WINDOWS = 6
#: Depth of a traceback: the task's own frame is within it in 97 of 100 bytes.
_NFRAME = 15

#: Of the growth that was proved, what the lines have to account for, and what one name has to.
_ACCOUNT = 0.3
_CRUMB = 0.05

#: A site grows steadily when its second half has at least this share of its first, run for run.
_STEADY = 0.4
#: And at the verdict the process still grows by this share of what it did.
_STILL = 0.5

_MOST_WAIT_RUNS = 4_000

#: What the code of a name is; empty where nobody knows.
CodeOf = Callable[[Kind, str], Iterable[CodeType]]


def _nobody(kind: Kind, name: str) -> Iterable[CodeType]:  # noqa: ARG001 - until somebody knows
    return ()


def code_of(thing: Any) -> list[CodeType]:
    """
    The code that a call of ``thing`` leads to: a function's, of all it wraps, and of a class's own methods.

    Reads attributes of plain functions and classes only, and calls nothing of the user's.
    """
    found: list[CodeType] = []
    for _ in range(20):
        thing = getattr(thing, "__func__", thing) if type(thing).__name__ == "method" else thing
        if isinstance(thing, FunctionType):
            found.append(thing.__code__)
            view = thing.__dict__.get("view_class") or thing.__dict__.get("cls")
            if isinstance(view, type):
                found += [
                    method.__code__
                    for base in view.__mro__
                    for method in vars(base).values()
                    if isinstance(method, FunctionType)
                ]
            wrapped = thing.__dict__.get("__wrapped__")
            if wrapped is None:
                break
            thing = wrapped
        else:
            break
    return found


class _Step(StrEnum):
    WATCH = "watch"
    PROOF = "proof"
    PROVE = "prove"
    WINDOW = "window"
    WAIT = "wait"
    REST = "rest"


class _Look(Struct, frozen=True):
    """The process at a moment: live blocks and bytes, and the runs that had ended."""

    blocks: int
    bytes: int
    runs: int

    def since(self, other: _Look) -> float:
        """Bytes a run that were gained since, small blocks at their usual size."""
        gained = (self.blocks - other.blocks) * USUAL_BLOCK_BYTES + self.bytes - other.bytes
        return gained / max(1, self.runs - other.runs)


class _Blame(Struct, frozen=True):
    """What a name keeps a run, by traceback."""

    kind: Kind
    name: str
    runs: int
    rates: list[Rate]

    @property
    def lines(self) -> set[tuple[str, int]]:
        """The allocating lines."""
        return {rate.frames[0] for rate in self.rates}


class _Evidence(Struct):
    """What windows of tracing saw, added up: their first halves, and what their second halves added."""

    windows: int = 0
    early: Reading = {}
    late: Reading = {}
    early_runs: int = 0
    late_runs: int = 0
    ran: dict[tuple[Kind, str], int] = {}  # in the second halves, by name


class OverlapWatch:
    """
    Watches a process in which runs overlap.

    Args:
        services: What all investigations of the process share.
        may_spend: Whether there is budget: for a beginning (True) or to end what was begun (False).
        spent: Takes the seconds that measuring took.
        busy: Whether an investigation of a single run has the heap frozen, or traces.
    """

    def __init__(
        self,
        services: Services,
        *,
        may_spend: Callable[[bool], bool],
        spent: Callable[[float], None],
        busy: Callable[[], bool],
    ) -> None:
        self.code_of: CodeOf = _nobody
        self._services = services
        self._may_spend = may_spend
        self._spent = spent
        self._busy = busy
        self._step = _Step.WATCH
        self._investigation = new_id()
        #: Runs that ended while others were in progress, by name; and the most that were at once.
        self._ended: dict[tuple[Kind, str], int] = {}
        self._runs = 0
        self._most = 1
        self._looked_runs = 0
        self._marks: deque[_Look] = deque(maxlen=_MARKS)
        self._low: _Look | None = None
        self._looks = 0
        self._start: _Look | None = None
        self._grew: float = 0.0
        self._due_runs = 0
        self._interval = services.plan.recheck_runs
        self._collector = Collector()
        self._frozen = False
        self._tracing: Tracing | None = None
        self._traced_from_s = 0.0
        self._half_from_s = 0.0
        self._base: Reading = {}
        self._first: Reading | None = None
        self._counts: list[dict[tuple[Kind, str], int]] = []
        self._blamed: dict[tuple[Kind, str], _Blame] = {}
        self._lengths: Lengths | None = None
        self._lengths_runs = 0
        self._evidence = _Evidence()
        self._rests = 0

    # --- around runs -------------------------------------------------------------------------------------

    @property
    def traces(self) -> bool:
        """Whether it is tracing now, so that a reading of the counters is not the run's alone."""
        return self._tracing is not None

    def ended(self, kind: Kind, name: str, at_once: int) -> None:
        """A run ended that was not alone."""
        key = (kind, name)
        self._ended[key] = self._ended.get(key, 0) + 1
        self._runs += 1
        if at_once > self._most:
            self._most = at_once

    # --- now and then ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the process and take the next step. To be called every :data:`LOOK_S` seconds."""
        if self._tracing is not None:
            self._watch_window(self._tracing)
            return
        if self._runs == self._looked_runs or self._busy():
            return
        self._looked_runs = self._runs
        if self._step in (_Step.WAIT, _Step.REST):
            if self._runs >= self._due_runs:
                self._step = _Step.PROOF if self._step is _Step.WAIT else _Step.WATCH
            return
        if self._step is _Step.PROOF:
            if self._may_spend(self._blamed == {}):
                self._collect()
                self._step, self._start, self._low, self._looks = _Step.PROVE, None, None, 0
            return
        if self._step is _Step.WINDOW:
            self._open_window()
            return
        self._note_low()
        if self._step is _Step.WATCH:
            self._watch()
        else:
            self._prove()

    def _note_low(self) -> None:
        services = self._services
        started_s = time.perf_counter()
        now, low = _Look(services.blocks(), services.live_bytes(), self._runs), self._low
        if low is None or now.since(low) <= 0:
            self._low = now
        self._looks += 1
        self._spent(time.perf_counter() - started_s)

    def _watch(self) -> None:
        marks = self._marks
        reached = marks[-1].runs if marks else 0
        if self._low is None or self._looks < _MARK_LOOKS or self._runs - reached < _MARK_RUNS:
            return
        marks.append(_Look(self._low.blocks, self._low.bytes, self._runs))
        self._low, self._looks = None, 0
        if len(marks) < _MARKS:
            return
        rises = [later.since(earlier) for earlier, later in zip(marks, list(marks)[1:], strict=False)]
        if marks[-1].since(marks[0]) >= _LEAST_BYTES and sum(rise > 0 for rise in rises) >= len(rises) - 1:
            self._step = _Step.PROOF

    def _collect(self) -> None:
        """Collect everything, as garbage that waits for the collector looks like growth; the user's switch holds."""
        started_s = time.perf_counter()
        Collector.collect(everything=True)
        self._spent(time.perf_counter() - started_s)

    def _prove(self) -> None:
        """Between two readings after a collection: does what is alive grow with the runs?"""
        if self._looks < _PROOF_LOOKS or self._low is None:
            return
        if self._start is None:
            self._start, self._low, self._looks = self._low, None, 0
            return
        if self._runs - self._start.runs < _PROOF_RUNS:
            self._low, self._looks = None, 0
            return
        if self._looks == _PROOF_LOOKS:
            self._collect()
            self._low = None
            self._looks += 1
            return
        if self._looks < 2 * _PROOF_LOOKS:
            return
        grew = self._low.since(self._start) if self._low is not None else 0.0
        least = max(_LEAST_BYTES, _STILL * self._grew)
        if grew < _LEAST_BYTES:
            self._calm_down()
            return
        if grew < least:
            self._grow_slower(grew)
            return
        if not self._grew:
            self._grew = grew
            self._due_runs = self._runs + self._interval
        self._evidence = _Evidence()
        self._step = _Step.WINDOW

    def _grow_slower(self, grew: float) -> None:
        """
        It still grows, by less than half of what it did, as where others' pools filled the first time.

        That is no reason to say that nothing grows: the next proof goes by what grows now. Each such step is by more
        than half, so what fills ever more slowly is calm after a few.
        """
        self._grew = grew
        self._step = _Step.WAIT
        self._due_runs = self._runs + self._interval

    def _calm_down(self) -> None:
        """It does not grow, or no longer: leave the process alone for a while, for longer each time."""
        for blame in self._blamed.values():
            self._write(blame, Verdict.STEADY, Stage.VERDICT, note="it grew and has stopped growing")
        self._step = _Step.REST
        self._due_runs = self._runs + min(self._services.plan.recheck_runs << min(self._rests, 5), _MOST_WAIT_RUNS)
        self._rests += 1
        self._blamed = {}
        self._lengths = None
        self._grew = 0.0
        self._marks.clear()
        self._low, self._looks = None, 0
        self._investigation = new_id()
        self._interval = self._services.plan.recheck_runs

    # --- a window of tracing -------------------------------------------------------------------------------

    def _open_window(self) -> None:
        services = self._services
        if not self._may_spend(not self._blamed) or Tracing.too_much_foreign():
            return
        if not services.lease.acquire(Kind.BLOCK, PROCESS):
            return
        if self._lengths is None:
            started_s = time.perf_counter()
            self._lengths, self._lengths_runs = Lengths(services.own), self._runs
            self._spent(time.perf_counter() - started_s)
        self._collect()
        # What the window's runs throw away in cycles is collected before it is summed, and only that.
        self._frozen = self._collector.freeze()
        tracing = Tracing()
        self._counts = [dict(self._ended)]
        self._first = None
        self._traced_from_s = self._half_from_s = time.perf_counter()
        self._tracing = tracing
        tracing.start(_NFRAME)
        self._base = tracing.read(last=False) if tracing.joined else {}

    def _watch_window(self, tracing: Tracing) -> None:
        now_s = time.perf_counter()
        half_runs = self._runs - sum(self._counts[-1].values())
        half_over = now_s - self._half_from_s >= _HALF_S and half_runs >= _HALF_RUNS
        if not tracing.alive:
            self._close_window(tracing)  # the task itself stopped tracemalloc: this window says nothing
        elif now_s - self._traced_from_s >= _TRACED_S * (0.5 if self._first is None else 1.0) or half_over:
            self._end_half(tracing)

    def _end_half(self, tracing: Tracing) -> None:
        self._counts.append(dict(self._ended))
        self._collector.collect(everything=self._frozen)
        if self._first is None:
            self._first = difference(tracing.read(last=False), self._base)
            self._half_from_s = time.perf_counter()
            return
        first, whole = self._first, difference(tracing.read(last=True), self._base)
        before, between, after = self._counts
        self._close_window(tracing)
        evidence = self._evidence
        evidence.windows += 1
        evidence.early = total_of(evidence.early, first)
        evidence.late = total_of(evidence.late, difference(whole, first))
        evidence.early_runs += sum(between.values()) - sum(before.values())
        evidence.late_runs += sum(after.values()) - sum(between.values())
        for key, runs in after.items():
            ran = runs - between.get(key, 0)
            if ran:
                evidence.ran[key] = evidence.ran.get(key, 0) + ran
        if min(evidence.early_runs, evidence.late_runs) >= _HALF_RUNS or evidence.windows >= _MOST_WINDOWS:
            self._evidence = _Evidence()
            blames = self._blame(evidence)
            self._conclude(blames, "" if blames else "no line was seen to grow in proportion to the runs")

    def _close_window(self, tracing: Tracing) -> None:
        tracing.stop()
        self._collector.thaw()
        self._tracing = None
        self._base = {}
        self._first = None
        self._services.lease.release(Kind.BLOCK, PROCESS)
        # Every thread was slower for as long as it was on.
        self._spent(time.perf_counter() - self._traced_from_s)

    def _blame(self, evidence: _Evidence) -> list[_Blame]:
        """Whose code stands in the traceback of what grew in both halves in proportion to the runs."""
        if min(evidence.early_runs, evidence.late_runs) < 2:
            return []  # the runs are too long for a second of tracing
        lines = _Lines(self.code_of, evidence.ran)
        own = self._services.own
        process, library = (self._usual_kind(), PROCESS), (self._usual_kind(), "")
        rates: dict[tuple[Kind, str], list[Rate]] = {}
        accounted = 0.0
        for frames, gained in evidence.late.items():
            early = evidence.early.get(frames)
            if early is None or early.bytes <= 0 or gained.bytes <= 0:
                continue
            if gained.bytes / evidence.late_runs < _STEADY * early.bytes / evidence.early_runs:
                continue  # in flight, replaced by the next, or made once
            if gained.blocks < max(2, evidence.late_runs // 4):
                continue
            key = lines.owner(frames) or process
            if key == process and not any(own(file) for file, _ in frames):
                key = library
            runs = evidence.ran.get(key, evidence.late_runs)
            accounted += gained.bytes / evidence.late_runs
            rates.setdefault(key, []).append(
                Rate(
                    frames,
                    gained.bytes / runs,
                    gained.blocks / runs,
                    gained.small_blocks / runs,
                    gained.large_bytes / runs,
                )
            )
        # The worker's own traffic (messages that wait, requests that are answered) comes and goes with the runs: lines
        # without any of the user's code count where they are most of the growth, and nobody else is to blame.
        of_libraries = rates.pop(library, [])
        if not rates and sum(rate.bytes for rate in of_libraries) >= 0.5 * self._grew:
            rates[process] = of_libraries
        if accounted < _ACCOUNT * self._grew:
            return []
        blames = []
        for (kind, name), found in rates.items():
            found.sort(key=lambda rate: -rate.bytes)
            if sum(rate.bytes for rate in found) >= max(_LEAST_BYTES, _CRUMB * self._grew):
                blames.append(_Blame(kind, name, evidence.early_runs + evidence.late_runs, found))
        return blames

    def _usual_kind(self) -> Kind:
        return max(self._ended, key=lambda key: self._ended[key])[0]

    def _conclude(self, blames: list[_Blame], why_not: str) -> None:
        deciding = bool(self._blamed)
        if not blames:
            blames = [_Blame(self._usual_kind(), PROCESS, self._runs, [])]
        if deciding:
            self._decide(blames)
        else:
            for blame in blames:
                self._write(blame, Verdict.GROWING, Stage.PROCESS, note=why_not)
        self._blamed = {(blame.kind, blame.name): blame for blame in blames}
        self._step = _Step.WAIT
        self._due_runs = max(self._due_runs, self._runs + (self._interval if deciding else 0))
        if deciding:
            self._interval = min(self._interval * 2, _MOST_WAIT_RUNS)

    def _decide(self, blames: list[_Blame]) -> None:
        """Once more, many runs later: what grew then and grows now is a leak, where no holder has a bound."""
        retention, types = self._holder()
        leaking = [blame for blame in blames if self._was_seen(blame)]
        for blame in blames:
            verdict = Verdict.LEAKING if blame in leaking and not retention.bounded else Verdict.GROWING
            # Which of several leaks a container belongs to, nobody knows.
            alone = len(blames) == 1 or bool(retention.bounded)
            self._write(
                blame,
                verdict,
                Stage.VERDICT if verdict is Verdict.LEAKING else Stage.PROCESS,
                retention=retention if alone else None,
                types=types if alone else [],
                note=f"held by something with a bound: {retention.bounded}" if retention.bounded else "",
            )
        still = {(blame.kind, blame.name) for blame in blames}
        for key, blame in self._blamed.items():
            if key not in still:
                self._write(blame, Verdict.STEADY, Stage.VERDICT, note="it grew and has stopped growing")

    def _was_seen(self, blame: _Blame) -> bool:
        """Whether the first windows blamed the same name for the same line, and the user's code led there."""
        before, own = self._blamed.get((blame.kind, blame.name)), self._services.own
        users = any(own(file) for rate in blame.rates for file, _ in rate.frames)
        return before is not None and users and bool(before.lines & blame.lines)

    def _holder(self) -> tuple[Retention, list[TypeCount]]:
        """The container that grew most since the first window, and what holds it."""
        nothing = Retention([], "", "")
        lengths, self._lengths = self._lengths, None
        if lengths is None:
            return nothing, []
        started_s = time.perf_counter()
        least = max(4, (self._runs - self._lengths_runs) // 8)
        grown = lengths.grown(least, ignore=[lengths, vars(lengths), self, vars(self), self._ended])[:20]
        weighed = [(sum(row.bytes for row in content_types(thing, gained)), thing, gained) for thing, gained in grown]
        retention, types = nothing, []
        if weighed:
            _, container, gained = max(weighed, key=lambda entry: (entry[0], entry[2]))
            types = content_types(container, gained)
            leaf = f"{types[0].type.rpartition('.')[2]} × {measure(container)}" if types else ""
            ignore = [grown, weighed, *weighed, *grown]
            retention = who_retains([container], within_s=0.12, ignore=ignore, inside=leaf)
        self._spent(time.perf_counter() - started_s)
        return retention, types

    def close(self) -> None:
        """Switch off whatever is on."""
        tracing = self._tracing
        if tracing is not None:
            self._close_window(tracing)

    def _write(
        self,
        blame: _Blame,
        verdict: Verdict,
        stage: Stage,
        *,
        retention: Retention | None = None,
        types: list[TypeCount] | None = None,
        note: str = "",
    ) -> None:
        services = self._services
        grows = verdict is not Verdict.STEADY
        kept = Kept(round(sum(rate.blocks for rate in blame.rates)), round(sum(rate.bytes for rate in blame.rates)))
        if not blame.rates and grows:
            kept = Kept(0, round(self._grew))
        services.emit(
            Window(
                id=new_id(),
                investigation=self._investigation,
                process=services.process,
                kind=blame.kind,
                name=blame.name,
                stage=stage,
                verdict=verdict,
                at_s=services.clock.now_s(),
                runs=blame.runs,
                run_number=self._ended.get((blame.kind, blame.name), self._runs),
                kept_blocks_per_run=float(kept.blocks) if grows else 0.0,
                kept_bytes_per_run=float(kept.bytes) if grows else 0.0,
                sites=sites(blame.rates, services.own) if grows else [],
                types=types or [],
                retained_by=retention.path if retention is not None else [],
                bounded=retention.bounded if retention is not None else "",
                concurrent=self._most,
                by_site=blame.name != PROCESS,
                note=note or f"{self._most} at once",
            )
        )


class _Lines:
    """Which name's code a line belongs to."""

    def __init__(self, code: CodeOf, names: Iterable[tuple[Kind, str]]) -> None:
        self._spans: dict[str, list[tuple[int, int, tuple[Kind, str]]]] = {}
        for key in names:
            for one in code(*key):
                last = max((line for _, _, line in one.co_lines() if line), default=one.co_firstlineno)
                self._spans.setdefault(one.co_filename, []).append((one.co_firstlineno, last, key))

    def owner(self, frames: Frames) -> tuple[Kind, str] | None:
        """The one name whose code is in a traceback; None for no name and for several."""
        found = {
            key for file, line in frames for first, last, key in self._spans.get(file, ()) if first <= line <= last
        }
        return found.pop() if len(found) == 1 else None
