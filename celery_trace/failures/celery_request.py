"""
Reads facts of a run from Celery's objects and from its callers on the stack, beyond a signal's arguments.

Celery sends its signals from a few functions. Facts that a signal leaves out (``retries`` of a lost task, when a run
began) are locals of these functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType, FunctionType, MethodType
from typing import Any, Final

from celery_trace.failures.capture.anatomy import mro, type_name
from celery_trace.failures.capture.exceptions import traceback_of
from celery_trace.model import TaskContext
from celery_trace.published import HEADER
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Limits

#: Message headers that Celery and we make; the rest are the user's.
_OWN_HEADERS: Final = frozenset(
    (
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
        "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
        "stamps", "compression", HEADER,
    )
)  # fmt: skip


#: What Celery's ``trace_task`` calls when the task itself has finished.
_AFTER_THE_TASK: Final = frozenset(("mark_as_done", "_dispatch_callbacks_and_chain", "_retry_publish", "apply_async"))


def parameters(function: object) -> tuple[str, ...]:
    """Names of a function's positional parameters, also through decorators that set ``__wrapped__``."""
    bound = 0
    for _ in range(16):
        if type(function) is MethodType:
            bound = 1
            function = function.__func__
        wrapped = function.__dict__.get("__wrapped__") if type(function) is FunctionType else None
        if wrapped is None:
            break
        function = wrapped
    if type(function) is not FunctionType:
        return ()
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return names[bound:] if bound else names


def field(request: object, name: str) -> Any:
    """One field of a task's request, which is a ``Context``, a mapping or nothing."""
    if type(request) is dict or isinstance(request, Mapping):
        return request.get(name)
    return getattr(request, name, None)


def retries_of(request: object) -> int:
    """The number of the attempt; 0 is the first."""
    return whole(field(request, "retries"))


def whole(value: object) -> int:
    """A whole number, or 0 for anything else."""
    return value if type(value) is int else 0


def number(value: object) -> float | None:
    """A number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def text(value: object) -> str:
    """A field as text; empty for None, ISO for a time."""
    if value is None:
        return ""
    if type(value) is str:
        return value
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return str(value)


def class_name(error: object) -> str:
    """The name of an error's class."""
    return type(error).__name__


def is_named(error: BaseException, name: str) -> bool:
    """Whether the error's class or a base has this name; for Celery's and billiard's, without importing them."""
    for base in mro(type(error)):  # noqa: SIM110 - runs for each failure, and `any` takes twice as long
        if base.__name__ == name:
            return True
    return False


def is_placeholder(exception: BaseException | None, caught: BaseException) -> bool:
    if exception is None:
        return True
    if exception is caught:
        return False
    if type_name(type(exception)).endswith("UnpickleableExceptionWrapper"):
        return True
    # A copy of the original, which can't be pickled: same traceback, another object.
    return traceback_of(exception) is None or traceback_of(exception) is traceback_of(caught)


def passed_through(error: BaseException, function: str) -> bool:
    """Whether the error's traceback has a frame of that function."""
    traceback = traceback_of(error)
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == function:
            return True
        traceback = traceback.tb_next
    return False


def finished_before(error: BaseException) -> tuple[str, object] | None:
    """
    What failed after the task had finished, and what the task had returned.

    Both are locals of Celery's ``trace_task``, the outermost frame of the error's traceback.

    Returns:
        None if the task had not finished, or if this version of Celery uses other names.
    """
    traceback = traceback_of(error)
    while traceback is not None and traceback.tb_frame.f_code.co_name != "trace_task":
        traceback = traceback.tb_next
    called = traceback.tb_next if traceback is not None else None
    # Runs for each failure: the frame's locals are copied only if they may be needed.
    if traceback is None or called is None or called.tb_frame.f_code.co_name not in _AFTER_THE_TASK:
        return None
    names = traceback.tb_frame.f_locals
    if names.get("state") != "SUCCESS" or "retval" not in names:
        return None
    stored = called.tb_frame.f_code.co_name == "mark_as_done"
    what = "its result could not be stored" if stored else "what was to follow it could not be sent"
    return what, names["retval"]


def time_start() -> float | None:
    """
    When the run began, by Celery's own monotonic clock: a local of its ``trace_task``.

    That function is among our callers, as it sends the signals. None if this version of Celery uses other names.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(40):
        if frame is None:
            return None
        if frame.f_code.co_name == "trace_task" and "time_start" in frame.f_code.co_varnames:
            started_s = frame.f_locals.get("time_start")
            return started_s if isinstance(started_s, float) else None
        frame = frame.f_back
    return None


def message_being_handled() -> object:
    """
    The worker's request object that is sending the signal: neither it nor ``retries`` is among the signal's arguments.

    It is ``self`` of one of the callers. When a lost child is noticed, Celery's table of requests has
    already dropped it.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(20):
        if frame is None:
            return None
        if frame.f_code.co_name in ("on_failure", "on_timeout", "_announce_revoked", "_retry_worker_lost"):
            candidate = frame.f_locals.get("self")
            if hasattr(candidate, "_request_dict"):
                return candidate
        frame = frame.f_back
    return None


def retries_of_message(message: object) -> int | None:
    """The number of the attempt of a worker's request object; None if there is none."""
    headers = getattr(message, "_request_dict", None)
    return whole(headers.get("retries")) if isinstance(headers, Mapping) else None


def context_of(request: object, redactor: Redactor, limits: Limits, scrubber: Scrubber) -> TaskContext:
    """
    A task's origin and options, from its request, with redacted headers.

    Args:
        request: The task's request, or a message's fields.
        redactor: Finds secrets by name and shape.
        limits: How many headers, and how much of each.
        scrubber: Has the secrets found in this run's values.
    """
    get = _reader(request)
    delivery = get("delivery_info")
    delivery = delivery if isinstance(delivery, Mapping) else {}
    times = get("timelimit")
    hard, soft = (times[0], times[1]) if isinstance(times, list | tuple) and len(times) >= 2 else (None, None)
    routing_key = text(delivery.get("routing_key"))
    return TaskContext(
        queue=routing_key,
        routing_key=routing_key,
        # A task that a traced web request sent belongs to that request; see django_bridge.links.
        root_id=text(get("trace_request")) or text(get("root_id")),
        parent_id=text(get("parent_id")),
        group_id=text(get("group")),
        eta=text(get("eta")),
        expires=text(get("expires")),
        time_limit_s=number(hard),
        soft_time_limit_s=number(soft),
        redelivered=bool(delivery.get("redelivered")),
        headers=_headers(get("headers"), redactor, limits, scrubber),
        eager=bool(get("is_eager")),
    )


def _reader(request: object) -> Callable[[str], object]:
    """A function that returns a field of a request, or None."""
    if isinstance(request, Mapping):
        return request.get
    own = getattr(request, "__dict__", None)
    if type(own) is dict and class_name(request) == "Context":
        return own.get  # its class's own values are None or False
    return partial(_attribute, request)


def _attribute(request: object, name: str) -> object:
    return getattr(request, name, None)


def _headers(headers: object, redactor: Redactor, limits: Limits, scrubber: Scrubber) -> dict[str, str]:
    """The user's own headers that are texts or numbers."""
    if not isinstance(headers, Mapping):
        return {}
    texts = {
        name[:200]: value if isinstance(value, str) else str(value)
        for name, value in list(headers.items())[: limits.breadth]
        if isinstance(name, str) and name not in _OWN_HEADERS and isinstance(value, str | int | float | bool)
    }
    return {name: scrubber.text(value)[: limits.string] for name, value in redactor.mapping(texts).items()}
