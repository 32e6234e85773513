"""Captures an exception with its causes, contexts and groups as a tree of values."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from types import FrameType, TracebackType, WrapperDescriptorType
from typing import Any, NamedTuple

from msgspec.structs import replace

from celery_trace.failures.capture import sensitive
from celery_trace.failures.capture.anatomy import anatomy, class_value, is_kind_of, module_name, part, type_name
from celery_trace.failures.capture.frames import (
    MOST_FRAMES,
    FrameEncoder,
    FramePlace,
    folded,
    open_fairly,
    places_of,
    places_of_stack,
    without_middle,
)
from celery_trace.failures.capture.heap import HeapEncoder
from celery_trace.failures.capture.leaves import LEAVES
from celery_trace.failures.capture.names import Names
from celery_trace.failures.capture.scrubbing import scrubbed_exceptions
from celery_trace.failures.capture.shapes import exception_parts, shape_of
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.failures.capture.texts import encodable, length_of_json
from celery_trace.failures.repeats import Outline, Repeats, identity_of
from celery_trace.model import Capture, CapturedException, ExceptionInfo
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Limits
from celery_trace.text.code_owner import CodeOwner, project_roots

#: The deepest nesting of exceptions that each have the next one as their only argument.
_MOST_WRAPPED = 8
#: Exceptions kept of one tree.
MOST_EXCEPTIONS = 32


def _field(cls: type, name: str) -> Any:
    """The getter of a builtin exception's C field; a subclass's property of the same name is not called."""
    return cls.__dict__[name].__get__


_cause_of = _field(BaseException, "__cause__")
_context_of = _field(BaseException, "__context__")
_suppress_of = _field(BaseException, "__suppress_context__")
_traceback_of = _field(BaseException, "__traceback__")
_args_of = _field(BaseException, "args")
#: Shows ``args`` only; most exceptions, the user's too, inherit it.
_PLAIN_STR = BaseException.__dict__["__str__"]
_members_of = _field(BaseExceptionGroup, "exceptions")


class Arguments(NamedTuple):
    """What a task was called with; ``names`` are its parameters, so that a positional password is recognised."""

    args: object = ()
    kwargs: object = None
    names: Sequence[str] = ()


class Raised(NamedTuple):
    """One exception of a tree before it is encoded."""

    error: BaseException
    link: str
    parent: int


def traceback_of(error: BaseException) -> TracebackType | None:
    """The exception's traceback, from the C field."""
    traceback: TracebackType | None = _traceback_of(error)
    return traceback


def tree_of(error: BaseException) -> list[Raised]:
    """The exception with its causes, contexts and groups, breadth first; each once, so that a cycle ends."""
    found = [Raised(error, "", -1)]
    alone = _cause_of(error) is None and (_suppress_of(error) or _context_of(error) is None)
    if alone and not is_kind_of(type(error), BaseExceptionGroup):
        return found
    seen = {id(error)}
    at = 0
    while at < len(found) and len(found) < MOST_EXCEPTIONS:
        current = found[at].error
        linked: list[tuple[BaseException | None, str]] = []
        if is_kind_of(type(current), BaseExceptionGroup):
            linked += [(member, "group") for member in _members_of(current)]
        cause = _cause_of(current)
        if cause is not None:
            linked.append((cause, "cause"))
        elif not _suppress_of(current):
            linked.append((_context_of(current), "context"))
        for other, link in linked:
            if other is not None and id(other) not in seen and len(found) < MOST_EXCEPTIONS:
                seen.add(id(other))
                found.append(Raised(other, link, at))
        at += 1
    return found


def message_of(error: BaseException, most: int = 1024, formatted: str = "") -> str:
    """
    The text of ``str(error)``, if that runs no code of the user's; else the message's parts.

    Not redacted yet.

    Args:
        error: Only its C fields are read.
        most: Characters that are needed.
        formatted: The traceback as text, if Celery has formatted it already: it has the result of the user's own
        ``__str__``.
    """
    cls = type(error)
    args = _args_of(error)
    to_string = class_value(cls, "__str__")
    if to_string is _PLAIN_STR and len(args) == 1 and type(args[0]) is str:
        return str(args[0][: 4 * most])
    wrapped = _wrapped(error)
    if wrapped is not error:
        return message_of(wrapped, most)
    if is_kind_of(cls, BaseExceptionGroup):
        message = part(error, "message", "")
        count = len(_members_of(error))
        text = message if type(message) is str else ""
        return f"{text[:most]} ({count} sub-exception{'s' if count != 1 else ''})"
    if type(to_string) is WrapperDescriptorType and module_name(to_string.__objclass__) == "builtins":
        parts = [value for _, value in exception_parts(error)[1:]]
        harmless = all(_is_plain(value) for value in args) and all(_is_plain(value) for value in parts)
        if harmless and sum(len(value) for value in (*args, *parts) if type(value) is str) <= 16 * most:
            return str(to_string.__get__(error)())[: 4 * most]
    elif formatted:
        shown = _cut_message(cls, formatted)
        if shown:
            return shown[: 4 * most]
    if len(args) == 1 and type(args[0]) is str:
        return str(args[0][: 4 * most])
    for name in ("message", "msg", "detail", "reason"):
        text = part(error, name)
        if type(text) is str and text:
            return text[: 4 * most]
    return ", ".join(_shown(value, most) for value in args)[: 4 * most]


def _wrapped(error: BaseException) -> BaseException:
    """
    The exception that has the message of ``error``: the last in a chain of exceptions with one exception as argument.

    Kombu's ``EncodeError(TypeError(...))`` is one: its ``str`` is that of its only argument.
    """
    inner = error
    for _ in range(_MOST_WRAPPED):
        args = _args_of(inner)
        if class_value(type(inner), "__str__") is not _PLAIN_STR or len(args) != 1:
            return inner
        if not is_kind_of(type(args[0]), BaseException):
            return inner
        inner = args[0]
    return error  # it may be a cycle


def _cut_message(cls: type, formatted: str) -> str:
    """The text after the error's name at the end of a formatted traceback; empty if it does not end like that."""
    name = _printed_name(cls)
    at = formatted.rfind(f"\n{name}: ")
    return formatted[at + len(name) + 3 :].rstrip("\n") if at >= 0 else ""


def _printed_name(cls: type) -> str:
    """The class as in a traceback: with its module, unless it is a builtin or of ``__main__``."""
    module = module_name(cls)
    qualname = type_name(cls).removeprefix(f"{module}.")
    return qualname if module in ("builtins", "__main__") else f"{module}.{qualname}"


def _is_plain(value: object) -> bool:
    if type(value) is int:
        return value.bit_length() < 1024
    if type(value) is bytes:
        return len(value) <= 1024
    return value is None or type(value) is str or type(value) is bool or type(value) is float


def _shown(value: object, most: int) -> str:
    """A short text for one argument, without calling its methods."""
    if type(value) is str:
        return repr(value[:most])
    if _is_plain(value):
        return repr(value)
    return f"<{type_name(type(value))}>"


def _notes_of(error: BaseException) -> list[str]:
    own = anatomy(type(error)).dict_of(error) or {}
    notes = dict.get(own, "__notes__")
    if type(notes) is not list:
        return []
    return [note for note in notes[:10] if type(note) is str]


@lru_cache(maxsize=8)
def _workshop(redactor: Redactor, in_app: tuple[str, ...]) -> tuple[SourceLines, CodeOwner, Names]:
    """Shared by captures with the same settings: caches of source lines, of files and of names."""
    return SourceLines(redactor), CodeOwner(in_app, project_roots()), Names(redactor)


class _Capturing:
    """One capture in progress."""

    def __init__(
        self,
        limits: Limits,
        redactor: Redactor,
        in_app: Sequence[str],
        scrubber: Scrubber | None = None,
    ) -> None:
        self.started_s = time.perf_counter()
        self.brief = ""
        self.limits = limits
        self.redactor = redactor
        self.scrubber = scrubber if scrubber is not None else Scrubber()
        source, owner, names = _workshop(redactor, tuple(in_app))
        self.heap = HeapEncoder(limits, redactor, self.scrubber, shape_of, LEAVES, names)
        self.frames = FrameEncoder(self.heap, source, owner)

    def text(self, text: str, most: int) -> str:
        """A text outside of the heap: redacted, cut, and counted in bytes."""
        whole = encodable(text)
        redacted = self.redactor.text(whole)
        if redacted is not whole:
            self.heap.learn_from(whole, redacted)
        kept = redacted[:most]
        size = length_of_json(kept)
        if size > self.heap.bytes_left:
            kept = kept[: max(0, self.heap.bytes_left // 6)]
            size = length_of_json(kept)
        self.heap.bytes_left -= size
        return kept

    def arguments(self, arguments: Arguments | None) -> tuple[int, int]:
        if arguments is None:
            return -1, -1
        heap = self.heap
        args, kwargs = arguments.args, arguments.kwargs
        if type(args) is tuple or type(args) is list:
            args_ref = heap.row(args, arguments.names)
        else:
            args_ref = heap.visit(args if args is not None else (), 0)
        refs = args_ref, heap.visit(kwargs if kwargs is not None else {}, 0)
        self.frames.waiting.append(heap.pending)
        heap.pending = deque()
        return refs

    def exception(self, raised: Raised, most_frames: int, formatted: str = "") -> CapturedException:
        error = raised.error
        cls = type(error)
        qualname = type_name(cls)
        module = module_name(cls)
        message, notes = self._message(error, formatted)
        self.heap.bytes_left -= 160 + len(qualname) + len(module)
        places, cut = without_middle(folded(places_of(traceback_of(error))), most_frames)
        frames = self.frames.encode(places, sensitive.hidden_locals(places))
        self.heap.pending = deque()
        attributes = self.heap.variables(
            (name, value) for name, value in exception_parts(error)[:50] if name != "exceptions"
        )
        self.frames.waiting.append(self.heap.pending)
        self.heap.pending = deque()
        return CapturedException(
            type=_bare_name(qualname, module),
            module=module,
            message=message,
            frames=frames,
            frames_cut=cut + len(places) - len(frames),
            link=raised.link,
            parent=raised.parent,
            notes=notes,
            attributes=attributes,
        )

    def in_full(self, tree: list[Raised], formatted: str) -> list[CapturedException]:
        exceptions: list[CapturedException] = []
        for raised in tree:
            if exceptions and self.heap.bytes_left < 1024:
                break
            first = not exceptions
            exceptions.append(
                self.exception(raised, MOST_FRAMES if first else MOST_FRAMES // 2, formatted if first else "")
            )
        return exceptions

    def in_brief(self, tree: list[Raised], outline: Outline, full: int, formatted: str) -> list[CapturedException]:
        """The outline's exceptions with their new messages."""
        self.brief = f"in brief, without locals: {full} of the last minute are in full (trace_capture_budget)"
        self.heap.bytes_left -= outline.bytes
        self.heap.cut_values += outline.left_out
        exceptions: list[CapturedException] = []
        for raised, known in zip(tree, outline.exceptions, strict=False):
            message, notes = self._message(raised.error, "" if exceptions else formatted)
            exceptions.append(replace(known, message=message, notes=notes))
        return exceptions

    def _message(self, error: BaseException, formatted: str) -> tuple[str, list[str]]:
        """An exception's message and notes, redacted and cut."""
        most = self.limits.string
        return self.text(message_of(error, most, formatted), most), [self.text(note, most) for note in _notes_of(error)]

    def finish(self, exceptions: list[CapturedException], args: int, kwargs: int) -> Capture:
        open_fairly(self.heap, self.frames.waiting)
        nodes = self.heap.finish()
        return Capture(
            exceptions=scrubbed_exceptions(exceptions, self.scrubber, self.limits.string),
            heap=nodes,
            args=args,
            kwargs=kwargs,
            cut_values=self.heap.cut_values,
            redacted_values=self.heap.redacted_values,
            took_s=round(time.perf_counter() - self.started_s, 6),
            bytes=self.limits.bytes - self.heap.bytes_left,
            brief=self.brief,
        )


def capture_exception(
    error: BaseException,
    *,
    limits: Limits,
    redactor: Redactor,
    in_app: Sequence[str] = (),
    arguments: Arguments | None = None,
    formatted: str = "",
    scrubber: Scrubber | None = None,
    repeats: Repeats | None = None,
) -> Capture:
    """
    An exception as values: frames with their locals, causes and groups, redacted and within the limits.

    Runs none of the user's code: no ``__repr__``, property or query. Nothing in the result refers to
    the process's objects.

    Args:
        error: What was raised, with its ``__traceback__``.
        limits: What may be kept. ``limits.bytes`` bounds the whole result as JSON.
        redactor: Decides what is secret.
        in_app: Further folders or module prefixes that are the user's own.
        arguments: What the run was called with.
        formatted: The traceback as text, if it was formatted already; see :func:`message_of`.
        scrubber: Collects the secrets that were found, for texts that are not part of the capture.
        repeats: Has the recent captures, and decides whether this one is captured in brief.
    """
    capturing = _Capturing(limits, redactor, in_app, scrubber)
    tree = tree_of(error)
    if repeats is None:
        args, kwargs = capturing.arguments(arguments)
        return capturing.finish(capturing.in_full(tree, formatted), args, kwargs)
    began_cpu_s = time.thread_time()
    identity = identity_of(tree, traceback_of)
    known = repeats.outline_of(identity)
    # The frame that failed matters most, and the arguments need their share: they are opened before its callers.
    args, kwargs = capturing.arguments(arguments)
    if known is not None:
        return capturing.finish(capturing.in_brief(tree, *known, formatted), args, kwargs)
    learned_before = capturing.heap.learned_by_name
    capture = capturing.finish(capturing.in_full(tree, formatted), args, kwargs)
    secretive = capturing.heap.learned_by_name > learned_before
    repeats.captured(identity, capture.exceptions, time.thread_time() - began_cpu_s, secretive=secretive)
    return capture


def capture_frames(
    frame: FrameType | None,
    *,
    limits: Limits,
    redactor: Redactor,
    in_app: Sequence[str] = (),
    outermost: str = "",
    raised: ExceptionInfo | None = None,
    arguments: Arguments | None = None,
    scrubber: Scrubber | None = None,
    inner: Sequence[FrameType] = (),
) -> Capture:
    """
    A running frame and its callers as values, as the only exception of a capture.

    Args:
        frame: The innermost.
        limits, redactor, in_app, arguments, scrubber: As for :func:`capture_exception`.
        outermost: The function beyond which callers are left out.
        raised: The exception's name; none by default.
        inner: Frames inside of ``frame`` or, if that is None, instead of it, innermost first: those of a suspended
            coroutine have no callers.
    """
    capturing = _Capturing(limits, redactor, in_app, scrubber)
    args, kwargs = capturing.arguments(arguments)
    places: list[FramePlace]
    waited_for = [FramePlace(one, one.f_lineno or 0, one.f_lasti) for one in inner]
    places, cut = without_middle(folded(waited_for + places_of_stack(frame, outermost)), MOST_FRAMES)
    frames = capturing.frames.encode(places, sensitive.hidden_locals(places))
    raised = raised if raised is not None else ExceptionInfo("", "", "")
    exception = CapturedException(
        type=raised.type, module=raised.module, message=raised.message, frames=frames, frames_cut=cut
    )
    return capturing.finish([exception], args, kwargs)


def _bare_name(qualname: str, module: str) -> str:
    """``Order.DoesNotExist`` for a nested class, without the function that a class was defined in."""
    return qualname.removeprefix(f"{module}.").rpartition("<locals>.")[2]


def info_of(capture: Capture) -> ExceptionInfo | None:
    """What was raised, in three strings; None if the capture has no exception."""
    if not capture.exceptions:
        return None
    raised = capture.exceptions[0]
    return ExceptionInfo(raised.type, raised.module, raised.message)


def describe(error: BaseException, redactor: Redactor, most: int = 1024) -> ExceptionInfo:
    """An exception in three strings without capturing it."""
    cls = type(error)
    module = module_name(cls)
    return ExceptionInfo(
        _bare_name(type_name(cls), module), module, redactor.text(encodable(message_of(error, most)))[:most]
    )
