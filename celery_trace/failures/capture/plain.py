"""
Arguments that are plain values, as most tasks have: they become a heap without an encoder.

Of a failure that repeats only its words and its arguments are new. What is written of one costs by its steps, as the
processor has forgotten them since the last failure, and a heap encoder takes many to be made and read out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from celery_trace.failures.capture.heap import FALSE, NO_ITEMS, NO_NAMES, NONE, SMALL, TRUE
from celery_trace.failures.capture.names import PARTED
from celery_trace.failures.capture.pairs import has_options
from celery_trace.model import Node
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits

#: As JSON, a node takes no more besides the text in it, with the reference to it.
_NODE_BYTES: Final = 76


class PlainArguments(NamedTuple):
    """A heap of a call's arguments; the positional ones are node 0, and ``kwargs`` is the other ones' place."""

    nodes: list[Node]
    kwargs: int
    bytes: int


def plain_arguments(
    args: Any, kwargs: Any, names: Sequence[str], limits: Limits, redactor: Redactor
) -> PlainArguments | None:
    """
    The arguments of a call where all are plain and none is secret.

    Args:
        args: The positional arguments.
        kwargs: Those with a name.
        names: The names of the first positional ones.
        limits: Nothing is cut here: what is beyond them is not plain.
        redactor: Decides what is secret.

    Returns:
        What a heap encoder would make of them; None if one is needed.
    """
    row = type(args)
    if (row is not tuple and row is not list) or not (kwargs is None or type(kwargs) is dict):
        return None
    values = tuple(args)  # copies: another thread may change them
    named = list(kwargs.items()) if kwargs else []
    count = len(values)
    if values and has_options(values):
        return None
    if max(count, len(named)) > limits.breadth or count + 2 * len(named) + 2 > limits.nodes:
        return None
    is_secret = redactor.is_secret_name
    nodes: list[Node] = [NONE]  # for the row, whose items are known in the end
    size = 2 * _NODE_BYTES
    for place, value in enumerate(values):
        if place < len(names) and is_secret(names[place]):
            return None
        node = _plain(value, limits, redactor)
        if node is None:
            return None
        nodes.append(node)
        size += _size(node)
    kind = "tuple" if row is tuple else "list"
    nodes[0] = Node(kind, kind, None, list(range(1, count + 1)), NO_NAMES, count)
    at = len(nodes)
    nodes.append(NONE)
    for name, value in named:
        if type(name) is not str or name in PARTED or is_secret(name):
            return None
        key, node = _plain(name, limits, redactor), _plain(value, limits, redactor)
        if key is None or node is None:
            return None
        nodes += (key, node)
        size += _size(key) + _size(node)
    nodes[at] = Node("dict", "dict", None, list(range(at + 1, len(nodes))), NO_NAMES, len(named))
    return PlainArguments(nodes, at, size)


def _plain(value: Any, limits: Limits, redactor: Redactor) -> Node | None:
    cls = type(value)
    if cls is str:
        harmless = len(value) <= limits.string and value.isascii() and value.isprintable()
        if not harmless or redactor.text(value) is not value:
            return None
        return Node("str", "plain", value, NO_ITEMS, NO_NAMES)
    if cls is int:
        return Node("int", "plain", value, NO_ITEMS, NO_NAMES) if -SMALL < value < SMALL else None
    if value is None:
        return NONE
    if cls is bool:
        return TRUE if value else FALSE
    if cls is float and value - value == 0.0:
        return Node("float", "plain", value, NO_ITEMS, NO_NAMES)
    return None


def _size(node: Node) -> int:
    """An upper bound: quotes and backslashes are doubled."""
    return _NODE_BYTES + (2 * len(node.value) if type(node.value) is str else 0)
