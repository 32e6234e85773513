"""Whether an error is the captured one: its type, and the line at which it was raised, wherever that line is now."""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple

from msgspec import Struct

from celery_trace.failures.capture import describe
from celery_trace.failures.capture.source_lines import WIDTH
from celery_trace.model import CapturedException, Frame
from celery_trace.redaction import MARK, Redactor
from celery_trace.text.code_owner import CodeOwner, project_roots

#: Celery's module that calls a task, by one of several functions.
_CALLS_TASKS: Final = "celery.app.trace"


class Place(Struct, frozen=True, kw_only=True):
    """A line by its text and its function, with the lines before and after it, in case it occurs twice."""

    module: str
    function: str
    code: str
    before: str = ""
    after: str = ""
    in_app: bool = True


class Code(Struct, frozen=True):
    """Lines of a module by a digest, to see whether they have changed; their position does not count."""

    module: str
    lines: int
    digest: str


class ExpectedError(Struct, frozen=True, kw_only=True):
    """
    What a run raised.

    ``at`` is the innermost line of the user's code; ``code`` are the lines around each line of the user's code that
    led there.
    """

    error: str
    at: Place
    code: tuple[Code, ...] = ()

    def difference(self, error: BaseException) -> str:
        """How another error differs; empty if it is the same."""
        raised = describe(error, Redactor())
        name = f"{raised.module}.{raised.type}"
        if name != self.error:
            return f"{name} instead of {self.error}"
        live = _key_of(error.__traceback__, self.at.in_app)
        if live is None:
            return f"{name} without a traceback"
        if self.at.module == live.module == _CALLS_TASKS:
            return ""  # the call of the task itself, such as one with a wrong number of arguments
        if (live.module, live.function) != (self.at.module, self.at.function):
            return f"{name} in {live.module}.{live.function} instead of {self.at.module}.{self.at.function}"
        if not _is_line(self.at, linecache.getlines(live.file), live.line):
            return f"{name} at another line of {live.function}: {linecache.getline(live.file, live.line).strip()!r}"
        return ""

    def code_changed(self) -> bool:
        """Whether lines that led to the error are not in their module any more. False if that is not known."""
        return any(_is_gone(code) for code in self.code)


def captured_error(raised: CapturedException) -> ExpectedError | None:
    """The error of a capture; None without frames."""
    if not raised.frames:
        return None
    key = next((frame for frame in raised.frames if frame.in_app), raised.frames[0])
    own = {code: None for frame in raised.frames if frame.in_app and (code := _code_of(frame)) is not None}
    return ExpectedError(error=f"{raised.module}.{raised.type}", at=_place_of(key), code=tuple(own))


def _place_of(frame: Frame) -> Place:
    at = frame.line - frame.context_start
    lines = [line.strip() for line in frame.context]
    return Place(
        module=frame.module,
        function=frame.qualname or frame.function,
        code=frame.code.strip(),
        before=lines[at - 1] if 0 < at < len(lines) else "",
        after=lines[at + 1] if 0 <= at < len(lines) - 1 else "",
        in_app=frame.in_app,
    )


def _code_of(frame: Frame) -> Code | None:
    """None if the lines are not known, or not exactly."""
    if not frame.context or frame.stale or any(MARK in line for line in frame.context):
        return None
    return Code(frame.module, len(frame.context), _digest(frame.context))


def _digest(lines: Sequence[str]) -> str:
    text = "\n".join(line.rstrip()[:WIDTH] for line in lines)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _is_gone(code: Code) -> bool:
    file = getattr(sys.modules.get(code.module), "__file__", None)
    lines = linecache.getlines(file) if file else []
    starts = range(len(lines) - code.lines + 1)
    return bool(lines) and not any(_digest(lines[start : start + code.lines]) == code.digest for start in starts)


# --- the live error ---------------------------------------------------------------------------------------


class _Live(NamedTuple):
    file: str
    module: str
    function: str
    line: int


def _entries(traceback: TracebackType | None) -> Iterator[_Live]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        yield _Live(code.co_filename, module, code.co_qualname, traceback.tb_lineno)
        traceback = traceback.tb_next


def _key_of(traceback: TracebackType | None, in_app: bool) -> _Live | None:
    """The innermost frame, or the innermost one of the user's code."""
    innermost_first = list(_entries(traceback))[::-1]
    owner = CodeOwner((), project_roots())
    own = [live for live in innermost_first if owner(live.file, live.module)] if in_app else innermost_first
    return next(iter(own or innermost_first), None)


def depth_of(error: BaseException, captured: ExpectedError) -> int:
    """How many frames are below the one at which the captured error was raised; 0 for the innermost."""
    key = _key_of(error.__traceback__, captured.at.in_app)
    innermost_first = list(_entries(error.__traceback__))[::-1]
    return innermost_first.index(key) if key is not None else 0


_MARKED: Final = re.compile(re.escape(re.escape(MARK)))


def _is_like(captured: str, line: str) -> bool:
    """Whether a line of a file is that of the capture, in which parts may be redacted."""
    shown = line.rstrip()[:WIDTH].strip()
    return shown == captured or (
        MARK in captured and re.fullmatch(_MARKED.sub(".*", re.escape(captured)), shown) is not None
    )


def _is_line(place: Place, lines: Sequence[str], number: int) -> bool:
    """Whether this line is the captured one; of equal lines, that with the most equal neighbours."""
    if not place.code:  # no source at the time of the failure
        return True
    if not 0 < number <= len(lines) or not _is_like(place.code, lines[number - 1]):
        return False
    if not place.before and not place.after:  # not known, as in a brief capture
        return True

    def neighbours(at: int) -> int:
        before = at > 1 and _is_like(place.before, lines[at - 2])
        return before + (at < len(lines) and _is_like(place.after, lines[at]))

    twins = [at for at, line in enumerate(lines, start=1) if _is_like(place.code, line)]
    return neighbours(number) == max(map(neighbours, twins))
