"""Counts and times a request's queries, with one wrapper per connection, installed when it opens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from celery_trace.guard import Guard
from django_bridge import request_trace

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

R = TypeVar("R")
_guard = Guard("django: query counter")


def count_query(execute: Callable[..., R], sql: object, params: object, many: bool, context: object) -> R:
    """
    Execute a query and add it to the running request's count.

    Django calls it for each query as one of ``connection.execute_wrappers``. It stores no SQL: a failure shows only the
    count and the duration.
    """
    trace = request_trace.current.get()
    if trace is None:
        return execute(sql, params, many, context)
    started_s = time.perf_counter()
    try:
        return execute(sql, params, many, context)
    finally:
        trace.sql_count += 1
        trace.sql_s += time.perf_counter() - started_s


def watch_connection(*, connection: BaseDatabaseWrapper, **_: object) -> None:
    """
    Count the queries of a new connection; connected to Django's ``connection_created``.

    The wrapper goes to the front of the list: ``connection.execute_wrapper()`` pops the last one at the end of its
    block, and a connection may be opened inside such a block.
    """
    with _guard:
        if count_query not in connection.execute_wrappers:
            connection.execute_wrappers.insert(0, count_query)
