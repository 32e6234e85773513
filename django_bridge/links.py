"""Links tasks to the request that sent them, directly or through other tasks, by a header of the message."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from celery_trace.guard import Guard
from celery_trace.model import failure_id
from django_bridge import configuration, request_trace

if TYPE_CHECKING:
    from celery.app.task import Context
    from django_celery_results.models import TaskResult

#: The header of a task's message with the id of the request; also an attribute of the task's ``request``.
HEADER = "trace_request"

#: The key of our record's id in django-celery-results' ``TaskResult.meta``.
META_KEY = "celery_trace"

#: States of a stored result for which we have a failure.
FAILED = frozenset({"FAILURE", "RETRY"})

_guard = Guard("django: link to the request")


def add_request_header(*, headers: object = None, **_: object) -> None:
    """
    Add the request's id to a task's headers; connected to ``before_task_publish``.

    A worker passes on the id of the running task's own request, so that a chain of tasks stays linked to the request
    that started it.
    """
    with _guard:
        if not isinstance(headers, dict) or HEADER in headers:
            return
        trace = request_trace.current.get()
        request_id = trace.id if trace is not None else _inherited()
        if request_id:
            headers[HEADER] = request_id


def _inherited() -> str:
    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    value = getattr(task.request, HEADER, None) if task is not None else None
    return value if isinstance(value, str) else ""


def note_in_failed_result(*, instance: TaskResult | None = None, **_: object) -> None:
    """
    Add the id of our record to django-celery-results' result of a failed attempt.

    Connected to ``pre_save`` of its ``TaskResult``. The result is written before the failure is reported, but the id is
    computed from the task's id and its retries. The task's own ``request.meta`` stays, and successful results are not
    changed.
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


def _running(task_id: str) -> Context | None:
    """The request of this task if it is running here; None in another process that stores its result."""
    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    return task.request if task is not None and task.request.id == task_id else None
