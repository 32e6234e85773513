"""
Recreates the values of a stored failure, as far as they were plain.

Lists, dicts, texts, numbers, dates, Decimal, UUID and Path become real values; other objects become stand-ins with
their class's name and their captured attributes. A placeholder marks what was cut, redacted or not captured. No code of
the project is imported, and nothing is unpickled.

Only the standard library: this runs in the sandbox.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import keyword
import pathlib
import re
import uuid
from collections import Counter, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from reprlib import recursive_repr
from typing import Any

from celery_trace.shell.trace_object import ShellFacts, ShellFrame, ShellObject, Trace

#: An object of the capture's JSON, which nothing has checked.
_Json = Mapping[str, Any]

_FIELDS = ("type", "kind", "value", "items", "names", "length", "cut", "form", "note")
_DEFAULTS: tuple[object, ...] = (None, None, None, [], [], -1, 0, "", "")
_TIMEDELTA = re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d+):(\d+)(?:\.(\d{6}))?\Z")


class NotCaptured(ShellObject):
    """A placeholder for a value that was redacted, cut by a limit, or can't be recreated."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __repr__(self) -> str:
        return f"<{self._word}>"

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{self._word}: it has no .{name}")


REDACTED = NotCaptured("redacted")
ABSENT = NotCaptured("absent: cut by a limit of the capture")


class CutText(str):
    """A text without its end, which was not captured."""

    __slots__ = ("cut",)
    cut: int

    def __repr__(self) -> str:
        return f"{super().__repr__()}… {self.cut:,} more characters were not captured"


class CutList(list[object]):
    """A list without its end, which was not captured; ``true_length`` is the original length."""

    true_length = -1

    @recursive_repr("[…]")
    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self))
        return f"[{inner}, … {self.true_length - len(self):,} more were not captured]"


class CutDict(dict[object, object]):
    """A dict that was not captured completely; ``true_length`` is the original length."""

    true_length = -1

    @recursive_repr("{…}")
    def __repr__(self) -> str:
        inner = ", ".join(f"{key!r}: {value!r}" for key, value in self.items())
        return f"{{{inner}, … {self.true_length - len(self):,} more were not captured}}"


class Recreated(ShellObject):
    """An object as its captured attributes. Its class has the original's name and none of its methods."""

    _type = "object"
    _form = ""
    _note = ""
    _text: object = None
    _cut = 0

    def _members(self) -> Mapping[str, object]:
        return self.__dict__

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(sorted(self.__dict__)[:20]) or "none"
        raise AttributeError(
            f"{self._type} was recreated from a capture, which has no attribute {name!r} (methods and properties "
            f"never are); captured: {known}"
        )

    def __iter__(self) -> Iterator[object]:
        raise TypeError(f"{self._type} was recreated from a capture and can't be iterated")

    def __repr__(self) -> str:
        parts = [f"{name}={_short(value)}" for name, value in list(self.__dict__.items())[:12]]
        if self._text is not None:
            parts.insert(0, repr(self._text))
        if self._cut or len(self.__dict__) > 12:
            parts.append(f"… {self._cut + max(0, len(self.__dict__) - 12)} more")
        form = f" {self._form}" if self._form else ""
        note = f" ({self._note})" if self._note else ""
        return f"<recreated{form} {self._type}{note}{': ' if parts else ''}{', '.join(parts)}>"


def _short(value: object) -> str:
    if isinstance(value, Recreated):
        return f"<{value._type}>"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class Heap:
    """The values of one capture; each node becomes one object, so sharing and cycles stay."""

    def __init__(self, nodes: Sequence[object]) -> None:
        self._nodes = nodes
        self._values: dict[int, object] = {}
        #: How often the building of a node has started. A tuple is reached a second time before it exists if it holds,
        #: say, a list that holds it. The list exists then, so a third time is a forgery that would never end.
        self._begun: Counter[int] = Counter()
        self._classes: dict[tuple[str, str], type] = {}

    def value(self, ref: object) -> object:
        """The value of a reference; :data:`ABSENT` for an invalid one."""
        if type(ref) is not int or not 0 <= ref < len(self._nodes):
            return ABSENT
        if ref not in self._values:
            if self._begun[ref] == 2:
                return NotCaptured("a tuple or a set within itself")
            self._begun[ref] += 1
            try:
                self._build(ref)
            except RecursionError:
                self._values[ref] = NotCaptured("nested too deeply to recreate")
            finally:
                self._begun[ref] -= 1
        return self._values[ref]

    def _build(self, ref: int) -> None:
        raw = self._nodes[ref]
        if not isinstance(raw, list) or len(raw) < 2:
            self._values[ref] = ABSENT
            return
        type_, kind, value, items, names, length, cut, form, note = [*raw, *_DEFAULTS[len(raw) :]][: len(_FIELDS)]
        short = str(type_).rpartition(".")[2]
        if kind == "plain":
            self._values[ref] = self._plain(value, cut, short)
        elif kind == "text":
            self._values[ref] = self._text(str(type_), str(value), cut, note)
        elif kind == "list":
            made: list[object] = CutList() if cut or length > len(items) else []
            self._values[ref] = made
            made.extend(self.value(item) for item in items)
            if isinstance(made, CutList):
                made.true_length = max(length, len(made) + cut)
        elif kind == "deque":
            self._values[ref] = filled = deque[object]()
            filled.extend(self.value(item) for item in items)
        elif kind == "dict":
            mapping: dict[object, object] = CutDict() if cut else {}
            self._values[ref] = mapping
            for key, item in zip(items[::2], items[1::2], strict=False):
                mapping[self._hashable(key)] = self.value(item)
            if isinstance(mapping, CutDict):
                mapping.true_length = max(length, len(mapping) + cut)
        elif kind in ("set", "frozenset"):
            # A cycle through a set contains an object, which exists by then; the set itself may be seen incomplete.
            members = {self._hashable(item) for item in items}
            self._values[ref] = frozenset(members) if kind == "frozenset" else members
        elif kind == "tuple":
            self._values[ref] = tuple(self.value(item) for item in items)
        elif kind == "object":
            self._values[ref] = self._object(ref, str(type_), value, items, names, cut, str(form), str(note))
        elif kind == "redacted":
            self._values[ref] = REDACTED
        elif kind == "absent":
            self._values[ref] = ABSENT
        else:
            size = f", length {length}" if isinstance(length, int) and length >= 0 else ""
            self._values[ref] = NotCaptured(f"{type_}{size}{': ' + str(note) if note else ''}, not captured")

    def _plain(self, value: object, cut: int, short: str) -> object:
        if isinstance(value, str) and cut:
            text = CutText(value)
            text.cut = cut
            return text
        if short == "float" and isinstance(value, int):
            return float(value)
        return value

    def _text(self, type_: str, text: str, cut: int, note: str) -> object:
        short = type_.rpartition(".")[2]
        if not cut and len(text) <= _MOST_PARSED.get(short, len(text)):
            try:
                return _FROM_TEXT[short](text)
            except (KeyError, ValueError, ArithmeticError, OverflowError, TypeError):
                pass
        return _Text(type_, text, cut, note)

    def _hashable(self, ref: object) -> object:
        value = self.value(ref)
        try:
            hash(value)
        except TypeError:
            return NotCaptured(f"a {type(value).__name__}, which can't be a key")
        return value

    def _class(self, type_: str, form: str) -> type:
        key = (type_, form)
        if key not in self._classes:
            module, _dot, name = type_.rpartition(".")
            name = name if name.isidentifier() else "object"
            self._classes[key] = type(
                name, (Recreated,), {"_type": type_, "_form": form, "__module__": module or "builtins"}
            )
        return self._classes[key]

    def _object(
        self, ref: int, type_: str, value: object, items: list[object], names: list[str], cut: int, form: str, note: str
    ) -> object:
        usable = all(
            isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
            for name in names
        )
        if form == "namedtuple" and usable and len(set(names)) == len(names) == len(items) and not cut:
            name = type_.rpartition(".")[2]
            made = namedtuple(name if name.isidentifier() else "namedtuple", names)  # type: ignore[misc]
            return made(*(self.value(item) for item in items))
        placeholder = self._class(type_, form)()
        self._values[ref] = placeholder
        members = placeholder.__dict__
        for name, item in zip(names, items, strict=False):
            members[str(name)] = self.value(item)
        if value is not None or note or cut:
            # Each object has its own class with its facts, where no attribute can hide them.
            own = type(
                type(placeholder).__name__,
                (type(placeholder),),
                {"_text": value, "_note": note, "_cut": cut, "__module__": type(placeholder).__module__},
            )
            placeholder.__class__ = own
        return placeholder


class _Text(ShellObject):
    """A value of which only a text is known, such as a class, a function or a regular expression."""

    def __init__(self, type_: str, text: str, cut: int, note: str) -> None:
        self._type, self.text, self._cut, self._note = type_, text, cut, note

    def _members(self) -> Mapping[str, object]:
        return {"text": self.text}

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        more = f"… {self._cut:,} more" if self._cut else ""
        return f"<{self._type} {self.text}{more}{' (' + self._note + ')' if self._note else ''}>"


def _timedelta(text: str) -> datetime.timedelta:
    match = _TIMEDELTA.match(text)
    if match is None:
        raise ValueError(text)
    days, hours, minutes, seconds, micros = (int(part or 0) for part in match.groups())
    return datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, microseconds=micros)


def _bytes(text: str) -> bytes:
    # The capture wrote non-UTF-8 bytes as \xNN, which can't be distinguished from a text with these characters.
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found.group(1), 16)]), text.encode("utf-8"))


def _complex(text: str) -> complex:
    return complex(text.strip("()"))


def _fraction(text: str) -> fractions.Fraction:
    # As str() writes it. With an exponent, "1e20000000" would be a number of 66 million bits.
    if not re.fullmatch(r"-?[0-9]+(/[0-9]+)?", text):
        raise ValueError(text)
    return fractions.Fraction(text)


#: Most characters of a number, Python's own limit for an int: a forged capture's text may have any length.
_MOST_PARSED = dict.fromkeys(("Decimal", "Fraction", "int", "float", "complex", "range", "timedelta"), 4300)

_FROM_TEXT: dict[str, Callable[[str], object]] = {
    "Decimal": decimal.Decimal,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": _timedelta,
    "UUID": uuid.UUID,
    "Path": pathlib.PurePosixPath,
    "PosixPath": pathlib.PurePosixPath,
    "PurePosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
    "bytes": _bytes,
    "bytearray": lambda text: bytearray(_bytes(text)),
    "Fraction": _fraction,
    "int": int,
    "float": float,
    "complex": _complex,
    "range": lambda text: range(*(int(part) for part in re.fullmatch(r"range\((.*)\)", text)[1].split(","))),  # type: ignore[index]
}


def recreated_trace(failure: _Json, leaks: Sequence[_Json]) -> Trace:
    """
    The ``trace`` object of a stored failure.

    Args:
        failure: A :class:`celery_trace.model.Failure` as JSON has it.
        leaks: Rows of the leak table for its task.
    """
    capture = failure.get("capture") or {}
    heap = Heap(capture.get("heap") or [])
    exceptions = capture.get("exceptions") or []
    raised = exceptions[0] if exceptions else {}
    frames = [_frame(frame, heap) for frame in raised.get("frames") or []]
    task: dict[str, object] = dict(failure.get("task") or {})
    for name in ("name", "task_id", "worker", "pid", "hostname", "outcome", "duration_s", "note"):
        task.setdefault(name, failure.get(name))
    task.setdefault("retries", failure.get("retries", 0))  # a record omits default values
    request = failure.get("request")
    return Trace(
        frames,
        exception=_exception(exceptions, 0, heap) if exceptions else _named_exception(failure),
        args=heap.value(capture.get("args")) if capture.get("args", -1) != -1 else None,
        kwargs=heap.value(capture.get("kwargs")) if capture.get("kwargs", -1) != -1 else None,
        task=ShellFacts("task", task),
        request=ShellFacts("request", request) if request else None,
        leaks=[ShellFacts("leak", leak) for leak in leaks],
        mode="recreated",
    )


def _frame(frame: _Json, heap: Heap) -> ShellFrame:
    variables = {str(name): heap.value(ref) for name, ref in frame.get("locals") or []}
    first = int(frame.get("context_start") or 0)
    lines = [(first + offset, str(text)) for offset, text in enumerate(frame.get("context") or [])]
    if not lines and frame.get("code"):
        lines = [(int(frame["line"]), str(frame["code"]))]
    notes = []
    if frame.get("locals_cut"):
        notes.append(f"{frame['locals_cut']} more variables of this frame were not captured.")
    if frame.get("folded"):
        notes.append(f"{frame['folded']} equal frames after this one are folded.")
    if frame.get("note"):
        notes.append(str(frame["note"]))
    return ShellFrame(
        str(frame.get("file", "")),
        int(frame.get("line", 0)),
        str(frame.get("function", "")),
        variables,
        source=lambda: lines,
        in_app=bool(frame.get("in_app", True)),
        note=" ".join(notes),
    )


class CapturedError(ShellObject):
    """A captured exception: ``type``, ``message``, ``notes``, ``cause`` and its attributes."""

    def __init__(self, type_: str, module: str, message: str, members: Mapping[str, object]) -> None:
        self.type, self.module, self.message = type_, module, message
        self.notes: list[str] = []
        self.cause: object = None
        self.context: object = None
        self.exceptions: list[object] = []
        for name, value in members.items():
            if name.isidentifier() and not hasattr(self, name):
                setattr(self, name, value)

    def _members(self) -> Mapping[str, object]:
        return self.__dict__

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"<recreated {self.type}: {self.message}>"


def _exception(exceptions: Sequence[_Json], index: int, heap: Heap) -> CapturedError:
    made = []
    for raw in exceptions:
        attributes = {str(name): heap.value(ref) for name, ref in raw.get("attributes") or []}
        error = CapturedError(str(raw.get("type")), str(raw.get("module")), str(raw.get("message")), attributes)
        error.notes = [str(note) for note in raw.get("notes") or []]
        made.append(error)
    for raw, error in zip(exceptions, made, strict=True):
        parent = raw.get("parent", -1)
        if type(parent) is int and 0 <= parent < len(made) and made[parent] is not error:
            if raw.get("link") == "cause":
                made[parent].cause = error
            elif raw.get("link") == "context":
                made[parent].context = error
            elif raw.get("link") == "group":
                made[parent].exceptions.append(error)
    return made[index]


def _named_exception(failure: Mapping[str, object]) -> object:
    named = failure.get("exception")
    if not named:
        return None
    if isinstance(named, Mapping):
        return CapturedError(str(named.get("type")), str(named.get("module")), str(named.get("message")), {})
    return None
