"""The heap of this process, as tests look at it: the pass over it, the sampler, and where an object lies."""

from __future__ import annotations

from typing import Any

from celery_trace.heap.picks import CannotSample
from celery_trace.heap.retainers import Referrers
from celery_trace.heap.sampler import Sampler
from tests.support.requirements import lacking

#: ``tp_flags``: the collector knows its objects; they have a dict or weak references before them.
_HAVE_GC, _MANAGED = 1 << 14, 1 << 3 | 1 << 4
#: Each of the two headers that may lie before an object.
_HEADER_BYTES = 16


def sampler() -> Sampler:
    """The process's sampler; without the extension the test is skipped, and under CI it fails."""
    try:
        return Sampler()
    except CannotSample as error:
        lacking(str(error), "a C compiler and Python's headers build it (make system)")


def referrers() -> Referrers:
    """The pass over the heap; without the extension the test is skipped, and under CI it fails."""
    return sampler().referrers


def block_of(thing: Any) -> tuple[int, int]:
    """Address and size of the block that an object lies in."""
    flags = type(thing).__flags__
    before = _HEADER_BYTES * (bool(flags & _HAVE_GC) + bool(flags & _MANAGED))
    return id(thing) - before, object.__sizeof__(thing) + before
