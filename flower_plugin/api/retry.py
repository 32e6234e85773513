"""Retrying a failed task with its captured arguments."""

from __future__ import annotations

from typing import NoReturn

from celery import Celery

from celery_trace.model import Failure, Kind
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes


class CannotRetry(ValueError):
    """The task can't be retried; the message has the reason."""


def _refuse(hole: recipes.Hole) -> NoReturn:
    raise CannotRetry(f"{hole.where} is not known exactly: {hole.why}.")


def retry(app: Celery, failure: Failure) -> str:
    """
    Send the task of a failure again.

    Only plain values and containers are sent: a task must not run with a value that was cut, redacted or replaced.

    Returns:
        The new task's id.

    Raises:
        CannotRetry: It is not a task, or an argument is not exactly known; the message names it.
    """
    if failure.kind is not Kind.TASK:
        raise CannotRetry(f"It is a {failure.kind}, not a task.")
    capture = failure.capture
    if capture is None or capture.args < 0 or capture.kwargs < 0:
        raise CannotRetry("Its arguments were not captured.")
    # A message has copies anyway.
    call = recipes.call_of(capture, Redactor(), copies=True)
    if recipes.is_made(call.args) or recipes.is_made(call.kwargs):
        raise CannotRetry("An argument is of a type that can't be sent again.")
    args, kwargs = (recipes.value(recipe, None, _refuse) for recipe in (call.args, call.kwargs))
    options: dict[str, str] = {}
    if failure.task is not None and failure.task.queue:
        options["queue"] = failure.task.queue
    sent = app.send_task(failure.name, args=args, kwargs=kwargs, retry=False, **options)
    return str(sent.id)
