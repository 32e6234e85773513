"""
What a thread of this process does at this moment, and the processor time that it has used.

``_thread_state.c`` reads the state. Without the extension module, or where the kernel does not show it, the state is
:attr:`ThreadState.UNKNOWN`.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING


class ThreadState(IntEnum):
    """What a thread does. ``_thread_state.c`` has the same numbers."""

    UNKNOWN = 0
    RUNS = 1
    WAITS_FOR_GIL = 2
    WAITS_FOR_LOCK = 3  # or for another thread that will wake it
    WAITS = 4  # for anything else: a socket, a file, a child process, the time


def _unknown(native_id: int) -> int:  # noqa: ARG001 - as the extension module's
    return ThreadState.UNKNOWN


if TYPE_CHECKING:
    thread_state = _unknown
else:
    try:
        from celery_trace.process._thread_state import thread_state
    except ImportError:  # no extension module for this interpreter
        thread_state = _unknown


def state_of(native_id: int) -> ThreadState:
    """What a thread of this process does, by the kernel's number of it."""
    return ThreadState(thread_state(native_id))


class ThreadClock:
    """
    The processor time of one thread of this process.

    Args:
        ident: The thread's number in Python. The thread must be alive now; later, it need not be.

    Raises:
        OSError: The system has no such clock.
    """

    __slots__ = ("_clock", "native_id")

    def __init__(self, ident: int) -> None:
        try:
            self._clock = time.pthread_getcpuclockid(ident)
        except AttributeError as error:  # not on this system
            raise OSError(str(error)) from error
        #: The kernel's number of the thread, from which Linux makes the clock's: MAKE_THREAD_CPUCLOCK.
        self.native_id = ~(self._clock >> 3)

    def read_s(self) -> float:
        """
        Processor seconds.

        Raises:
            OSError: The thread has ended.
        """
        return time.clock_gettime(self._clock)
