"""
The right of another process to read this one's memory, as the collector does for stacks
(:mod:`celery_trace.running.outside`).

It needs the same user. Where Yama limits tracing to ancestors (``kernel.yama.ptrace_scope`` is 1), a process may name
one other process too: the collector, by its pid, and never "any".
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

SCOPE_FILE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
#: Only ancestors, and the process that one names.
ANCESTORS: Final = 1
_PR_SET_PTRACER: Final = 0x59616D61


def is_permitted() -> bool:
    """Whether this process's interpreter may be read from outside, by its own settings; before 3.14 it can't be."""
    return sys.version_info >= (3, 14) and sys.is_remote_debug_enabled()


def scope(path: Path = SCOPE_FILE) -> int:
    """Yama's limit: 0 for none, or no Yama; 1 for :data:`ANCESTORS`; 2 for administrators; 3 for no process."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def needs_grant() -> bool:
    """Whether the collector may read this process only if that names it."""
    return is_permitted() and scope() == ANCESTORS


def grant(pid: int) -> None:
    """
    Let this process trace us, instead of the one that was named before.

    Raises:
        OSError: The kernel refuses, as it has no Yama, or there is no such process.
    """
    if pid <= 0:  # -1 would be any process
        raise ValueError(f"{pid} is no process")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
