"""
Profiles as files for other tools, and as the JSON of the API.

Times are microseconds; pprof gets nanoseconds, the Firefox Profiler milliseconds, as they expect them.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from celery_trace.model import Line, Measure
from celery_trace.profiles.flames import ProfileView, Stack

#: The formats of :func:`write`, with the ending of the file.
ENDINGS: Final = {
    "collapsed": "collapsed.txt",
    "speedscope": "speedscope.json",
    "pprof": "pb.gz",
    "firefox": "firefox.json",
}
#: What the API calls the unit of a measure.
_BYTES: Final = "bytes"
_MICROSECONDS: Final = "microseconds"

#: The versions of the Firefox Profiler's formats that :func:`firefox` writes; it upgrades files of earlier versions.
_FIREFOX_FORMAT: Final = 29
_FIREFOX_PROCESSED: Final = 48


class Pprof(Struct, frozen=True):
    """A measure in pprof: the type and unit of its values, and what a value of ours is in that unit."""

    type: str
    unit: str
    factor: int


_PPROF: Final = {
    Measure.MEMORY: Pprof("inuse_space", "bytes", 1),
    Measure.WALL: Pprof("wall", "nanoseconds", 1000),
    Measure.CPU: Pprof("cpu", "nanoseconds", 1000),
    Measure.LOCK: Pprof("delay", "nanoseconds", 1000),
}


def write(shape: str, view: ProfileView, title: str, now_s: float) -> bytes:
    """
    A view as a file.

    Args:
        shape: One of :data:`ENDINGS`.
        view: What is written; a comparison as the difference.
        title: The name of the profile, in formats that have one.
        now_s: The time of a profile without records, seconds since the epoch.
    """
    at_s = view.after.at or now_s
    if shape == "collapsed":
        return collapsed(view.stacks).encode()
    if shape == "speedscope":
        return msgspec.json.encode(speedscope(view.stacks, title, view.measure))
    if shape == "firefox":
        return msgspec.json.encode(firefox(view.stacks, title, view.measure, at_s))
    return pprof(view.stacks, view.measure, at_s)


def as_json(view: ProfileView) -> dict[str, object]:
    """The JSON of the contract: ``stacks`` are ``[[frame, …], count]``, with ``compare`` the difference."""
    after, before = view.after, view.before
    unit = _unit(view.measure)
    found: dict[str, object] = {
        "unit": f"{unit} a run" if view.a_run else unit,
        "total": round(after.total),
        "runs": after.runs,
        "processes": after.processes,
        "at": after.at,
        "cut": after.cut,
        "kinds": view.measures,
        "stacks": folded(view.stacks),
    }
    if before is not None:
        compared = {"with": view.before_is, "total": round(before.total), "runs": before.runs}
        found |= {"is": view.after_is, "compared": {**compared, "processes": before.processes, "at": before.at}}
    return found


def _unit(measure: Measure) -> str:
    return _BYTES if measure is Measure.MEMORY else _MICROSECONDS


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
    """Brendan Gregg's format, as ``flamegraph.pl``, inferno and speedscope read it: ``frame;frame count``."""
    lines = (f"{';'.join(frame.replace(';', ',') for frame in names)} {value}" for names, value in folded(stacks))
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def _positive(stacks: Mapping[Stack, float]) -> list[tuple[Stack, int]]:
    """The stacks with a value, the largest first; formats without negative weights leave out what has shrunk."""
    return [(stack, round(value)) for stack, value in sorted(stacks.items(), key=lambda row: -row[1]) if value >= 1]


def speedscope(stacks: Mapping[Stack, float], title: str, measure: Measure) -> dict[str, object]:
    """A file for https://www.speedscope.app; what has shrunk is left out, as it has no negative weights."""
    places: dict[Line, int] = {}
    samples, weights = [], []
    for stack, value in _positive(stacks):
        samples.append([places.setdefault(line, len(places)) for line in stack])
        weights.append(value)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": "celery-trace",
        "shared": {"frames": [{"name": line.function or "?", "file": line.file, "line": line.line} for line in places]},
        "profiles": [
            {
                "type": "sampled",
                "name": title,
                "unit": _unit(measure),
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }


def firefox(stacks: Mapping[Stack, float], title: str, measure: Measure, at_s: float) -> dict[str, object]:
    """
    A file for https://profiler.firefox.com, in its "processed profile" format; what has shrunk is left out.

    The stacks are samples of one thread, one after the other; each is as long as its time. Memory has weights in bytes.
    """
    texts: dict[str, int] = {}
    frames: dict[Line, int] = {}
    functions: dict[tuple[str, str], int] = {}  # by name and file: the call tree is of functions, frames have lines
    nodes: dict[tuple[int | None, int], int] = {}  # by the caller's node and the frame
    found: list[int | None] = []
    rows = _positive(stacks)
    for stack, _ in rows:
        node: int | None = None
        for line in stack:
            node = nodes.setdefault((node, frames.setdefault(line, len(frames))), len(nodes))
        found.append(node)

    def text(word: str) -> int:
        return texts.setdefault(word, len(texts))

    weights = [value if measure is Measure.MEMORY else value / 1000 for _, value in rows]
    starts = [0.0, *itertools.accumulate(weights)]
    of_frames = [functions.setdefault((line.function or "?", line.file), len(functions)) for line in frames]
    count, many, functions_count = len(frames), len(nodes), len(functions)
    thread = {
        "processType": "default",
        "processName": "celery-trace",
        "processStartupTime": 0,
        "processShutdownTime": None,
        "registerTime": 0,
        "unregisterTime": None,
        "pausedRanges": [],
        "name": title,
        "isMainThread": True,
        "pid": "0",
        "tid": 0,
        "samples": {
            "length": len(rows),
            "stack": found,
            "time": starts[:-1] if measure is not Measure.MEMORY else [float(number) for number in range(len(rows))],
            "weight": weights,
            "weightType": "bytes" if measure is Measure.MEMORY else "tracing-ms",
        },
        "markers": {"length": 0, **_columns(0, "data", "name", "startTime", "endTime", "phase", "category")},
        "stackTable": {
            "length": many,
            "prefix": [caller for caller, _ in nodes],
            "frame": [frame for _, frame in nodes],
            "category": [0] * many,
            "subcategory": [0] * many,
        },
        "frameTable": {
            "length": count,
            "address": [-1] * count,
            "inlineDepth": [0] * count,
            "category": [0] * count,
            "subcategory": [0] * count,
            "func": of_frames,
            "line": [line.line or None for line in frames],
            **_columns(count, "nativeSymbol", "innerWindowID", "implementation", "column"),
        },
        "funcTable": {
            "length": functions_count,
            "name": [text(name) for name, _ in functions],
            "isJS": [False] * functions_count,
            "relevantForJS": [False] * functions_count,
            "resource": [-1] * functions_count,
            "fileName": [text(file) if file else None for _, file in functions],
            **_columns(functions_count, "lineNumber", "columnNumber"),
        },
        "resourceTable": {"length": 0, **_columns(0, "lib", "name", "host", "type")},
        "nativeSymbols": {"length": 0, **_columns(0, "libIndex", "address", "name", "functionSize")},
        "stringArray": list(texts),
    }
    return {
        "meta": {
            "product": "celery-trace",
            "version": _FIREFOX_FORMAT,
            "preprocessedProfileVersion": _FIREFOX_PROCESSED,
            "processType": 0,
            "stackwalk": 1,
            "interval": 1,
            "startTime": at_s * 1000,
            "symbolicated": True,
            "categories": [{"name": "Python", "color": "blue", "subcategories": ["Other"]}],
            "markerSchema": [],
        },
        "libs": [],
        "pages": [],
        "counters": [],
        "profilerOverhead": [],
        "threads": [thread],
    }


def _columns(length: int, *names: str) -> dict[str, list[None]]:
    """Columns without values."""
    return {name: [None] * length for name in names}


def pprof(stacks: Mapping[Stack, float], measure: Measure, at_s: float) -> bytes:
    """A gzipped ``profile.proto`` of https://github.com/google/pprof; a difference may have negative values."""
    texts: dict[str, int] = {"": 0}

    def text(word: str) -> int:
        return texts.setdefault(word, len(texts))

    known = _PPROF[measure]
    places: dict[Line, int] = {}
    samples = []
    for stack, value in stacks.items():
        locations = b"".join(_varint(places.setdefault(line, len(places) + 1)) for line in reversed(stack))
        samples.append(_field(2, _field(1, locations) + _field(2, _varint(round(value) * known.factor))))
    kind = _number(1, text(known.type)) + _number(2, text(known.unit))
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
