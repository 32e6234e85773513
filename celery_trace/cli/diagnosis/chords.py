"""
The chord that a task belongs to, as a result backend counts it: Redis and Valkey, without the results of its members.

Celery keeps a chord's size in ``<group>.s``, what results have added to it in ``.t``, and the ended members in ``.j``.
The body is sent, and the keys are removed, when all have ended. If a member is lost, nobody ever counts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Protocol, cast

from celery_trace.model import ChordCount

#: Ended members that are read.
MOST_MEMBERS = 1000


class _Client(Protocol):
    def get(self, key: str) -> bytes | None: ...

    def mget(self, keys: list[str]) -> list[bytes | None]: ...

    def zcard(self, key: str) -> int: ...

    def zrange(self, key: str, first: int, last: int) -> list[bytes]: ...

    def llen(self, key: str) -> int: ...

    def lrange(self, key: str, first: int, last: int) -> list[bytes]: ...


class _Backend(Protocol):
    """Celery's backend for Redis."""

    client: _Client
    _chord_zset: bool

    def get_key_for_group(self, group: str, key: str) -> str: ...

    def get_key_for_task(self, task_id: str) -> str: ...


def _counting(backend: object) -> _Backend | None:
    """The backend, if it counts the members of chords."""
    return cast(_Backend, backend) if hasattr(backend, "client") and hasattr(backend, "_chord_zset") else None


def counted(backend: object, group: str) -> ChordCount | None:
    """
    What the backend has counted; None if it does not count, or knows no such chord with a body that waits.

    Raises:
        Exception: The backend can't be read.
    """
    known = _counting(backend)
    if known is None:
        return None
    client = known.client
    size, more, joined = (known.get_key_for_group(group, ending) for ending in (".s", ".t", ".j"))
    sizes = client.mget([size, more])
    if sizes[0] is None:
        return None
    if known._chord_zset:
        ended, rows = client.zcard(joined), client.zrange(joined, 0, MOST_MEMBERS - 1)
    else:
        ended, rows = client.llen(joined), client.lrange(joined, 0, MOST_MEMBERS - 1)
    states = dict(found for row in rows if (found := _state(row)) is not None)
    return ChordCount(size=int(sizes[0]) + int(sizes[1] or 0), ended=int(ended), states=states)


def _state(row: bytes | str) -> tuple[str, str] | None:
    """The id and the state of an ended member. Nothing but JSON is read: other serializers may run code."""
    try:
        _, task_id, state, *_ = json.loads(row)
    except (ValueError, TypeError):
        return None
    return (task_id, state) if isinstance(task_id, str) and isinstance(state, str) else None


def groups_of(backend: object, task_id: str) -> Iterator[str]:
    """The group of a task that has ended, as its result names it."""
    known = _counting(backend)
    if known is None:
        return
    try:
        meta = json.loads(known.client.get(known.get_key_for_task(task_id)) or b"{}")
    except ValueError:
        return
    if isinstance(meta, dict) and isinstance(meta.get("group_id"), str):
        yield meta["group_id"]
