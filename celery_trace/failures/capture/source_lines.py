"""
The lines around a frame's line, redacted, and whether the file has changed since it was imported.

Lines come from :mod:`linecache`, which Celery's own formatting of the traceback has filled already. A module's loader
is never called for its source: it may be the user's.
"""

from __future__ import annotations

import linecache
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from types import CodeType
from typing import NamedTuple

import msgspec

from celery_trace.clock import IMPORTED_AT_S
from celery_trace.failures.capture.texts import encodable
from celery_trace.model import Line
from celery_trace.redaction import Redactor

#: Lines shown before and after a frame's own line.
AROUND = 5
#: Characters kept of one line of source.
WIDTH = 200
#: Seconds for which a file's modification time is cached.
LOOK_EVERY_S = 1.0
_REMEMBERED = 256


class SourceContext(NamedTuple):
    """A line of source with those around it, redacted. ``size`` is its size as JSON, bytes."""

    code: str
    start: int
    lines: list[str]
    stale: bool
    size: int


_NO_SOURCE = SourceContext("", 0, [], False, 4)
_json = msgspec.json.Encoder().encode


class SourceLines:
    """Context lines by file and line, cached: the same lines fail repeatedly. Bounded."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._columns: dict[tuple[str, str, int, int], tuple[int, int, int] | None] = {}
        self._looked: dict[str, tuple[float, float | None]] = {}
        self._known: OrderedDict[tuple[str, int], tuple[float, SourceContext]] = OrderedDict()

    def changed_at_s(self, file: str) -> float | None:
        """When the file was last written; None if there is no such file. Read once a second at most."""
        now_s = time.monotonic()
        looked = self._looked.get(file)
        if looked is not None and now_s - looked[0] < LOOK_EVERY_S:
            return looked[1]
        try:
            changed_at_s: float | None = os.stat(file).st_mtime
        except (OSError, ValueError):
            changed_at_s = None
        if len(self._looked) >= _REMEMBERED:
            self._looked.clear()
        self._looked[file] = (now_s, changed_at_s)
        return changed_at_s

    def around(self, file: str, line: int, changed_at_s: float | None) -> SourceContext:
        """The line and those around it; empty when there is no such file or line."""
        if changed_at_s is None:
            return _NO_SOURCE
        key = (file, line)
        known = self._known.get(key)
        if known is None or known[0] != changed_at_s:
            known = (changed_at_s, self._read(file, line, changed_at_s > IMPORTED_AT_S))
            self._known[key] = known
            if len(self._known) > _REMEMBERED:
                with suppress(KeyError):  # another thread was faster
                    self._known.popitem(last=False)
        return known[1]

    def lines(self, stack: Iterable[Line], loaded_at_s: float) -> list[Line]:
        """Lines with their text. Files newer than ``loaded_at_s`` are skipped, as they may have changed."""
        found = []
        for line in stack:
            changed_at_s = self.changed_at_s(line.file)
            is_same = changed_at_s is not None and changed_at_s < loaded_at_s
            code = self.around(line.file, line.line, changed_at_s).code if is_same else line.code
            found.append(Line(line.file, line.line, line.function, code))
        return found

    def columns(self, code: CodeType, line: int, instruction: int) -> tuple[int, int, int] | None:
        """End line, first and end column of the expression that was being evaluated, if Python has them."""
        if instruction < 0:
            return None
        # Walking to the instruction costs more than the rest of a frame; the same places fail repeatedly.
        key = (code.co_filename, code.co_qualname, line, instruction)
        known = self._columns.get(key, _UNKNOWN)
        if known is _UNKNOWN:
            if len(self._columns) >= 4 * _REMEMBERED:
                self._columns.clear()
            known = self._columns[key] = _columns_of(code, instruction)
        return known

    def _read(self, file: str, line: int, stale: bool) -> SourceContext:
        linecache.checkcache(file)
        lines = linecache.getlines(file)
        if not 0 < line <= len(lines):
            return _NO_SOURCE
        first = max(1, line - AROUND)
        text = "".join(raw if raw.endswith("\n") else raw + "\n" for raw in lines[first - 1 : line + AROUND])
        # Together, as a literal may span lines; then one by one, in case the first quote closes a literal.
        context = [self._redactor.source(encodable(raw.rstrip())[:WIDTH]) for raw in _whole(text, self._redactor)]
        code = context[line - first].strip() if line - first < len(context) else ""
        return SourceContext(code, first, context, stale, len(_json(context)) + len(_json(code)))


#: No column is negative, and None is a valid result.
_UNKNOWN = (-1, -1, -1)


def _columns_of(code: CodeType, instruction: int) -> tuple[int, int, int] | None:
    positions = next(islice(code.co_positions(), instruction // 2, None), None)
    if positions is None:
        return None
    _, end_line, column, end_column = positions
    if end_line is None or column is None or end_column is None:
        return None
    return end_line, column, end_column


def _whole(text: str, redactor: Redactor) -> list[str]:
    """The lines of a text that ends with a line feed, searched all at once."""
    return redactor.source(text).split("\n")[: text.count("\n")]
