"""Adds the time to each message that this process publishes, and counts it if the process records."""

from __future__ import annotations

import threading
from typing import Final

from celery_trace import published
from celery_trace.guard import Guard
from celery_trace.runtime import recorder as recorders

_guard: Final = Guard("message published")


class _Latest(threading.local):
    """The headers that this thread has stamped last: apps of one process, and Django, get the signal of all apps."""

    headers: object = None


_latest = _Latest()


def message_published(
    sender: object = None,
    headers: object = None,
    exchange: object = None,
    routing_key: object = None,
    declare: object = None,
    **_: object,
) -> None:
    """
    A task's message is about to be published; the receiver of ``before_task_publish``.

    Args:
        sender: The task's name.
        headers: The message's, which are sent as they are after this call.
        exchange, routing_key: Where it is sent.
        declare: Its queue, where the publisher knows it.
    """
    with _guard:
        if not isinstance(headers, dict) or headers is _latest.headers:
            return
        _latest.headers = headers
        published.stamp(headers)
        recorder = recorders.current()
        if recorder is not None and not recorder.closed:
            queue = getattr(declare[0], "name", "") if isinstance(declare, list) and declare else ""
            recorder.flow.published(str(queue or routing_key or exchange or ""), str(sender or ""))
