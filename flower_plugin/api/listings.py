"""The lists of the API with their queries and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from celery_trace.model import Page
from celery_trace.queries import Queries
from flower_plugin.problems import Problem

LONGEST_PAGE = 1000


def _text(value: str) -> str:
    return value[:500]


def _number(value: str) -> float:
    number = float(value)
    if not abs(number) < 1e15:
        raise ValueError(value)
    return number


def _flag(value: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[value.lower()]


class ApiList(Struct, frozen=True):
    """A list of the API: its query and its parameters."""

    query: Callable[..., Page[Any]]
    parameters: Mapping[str, Callable[[str], str | float | bool]]


#: ``since`` and ``until`` are seconds since the epoch, like all times of the API.
_SINCE = {"since": _number}

LISTS: Mapping[str, ApiList] = {
    "leaks": ApiList(
        Queries.leaks,
        {**dict.fromkeys(("kind", "name", "verdict", "worker", "queue", "search", "sort", "q"), _text), **_SINCE},
    ),
    "failures": ApiList(
        Queries.failures,
        {
            **dict.fromkeys(
                ("kind", "name", "outcome", "fingerprint", "worker", "search", "task_id", "root_id", "q"), _text
            ),
            **_SINCE,
            "until": _number,
            "live": _flag,
        },
    ),
    "groups": ApiList(
        Queries.groups,
        {**dict.fromkeys(("kind", "name", "outcome", "state", "assigned_to", "search", "sort", "q"), _text), **_SINCE},
    ),
    "runs": ApiList(
        Queries.runs, {**dict.fromkeys(("kind", "name", "why", "task_id", "root_id", "q"), _text), **_SINCE}
    ),
    "workers": ApiList(Queries.workers, dict(_SINCE)),
    "queues": ApiList(Queries.queue_views, dict(_SINCE)),
    "alerts": ApiList(Queries.alerts, {"state": _text, "q": _text}),
    "shells": ApiList(Queries.shells, {"failure": _text}),
}

#: Parameters with a different name in the query.
_QUERY_NAMES = {"since": "since_s", "until": "until_s", "failure": "failure_id", "q": "query"}


def list_arguments(noun: str, given: Mapping[str, str]) -> dict[str, str | float | bool]:
    """
    The keyword arguments of a list's query.

    Raises:
        Problem: 400, a parameter is unknown or invalid.
    """
    listing = LISTS[noun]
    found: dict[str, str | float | bool] = {}
    for name, value in given.items():
        if name == "limit":
            try:
                limit = int(value)
            except ValueError:
                limit = 0
            if not 1 <= limit <= LONGEST_PAGE:
                raise Problem(400, f"Invalid limit {value[:50]!r}.", f"It must be an integer from 1 to {LONGEST_PAGE}.")
            found["limit"] = limit
        elif name == "cursor":
            found["cursor"] = value[:500]
        elif name in listing.parameters:
            try:
                found[_QUERY_NAMES.get(name, name)] = listing.parameters[name](value)
            except (ValueError, KeyError):
                raise Problem(
                    400, f"Invalid {name} {value[:50]!r}.", "Times are seconds since the epoch; flags are 1 or 0."
                ) from None
        else:
            allowed = ", ".join(("limit", "cursor", *listing.parameters))
            raise Problem(400, f"Unknown parameter {name[:50]!r}.", f"Parameters of this list: {allowed}.")
    return found
