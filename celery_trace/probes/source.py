"""What stands at a line: its text, the function around it, and whether it is the user's own code."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any

from celery_trace.clock import IMPORTED_AT_S
from celery_trace.model import Line

#: Of a file, only so much is read.
_MOST_READ_BYTES = 4_000_000

_FUNCTION = re.compile(r"\s*(async\s+)?def\s+(\w+)")
_OPENER = re.compile(r"\s*(async|def|class|if|elif|else|for|while|with|try|except|finally|match|case)\b")

#: ``(file, line)`` pairs, the allocating line first.
Frames = tuple[tuple[str, int], ...]


def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts") if name in paths}
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(sorted(folder.rstrip(os.sep) + os.sep for folder in folders))


_LIBRARIES = _library_folders()
_OURSELVES = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Files of ours that only call what is the user's: around a traced block, around a task's tracer.
WRAPPERS = frozenset(os.path.join(_OURSELVES, "runtime", name) for name in ("blocks.py", "tracers.py"))


def is_ours(file: str) -> bool:
    """Whether a file belongs to celery-trace itself."""
    return file.startswith(_OURSELVES)


def is_our_own(frames: Frames) -> bool:
    """
    Whether an allocation is celery-trace's own doing.

    Frames of the wrappers around what is the user's do not count.
    """
    if frames[0][0].startswith(_OURSELVES):
        return True
    return any(file.startswith(_OURSELVES) and file not in WRAPPERS for file, _ in frames)


class OwnCode:
    """
    Tells the user's own files from the standard library and installed packages.

    Args:
        in_app: Folders (with a path separator) or module prefixes that count as the user's own wherever they lie.
    """

    def __init__(self, in_app: Iterable[str] = ()) -> None:
        self._folders = tuple(entry.rstrip(os.sep) + os.sep for entry in in_app if os.sep in entry)
        self._fragments = tuple(
            os.sep + entry.replace(".", os.sep) for entry in in_app if entry and os.sep not in entry
        )
        self._known: dict[str, bool] = {}

    def __call__(self, file: str) -> bool:
        known = self._known.get(file)
        if known is None:
            known = self._known[file] = self._decide(file)
        return known

    def _decide(self, file: str) -> bool:
        if file.startswith("<") or is_ours(file):
            return False
        if self._folders and file.startswith(self._folders):
            return True
        for fragment in self._fragments:
            at = file.find(fragment)
            if at >= 0 and file[at + len(fragment) : at + len(fragment) + 1] in (os.sep, "."):
                return True
        return not file.startswith(_LIBRARIES) and f"{os.sep}site-packages{os.sep}" not in file

    def first(self, frames: Frames) -> int:
        """The index of the first of the user's own lines, from the allocation outwards; 0 where there is none."""
        return next((index for index, (file, _) in enumerate(frames) if self(file)), 0)


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


class SourceReader:
    """
    Looks up lines and function names of a few files, and forgets the files afterwards.

    Made for one table: megabytes of source that stay in ``linecache`` would look like the leak we search. Files are
    read here and not there for a second reason: where a block around us is being traced, what is allocated
    in this file is known as ours.
    """

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}

    def line(self, file: str, line: int) -> Line:
        """The line as a record; text and function are empty where no source can be read, or not the one that runs."""
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
        """Drop what was read."""
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
                return []  # what runs may be an older text, and a line of another one would be a false witness
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
    The name of the function whose body a line is in, by indentation; ``<module>`` outside of any.

    Only lines that open a block count on the way up, so that a text with a margin of its own misleads nobody.
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
    """Lone surrogates escaped: JSON has no way to write them."""
    return text.encode("utf-8", "backslashreplace").decode()
