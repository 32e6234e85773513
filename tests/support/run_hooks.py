"""Both ways to observe the runs of a pool process: the extension module, and what takes its place."""

from __future__ import annotations

from celery_trace.runtime import tracers
from tests.support.requirements import lacking

WAYS = ("extension", "plain")

_IN_FORCE = tracers.Hooks


def hooks_of(way: str) -> type[tracers.Hooks]:
    """The class of one way."""
    if way == "extension" and _IN_FORCE is tracers.PlainHooks:
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")
    return _IN_FORCE if way == "extension" else tracers.PlainHooks
