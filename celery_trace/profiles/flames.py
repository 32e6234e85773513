"""
Flame graphs: the profiles of processes as one tree, or as a difference. What they add up is memory or time.

Pure: a page, a command and the JSON API show the same facts. :mod:`celery_trace.profiles.files` writes them for other
tools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.model import HeapProfile, Line, Measure, TimeProfile

#: The outermost frame first.
Stack = tuple[Line, ...]

#: The frame of all stacks that a profile does not list.
OTHERS: Final = Line(file="", line=0, function="other stacks")
#: A part of the tree with a smaller share of the whole is not drawn.
LEAST_SHARE: Final = 0.0005


class StackSum(Struct, frozen=True, kw_only=True):
    """
    What the runs of a name retain or take, by stack.

    ``stacks`` are bytes or microseconds, of all runs, or per run once :func:`per_run` has divided them; they add up to
    ``total``.
    """

    stacks: dict[Stack, float]
    total: float
    runs: int
    processes: int
    at: float | None  # of the latest profile
    cut: bool = False  # whether there may be earlier profiles that are not part of it


def together(profiles: Iterable[HeapProfile | TimeProfile], measure: Measure) -> StackSum:
    """
    The sum of profiles by one measure.

    Args:
        profiles: Of memory the latest of each process, of time all of them.
        measure: Memory for heap profiles, one of the times for the others.
    """
    stacks: dict[Stack, float] = defaultdict(float)
    known: dict[tuple[str, int, str], Line] = {}
    rows = list(profiles)
    total = 0
    for profile in rows:
        for line in profile.frames:
            place = line.file, line.line, line.function
            if not known.get(place, line).code or place not in known:  # one process may not have read the source
                known[place] = line
    for profile in rows:
        frames = [known[line.file, line.line, line.function] for line in profile.frames]
        listed = 0
        for places, value in _values(profile, measure):
            if value:
                stacks[tuple(frames[place] for place in places)] += value
                listed += value
        of_all = _total(profile, measure)
        if of_all > listed:
            stacks[(OTHERS,)] += of_all - listed
        total += of_all
    return StackSum(
        stacks=dict(stacks),
        total=total,
        runs=sum(profile.runs for profile in rows),
        processes=len({profile.process for profile in rows}),
        at=max((profile.at_s for profile in rows), default=None),
    )


def _values(profile: HeapProfile | TimeProfile, measure: Measure) -> list[tuple[list[int], int]]:
    """The listed stacks of a profile: the places of their frames, and their value."""
    if isinstance(profile, HeapProfile):
        return [(stack.frames, stack.bytes) for stack in profile.stacks]
    if measure is Measure.CPU:
        return [(stack.frames, stack.cpu_us) for stack in profile.stacks]
    if measure is Measure.LOCK:
        return [(stack.frames, stack.lock_us) for stack in profile.stacks]
    return [(stack.frames, stack.wall_us) for stack in profile.stacks]


def _total(profile: HeapProfile | TimeProfile, measure: Measure) -> int:
    """The value of all stacks of a profile, also of those that are not listed."""
    if isinstance(profile, HeapProfile):
        return profile.bytes
    return {Measure.CPU: profile.cpu_us, Measure.LOCK: profile.lock_us}.get(measure, profile.wall_us)


def per_run(one: StackSum) -> StackSum:
    """Divided by the observed runs, so that releases with different numbers of runs can be compared."""
    runs = max(1, one.runs)
    stacks = {stack: value / runs for stack, value in one.stacks.items()}
    return replace(one, stacks=stacks, total=one.total / runs)


def by_function(one: StackSum) -> StackSum:
    """With functions as frames, as lines move between releases; without the lines' code."""
    stacks: dict[Stack, float] = defaultdict(float)
    for stack, value in one.stacks.items():
        stacks[tuple(Line(frame.file, 0, frame.function) for frame in stack)] += value
    return replace(one, stacks=dict(stacks))


def difference(after: StackSum, before: StackSum) -> dict[Stack, float]:
    """What each stack retains or takes more than before; less is negative. Unchanged stacks are left out."""
    changes = {
        stack: after.stacks.get(stack, 0.0) - before.stacks.get(stack, 0.0) for stack in {*after.stacks, *before.stacks}
    }
    return {stack: change for stack, change in changes.items() if change}


class ProfileView(Struct, frozen=True, kw_only=True):
    """
    A sum by stack, and the name of what it is compared with; ``a_run`` if values are per run.

    ``measures`` are those that there are profiles of.
    """

    measure: Measure
    measures: list[Measure] = []
    after: StackSum
    before: StackSum | None = None
    after_is: str = ""
    before_is: str = ""
    a_run: bool = False

    @property
    def stacks(self) -> dict[Stack, float]:
        """Bytes or microseconds by stack, or their difference."""
        return self.after.stacks if self.before is None else difference(self.after, self.before)


class FlameNode(Struct):
    """A frame of the tree with the value of all below it, now and before; its width is the larger of both."""

    frame: Line
    value: float = 0.0
    before: float = 0.0
    width: float = 0.0
    below: dict[Line, FlameNode] = {}

    def add(self, stack: Sequence[Line], after: float, before: float) -> None:
        """Add a stack."""
        node = self
        for frame in (None, *stack):
            if frame is not None:
                node = node.below.setdefault(frame, FlameNode(frame))
            node.value += after
            node.before += before
            node.width += max(after, before)

    def children(self) -> list[FlameNode]:
        """The widest first."""
        return sorted(self.below.values(), key=lambda node: (-node.width, node.frame.function, node.frame.line))


def tree(after: StackSum, before: StackSum | None = None) -> FlameNode:
    """All stacks as one tree; its root is the name."""
    root = FlameNode(Line(file="", line=0, function="all"))
    earlier: Mapping[Stack, float] = before.stacks if before is not None else {}
    for stack in {**after.stacks, **earlier}:
        root.add(stack, after.stacks.get(stack, 0.0), earlier.get(stack, 0.0))
    return root


#: ``[place of the frame, value, value before, width, [children]]``
FlatNode: TypeAlias = "list[float | list[FlatNode]]"


def flat(root: FlameNode) -> tuple[list[Line], FlatNode]:
    """
    The tree in the format of the page's script.

    Returns:
        The frames, and the tree.
    """
    places: dict[Line, int] = {}

    def one(node: FlameNode) -> FlatNode:
        place = places.setdefault(node.frame, len(places))
        shown = [child for child in node.children() if child.width >= LEAST_SHARE * root.width]
        return [place, round(node.value, 1), round(node.before, 1), round(node.width, 1), [*map(one, shown)]]

    found = one(root)
    return list(places), found


def lines_of(after: StackSum, before: StackSum | None = None) -> list[tuple[Line, float, float]]:
    """The innermost frames with their values now and before; the largest, or the largest change, first."""
    found: dict[Line, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, one in enumerate((after, before)):
        for stack, value in one.stacks.items() if one is not None else ():
            found[stack[-1]][number] += value
    rows = [(line, now, earlier) for line, (now, earlier) in found.items()]
    key = (lambda row: -abs(row[1] - row[2])) if before is not None else (lambda row: -row[1])
    return sorted(rows, key=key)
