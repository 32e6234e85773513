"""The text of a line, and the function around it."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Sequence

from celery_trace.clock import IMPORTED_AT_S
from celery_trace.model import Line

#: The most that is read of a file.
_MOST_READ_BYTES = 4_000_000

_FUNCTION = re.compile(r"\s*(async\s+)?def\s+(\w+)")
_OPENER = re.compile(r"\s*(async|def|class|if|elif|else|for|while|with|try|except|finally|match|case)\b")


class SourceReader:
    """
    Looks up lines and function names of a few files, and drops the files afterwards.

    Made for one table: megabytes of source in ``linecache`` would look like a leak. Besides, allocations in this file
    are recognised as ours while a block around us is traced.
    """

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}

    def line(self, file: str, line: int) -> Line:
        """The line as a record; text and function are empty if the source that runs can't be read."""
        lines = self._lines(file)
        if not 0 < line <= len(lines):
            return Line(file=_printable(file), line=line, function="")
        return Line(
            file=_printable(file),
            line=line,
            function=function_at(lines, line),
            code=_printable(lines[line - 1].strip()[:400]),
        )

    def lines(self, frames: Sequence[tuple[str, int]]) -> list[Line]:
        """Several lines, in order."""
        return [self.line(file, line) for file, line in frames]

    def close(self) -> None:
        """Drop the files."""
        self._files.clear()

    def _lines(self, file: str) -> list[str]:
        lines = self._files.get(file)
        if lines is None:
            lines = self._files[file] = _read(file)
        return lines


def _read(file: str) -> list[str]:
    if file.startswith("<"):
        return []
    try:
        with open(file, "rb") as stream:
            if os.fstat(stream.fileno()).st_mtime > IMPORTED_AT_S:
                return []  # the running code may be older: another version's line would mislead
            data = stream.read(_MOST_READ_BYTES)
        return data.decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        pass
    known = file in linecache.cache
    try:
        return [text.rstrip("\n") for text in linecache.getlines(file)]  # from a zip archive, through its loader
    except (OSError, ValueError, SyntaxError):
        return []
    finally:
        if not known:
            linecache.cache.pop(file, None)


def function_at(lines: Sequence[str], line: int) -> str:
    """
    The name of the function around a line, by indentation; ``<module>`` outside of any.

    Only lines that open a block count on the way up, so that an indented text does not mislead.
    Parsing the file would be exact and cost a hundred times as much.
    """
    text = lines[line - 1]
    here = _FUNCTION.match(text)
    if here and re.search(r":\s*[^\s#]", text[here.end() :]):
        return here.group(2)  # a function on one line
    margin = _margin(text)
    for number in range(line - 2, -1, -1):
        text = lines[number]
        if not _OPENER.match(text) or _margin(text) >= margin:
            continue
        found = _FUNCTION.match(text)
        if found:
            return found.group(2)
        margin = _margin(text)
        if not margin:
            break
    return "<module>"


def _margin(text: str) -> int:
    return len(text) - len(text.lstrip())


def _printable(text: str) -> str:
    """With lone surrogates escaped: JSON can't contain them."""
    return text.encode("utf-8", "backslashreplace").decode()
