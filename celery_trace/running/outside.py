"""
Stacks of a process's threads, read from outside, on Python 3.14 and later.

The process runs nothing for it, and may be stopped, blocked, or in C code that holds the interpreter's lock. CPython's
own module for that, ``_remote_debugging``, is private: it is used only here, once it has read a stack of this process
as expected, and whatever it raises means that there is no stack. It reads processes of its own build of Python only.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections.abc import Iterable
from types import ModuleType
from typing import Final, Protocol

from celery_trace.model import LastSample, Line
from celery_trace.process import tracing_right
from celery_trace.process.blackbox import MOST_FRAMES, BoxReading, Running
from celery_trace.running.procfs import Procfs
from celery_trace.running.stalls import blind_sample
from celery_trace.text.code_owner import WRAPPERS

#: The process is not stopped while it is read: a stack counts once it was read twice in a row, within so many readings.
_READINGS: Final = 6
_FIRST: Final = (3, 14)
_procfs: Final = Procfs()


class Unreadable(Exception):
    """The stacks of a process can't be read from outside."""


class _Frame(Protocol):
    filename: str
    funcname: str


class _Thread(Protocol):
    thread_id: int  # the system's
    frame_info: Iterable[_Frame]


class _Unwinder(Protocol):
    def get_stack_trace(self) -> Iterable[_Thread]: ...  # 3.15 lists interpreters, which have threads


def read_run(reading: BoxReading, run: Running, sample: LastSample | None) -> list[Line]:
    """
    The stack of a run, as :func:`read_stack` has it; empty if it can't be read, or its process does not permit it.

    Args:
        reading: The black box.
        run: One of its runs, not one of several that share a thread.
        sample: Its last sample.
    """
    process = reading.process
    thread = run.moves or (blind_sample(process, run.started_at_s) if sample is None else None)
    # Another process may have its pid by now, or in this container.
    if not reading.readable or thread is None or not _procfs.is_process(process.pid, f"{process.uid}.lock"):
        return []
    try:
        return read_stack(process.pid, thread.native_id)
    except Unreadable:
        return []


def read_stack(pid: int, native_id: int) -> list[Line]:
    """
    The stack of one thread, innermost first, without our own frames around a run; without source lines.

    Args:
        pid: A process that has permitted this (:mod:`celery_trace.process.tracing_right`).
        native_id: The system's number of the thread.

    Raises:
        Unreadable: It can't be read, or its process has ended.
    """
    why = unavailable()
    if why:
        raise Unreadable(why)
    try:
        unwinder = _open(_module(), pid)
    except Exception as error:
        raise Unreadable(_words(error)) from error
    before: list[Line] | None = None
    why = "it changes while it is read"
    for _ in range(_READINGS):
        try:
            now = _stack_of(unwinder, native_id)
        except Exception as error:  # a thread that runs may change its frames meanwhile
            why = _words(error)
            continue
        if now and now == before:
            return now
        before = now
    raise Unreadable(why)


@functools.cache
def unavailable() -> str:
    """Why this interpreter can't read stacks from outside; empty if it can."""
    if sys.version_info < _FIRST:
        return "it needs Python 3.14 or newer"
    if not tracing_right.is_permitted():
        return "remote debugging is disabled (PYTHON_DISABLE_REMOTE_DEBUG, or the build of Python)"
    try:
        own = _stack_of(_open(_module(), os.getpid()), threading.get_native_id())
    except Exception as error:  # private: anything may have changed
        return _words(error)
    if not any(line.function == unavailable.__name__ and line.file == __file__ for line in own):
        return "it reads another stack than that of this function"
    return ""


def _module() -> ModuleType:
    return importlib.import_module("_remote_debugging")


def _open(module: ModuleType, pid: int) -> _Unwinder:
    unwinder: _Unwinder = module.RemoteUnwinder(pid, all_threads=True)
    return unwinder


def _stack_of(unwinder: _Unwinder, native_id: int) -> list[Line]:
    """The stack of a thread; empty if there is no such thread."""
    for entry in unwinder.get_stack_trace():
        threads: Iterable[_Thread] = getattr(entry, "threads", (entry,))
        for thread in threads:
            if thread.thread_id == native_id:
                lines = [Line(one.filename, _line_number(one), one.funcname) for one in thread.frame_info]
                return [line for line in lines if line.line and line.file not in WRAPPERS][:MOST_FRAMES]
    return []


def _line_number(frame: _Frame) -> int:
    """An attribute of the frame in 3.14, of its location in 3.15; 0 for what has none, such as a frame of C code."""
    number = getattr(getattr(frame, "location", frame), "lineno", 0)
    return number if isinstance(number, int) else 0


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
