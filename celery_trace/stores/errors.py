"""Errors of the store."""

from __future__ import annotations

from celery_trace.errors import Unavailable


class StoreUnavailable(Unavailable):
    """The store can't be opened, read or written now."""


class Interrupted(Exception):
    """Another writer changed the same rows first; the whole write is retried."""
