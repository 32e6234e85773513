"""Which tasks a request sent, directly or through other tasks: its id travels in a header of the message."""

from __future__ import annotations

import sys
from typing import Any

from celery_trace.guard import Guard
from celery_trace.model import failure_id
from django_bridge import visits

#: The header of a task's message that names the request behind it; also an attribute of the task's ``request``.
HEADER = "trace_request"

#: The key in django-celery-results' ``TaskResult.meta`` under which our record's id stands.
META_KEY = "celery_trace"

_guard = Guard("django: link to the request")


def add_request_header(*, headers: Any = None, **_: Any) -> None:
    """
    Put the id of the request into a task's headers; connected to ``before_task_publish``.

    In a worker the id of the running task's own request is handed on, so that a chain of tasks
    stays linked to the request that began it.
    """
    with _guard:
        if not isinstance(headers, dict) or HEADER in headers:
            return
        visit = visits.current.get()
        request_id = visit.id if visit is not None else _inherited()
        if request_id:
            headers[HEADER] = request_id


def _inherited() -> str:
    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    value = getattr(task.request, HEADER, None) if task is not None else None
    return value if isinstance(value, str) else ""


def note_in_result(task_request: Any) -> None:
    """
    Have django-celery-results store the id under which a failure of this run would be recorded.

    The result row is written before the task's failure is known, so the id is given
    beforehand: it follows from the task's id and its retries. Called in ``task_prerun``; what
    the task itself put into ``request.meta`` stays.
    """
    with _guard:
        meta = getattr(task_request, "meta", None)
        if meta is not None and not isinstance(meta, dict):
            return
        key = failure_id(task_request.id, task_request.retries or 0)
        task_request.meta = {**(meta or {}), META_KEY: {"failure": key}}


def note_in_result_before_run(*, task: Any = None, **_: Any) -> None:
    """:func:`note_in_result` as a receiver of ``task_prerun``."""
    if task is not None:
        note_in_result(task.request)
