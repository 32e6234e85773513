"""
The "Top 10 differences" of one run: memory gained and released by line, in tracemalloc's format.

Tracing is on for that run only, and the raw traces are summed, so the cost is little more than that of the tracing. The
table looks like that of ``Snapshot.compare_to``.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from msgspec import Struct

from celery_trace.heap.source_reader import SourceReader
from celery_trace.model import Site
from celery_trace.text.code_owner import CodeOwner, Frames, is_our_own
from celery_trace.text.format import size

#: Rows of the table.
TOP: Final = 10

#: Traces of one reading that are summed, about a tenth of a second's worth; the rest is extrapolated.
MOST_TRACES: Final = 200_000


class Amount(Struct, frozen=True):
    """Live memory at one site."""

    # A struct, not a named tuple: its constructor is C, so that what we allocate is attributed to our own line.

    bytes: int
    blocks: int

    def minus(self, other: Amount) -> Amount:
        """The difference, field by field."""
        return Amount(self.bytes - other.bytes, self.blocks - other.blocks)


NOTHING = Amount(0, 0)

#: Live memory by traceback.
TracedMemory = dict[Frames, Amount]


def sum_traces(traces: Sequence[tuple[int, int, Frames, int]]) -> TracedMemory:
    """Sum raw traces ``(domain, bytes, frames, depth)`` by traceback, celery-trace's own left out."""
    cut = traces[:MOST_TRACES] if len(traces) > MOST_TRACES else traces
    sums: dict[Frames, list[int]] = {}
    for _, number_bytes, frames, _ in cut:
        entry = sums.get(frames)
        if entry is None:
            entry = sums[frames] = [0, 0]
        entry[0] += number_bytes
        entry[1] += 1
    factor = len(traces) / len(cut) if cut else 1.0
    return {
        frames: Amount(*(round(value * factor) for value in entry)) if factor != 1.0 else Amount(*entry)
        for frames, entry in sums.items()
        if not is_our_own(frames)
    }


def difference(after: TracedMemory, before: TracedMemory) -> TracedMemory:
    """What ``after`` holds more than ``before``, without unchanged sites."""
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
    tracemalloc, started and stopped by us, or left alone if the user runs it.

    Several of ours may be on at once (a block within a block, two coroutines): the last one to stop stops it.
    ``joined``: it was on before, so what was traced until then has to be subtracted.
    """

    _ours: ClassVar[int] = 0  # how many of ours are on, if we have started it
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.joined = False
        self.on = False
        self._counted = False

    @classmethod
    def after_fork(cls) -> None:
        """Make a new lock in a forked child: another thread of the parent may have held it."""
        cls._lock = threading.Lock()

    def start(self, nframe: int) -> None:
        """Trace from now on, ``nframe`` frames an allocation; if it is on already, its depth does not change."""
        with Tracing._lock:
            self.joined = tracemalloc.is_tracing()
            if not self.joined:
                Tracing._ours = 0  # other code has stopped what we had started
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

    def read(self, *, last: bool) -> TracedMemory:
        """The live traces by site. With ``last`` tracing stops before they are summed."""
        # The public take_snapshot() wraps each trace in an object first, which triples the time.
        traces: Any = tracemalloc._get_traces()  # type: ignore[attr-defined]
        if last:
            self.stop()
        return sum_traces(traces)


def is_the_programs() -> bool:
    """Whether the program itself traces."""
    return tracemalloc.is_tracing() and not Tracing._ours


class TracedRun:
    """
    Traces one run.

    Args:
        nframe: Depth of the tracebacks. 1 gives the allocating line; more reaches the user's line behind a library's.
    """

    def __init__(self, nframe: int = 1) -> None:
        self._nframe = nframe
        self._tracing = Tracing()
        self._base: TracedMemory = {}

    def begin(self) -> None:
        """Start tracing, or read what the user's own tracing holds already."""
        self._tracing.start(self._nframe)
        if self._tracing.joined:
            self._base = self._tracing.read(last=False)

    def end(self) -> TracedMemory:
        """Stop (unless it is the user's tracing). Returns what the run gained and released."""
        if not self._tracing.alive:
            self._tracing.stop()
            return {}
        return difference(self._tracing.read(last=True), self._base)

    def stop(self) -> None:
        """Stop without a result."""
        self._tracing.stop()
        self._base = {}


def top_differences(change: TracedMemory, own: CodeOwner | None = None, *, most: int = TOP) -> list[Site]:
    """
    The greatest changes of a run, by line, gains and losses alike.

    Args:
        change: By traceback, from :meth:`TracedRun.end`.
        own: With it, changes are summed by the user's own line; without, by the allocating line.
        most: Rows.
    """
    by_line: dict[tuple[str, int], tuple[int, int, int, tuple[tuple[str, int], ...]]] = {}
    for frames, amount in change.items():
        at = own.first(frames) if own is not None else 0
        total, blocks, greatest, longest = by_line.get(frames[at], (0, 0, -1, frames))
        if abs(amount.bytes) > greatest:
            greatest, longest = abs(amount.bytes), frames
        by_line[frames[at]] = (total + amount.bytes, blocks + amount.blocks, greatest, longest)
    ranked = sorted(by_line.items(), key=lambda item: (-abs(item[1][0]), -abs(item[1][1]), item[0]))[:most]
    source = SourceReader()
    try:
        rows = []
        for (file, line), (total, blocks, _, frames) in ranked:
            here = source.line(file, line)
            rows.append(
                Site(
                    file=file,
                    line=line,
                    function=here.function,
                    code=here.code,
                    bytes=total,
                    blocks=blocks,
                    traceback=source.lines(frames) if len(frames) > 1 else [here],
                )
            )
        return rows
    finally:
        source.close()


def table(rows: Sequence[Site], label: str = "") -> str:
    """
    The rows as text, in the form of tracemalloc's own display.

    Under each line is its source, if it can be read.
    """
    lines = [f"[ Top {TOP} differences ]" + (f" {label}" if label else "")]
    for site in rows:
        each = f", average={size(abs(site.bytes) / abs(site.blocks))}" if site.blocks else ""
        lines.append(f"{site.file}:{site.line}: size={size(site.bytes, signed=True)}, count={site.blocks:+d}{each}")
        if site.code:
            lines.append(f"    {site.code}")
    if not rows:
        lines.append("no memory was gained or released")
    return "\n".join(lines)
