"""Sending a failed task again, with the arguments as they were captured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from celery import Celery

from celery_trace.model import Failure, Kind, Node


class CannotRetry(ValueError):
    """The task can't be sent again; the text says why."""


_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_PLAIN_TYPES = {"int", "float", "str", "bool", "NoneType", "list", "tuple", "set", "frozenset", "dict"}


#: Values that are rebuilt at most: a heap shares its nodes, so a short one can stand for very many.
MOST_VALUES = 100_000
#: Containers inside each other at most.
MOST_DEPTH = 50


def rebuild(heap: list[Node], ref: int, where: str, depth: int = 0, count: Iterator[int] | None = None) -> Any:
    """
    A value from a capture's heap, exact or not at all.

    Only plain values and plain containers come back; a task must not run with a value that was cut,
    redacted, or that only stands for what it was.

    Raises:
        CannotRetry: The value is not exactly known; ``where`` says which it is.
    """
    count = itertools.count() if count is None else count
    if depth > MOST_DEPTH or next(count) > MOST_VALUES:
        raise CannotRetry(f"{where} was not captured in full.")
    node = _whole(heap, ref, where)
    if node.kind == "plain":
        return node.value
    if node.kind in _CONTAINERS:
        return _CONTAINERS[node.kind](
            rebuild(heap, item, f"{where}[{index}]", depth + 1, count) for index, item in enumerate(node.items)
        )
    keys = [rebuild(heap, item, f"a key of {where}", depth + 1, count) for item in node.items[::2]]
    return {
        key: rebuild(heap, item, f"{where}[{key!r}]", depth + 1, count)
        for key, item in zip(keys, node.items[1::2], strict=True)
    }


def _whole(heap: list[Node], ref: int, where: str) -> Node:
    """
    A node of a kind and type that can be rebuilt, with nothing left out.

    Raises:
        CannotRetry: It is not.
    """
    if not 0 <= ref < len(heap):
        raise CannotRetry(f"{where} was not captured in full.")
    node = heap[ref]
    if node.kind == "redacted":
        raise CannotRetry(f"{where} was redacted, so its value is not known.")
    if node.cut:
        raise CannotRetry(f"{where} was cut when it was captured ({node.cut:,} left out).")
    short_type = node.type.removeprefix("builtins.")
    known = short_type == "dict" if node.kind == "dict" else short_type in _PLAIN_TYPES
    if not known or node.kind not in {"plain", "dict", *_CONTAINERS}:
        raise CannotRetry(f"{where} is of type {node.type}, which can't be rebuilt from the capture.")
    return node


def retry(app: Celery, failure: Failure) -> str:
    """
    Send the task of a failure again.

    Returns:
        The new task's id.

    Raises:
        CannotRetry: It is no task, it is not known here and to no worker, or an argument is not exactly known.
    """
    if failure.kind is not Kind.TASK:
        raise CannotRetry(f"It was a {failure.kind}, not a task.")
    capture = failure.capture
    if capture is None or capture.args < 0 or capture.kwargs < 0:
        raise CannotRetry("Its arguments were not captured.")
    args = rebuild(capture.heap, capture.args, "args")
    kwargs = rebuild(capture.heap, capture.kwargs, "kwargs")
    options: dict[str, str] = {}
    if failure.task is not None and failure.task.queue:
        options["queue"] = failure.task.queue
    sent = app.send_task(failure.name, args=list(args), kwargs=kwargs, retry=False, **options)
    return str(sent.id)
