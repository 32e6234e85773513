"""
A thread that runs a session's commands one after another, with interrupts.

An interrupt is an exception that CPython raises in another thread between two bytecodes
(``PyThreadState_SetAsyncExc``). It can't reach code that waits in C; the executor's owner notices that
(:attr:`Executor.running_s`) and abandons the session.

Before 3.13, CPython has one flag per interpreter for such exceptions. It is lowered only when a thread raises one, and
on 3.11 a process with a profile or trace function hangs while the flag is up: each function call checks it again and
again (``DO_TRACING`` of ``RESUME`` in ceval.c). So it must not stay up: see :func:`_lower_flag`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.guard import Guard

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
#: Loops in which a pending exception arrives for certain: each is a check of the flag.
_CHECKS: Final = 100


class _Lowering(BaseException):
    """Raised in the current thread by :func:`_lower_flag`."""


def _lower_flag() -> None:
    """
    Lower the interpreter's flag for exceptions that are pending in threads.

    An exception that is pending in another thread still arrives: a thread that has one raises the flag again when it
    takes the GIL (``take_gil`` in ceval_gil.c).
    """
    try:
        _raise_in_thread(ctypes.c_ulong(os_threads.ident()), ctypes.py_object(_Lowering))
        for _ in range(_CHECKS):
            pass
    except _Lowering:
        pass


class Executor:
    """
    One daemon thread, which starts with the first command and ends after :meth:`close`.

    That thread holds no lock where an interrupt could arrive, as it would stay locked forever.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._wake = os_threads.lock()
        self._wake.acquire()
        self._submitting = os_threads.lock()
        self._job: Callable[[], None] | None = None
        self._started = False
        self._closed = False
        self._ident = 0
        self._busy = False
        self._since_s = 0.0
        self._interruptible = False
        self._interrupting = False
        self._interrupted = False

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def running_s(self) -> float:
        """How long the current command has run, seconds; 0 without one."""
        return self._clock.monotonic_s() - self._since_s if self._busy else 0.0

    def submit(
        self, run: Callable[[], None], finished: Callable[[], None], prepare: Callable[[], None] | None = None
    ) -> bool:
        """
        Run a command; False if one is running.

        Args:
            run: The command. Only this can be interrupted.
            finished: Always called afterwards, in the same thread.
            prepare: Called before, in the same thread.
        """
        with self._submitting:
            if self._busy or self._closed:
                return False
            self._busy = True
            self._since_s = self._clock.monotonic_s()
            self._job = lambda: self._carry_out(run, finished, prepare)
            if not self._started:
                self._started = True
                os_threads.start(self._loop, self._name)
            self._wake.release()
            return True

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in the running command; False if none can be interrupted."""
        with self._submitting:
            self._interrupting = True
            try:
                if not self._interruptible:
                    return False
                self._interrupted = True
                _raise_in_thread(ctypes.c_ulong(self._ident), ctypes.py_object(KeyboardInterrupt))
                _lower_flag()
                return True
            finally:
                self._interrupting = False

    def close(self) -> None:
        """End the thread after its current command."""
        with self._submitting:
            if self._closed:
                return
            self._closed = True
            if not self._busy and self._started:
                self._wake.release()

    def _loop(self) -> None:
        self._ident = os_threads.ident()
        while True:
            self._wake.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            job()
            with self._submitting:
                self._busy = False
                if self._closed:
                    return
            del job

    def _carry_out(
        self, run: Callable[[], None], finished: Callable[[], None], prepare: Callable[[], None] | None
    ) -> None:
        with Guard("shell: command"):
            if prepare is not None:
                prepare()
            try:
                try:
                    self._interrupted = False
                    self._interruptible = True
                    run()
                finally:
                    self._settle()
            except (KeyboardInterrupt, SystemExit):
                # The interrupt arrived between the command's end and the line above.
                self._settle()
        with Guard("shell: end of a command"):
            finished()

    def _settle(self) -> None:
        """Disable interrupts from here on, and let a pending one arrive."""
        while True:
            try:
                self._interruptible = False
                while self._interrupting:
                    time.sleep(0.0005)
                for _ in range(_CHECKS if self._interrupted else 0):
                    pass
                self._interrupted = False
                return
            except KeyboardInterrupt:
                continue
