"""
celery-trace: which Celery task leaks, at which line, and what keeps the objects alive; and the frames and values of
failed tasks.

Switch it on with ``CeleryTrace(app)``; measure a function with ``@trace_memory`` or a block with
``with trace_memory("label"):``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_trace.runtime.blocks import trace_memory
    from celery_trace.runtime.plugin import CeleryTrace

__all__ = ["CeleryTrace", "__version__", "trace_memory"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names on first use: a command that only lists commands needs none of them."""
    if name == "CeleryTrace":
        from celery_trace.runtime.plugin import CeleryTrace

        return CeleryTrace
    if name == "trace_memory":
        from celery_trace.runtime.blocks import trace_memory

        return trace_memory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
