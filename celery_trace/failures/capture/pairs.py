"""
Names with their values: items of a dictionary, attributes of an object, or a row of two.

A secret name hides its value, also if the name is itself a value: ``{"name": "password", "value": "x"}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from celery_trace.failures.capture.anatomy import is_kind_of, resident
from celery_trace.failures.capture.names import PARTED, VALUES
from celery_trace.failures.capture.texts import as_name
from celery_trace.model import Node
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits


class Encoder(Protocol):
    """What pairs need of the heap under construction; see :class:`celery_trace.failures.capture.heap.HeapEncoder`."""

    limits: Limits
    redactor: Redactor
    nodes: list[Node | None]
    bytes_left: int

    def has_room_for(self, count: int) -> bool: ...

    def visit(self, value: object, depth: int) -> int: ...

    def refs_of(self, values: Sequence[object], depth: int) -> list[int]: ...

    def member(self, name: str, value: object, depth: int) -> int: ...

    def secret(self, value: object) -> int: ...

    def placeholder(self, ref: int) -> object: ...

    def learn(self, value: object) -> None: ...

    def name(self, name: str) -> str: ...


def dict_refs(encoder: Encoder, own: dict[object, object], depth: int) -> list[int]:
    """Refs of keys and values in turn, of a dictionary or a subclass of it, read by dict's own methods."""
    at_once = _refs_at_once(encoder, own, depth)
    if at_once is not None:
        return at_once
    refs: list[int] = []
    is_secret = encoder.redactor.is_secret_name
    names_a_secret = False
    value_at = -1  # where in `refs` a value is that may have its name in another item
    paired_value: object = None
    for key, value in islice(dict.items(own), encoder.limits.breadth):
        key_ref = encoder.visit(key, depth)
        if key_ref < 0:
            break
        name = key if type(key) is str else as_name(key)
        if name is not None and is_secret(name) and not is_uninformative(value):
            ref = encoder.secret(value)
        else:
            if name in PARTED:
                if name in VALUES:
                    value_at, paired_value = len(refs) + 1, value
                else:
                    text = as_name(value)
                    names_a_secret = names_a_secret or (text is not None and is_secret(text))
            ref = encoder.visit(value, depth)
        if ref < 0:
            break
        refs += (key_ref, ref)
    if names_a_secret and 0 <= value_at < len(refs) and not is_uninformative(paired_value):
        _hide(encoder, refs, value_at, paired_value)
    return refs


def _refs_at_once(encoder: Encoder, own: dict[object, object], depth: int) -> list[int] | None:
    """
    Like :func:`dict_refs`, in fewer steps, if all keys are texts, none is part of a pair, and all fit.

    Otherwise None.
    """
    if dict.__len__(own) > encoder.limits.breadth:
        return None
    pairs = list(dict.items(own))  # at once: no change between the keys and the values
    if len(pairs) > encoder.limits.breadth or not encoder.has_room_for(2 * len(pairs)):
        return None
    keys: list[object] = [key for key, _ in pairs]
    values: list[object] = [value for _, value in pairs]
    is_known, is_secret = encoder.redactor.known.get, encoder.redactor.is_secret_name
    secret_at: list[int] = []
    for place, key in enumerate(keys):
        if type(key) is not str or key in PARTED:
            return None
        known = is_known(key)
        if (known or (known is None and is_secret(key))) and not is_uninformative(values[place]):
            secret_at.append(place)
    key_refs = encoder.refs_of(keys, depth)
    for place in secret_at:
        values[place] = encoder.placeholder(encoder.secret(values[place]))
    refs = encoder.refs_of(values, depth)
    del key_refs[len(refs) :]
    items = key_refs * 2
    items[::2], items[1::2] = key_refs, refs
    return items


def attribute_refs(encoder: Encoder, named: list[tuple[str, object]], depth: int) -> tuple[list[str], list[int]]:
    """Shown names and refs if some name is secret, or is the value of a name field."""
    names: list[str] = []
    refs: list[int] = []
    names_a_secret = False
    value_at = -1
    paired_value: object = None
    for name, part in named if len(named) <= 2 * encoder.limits.breadth else named[: 2 * encoder.limits.breadth]:
        if name in PARTED:
            if name in VALUES:
                value_at, paired_value = len(refs), part
            else:
                text = as_name(part)
                names_a_secret = names_a_secret or (text is not None and encoder.redactor.is_secret_name(text))
        ref = encoder.member(name, part, depth)
        if ref < 0:
            break
        shown = encoder.name(name)
        encoder.bytes_left -= 2 * len(shown) + 3
        names.append(shown)
        refs.append(ref)
    if names_a_secret and 0 <= value_at < len(refs) and not is_uninformative(paired_value):
        _hide(encoder, refs, value_at, paired_value)
    return names, refs


def two_refs(encoder: Encoder, items: Iterator[object], depth: int) -> list[int]:
    """Two items can be a name and its value, as in a list of headers."""
    first, second = islice(items, 2)
    name = as_name(first)
    if name is not None and encoder.redactor.is_secret_name(name) and not is_uninformative(second):
        refs = [encoder.visit(first, depth), encoder.secret(second)]
    else:
        refs = [encoder.visit(first, depth), encoder.visit(second, depth)]
    return [ref for ref in refs if ref >= 0] if refs[0] >= 0 else []


#: Options that are followed by ``user:password``.
_LOGINS = frozenset(("-u", "-U", "--user", "--proxy-user"))


def has_options(row: Sequence[object]) -> bool:
    """Whether a row can be a command line: one of its texts begins with a dash."""
    for value in row:  # noqa: SIM110 - runs for each row of texts, and `any` takes twice as long
        if type(value) is str and value[:1] == "-":
            return True
    return False


def options_masked(encoder: Encoder, row: Sequence[object]) -> Sequence[object]:
    """A command line with placeholders after ``--password`` or ``-u``; the row itself if there is none."""
    masked: list[object] | None = None
    for place in range(1, len(row)):
        option, value = as_name(row[place - 1]), as_name(row[place])
        if not option or option[0] != "-" or not value or value[0] == "-" or "=" in option:
            continue
        login = option in _LOGINS and ":" in value
        if login or encoder.redactor.is_secret_name(option):
            masked = masked if masked is not None else list(row)
            if login:
                encoder.learn(value.partition(":")[2])
            masked[place] = encoder.placeholder(encoder.secret(row[place]))
    return masked if masked is not None else row


def _hide(encoder: Encoder, refs: list[int], at: int, value: object) -> None:
    """
    A value turned out to be secret after it was entered: its name came after it.

    Its node stays, in case it is shared; a text in it is scrubbed like any other.
    """
    ref = encoder.secret(value)
    if encoder.nodes[refs[at]] is not None:
        node = encoder.nodes[refs[at]]
        encoder.nodes[refs[at]] = Node(node.type if node else "", "redacted")
    refs[at] = ref if ref >= 0 else refs[at]


def is_uninformative(value: object) -> bool:
    """
    None, booleans and empty values reveal no secret, and are often the cause of a failure.

    Celery's task ``signature`` is not a secret either; its contents are checked separately.
    """
    cls = type(value)
    if value is None or cls is bool:
        return True
    if cls is str or cls is bytes or cls is dict or cls is list or cls is tuple:
        return not value
    signature = resident("celery.canvas", "Signature") if is_kind_of(cls, dict) else None
    return signature is not None and is_kind_of(cls, signature)
