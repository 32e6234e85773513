"""How many queries a request made and how long they took: one wrapper a connection, put in when it opens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery_trace.guard import Guard
from django_bridge import visits

_guard = Guard("django: query counter")


def count_query(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
    """
    Execute a query and add it to the running request's count.

    Django calls it for each query as one of ``connection.execute_wrappers``. It keeps no
    SQL: a count and a duration are what a failure shows.
    """
    visit = visits.current.get()
    if visit is None:
        return execute(sql, params, many, context)
    started_s = time.perf_counter()
    try:
        return execute(sql, params, many, context)
    finally:
        visit.sql_count += 1
        visit.sql_s += time.perf_counter() - started_s


def watch_connection(*, connection: Any, **_: Any) -> None:
    """
    Have a new connection count its queries; connected to Django's ``connection_created``.

    The wrapper goes to the front of the list: ``connection.execute_wrapper()`` pops the last one when
    its block ends, and a connection may well open inside such a block of the user's.
    """
    with _guard:
        if count_query not in connection.execute_wrappers:
            connection.execute_wrappers.insert(0, count_query)
