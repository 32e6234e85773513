"""
``SuspiciousOperation`` outside the view: Django sends no signal for it, it only logs.

A forged ``Host`` header is found by a middleware; what tells of it is Django's security log.
"""

from __future__ import annotations

import logging

from django.core.exceptions import SuspiciousOperation

from celery_trace.guard import Guard
from django_bridge import tracer

_guard = Guard("django: security log")


class SuspicionHandler(logging.Handler):
    """Hands the suspicious operations of the log to the tracer; writes nothing itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Note the exception of one log record with the request that it names."""
        with _guard:
            request = getattr(record, "request", None)
            error = record.exc_info[1] if record.exc_info else None
            if request is not None and isinstance(error, SuspiciousOperation):
                tracer.of_this_process().noted(request, error)
