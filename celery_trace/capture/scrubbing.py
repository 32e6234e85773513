"""Secrets that were learned under their names are taken out of everything else that a capture says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec.structs import replace

from celery_trace.capture.texts import BEYOND, encodable
from celery_trace.model import CapturedException, Frame, Node
from celery_trace.redaction import Scrubber

_INT64 = 1 << 63
#: Values that are looked at inside one secret container.
_MOST_INSIDE = 64


def secrets_in(value: object, longest: int) -> Iterator[str]:
    """
    The texts and numbers in a secret value; those inside builtin containers only when they are long.

    Args:
        value: Read by builtin methods only.
        longest: Characters of a text that are of interest.
    """
    if type(value) is str and len(value) <= longest:
        yield encodable(value)
        return
    left = _MOST_INSIDE
    pending = deque([(value, Scrubber.SHORTEST)])
    while pending and left > 0:
        left -= 1
        found, shortest = pending.popleft()
        cls = type(found)
        if cls is str:
            if len(found) >= shortest:  # type: ignore[arg-type]
                yield encodable(found[: longest + BEYOND])  # type: ignore[index]
        elif cls is bytes or cls is bytearray:
            text = bytes(found[: longest + BEYOND]).decode("utf-8", "backslashreplace")  # type: ignore[index]
            if len(text) >= shortest:
                yield encodable(text)
        elif cls is int:
            if 99_999 < found < _INT64:  # type: ignore[operator]
                yield str(found)
        elif cls is dict:
            pending.extend((item, 8) for item in islice(_snapshot(found.values()), left))  # type: ignore[attr-defined]
        elif cls is list or cls is tuple or cls is set or cls is frozenset:
            pending.extend((item, 8) for item in islice(_snapshot(found), left))


def _snapshot(values: Any) -> list[Any]:
    try:
        return list(islice(values, _MOST_INSIDE))
    except RuntimeError:  # changed by another thread meanwhile
        return []


# --- the heap


def scrub_nodes(nodes: list[Node], scrubber: Scrubber, room: int) -> tuple[int, int]:
    """
    Take every learned secret out of a heap, in place.

    Args:
        nodes: The whole table.
        scrubber: What was learned.
        room: Bytes by which the texts may grow: a mark can be longer than what it hides.

    Returns:
        How many nodes were changed, and the room that is left.
    """
    changed = 0
    for ref, node in enumerate(nodes):
        scrubbed, room = _scrubbed_node(node, scrubber, room)
        if scrubbed is not node:
            changed += 1
            nodes[ref] = scrubbed
    return changed, room


def texts_of_nodes(nodes: list[Node]) -> str:
    """All texts of nodes in one, to find out with one search that no secret is among them."""
    values = [node.value for node in nodes]
    texts: list[str] = [value for value in values if type(value) is str]
    texts += [str(value) for value in values if type(value) is int and not -99_999 <= value <= 99_999]
    for node in nodes:
        if node.names:
            texts += node.names
        if node.note:
            texts.append(node.note)
    return "\n".join(texts)


def _scrubbed_node(node: Node, scrubber: Scrubber, room: int) -> tuple[Node, int]:
    value = node.value
    if type(value) is int and node.kind == "plain":
        shown = str(value)
        return (Node(node.type, "redacted") if scrubber.text(shown) != shown else node), room
    changed = False
    if type(value) is str:
        kept = scrubber.text(value)
        if kept is not value and kept != value:
            growth = len(kept) - len(value)
            if growth > room:
                kept = kept[: len(value)]
            elif growth > 0:
                room -= growth
            value, changed = kept, True
    names = node.names
    if names:
        kept_names = [scrubber.text(name) for name in names]
        if kept_names != names:
            names, changed = kept_names, True
    note = scrubber.text(node.note)
    if not changed and note == node.note:
        return node, room
    return replace(node, value=value, names=names, note=note), room


# --- what stands beside the heap


def scrubbed_exceptions(exceptions: list[CapturedException], scrubber: Scrubber, most: int) -> list[CapturedException]:
    """Exceptions whose texts hold no learned secret; messages and notes keep at most ``most`` characters."""
    if not scrubber or not scrubber.may_be_in("\n".join(_texts_of_exceptions(exceptions))):
        return exceptions
    return [
        replace(
            exception,
            message=scrubber.text(exception.message)[:most],
            notes=[scrubber.text(note)[:most] for note in exception.notes],
            frames=[_scrubbed_frame(frame, scrubber) for frame in exception.frames],
        )
        for exception in exceptions
    ]


def _texts_of_exceptions(exceptions: list[CapturedException]) -> list[str]:
    texts: list[str] = []
    for exception in exceptions:
        texts.append(exception.message)
        texts += exception.notes
        for frame in exception.frames:
            texts.append(frame.code)
            texts += frame.context
    return texts


def _scrubbed_frame(frame: Frame, scrubber: Scrubber) -> Frame:
    context = [scrubber.text(line) for line in frame.context]
    code = scrubber.text(frame.code)
    if code == frame.code and context == frame.context:
        return frame
    return replace(frame, code=code, context=context)
