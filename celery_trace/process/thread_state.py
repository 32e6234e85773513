"""
What a thread of this process does at this moment, and the processor time that it has used.

``_thread_state.c`` reads the state. Without the extension module, or where the kernel does not show it, the state is
:attr:`ThreadState.UNKNOWN`.
"""

from __future__ import annotations

import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Final


class ThreadState(IntEnum):
    """What a thread does. ``_thread_state.c`` has the same numbers."""

    UNKNOWN = 0
    RUNS = 1
    WAITS_FOR_GIL = 2
    WAITS_FOR_LOCK = 3  # or for another thread that will wake it
    WAITS = 4  # for anything else: a socket, a file, a child process, the time


def _unknown(native_id: int) -> int:  # noqa: ARG001 - as the extension module's
    return ThreadState.UNKNOWN


def _registered(thread: int) -> int:
    known = next((one for one in list(threading._active.values()) if one.ident == thread), None)  # type: ignore[attr-defined]
    return (known.native_id or 0) if known is not None else 0


if TYPE_CHECKING:
    thread_state, native_id = _unknown, _registered
else:
    try:
        from celery_trace.process._thread_state import native_id, thread_state
    except ImportError:  # no extension module for this interpreter
        thread_state, native_id = _unknown, _registered

#: Of the clock of one thread, in the kernel's MAKE_THREAD_CPUCLOCK: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
_OF_A_THREAD: Final = 4 | 2


def state_of(native_id: int) -> ThreadState:
    """What a thread of this process does, by the kernel's number of it."""
    return ThreadState(thread_state(native_id))


def clock_of(ident: int) -> int:
    """
    The number of the clock that counts a thread's processor time.

    It is made from the kernel's number of the thread, as Linux does. `time.pthread_getcpuclockid` crashes the process
    if the thread has just ended.

    Args:
        ident: The thread's number in Python.

    Raises:
        OSError: The thread has ended, or the system has no such clock.
    """
    number = native_id(ident) if hasattr(time, "pthread_getcpuclockid") else 0
    if not number:
        raise OSError("there is no such thread, or no clock for it")
    return ~number << 3 | _OF_A_THREAD


class ThreadClock:
    """
    The processor time of one thread of this process.

    Args:
        ident: The thread's number in Python.

    Raises:
        OSError: The thread has ended, or the system has no such clock.
    """

    __slots__ = ("_clock", "native_id")

    def __init__(self, ident: int) -> None:
        self._clock = clock_of(ident)
        #: The kernel's number of the thread.
        self.native_id = ~(self._clock >> 3)

    def read_s(self) -> float:
        """
        Processor seconds.

        Raises:
            OSError: The thread has ended.
        """
        return time.clock_gettime(self._clock)
