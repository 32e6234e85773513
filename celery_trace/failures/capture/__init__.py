"""Captures an exception as values: frames, locals, arguments. Redacted, bounded, runs none of the user's code."""

from celery_trace.failures.capture.exceptions import Arguments, capture_exception, capture_frames, describe

__all__ = ["Arguments", "capture_exception", "capture_frames", "describe"]
