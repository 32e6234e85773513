"""Removes the secrets that were found by name from all other texts of a capture."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from msgspec.structs import replace

from celery_trace.failures.capture.anatomy import anatomy, mro, part
from celery_trace.failures.capture.texts import BEYOND, bare_moment, encodable, head_of_bytes, uuid_text
from celery_trace.model import CapturedException, Frame, Node
from celery_trace.redaction import Scrubber, pem

_INT64 = 1 << 63
#: Values that are read inside one secret container or object.
_MOST_INSIDE = 64
#: Characters of a text inside one; a shorter one would hide harmless text.
_LONG = 8
#: Characters of a number that is not whole; shorter ones are too common.
_FIGURES = 6
#: Characters of a key that are checked.
_KEY = 256
#: Types with their own reader, for subclasses too; others are read by slots and dictionary.
_ROWS: tuple[type[Collection[object]], ...] = (list, tuple, set, frozenset, deque)
_TELLING: tuple[type, ...] = (
    str, bytes, bytearray, memoryview, int, float, decimal.Decimal, uuid.UUID, datetime.datetime, datetime.date, dict,
    *_ROWS, BaseException,
)  # fmt: skip
_args_of = BaseException.__dict__["args"].__get__


def secrets_in(value: object, longest: int) -> Iterator[str]:
    """
    The texts and numbers in a secret value; those inside another object only when they are long.

    Args:
        value: Read by builtin methods, slots and instance dictionaries only.
        longest: Characters of a text that are needed.
    """
    if type(value) is str and len(value) <= longest:
        yield encodable(value)
        return
    left = _MOST_INSIDE
    pending: deque[tuple[object, int]] = deque([(value, Scrubber.SHORTEST)])
    while pending and left > 0:
        left -= 1
        found, shortest = pending.popleft()
        texts, inside = _parts_of(found, longest, left)
        for text in texts:
            if len(text) >= shortest:
                yield encodable(text)
        pending.extend((item, _LONG) for item in inside)


def _parts_of(found: Any, longest: int, most: int) -> tuple[Sequence[str], Sequence[object]]:
    """The texts of a value, and the values inside it."""
    cls = type(found)
    order = mro(cls)
    kind = next((base for base in _TELLING if any(base is ancestor for ancestor in order)), None)
    if kind is None:
        return (), [item for _, item in islice(anatomy(cls).attributes_of(found), most)]
    if kind is str:
        return (str.__getitem__(found, slice(0, longest + BEYOND)),), ()
    if kind is bytes or kind is bytearray:
        return (head_of_bytes(found, longest + BEYOND)[0].decode("utf-8", "backslashreplace"),), ()
    if kind is memoryview:
        try:
            return (found[: longest + BEYOND].tobytes().decode("utf-8", "backslashreplace"),), ()
        except (ValueError, NotImplementedError, TypeError):  # released, or not sliceable
            return (), ()
    if kind is int:
        number = abs(int.__int__(found))
        return ((str(number),) if number > 99_999 and number.bit_length() <= 4096 else ()), ()
    if kind is float:
        spelled = float.__repr__(abs(float.__float__(found)))
        return ((spelled,) if len(spelled) >= _FIGURES else ()), ()
    if kind is datetime.datetime:
        moment = bare_moment(found)
        return (moment.isoformat(), moment.isoformat(" ")), ()
    if kind is datetime.date:
        return (datetime.date.isoformat(found),), ()
    if kind is decimal.Decimal:
        text = decimal.Decimal.__str__(found)
        return ((text,) if _FIGURES <= len(text) <= longest else ()), ()
    if kind is uuid.UUID:
        number = part(found, "int")
        digits = f"{number:032x}" if type(number) is int and 0 <= number < 1 << 128 else ""
        return ((digits, uuid_text(number)) if digits else ()), ()
    if kind is dict:
        keys = [key for key in _snapshot(dict.keys(found)) if type(key) is str and _looks_made(key)]
        return (), [*keys, *_snapshot(dict.values(found))][:most]
    if kind is BaseException:
        return (), [*_snapshot(_args_of(found)), *(item for _, item in anatomy(cls).attributes_of(found))][:most]
    row = next(base for base in _ROWS if base is kind)
    return (), _snapshot(row.__iter__(found))[:most]


def _looks_made(key: str) -> bool:
    """Whether a key looks like a token, not like a field name."""
    return len(key) >= _LONG + 4 and any(character.isdigit() for character in key[:_KEY])


def _snapshot(values: Iterable[object]) -> list[object]:
    try:
        return list(islice(values, _MOST_INSIDE))
    except RuntimeError:  # changed by another thread
        return []


# --- the heap


def scrub_nodes(nodes: list[Node], scrubber: Scrubber, room: int) -> tuple[int, int]:
    """
    Remove all collected secrets from a heap, in place.

    Args:
        nodes: The whole table.
        scrubber: Has the secrets.
        room: Bytes by which the texts may grow: a mark can be longer than what it hides.

    Returns:
        The number of changed nodes, and the room left.
    """
    changed = 0
    for ref, node in enumerate(nodes):
        scrubbed, room = _scrubbed_node(node, scrubber, room)
        if scrubbed is not node:
            changed += 1
            nodes[ref] = scrubbed
    return changed, room


def texts_of_nodes(nodes: list[Node]) -> str:
    """The texts of all nodes in one, so that one search shows that there is no secret."""
    values = [node.value for node in nodes]
    texts: list[str] = [value for value in values if type(value) is str]
    texts += [str(value) for value in values if type(value) is int and not -99_999 <= value <= 99_999]
    texts += [str(value) for value in values if type(value) is float]
    for node in nodes:
        if node.names:
            texts += node.names
        if node.note:
            texts.append(node.note)
    return "\n".join(texts)


def hide_open_keys(nodes: list[Node], scrubber: Scrubber) -> int:
    """
    Hide the lines of private keys that are separate items, from the first line of a key to its last.

    The scrubber gets them too, as one may be the value of a loop variable.

    Args:
        nodes: The whole table; changed in place.
        scrubber: Gets the lines.

    Returns:
        The number of hidden nodes.
    """
    hidden: set[int] = set()
    for node in nodes:
        if node.kind not in ("list", "tuple"):
            continue
        within = False
        for ref in node.items:
            text = nodes[ref].value
            if type(text) is not str:
                continue
            if pem.is_open(text):
                within = True
            elif within and pem.ends(text):
                within = False
            elif within:
                hidden.add(ref)
    for ref in hidden:
        scrubber.learn(str(nodes[ref].value))
        nodes[ref] = Node(nodes[ref].type, "redacted")
    return len(hidden)


def _scrubbed_node(node: Node, scrubber: Scrubber, room: int) -> tuple[Node, int]:
    value = node.value
    if (type(value) is int or type(value) is float) and node.kind == "plain":
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


# --- outside of the heap


def scrubbed_exceptions(exceptions: list[CapturedException], scrubber: Scrubber, most: int) -> list[CapturedException]:
    """The exceptions without collected secrets in their texts; messages and notes keep at most ``most`` characters."""
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
