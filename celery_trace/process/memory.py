"""The memory of the whole process, for the worker's series, alerts and failure records."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache

import psutil

from celery_trace.model import MemoryState
from celery_trace.process import counters


@lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    """psutil's handle of this process; made once per pid, as a new one costs more than the reading."""
    return psutil.Process(pid)


def read_rss_bytes() -> int:
    """This process's resident memory, bytes: the cheap part of :func:`read_memory`. 0 if unknown. Raises nothing."""
    return counters.address_space_bytes()[1] or _rss_bytes_by_psutil()


def _rss_bytes_by_psutil() -> int:
    try:
        return int(_process(os.getpid()).memory_info().rss)
    except psutil.Error:
        return 0


def read_memory(full: bool = False) -> MemoryState:
    """
    This process's memory now. A counter that the platform lacks is None. Raises nothing.

    Args:
        full: Read USS (private memory) and PSS (with a share of shared memory) as well. It costs half a millisecond
            and more, as the kernel walks every page table: for the series, not for each run.
    """
    exact = counters.available()
    virtual_bytes, rss_bytes = counters.address_space_bytes()
    rss_bytes = rss_bytes or _rss_bytes_by_psutil()
    uss_bytes: int | None = None
    pss_bytes: int | None = None
    process = _process(os.getpid())
    if full:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            rss_bytes, uss_bytes = memory.rss, getattr(memory, "uss", None)
            pss_bytes = getattr(memory, "pss", None)  # Linux has it
    threads = counters.native_threads()
    if threads is None:
        try:
            threads = process.num_threads()
        except psutil.Error:
            threads = None
    return MemoryState(
        rss_bytes=rss_bytes,
        uss_bytes=uss_bytes,
        pss_bytes=pss_bytes,
        allocated_blocks=counters.block_counter()() if "allocated_blocks" in exact else None,
        malloc_bytes=counters.byte_counter()() if "malloc_bytes" in exact else None,
        mmap_bytes=max(0, virtual_bytes - counters.mapped_by_malloc_bytes()) if virtual_bytes else None,
        fds=counters.open_descriptors(),
        threads=threads,
    )
