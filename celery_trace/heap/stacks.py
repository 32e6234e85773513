"""
Retained memory by call stack: the survivors, added up by task and stack, for the flame graph.

Picks are dropped when a stretch ends, so the results of each stretch are kept here and added up, like survivors. Both
are bounded: the largest stacks of each name, and the sum of the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from celery_trace.heap.picks import UNTAGGED, Pick, Stack
from celery_trace.heap.source_reader import SourceReader
from celery_trace.model import HeapStack, Line
from celery_trace.text.code_owner import WRAPPERS, CodeOwner

#: Stacks of one task that are kept and written.
MOST_STACKS: Final = 100
#: Frames of all stacks of one task; stacks with further ones are counted as others.
MOST_FRAMES: Final = 600
#: Tasks that are written at a time, those that retain most.
MOST_TASKS: Final = 40
#: A task that retains less is not written (bytes).
LEAST_BYTES: Final = 4096
#: It is written again when it has changed by this share, or after so many times as many measured runs.
CHANGED: Final = 0.05
MORE_RUNS: Final = 1.5
#: Characters of a line of code, and of a function's name.
_LONGEST_CODE: Final = 120
_LONGEST_NAME: Final = 200


class FrameTable:
    """
    The frames of the largest stacks of one name, each once, for a record.

    Args:
        own: Recognises the user's own files, of which the lines' text is read.
    """

    def __init__(self, own: CodeOwner, reader: SourceReader) -> None:
        self._own = own
        self._reader = reader
        self._places: dict[tuple[str, int, str], int] = {}
        self.frames: list[Line] = []

    def row(self, stack: Stack) -> list[int] | None:
        """A stack (innermost first) as indexes of frames, the outermost first. None if its frames don't fit."""
        if len(self.frames) + sum(frame not in self._places for frame in stack) > MOST_FRAMES:
            return None
        row = []
        for frame in reversed(stack):
            place = self._places.setdefault(frame, len(self.frames))
            if place == len(self.frames):
                self.frames.append(self._line(*frame))
            row.append(place)
        return row

    def _line(self, file: str, line: int, function: str) -> Line:
        known = self._reader.line(file, line) if self._own(file) else Line(file=file, line=line, function="")
        return Line(file=known.file, line=line, function=function[:_LONGEST_NAME], code=known.code[:_LONGEST_CODE])


def from_the_task(stack: Stack, own: CodeOwner) -> Stack:
    """
    A stack (innermost first) without the frames around the task: our wrapper, and Celery's tracer above the first own
    function.
    """
    for number, (file, _, _) in enumerate(stack):
        if file in WRAPPERS:
            stack = stack[:number]
            break
    outermost = max((number for number, frame in enumerate(stack) if own(frame[0])), default=len(stack) - 1)
    return stack[: outermost + 1]


class StackTable(Struct, frozen=True):
    """What one task retains by stack, as in a record."""

    bytes: int
    other_bytes: int
    frames: list[Line]
    stacks: list[HeapStack]


class KeptStacks:
    """
    What each tag retains in one process.

    Args:
        stack_of: The frames of a stack by its number, innermost first.
        own: Recognises the user's own files.
    """

    def __init__(self, stack_of: Callable[[int], Stack], own: CodeOwner) -> None:
        self._stack_of = stack_of
        self._own = own
        self._past: dict[int, Counter[Stack]] = defaultdict(Counter)
        self._past_others: Counter[int] = Counter()  # by tag: bytes of stacks that are no longer distinguished
        self._now: dict[int, Counter[Stack]] = {}
        self._replaced: set[tuple[int, Stack]] = set()  # of this stretch
        self._written: dict[int, tuple[int, int]] = {}  # by tag: bytes and weighed runs

    def look(self, picks: Iterable[Pick], is_replaced: Callable[[Pick], bool]) -> None:
        """
        Read the survivors of this stretch, replacing those of an earlier look at it.

        Args:
            picks: Those that count.
            is_replaced: Whether allocations at a pick's place are released again, as in a full cache. There the
            largest stretch counts, not the sum.
        """
        by_number: dict[tuple[int, int], float] = defaultdict(float)
        one_of: dict[tuple[int, int], Pick] = {}
        for pick in picks:
            by_number[pick.tag, pick.stack] += pick.weight
            one_of[pick.tag, pick.stack] = pick
        self._now, self._replaced = defaultdict(Counter), set()
        known: dict[int, Stack] = {}
        for (tag, number), weight in by_number.items():
            if number not in known:
                known[number] = from_the_task(self._stack_of(number), self._own)
            self._now[tag][known[number]] += round(weight)
            if is_replaced(one_of[tag, number]):
                self._replaced.add((tag, known[number]))

    def end_stretch(self) -> None:
        """A stretch ends: its picks are dropped, its results are kept."""
        for tag in self._now:
            together = self._together(tag)
            largest = together.most_common(MOST_STACKS)
            self._past_others[tag] += together.total() - sum(weight for _, weight in largest)
            self._past[tag] = Counter(dict(largest))
        self._now = {}

    def changed(self, peaks: Mapping[int, Mapping[int, int]]) -> Iterator[tuple[int, StackTable]]:
        """
        The tags that have changed since they were written; they count as written afterwards.

        Args:
            peaks: By tag, the number of runs by peak.
        """
        totals = {tag: self._total(tag) for tag in {*self._past, *self._now, *peaks}}
        wanted = [tag for tag in totals if self._has_changed(tag, totals[tag], sum(peaks.get(tag, {}).values()))]
        reader = SourceReader()
        for tag in sorted(wanted, key=lambda tag: -totals[tag])[:MOST_TASKS]:
            self._written[tag] = totals[tag], sum(peaks.get(tag, {}).values())
            yield tag, self._table(tag, totals[tag], reader)

    def _has_changed(self, tag: int, total: int, weighed: int) -> bool:
        before, weighed_before = self._written.get(tag, (0, 0))
        if tag != UNTAGGED and weighed > MORE_RUNS * weighed_before:
            return True
        return max(total, before) >= LEAST_BYTES and abs(total - before) > CHANGED * before

    def _together(self, tag: int) -> Counter[Stack]:
        """The sum of all stretches, bytes by stack."""
        found = Counter(self._past.get(tag, {}))
        for stack, weight in self._now.get(tag, {}).items():
            before = found[stack]
            found[stack] = max(before, weight) if (tag, stack) in self._replaced else before + weight
        return found

    def _total(self, tag: int) -> int:
        return self._together(tag).total() + self._past_others[tag]

    def _table(self, tag: int, total: int, reader: SourceReader) -> StackTable:
        table = FrameTable(self._own, reader)
        rows: list[HeapStack] = []
        for stack, weight in self._together(tag).most_common(MOST_STACKS):
            row = table.row(stack) if stack else None
            if row is not None:
                rows.append(HeapStack(row, weight))
        return StackTable(total, max(0, total - sum(row.bytes for row in rows)), table.frames, rows)
