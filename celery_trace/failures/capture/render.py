"""A node of a capture's heap as text, like a ``repr``."""

from __future__ import annotations

from collections.abc import Sequence

from celery_trace.model import Node

#: In place of what was left out.
ELLIPSIS = "…"
_BRACKETS = {"list": ("[", "]"), "tuple": ("(", ")"), "set": ("{", "}"), "frozenset": ("{", "}"), "dict": ("{", "}")}
_BARE = frozenset(("list", "tuple", "set", "dict"))


def text(heap: Sequence[Node], ref: int, width: int = 120) -> str:
    """
    A value on one line.

    Args:
        heap: The capture's table.
        ref: The node; -1 for a value that did not fit.
        width: Most characters; a longer text ends in ``…``.
    """
    return _Line(heap, width).render(ref)


class _Line:
    def __init__(self, heap: Sequence[Node], width: int) -> None:
        self._heap = heap
        self._width = width

    def render(self, ref: int) -> str:
        return self._clip(self._node(ref, self._width, frozenset()), self._width)

    @staticmethod
    def _clip(line: str, width: int) -> str:
        return line if len(line) <= width else line[: max(0, width - 1)] + ELLIPSIS

    def _node(self, ref: int, room: int, open_refs: frozenset[int]) -> str:
        if not 0 <= ref < len(self._heap):
            return ELLIPSIS
        node = self._heap[ref]
        if ref in open_refs or room <= 0:
            return ELLIPSIS
        if node.kind == "plain":
            return self._plain(node, room)
        if node.kind == "text":
            return self._text(node)
        if node.kind == "redacted":
            return "[redacted]"
        if node.kind == "absent":
            return f"<{_short(node.type)}{f' of {node.length}' if node.length >= 0 else ''} {ELLIPSIS}>"
        if node.kind == "opaque":
            note = f" {node.note}" if node.note else ""
            return f"<{_short(node.type)}{note}>"
        inside = open_refs | {ref}
        if node.kind == "object":
            return self._object(node, room, inside)
        return self._container(node, room, inside)

    def _plain(self, node: Node, room: int) -> str:
        if not isinstance(node.value, str):
            return str(node.value)
        cut = ELLIPSIS if node.cut else ""
        return repr(node.value[: room + 1]) + cut if node.type == "str" else f"{_short(node.type)}({node.value!r}){cut}"

    @staticmethod
    def _text(node: Node) -> str:
        cut = ELLIPSIS if node.cut else ""
        if node.form == "bytes":
            # Kept as text so that secrets are found; other bytes are escaped already.
            body = f"b'{node.value}'{cut}"
            return body if node.type == "bytes" else f"{_short(node.type)}({body})"
        if node.form in ("class", "module", "function"):
            return f"<{node.form} {node.value}>"
        if node.type in ("int", "float", "complex", "range", "ellipsis", "object", "NotImplementedType"):
            return f"{node.value}{cut}"
        return f"{_short(node.type)}({node.value!r}){cut}"

    def _object(self, node: Node, room: int, inside: frozenset[int]) -> str:
        if node.form == "enum" and len(node.items) == 2:
            name = self._heap[node.items[0]].value
            return f"<{_short(node.type)}.{name}: {self._node(node.items[1], room, inside)}>"
        if node.form in ("function", "closure", "method", "generator", "coroutine", "async generator"):
            note = f", {node.note}" if node.note else ""
            return f"<{node.form} {node.value}{note}>"
        if node.form == "exception":
            return f"{_short(node.type)}{self._node(node.items[0], room, inside)}" if node.items else _short(node.type)
        parts: list[str] = []
        used = len(node.type)
        for name, item in zip(node.names, node.items, strict=False):
            piece = f"{name}={self._node(item, room - used, inside)}"
            parts.append(piece)
            used += len(piece) + 2
            if used > room:
                break
        if len(parts) < len(node.names) or node.cut:
            parts.append(ELLIPSIS)
        return f"{_short(node.type)}({', '.join(parts)})"

    def _container(self, node: Node, room: int, inside: frozenset[int]) -> str:
        opening, closing = _BRACKETS.get(node.kind, ("[", "]"))
        parts: list[str] = []
        used = 0
        step = 2 if node.kind == "dict" else 1
        for at in range(0, len(node.items) - step + 1, step):
            piece = self._node(node.items[at], room - used, inside)
            if step == 2:
                piece += f": {self._node(node.items[at + 1], room - used - len(piece), inside)}"
            parts.append(piece)
            used += len(piece) + 2
            if used > room:
                break
        if len(parts) * step < len(node.items) or node.cut:
            parts.append(ELLIPSIS)
        if node.form == "queryset" and node.length < 0:
            return f"<{_short(node.type)} {node.note}>"
        body = ", ".join(parts)
        if node.kind == "tuple" and len(parts) == 1 and node.length == 1:
            body += ","
        if not parts and node.kind in ("set", "frozenset"):
            return f"{_short(node.type)}()"
        line = f"{opening}{body}{closing}"
        if node.type in _BARE:
            return line
        note = f", {node.note}" if node.form in ("ndarray", "series") else ""
        return f"{_short(node.type)}({line}{note})"


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]
