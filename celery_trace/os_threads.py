"""
Threads and locks of the operating system, even if gevent or eventlet have patched Python's.

A command that loops must not block the event loop of a green worker, so ours run in real threads.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol


class Lock(Protocol):
    """The interface of a lock."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


def _original(name: str) -> Any:
    """``_thread.<name>`` from before a green library patched it; None if none did."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("_thread"):
        return gevent.get_original("_thread", name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return getattr(eventlet.original("_thread"), name)
    return None


def lock() -> Lock:
    """A new lock that is not re-entrant."""
    made = _original("allocate_lock")
    result: Lock = (made or threading.Lock)()
    return result


def rlock() -> Lock:
    """
    A new lock that its thread may take again.

    To be used for all that the ticker's thread shares with the threads of tasks. Eventlet's own lock never wakes up a
    greenlet that waits for another thread of the system, so a worker would hang.
    """
    made = _original("RLock")
    result: Lock = (made or threading.RLock)()
    return result


class WakeUp:
    """Wakes up one thread of the system, from any thread or greenlet."""

    def __init__(self) -> None:
        self._lock = lock()
        self._lock.acquire()
        self._set = False

    def is_set(self) -> bool:
        """Whether it was set since it was cleared."""
        return self._set

    def set(self) -> None:
        """End the wait."""
        self._set = True
        with contextlib.suppress(RuntimeError):  # it is free already
            self._lock.release()

    def wait(self, timeout_s: float) -> None:
        """Wait until it is set, for at most so many seconds."""
        self._lock.acquire(True, timeout_s)

    def clear(self) -> None:
        """Before the next wait."""
        self._set = False


def shares_locks() -> bool:
    """
    Whether a thread of the system may take the same locks as greenlets, such as those of `logging`.

    Eventlet's may not be shared: a greenlet that waits for one never wakes up.
    """
    eventlet = sys.modules.get("eventlet.patcher")
    return eventlet is None or not eventlet.is_monkey_patched("thread")


def are_patched() -> bool:
    """Whether Python's threads are greenlets."""
    return _original("get_ident") is not None


def ident() -> int:
    """This thread's identity for ``PyThreadState_SetAsyncExc``."""
    original = _original("get_ident")
    return int((original or _thread.get_ident)())


def start(target: Callable[[], None], name: str) -> None:
    """Run ``target`` in a daemon thread."""
    original = _original("start_new_thread")
    if original is not None:
        original(target, ())
        return
    threading.Thread(target=target, name=name, daemon=True).start()
