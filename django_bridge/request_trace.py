"""The trace of a request, from the middleware to the last byte of its response."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from celery_trace.model import new_id
from celery_trace.process.open_runs import Token

if TYPE_CHECKING:
    from django.http import HttpRequest

#: The attribute of a request with its trace; a plain attribute, as Django's own middlewares use.
ATTRIBUTE = "_celery_trace_request"

#: The request of the running code, to count its queries and link the tasks that it sends.
current: ContextVar[RequestTrace | None] = ContextVar("celery_trace_request", default=None)


class RequestTrace:
    """
    The state of a request while it is served.

    It never refers to the request, and to an error only until that is recorded: otherwise each failed request would be
    a reference cycle.
    """

    __slots__ = (
        "ended", "error", "first_failure", "id", "inside", "name", "own_page", "propagated", "run", "sql_count",
        "sql_s", "started_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.id = new_id()
        self.name = ""  # empty until it is routed
        self.own_page = False
        self.inside = False  # between the middleware's call and its return
        self.run: Token | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.propagated: BaseException | None = None  # recorded while it propagated outwards
        self.first_failure = True
        self.sql_count = 0
        self.sql_s = 0.0
        self.started_s = time.perf_counter()

    @property
    def duration_s(self) -> float:
        """Seconds since the request reached the middleware."""
        return time.perf_counter() - self.started_s


def of(request: HttpRequest) -> RequestTrace | None:
    """The trace of a request, or None if it never reached the middleware."""
    trace = getattr(request, "__dict__", {}).get(ATTRIBUTE)
    return trace if isinstance(trace, RequestTrace) else None


def run_in_progress() -> tuple[str, int] | None:
    """The id of the request that the calling code serves, and that it is its first attempt."""
    trace = current.get()
    return (trace.id, 0) if trace is not None else None
