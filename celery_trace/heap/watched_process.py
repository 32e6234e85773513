"""What all parts of a heap watch use of the process that it watches."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.heap.run_counts import RunCounts
from celery_trace.heap.sampler import HeapSampler
from celery_trace.heap.tags import TagTable
from celery_trace.model import RUN_NOTHING, SHARE_THREADS, ProcessRecord, Role
from celery_trace.text.code_owner import CodeOwner


class WatchedProcess(Struct, frozen=True):
    """The process, with what the watch reads of it."""

    record: ProcessRecord
    clock: Clock  # time for records
    sampler: HeapSampler
    own: CodeOwner  # recognises the user's own files
    tags: TagTable
    counts: RunCounts
    most_open: Callable[[], int]  # returns the most concurrent runs so far

    @property
    def runs_nothing(self) -> bool:
        """Whether it runs no tasks."""
        return self.record.role in RUN_NOTHING

    @property
    def runs_share_threads(self) -> bool:
        """Whether runs share threads, so that allocations are attributed by the functions in their stacks."""
        return self.record.role in SHARE_THREADS

    @property
    def runs_several(self) -> bool:
        """Whether it may run several tasks at once."""
        return self.runs_share_threads or self.record.role is Role.THREADS
