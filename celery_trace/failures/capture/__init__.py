"""An exception becomes values: frames, locals, arguments; redacted, bounded, and without running the user's code."""

from celery_trace.failures.capture.exceptions import Arguments, capture_exception, capture_frames, describe, info_of

__all__ = ["Arguments", "capture_exception", "capture_frames", "describe", "info_of"]
