"""
Text of values for the echo of an expression: laid out, bounded, and safe from a ``__repr__`` that raises.

Only the standard library: the sandbox loads this module too.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeGuard

WIDTH = 100
ITEMS = 500  # of the whole echo
DEPTH = 12
_SHORT = 24
TEXT = 20_000  # characters of one text
_BRACKETS: dict[type, tuple[str, str]] = {
    dict: ("{", "}"),
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
    deque: ("deque([", "])"),
}


_Container = dict[object, object] | list[object] | tuple[object, ...] | set[object] | frozenset[object] | deque[object]


def _is_container(value: object) -> TypeGuard[_Container]:
    return type(value) in _BRACKETS


class _Layout:
    def __init__(self) -> None:
        self.items_left = ITEMS
        self.open: set[int] = set()

    def text(self, value: object, indent: int, depth: int) -> str:
        kind = type(value)
        if _is_container(value):
            if id(value) in self.open:
                return f"<the same {kind.__name__} again>"
            if depth >= DEPTH:
                return f"<{kind.__name__} of {len(value)}, deeper than {DEPTH}>"
            self.open.add(id(value))
            try:
                return self._container(value, kind, indent, depth)
            finally:
                self.open.discard(id(value))
        return safe_repr(value)

    def _container(self, value: _Container, kind: type, indent: int, depth: int) -> str:
        parts: list[str] = []
        length = len(value)
        source: Iterable[Any] = value.items() if isinstance(value, dict) else value
        # Another thread may change a live container meanwhile.
        try:
            shown = list(islice(source, max(0, min(length, self.items_left))))
        except RuntimeError as error:
            return f"<{kind.__name__} of {length}: {error}>"
        self.items_left -= len(shown)
        for item in shown:
            if kind is dict:
                key = safe_repr(item[0])
                parts.append(f"{key}: {self.text(item[1], indent + len(key) + 3, depth + 1)}")
            else:
                parts.append(self.text(item, indent + 1, depth + 1))
        if length > len(shown):
            parts.append(f"… {length - len(shown):,} more")
        opening, closing = _BRACKETS[kind]
        if not parts and kind in (set, frozenset):
            opening, closing = f"{kind.__name__}(", ")"
        elif kind is tuple and len(parts) == 1:
            closing = ",)"
        elif isinstance(value, deque) and value.maxlen is not None:
            closing = f"], maxlen={value.maxlen})"
        line = opening + ", ".join(parts) + closing
        if "\n" not in line and indent + len(line) <= WIDTH:
            return line
        pad = " " * (indent + len(opening))
        if kind is not dict and all(len(part) <= _SHORT and "\n" not in part for part in parts):
            parts = _rows(parts, WIDTH - len(pad))
        return opening + (",\n" + pad).join(parts) + closing


def _rows(parts: list[str], width: int) -> list[str]:
    """Short items side by side."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + 2 + len(part) <= width:
            rows[-1] += ", " + part
        else:
            rows.append(part)
    return rows


def safe_repr(value: object) -> str:
    """``repr(value)``, cut; an exception of its ``__repr__`` becomes part of the text."""
    kind = type(value)
    try:
        if (type(value) is str or type(value) is bytes or type(value) is bytearray) and len(value) > TEXT:
            return f"{value[:TEXT]!r}… {len(value) - TEXT:,} more"
        text = repr(value)
    except Exception as error:
        reason = traceback.format_exception_only(type(error), error)[-1].strip()
        return f"<{kind.__module__}.{kind.__qualname__} at {id(value):#x}; its repr raised {reason}>"
    return text if len(text) <= TEXT else f"{text[:TEXT]}… {len(text) - TEXT:,} more characters"


def pretty(value: object) -> str:
    """The echo of a value: at most :data:`ITEMS` items and about :data:`WIDTH` columns."""
    try:
        return _Layout().text(value, 0, 0)
    except RecursionError:
        return f"<{type(value).__qualname__}: nested too deeply to show>"
