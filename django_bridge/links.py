"""Which tasks a request sent, directly or through other tasks: its id travels in a header of the message."""

from __future__ import annotations

import json
import sys
from typing import Any

from celery_trace.guard import Guard
from celery_trace.model import failure_id
from django_bridge import configuration, visits

#: The header of a task's message that names the request behind it; also an attribute of the task's ``request``.
HEADER = "trace_request"

#: The key in django-celery-results' ``TaskResult.meta`` under which our record's id stands.
META_KEY = "celery_trace"

#: States of a stored result of which there is a failure among our records.
FAILED = frozenset({"FAILURE", "RETRY"})

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


def note_in_failed_result(*, instance: Any = None, **_: Any) -> None:
    """
    Have django-celery-results store, with a failed attempt of a task, the id under which we record that failure.

    Connected to ``pre_save`` of its ``TaskResult``. The result is written before anybody is told of the failure, but
    the id follows from the task's id and its retries. What the task itself put into ``request.meta`` stays, and a
    result that went well gets nothing, as there is nothing to lead to.
    """
    with _guard:
        if instance is None or instance.status not in FAILED or instance.content_type != "application/json":
            return
        request = _running(instance.task_id)
        if request is None or not configuration.settings().failures:
            return
        meta = json.loads(instance.meta or "{}")
        if isinstance(meta, dict):
            key = failure_id(instance.task_id, request.retries or 0)
            instance.meta = json.dumps({**meta, META_KEY: {"failure": key}})


def _running(task_id: str) -> Any:
    """The request of the task that runs here, if it is that one; None in a process that only speaks for it."""
    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    return task.request if task is not None and task.request.id == task_id else None
