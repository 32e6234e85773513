"""
The one background thread of a traced process, which makes all calls at intervals.

It is a thread of the system, so that it runs while a greenlet keeps the thread of the others. Under eventlet it is a
greenlet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.guard import Guard

#: Longest wait while the process is busy, seconds.
_LONGEST_S: Final = 1.0
#: Longest wait while it is idle, seconds.
_LONGEST_IDLE_S: Final = 30.0
#: Calls due within this share of their interval are made now: waking up costs more than most calls.
_EARLY: Final = 0.15


class Timer:
    """
    A call at an interval; ``every_s`` may be changed.

    ``early`` is the share of the interval by which a call may be made early. ``wake``, if set, is called when the
    process is no longer idle, in the thread of the run that begins; it returns when the next call is due.
    """

    __slots__ = ("call", "due_s", "early", "every_s", "guard", "idle_s", "wake")

    def __init__(self, every_s: float, idle_s: float, due_s: float, call: Callable[[], object], name: str) -> None:
        self.every_s = every_s
        self.idle_s = idle_s
        self.due_s = due_s
        self.call = call
        self.early = _EARLY
        self.wake: Callable[[], float] | None = None
        self.guard = Guard(f"ticker: {name}")


class Ticker:
    """
    Calls things at their intervals, on one daemon thread.

    Calls must be short: they share the thread and the GIL with the task. A call that raises is counted by the guard and
    made again next time. Missed calls are skipped. While the process is idle, the intervals are ``idle_s``: waking up
    ten times a second costs one percent of a core. The first run after that calls :meth:`wake` if :attr:`asleep`.

    Args:
        clock: Time.
        name: The thread's.
    """

    def __init__(self, clock: Clock, name: str = "celery-trace-ticker") -> None:
        self._clock = clock
        self._name = name
        #: Whether the process has nothing to do; called at each beat.
        self.is_idle: Callable[[], bool] = lambda: False
        self._timers: list[Timer] = []
        self._stopped = False
        #: Whether Python's threads are greenlets, and it is none.
        self._is_apart = os_threads.are_patched() and os_threads.shares_locks()
        self._wake: os_threads.WakeUp | threading.Event = os_threads.WakeUp() if self._is_apart else threading.Event()
        self._ended = os_threads.lock()
        self._thread: threading.Thread | None = None
        #: Whether it waits for an idle interval, and what is called when that changes.
        self.asleep = False
        self.turns: Callable[[], None] = lambda: None

    def every(self, seconds: float, call: Callable[[], object], name: str, *, idle_s: float | None = None) -> Timer:
        """
        Call ``call`` every ``seconds``, for the first time after that long.

        Args:
            seconds: The interval.
            call: What is called.
            name: For the log, if it fails.
            idle_s: The interval while the process is idle; the same if None.
        """
        idle_s = max(seconds, idle_s) if idle_s is not None else seconds
        entry = Timer(seconds, idle_s, self._clock.monotonic_s() + seconds, call, name)
        self._timers = [*self._timers, entry]
        self._wake.set()
        return entry

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._is_apart:
            if self._ended.acquire(False):
                os_threads.start(self._loop_apart, self._name)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread. Waits for a call under way, for at most ``timeout_s``."""
        self._stopped = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if self._is_apart:
            self._ended.acquire(True, timeout_s)
        elif thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def wake(self) -> None:
        """The process is no longer idle: return to the normal intervals."""
        self._turn(asleep=False)
        for timer in self._timers:
            if timer.wake is not None:
                with timer.guard:
                    timer.due_s = timer.wake()
        self._wake.set()

    def beat(self) -> float:
        """Make the calls that are due. Returns the seconds until the next one."""
        now_s = self._clock.monotonic_s()
        idle = self.is_idle()
        for timer in self._timers:
            interval_s = timer.idle_s if idle else timer.every_s
            if timer.due_s <= now_s + timer.early * interval_s:
                timer.due_s = now_s + interval_s
                with timer.guard:
                    timer.call()
                if not idle:
                    timer.due_s = now_s + timer.every_s  # the call may have changed it
            elif timer.due_s > now_s + interval_s:
                timer.due_s = now_s + interval_s  # it was deferred while the process was idle
        self._turn(asleep=idle)
        longest_s = _LONGEST_IDLE_S if idle else _LONGEST_S
        return min((timer.due_s - now_s for timer in self._timers), default=longest_s)

    def _turn(self, *, asleep: bool) -> None:
        if asleep != self.asleep:
            self.asleep = asleep
            self.turns()

    def _loop(self) -> None:
        while not self._stopped:
            wait_s = self.beat()
            self._wake.wait(min(max(wait_s, 0.001), _LONGEST_IDLE_S))
            self._wake.clear()

    def _loop_apart(self) -> None:
        try:
            self._loop()
        finally:
            self._ended.release()
