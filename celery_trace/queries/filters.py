"""The filters of lists, so that callers can build them in steps and a misspelt one is a type error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import sqlalchemy as sa


class _Filters(TypedDict, total=False):
    kind: str | None
    name: str | None
    #: Seen since then, seconds since the epoch.
    since_s: float | None
    #: Text to search for.
    search: str | None
    #: A search in the language of :mod:`celery_trace.queries.language`.
    query: str | None


class LeakFilter(_Filters, total=False):
    """Filters of leaks: ``worker`` computes them from this worker's processes only."""

    verdict: str | None
    worker: str | None
    queue: str | None


class FailureFilter(_Filters, total=False):
    """Filters of failures: ``until_s`` is exclusive; ``live`` selects those that a living process still holds."""

    outcome: str | None
    fingerprint: str | None
    worker: str | None
    task_id: str | None
    root_id: str | None
    until_s: float | None
    live: bool | None


class GroupFilter(_Filters, total=False):
    """Filters of groups; see :meth:`celery_trace.queries.Queries.groups` for the states."""

    outcome: str | None
    state: str | None
    assigned_to: str | None


def exactly(table: sa.FromClause, filters: Mapping[str, object], *names: str) -> list[sa.ColumnElement[bool]]:
    """Conditions for exact matches of these columns; empty filters are left out."""
    return [table.c[name] == value for name in names if (value := filters.get(name))]
