"""Parts of the windows of a sampled heap: lines with their source, tracebacks, types with their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from celery_trace.heap.picks import Stack
from celery_trace.heap.source_reader import SourceReader
from celery_trace.model import Line, Site, TypeCount
from celery_trace.text.code_owner import WRAPPERS

#: Frames of a traceback.
MOST_FRAMES: Final = 40


def site_at(file: str, line: int, stack: Stack, *, size: float = 0.0, blocks: int = 0) -> Site:
    """
    A line of a window.

    Args:
        file: Of the line.
        line: Its number.
        stack: One way to it, the innermost frame first.
        size: Retained per run, bytes.
        blocks: Runs that have retained something there.
    """
    reader = SourceReader()
    here = reader.line(file, line)
    return Site(
        file=here.file,
        line=line,
        function=here.function,
        code=here.code,
        bytes=round(size),
        blocks=blocks,
        traceback=_traceback(stack, reader),
    )


def _traceback(stack: Stack, reader: SourceReader) -> list[Line]:
    lines: list[Line] = []
    for file, line, function in stack[:MOST_FRAMES]:
        if file in WRAPPERS:
            break
        known = reader.line(file, line)
        lines.append(Line(file=known.file, line=line, function=function, code=known.code))
    return lines


def shares(types: Iterable[tuple[str, int, int]], total_bytes: int) -> list[TypeCount]:
    """
    The retained bytes, divided among the types that the holder holds: they add up to the total.

    Args:
        types: Type, number of objects, and weight.
        total_bytes: What is retained.
    """
    found = list(types)
    weighed = sum(weight for _, _, weight in found)
    shared: list[TypeCount] = []
    before = passed = 0
    for kind, count, weight in found:
        passed += weight
        until = round(total_bytes * passed / weighed) if weighed else 0
        shared.append(TypeCount(kind, count, until - before))
        before = until
    return shared
