"""
Flame graphs of kept memory: the heap profiles of processes as one tree, as a difference, and as files for other tools.

Pure: a page, a command and the JSON API show the same facts.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.model import HeapProfile, Line

#: The outermost frame first.
Stack = tuple[Line, ...]

#: The frame of all stacks that a profile does not list.
OTHERS: Final = Line(file="", line=0, function="other stacks")
#: A part of the tree with a smaller share of the whole is not drawn.
LEAST_SHARE: Final = 0.0005


class KeptHeap(Struct, frozen=True, kw_only=True):
    """
    What a name retains, by stack.

    ``stacks`` are bytes, or bytes a run once :func:`per_run` has divided them; they add up to ``bytes``.
    """

    stacks: dict[Stack, float]
    bytes: float
    runs: int
    processes: int
    at: float | None  # of the latest profile


def together(profiles: Iterable[HeapProfile]) -> KeptHeap:
    """The sum of several processes' profiles, one of each process."""
    stacks: dict[Stack, float] = defaultdict(float)
    known: dict[tuple[str, int, str], Line] = {}
    rows = list(profiles)
    for profile in rows:
        for line in profile.frames:
            place = line.file, line.line, line.function
            if not known.get(place, line).code or place not in known:  # one process may not have read the source
                known[place] = line
    for profile in rows:
        frames = [known[line.file, line.line, line.function] for line in profile.frames]
        for stack in profile.stacks:
            stacks[tuple(frames[place] for place in stack.frames)] += stack.bytes
        if profile.other_bytes:
            stacks[(OTHERS,)] += profile.other_bytes
    return KeptHeap(
        stacks=dict(stacks),
        bytes=sum(profile.bytes for profile in rows),
        runs=sum(profile.runs for profile in rows),
        processes=len({profile.process for profile in rows}),
        at=max((profile.at_s for profile in rows), default=None),
    )


def per_run(kept: KeptHeap) -> KeptHeap:
    """Divided by the observed runs, so that releases with different numbers of runs can be compared."""
    runs = max(1, kept.runs)
    stacks = {stack: value / runs for stack, value in kept.stacks.items()}
    return replace(kept, stacks=stacks, bytes=kept.bytes / runs)


def by_function(kept: KeptHeap) -> KeptHeap:
    """With functions as frames, as lines move between releases; without the lines' code."""
    stacks: dict[Stack, float] = defaultdict(float)
    for stack, value in kept.stacks.items():
        stacks[tuple(Line(frame.file, 0, frame.function) for frame in stack)] += value
    return replace(kept, stacks=dict(stacks))


def difference(after: KeptHeap, before: KeptHeap) -> dict[Stack, float]:
    """What each stack retains more than before; less is negative. Unchanged stacks are left out."""
    changes = {
        stack: after.stacks.get(stack, 0.0) - before.stacks.get(stack, 0.0) for stack in {*after.stacks, *before.stacks}
    }
    return {stack: change for stack, change in changes.items() if change}


class HeapView(Struct, frozen=True, kw_only=True):
    """Retained memory by stack, and the name of what it is compared with; ``a_run`` if values are bytes per run."""

    after: KeptHeap
    before: KeptHeap | None = None
    after_is: str = ""
    before_is: str = ""
    a_run: bool = False

    @property
    def stacks(self) -> dict[Stack, float]:
        """Bytes by stack, or their difference."""
        return self.after.stacks if self.before is None else difference(self.after, self.before)


class FlameNode(Struct):
    """A frame of the tree with what is retained below it; its width is the larger of both values."""

    frame: Line
    bytes: float = 0.0
    before: float = 0.0
    width: float = 0.0
    below: dict[Line, FlameNode] = {}

    def add(self, stack: Sequence[Line], after: float, before: float) -> None:
        """Add a stack."""
        node = self
        for frame in (None, *stack):
            if frame is not None:
                node = node.below.setdefault(frame, FlameNode(frame))
            node.bytes += after
            node.before += before
            node.width += max(after, before)

    def children(self) -> list[FlameNode]:
        """The widest first."""
        return sorted(self.below.values(), key=lambda node: (-node.width, node.frame.function, node.frame.line))


def tree(after: KeptHeap, before: KeptHeap | None = None) -> FlameNode:
    """All stacks as one tree; its root is the name."""
    root = FlameNode(Line(file="", line=0, function="all"))
    earlier: Mapping[Stack, float] = before.stacks if before is not None else {}
    for stack in {**after.stacks, **earlier}:
        root.add(stack, after.stacks.get(stack, 0.0), earlier.get(stack, 0.0))
    return root


#: ``[place of the frame, bytes, bytes before, width, [children]]``
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
        return [place, round(node.bytes, 1), round(node.before, 1), round(node.width, 1), [*map(one, shown)]]

    found = one(root)
    return list(places), found


def lines_of(after: KeptHeap, before: KeptHeap | None = None) -> list[tuple[Line, float, float]]:
    """Where the memory was allocated: the innermost frames with their bytes now and before; largest change first."""
    found: dict[Line, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, kept in enumerate((after, before)):
        for stack, value in kept.stacks.items() if kept is not None else ():
            found[stack[-1]][number] += value
    rows = [(line, now, earlier) for line, (now, earlier) in found.items()]
    key = (lambda row: -abs(row[1] - row[2])) if before is not None else (lambda row: -row[1])
    return sorted(rows, key=key)


# --- files for other tools --------------------------------------------------------------------------------


def as_json(view: HeapView) -> dict[str, object]:
    """The JSON of the contract: ``stacks`` are ``[[frame, …], bytes]``, with ``compare`` the difference."""
    after, before = view.after, view.before
    found: dict[str, object] = {
        "unit": "bytes a run" if view.a_run else "bytes",
        "bytes": round(after.bytes),
        "runs": after.runs,
        "processes": after.processes,
        "at": after.at,
        "stacks": folded(view.stacks),
    }
    if before is not None:
        compared = {"with": view.before_is, "bytes": round(before.bytes), "runs": before.runs}
        found |= {"is": view.after_is, "compared": {**compared, "processes": before.processes, "at": before.at}}
    return found


def label(line: Line) -> str:
    """A frame as text: ``remember_order (shop/tasks.py:41)``."""
    if not line.file:
        return line.function
    place = f"{line.file}:{line.line}" if line.line else line.file
    return f"{line.function or '?'} ({place})"


def folded(stacks: Mapping[Stack, float]) -> list[tuple[list[str], int]]:
    """Stacks as texts, the largest first."""
    rows = [([label(line) for line in stack], round(value)) for stack, value in stacks.items()]
    return sorted(rows, key=lambda row: (-abs(row[1]), row[0]))


def collapsed(stacks: Mapping[Stack, float]) -> str:
    """Brendan Gregg's format, as ``flamegraph.pl``, inferno and speedscope read it: ``frame;frame bytes``."""
    lines = (f"{';'.join(frame.replace(';', ',') for frame in names)} {value}" for names, value in folded(stacks))
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def speedscope(stacks: Mapping[Stack, float], title: str) -> dict[str, object]:
    """A file for https://www.speedscope.app; what has shrunk is left out, as it has no negative weights."""
    places: dict[Line, int] = {}
    samples, weights = [], []
    for stack, value in sorted(stacks.items(), key=lambda row: -row[1]):
        if value >= 1:
            samples.append([places.setdefault(line, len(places)) for line in stack])
            weights.append(round(value))
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": "celery-trace",
        "shared": {"frames": [{"name": line.function or "?", "file": line.file, "line": line.line} for line in places]},
        "profiles": [
            {
                "type": "sampled",
                "name": title,
                "unit": "bytes",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }


def pprof(stacks: Mapping[Stack, float], at_s: float) -> bytes:
    """A gzipped ``profile.proto`` of https://github.com/google/pprof; a difference may have negative values."""
    texts: dict[str, int] = {"": 0}

    def text(word: str) -> int:
        return texts.setdefault(word, len(texts))

    places: dict[Line, int] = {}
    samples = []
    for stack, value in stacks.items():
        locations = b"".join(_varint(places.setdefault(line, len(places) + 1)) for line in reversed(stack))
        samples.append(_field(2, _field(1, locations) + _field(2, _varint(round(value)))))
    kind = _number(1, text("inuse_space")) + _number(2, text("bytes"))
    parts = [_field(1, kind), *samples]
    for line, number in places.items():
        where = _number(1, number) + _number(2, line.line)
        parts.append(_field(4, _number(1, number) + _field(4, where)))
        name = text(line.function or "?")
        function = _number(1, number) + _number(2, name) + _number(3, name) + _number(4, text(line.file))
        parts.append(_field(5, function))
    parts += [_field(6, word.encode()) for word in texts]
    parts.append(_number(9, round(at_s * 1e9)))
    return gzip.compress(b"".join(parts), mtime=0)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number is its two's complement
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
