# mypy: disallow-untyped-decorators=False
"""Template filters with celery-trace's formats for sizes, durations and escapes: ``{% load trace_text %}``."""

from __future__ import annotations

from django import template
from django.utils.safestring import SafeString, mark_safe

from celery_trace.text import escape, format

register = template.Library()


@register.filter
def size(number_bytes: float | None) -> str:
    """Bytes: ``195.3 KiB``."""
    return format.size(number_bytes)


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds: ``1 min 30 s``."""
    return format.duration(seconds)


@register.filter
def count(number: float | None) -> str:
    """A number with thousands separators."""
    return format.count(number)


@register.filter(is_safe=True)
def escaped(text: str) -> str:
    """Hidden characters as escapes; the markup of safe strings stays."""
    shown = escape.escaped_lines(text)
    return mark_safe(shown) if isinstance(text, SafeString) else shown  # noqa: S308  as safe as it was
