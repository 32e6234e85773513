"""
Which rows of a list are wanted, where a caller puts it together before it asks.

Each is what the query of its list takes by keyword, as in ``queries.leaks(**wanted)``; what is missing or empty does
not narrow the list.
"""

from __future__ import annotations

from typing import TypedDict


class LeakFilter(TypedDict, total=False):
    """For :meth:`~celery_trace.queries.Queries.leaks`."""

    kind: str | None
    name: str | None
    verdict: str | None
    worker: str | None
    queue: str | None
    since_s: float | None
    search: str | None


class FailureFilter(TypedDict, total=False):
    """For :meth:`~celery_trace.queries.Queries.failures`."""

    kind: str | None
    name: str | None
    outcome: str | None
    fingerprint: str | None
    worker: str | None
    since_s: float | None
    until_s: float | None
    search: str | None
    task_id: str | None
    root_id: str | None
    live: bool | None


class GroupFilter(TypedDict, total=False):
    """For :meth:`~celery_trace.queries.Queries.groups`."""

    kind: str | None
    name: str | None
    outcome: str | None
    state: str | None
    since_s: float | None
    search: str | None
