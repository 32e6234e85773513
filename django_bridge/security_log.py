"""
Records ``SuspiciousOperation`` outside the view, for which Django sends no signal and only logs.

A forged ``Host`` header, for example, is found by a middleware and appears only in Django's security log.
"""

from __future__ import annotations

import logging

from django.core.exceptions import SuspiciousOperation

from celery_trace.guard import Guard
from django_bridge import tracer

_guard = Guard("django: security log")


class SuspicionHandler(logging.Handler):
    """Passes logged suspicious operations to the tracer; writes nothing itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Note the exception of a log record with its request."""
        with _guard:
            request = getattr(record, "request", None)
            error = record.exc_info[1] if record.exc_info else None
            if request is not None and isinstance(error, SuspiciousOperation):
                tracer.of_this_process().noted(request, error)
