"""
Locate: which line allocates what stays, from tracemalloc switched on for a few runs.

A window of runs is traced without a break, so that a value that replaces the one before nets to zero from the
second run on, and what is in flight at one run's beginning nets to zero with what is at the next one's. The table is
taken raw and summed with tracing already stopped wherever possible: summing it while it
is being traced is what makes the usual pair of snapshots cost seconds.
"""

from __future__ import annotations

import statistics
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from msgspec import Struct

from celery_trace.model import Site
from celery_trace.probes.census import Collector
from celery_trace.probes.counters import SMALL_REQUEST_BYTES
from celery_trace.probes.source import Frames, OwnCode, SourceReader, is_our_own

#: What the user's own tracing may hold for us to take its differences: beyond, copying it would stop the task too long.
MOST_FOREIGN_BYTES = 24 * 1024 * 1024

#: How many traces of one reading are summed, about a tenth of a second's worth; the rest is extrapolated.
MOST_TRACES = 200_000


class Amount(Struct, frozen=True):
    """Live memory at one site: all of it, and how the exact counters would see it."""

    # A struct, not a named tuple: its constructor is C, so that what we allocate is attributed to our own line.

    bytes: int
    blocks: int
    small_blocks: int  # of CPython's allocator
    large_bytes: int  # of the C allocator

    def minus(self, other: Amount) -> Amount:
        """The difference, field by field."""
        return Amount(
            self.bytes - other.bytes,
            self.blocks - other.blocks,
            self.small_blocks - other.small_blocks,
            self.large_bytes - other.large_bytes,
        )


NOTHING = Amount(0, 0, 0, 0)

#: Live memory by traceback.
Reading = dict[Frames, Amount]


def read_traces() -> Reading:
    """Everything that tracemalloc traces now, summed by traceback; celery-trace's own is left out."""
    # The public take_snapshot() wraps each trace in an object first: three times the time, for nothing.
    return sum_traces(tracemalloc._get_traces())  # type: ignore[attr-defined]


def sum_traces(traces: Sequence[tuple[int, int, Frames, int]]) -> Reading:
    """Sum raw traces ``(domain, bytes, frames, depth)`` by traceback, celery-trace's own left out."""
    cut = traces[:MOST_TRACES] if len(traces) > MOST_TRACES else traces
    sums: dict[Frames, list[int]] = {}
    for _, size, frames, _ in cut:
        entry = sums.get(frames)
        if entry is None:
            entry = sums[frames] = [0, 0, 0, 0]
        entry[0] += size
        entry[1] += 1
        if size <= SMALL_REQUEST_BYTES:
            entry[2] += 1
        else:
            entry[3] += size
    factor = len(traces) / len(cut) if cut else 1.0
    return {
        frames: Amount(*(round(value * factor) for value in entry)) if factor != 1.0 else Amount(*entry)
        for frames, entry in sums.items()
        if not is_our_own(frames)
    }


def difference(after: Reading, before: Reading) -> Reading:
    """What ``after`` holds more than ``before``, sites without any change left out."""
    changes = {}
    for frames, amount in after.items():
        change = amount.minus(before.get(frames, NOTHING))
        if change != NOTHING:
            changes[frames] = change
    for frames, amount in before.items():
        if frames not in after:
            changes[frames] = NOTHING.minus(amount)
    return changes


class Tracing:
    """
    tracemalloc, started and stopped by us, or left alone where the user runs it.

    Several of ours may be on at once (a block within a block, two coroutines): the last one to stop stops it.
    ``joined`` says that it was on before: what was traced until then has to be subtracted.
    """

    _ours: ClassVar[int] = 0  # how many of ours are on, where it was we who started
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.joined = False
        self.on = False
        self._counted = False

    def start(self, nframe: int) -> None:
        """Trace from now on, ``nframe`` frames an allocation; where it is on already its depth stays as it is."""
        with Tracing._lock:
            self.joined = tracemalloc.is_tracing()
            if not self.joined:
                Tracing._ours = 0  # whatever we had on, somebody else stopped it
                tracemalloc.start(nframe)
            self._counted = not self.joined or Tracing._ours > 0
            Tracing._ours += self._counted
            self.on = True

    def stop(self) -> None:
        """Stop what :meth:`start` started, unless others of ours still need it."""
        with Tracing._lock:
            if self.on and self._counted and Tracing._ours > 0:
                Tracing._ours -= 1
                if not Tracing._ours and tracemalloc.is_tracing():
                    tracemalloc.stop()
            self.on = self._counted = False

    @property
    def alive(self) -> bool:
        """Whether what was started still traces: the task may have stopped it itself."""
        return self.on and tracemalloc.is_tracing()

    def read(self, *, last: bool) -> Reading:
        """The live traces by site. With ``last`` tracing stops before they are summed."""
        traces: Any = tracemalloc._get_traces()  # type: ignore[attr-defined]
        if last:
            self.stop()
        return sum_traces(traces)

    @staticmethod
    def too_much_foreign() -> bool:
        """Whether the user's own tracing holds so much that reading it would stop the task for too long."""
        return (
            Tracing._ours == 0 and tracemalloc.is_tracing() and tracemalloc.get_traced_memory()[0] > MOST_FOREIGN_BYTES
        )


def total_of(first: Reading, second: Reading) -> Reading:
    """Two changes that follow each other, as one."""
    sums = dict(first)
    for frames, amount in second.items():
        before = sums.get(frames, NOTHING)
        sums[frames] = Amount(
            before.bytes + amount.bytes,
            before.blocks + amount.blocks,
            before.small_blocks + amount.small_blocks,
            before.large_bytes + amount.large_bytes,
        )
    return sums


class TracedChange(Struct):
    """What one traced run changed: over the run itself, and up to the next beginning of a run of the same name."""

    own: Reading
    cycle: Reading | None = None


class LocateWindow:
    """
    Some traced runs of one name.

    Tracing stays on from one run to the next, through runs of other names too, for as long as the window is not let
    go: in all but the first run of such a chain a value that is replaced is seen to be freed. What counts is both the
    change over the run and the change up to the beginning of the next run of the same name, at which as much is
    in flight (a message, a result, a request) as at the beginning of this one.

    Where the next run is too long in coming, runs are traced one by one; of those only what the user's own code
    allocated is believed.

    Args:
        runs: Runs to gather.
        nframe: Depth of the tracebacks.
    """

    def __init__(self, runs: int, nframe: int) -> None:
        self.wanted = runs
        self.nframe = nframe
        self.isolated: list[Reading] = []
        self._chained: list[TracedChange] = []
        self._first: Reading | None = None  # the first change of the chain that is going on
        self._tracing = Tracing()
        self._base: Reading = {}
        self._end: Reading = {}
        self._collector = Collector()
        self._frozen = False

    @property
    def on(self) -> bool:
        """Whether tracing is switched on by this window."""
        return self._tracing.on

    @property
    def joined(self) -> bool:
        """Whether tracing was on before."""
        return self._tracing.joined

    @property
    def chained(self) -> list[TracedChange]:
        """The runs whose whole cycle was traced, the first of each chain left out."""
        return [change for change in self._chained if change.cycle is not None]

    @property
    def enough(self) -> bool:
        """Whether the evidence is complete."""
        return len(self.chained) >= self.wanted - 1 or (len(self.isolated) >= self.wanted + 2 and not self._chained)

    @property
    def together(self) -> bool:
        """Whether the runs were traced in a chain, so that every site of it can be believed."""
        return len(self.chained) >= 2

    def open(self, *, direct: bool = False) -> None:
        """Before a run. ``direct``: nothing at all has happened since the last one was settled."""
        if self._tracing.on and not self._tracing.alive:
            self.let_go()
        if not self._tracing.on:
            # What the run throws away in cycles is collected before it is summed, and only that.
            self._frozen = self._collector.freeze()
            self._first = None
            self._base = {}
            self._tracing.start(self.nframe)
            if self._tracing.joined:
                self._base = self._tracing.read(last=False)
            return
        if direct:
            self._base = self._end
            between: Reading = {}
        else:
            self._collector.collect(everything=self._frozen)
            self._base = self._tracing.read(last=False)
            between = difference(self._base, self._end)
        if self._chained and self._chained[-1].cycle is None:
            self._chained[-1].cycle = total_of(self._chained[-1].own, between)

    def settle(self, *, same_name_next: bool) -> None:
        """After a run; tracing goes on until the next one, unless all is gathered."""
        self._collector.collect(everything=self._frozen)
        if not self._tracing.alive:
            # The task itself stopped tracemalloc: this run says nothing.
            self.let_go()
            return
        complete = same_name_next and self._first is not None and len(self.chained) >= self.wanted - 2
        self._end = self._tracing.read(last=complete)
        change = difference(self._end, self._base)
        if self._first is None:
            self._first = change
            self.isolated.append(change)
        else:
            self._chained.append(TracedChange(change, change if same_name_next else None))
        if self.enough:
            self._tracing.stop()
            self._collector.thaw()

    def let_go(self) -> None:
        """The next run of this name is long in coming: neither trace nor freeze meanwhile."""
        self._collector.thaw()
        self._tracing.stop()
        if self._chained and self._chained[-1].cycle is None:
            self.isolated.append(self._chained.pop().own)
        self._first = None
        self._base = {}
        self._end = {}

    def abandon(self) -> None:
        """Switch off whatever is on."""
        self._collector.thaw()
        self._tracing.stop()
        self._base = {}
        self._end = {}

    def evidence(self, own: OwnCode) -> list[TracedChange]:
        """The runs to believe: the chained ones where there are two, else the user's own part of single ones."""
        if self.together:
            return self.chained
        parts = [
            {frames: amount for frames, amount in run.items() if any(own(file) for file, _ in frames)}
            for run in self.isolated
        ]
        return [TracedChange(part, part) for part in parts]


class Rate(Struct, frozen=True):
    """What one traceback keeps a run."""

    frames: Frames
    bytes: float
    blocks: float
    small_blocks: float
    large_bytes: float


def steady_rates(runs: Sequence[TracedChange], *, rare: bool = False) -> list[Rate]:
    """
    Which tracebacks keep memory, and how much a run, greatest first.

    A traceback counts when it grew in three of four runs; its rate is the median over them, so that the table of a
    dict that happens to double in one of them does not. With ``rare`` (a leak that most runs do not show)
    it counts when it grew at least once and never shrank, and its rate is the mean. In both cases the whole window,
    from beginning to beginning, must have grown by at least half of that in each run: what is merely in flight at the
    end of every run adds up to nothing.
    """
    if not runs:
        return []
    rates = []
    for frames in {frames for run in runs for frames in run.own}:
        series = [run.own.get(frames, NOTHING) for run in runs]
        grown = sum(amount.bytes > 0 for amount in series)
        if rare:
            if not grown or any(amount.bytes < 0 for amount in series):
                continue
            rate = _rate(frames, series, statistics.fmean)
        elif grown >= 0.75 * len(series):
            rate = _rate(frames, series, statistics.median)
        else:
            continue
        whole = sum((run.own if run.cycle is None else run.cycle).get(frames, NOTHING).bytes for run in runs)
        if rate.bytes > 0 and whole >= 0.5 * rate.bytes * len(runs):
            rates.append(rate)
    return sorted(rates, key=lambda rate: -rate.bytes)


def _rate(frames: Frames, series: Sequence[Amount], centre: Callable[[Sequence[int]], float]) -> Rate:
    return Rate(
        frames,
        centre([amount.bytes for amount in series]),
        centre([amount.blocks for amount in series]),
        centre([amount.small_blocks for amount in series]),
        centre([amount.large_bytes for amount in series]),
    )


def sites(rates: Sequence[Rate], own: OwnCode, *, most: int = 10) -> list[Site]:
    """
    Rates as records: by the user's own line, with the traceback from the allocating line outwards.

    Tracebacks that reach the same line of the user's are one site, with the traceback of the greatest. Crumbs
    (less than a twentieth of the greatest, or under 48 bytes a run) are left out.
    """
    by_line: dict[tuple[str, int], list[Any]] = {}
    for rate in rates:
        at = own.first(rate.frames)
        merged = by_line.setdefault(rate.frames[at], [rate.frames, 0.0, 0.0])
        merged[1] += rate.bytes
        merged[2] += rate.blocks
    ranked = sorted(by_line.items(), key=lambda item: -item[1][1])
    if not ranked:
        return []
    greatest = ranked[0][1][1]
    least = max(48.0, greatest / 20)
    if own(ranked[0][0][0]):
        # Beside the user's own line a library's counts only when it keeps much: the worker's own churn is no leak.
        ranked = [item for item in ranked if own(item[0][0]) or item[1][1] > greatest / 2]
    source = SourceReader()
    try:
        found = []
        for (file, line), (frames, kept_bytes, kept_blocks) in ranked[:most]:
            if kept_bytes < least:
                break
            here = source.line(file, line)
            found.append(
                Site(
                    file=file,
                    line=line,
                    function=here.function,
                    code=here.code,
                    bytes=round(kept_bytes),
                    blocks=round(kept_blocks),
                    traceback=source.lines(frames),
                )
            )
        return found
    finally:
        source.close()
