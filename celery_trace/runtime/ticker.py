"""The one background thread of a traced process: everything that happens "every so often" happens here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from celery_trace.clock import Clock
from celery_trace.guard import Guard

#: Longest wait while the process is busy, seconds.
_LONGEST_S: Final = 1.0
#: Longest wait while it is idle, seconds.
_LONGEST_IDLE_S: Final = 30.0
#: What is due within this share of its interval is called now: to wake up costs more than most calls.
_EARLY: Final = 0.15


class Entry:
    """Something that is called at its interval; ``every_s`` may be changed."""

    __slots__ = ("call", "due_s", "every_s", "guard", "idle_s")

    def __init__(self, every_s: float, idle_s: float, due_s: float, call: Callable[[], object], name: str) -> None:
        self.every_s = every_s
        self.idle_s = idle_s
        self.due_s = due_s
        self.call = call
        self.guard = Guard(f"ticker: {name}")


class Ticker:
    """
    Calls things at their intervals, on one daemon thread.

    Calls must be short: they share the thread and the GIL with the task. A call that
    raises is counted by the guard and called again next time. Missed beats are
    skipped, never made up for. While the process is idle, what says so is called less often: waking up ten times a
    second costs one per cent of a core. Whoever ends the idleness calls :meth:`wake` if :attr:`asleep`.

    Args:
        clock: Time.
        name: The thread's.
    """

    def __init__(self, clock: Clock, name: str = "celery-trace-ticker") -> None:
        self._clock = clock
        self._name = name
        #: Says whether the process has nothing to do; asked at each beat.
        self.is_idle: Callable[[], bool] = lambda: False
        self._entries: list[Entry] = []
        self._stopped = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        #: Whether it waits as an idle process's does.
        self.asleep = False

    def every(self, seconds: float, call: Callable[[], object], name: str, *, idle_s: float | None = None) -> Entry:
        """
        Have ``call`` made each ``seconds``, the first time after that long.

        Args:
            seconds: The interval.
            call: What is called.
            name: For the log, should it fail.
            idle_s: The interval while the process is idle; the same if None.
        """
        idle_s = max(seconds, idle_s) if idle_s is not None else seconds
        entry = Entry(seconds, idle_s, self._clock.monotonic_s() + seconds, call, name)
        self._entries = [*self._entries, entry]
        self._wake.set()
        return entry

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread. Waits for a call under way, for at most ``timeout_s``."""
        self._stopped = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def wake(self) -> None:
        """The process is idle no longer: go back to the usual intervals."""
        self.asleep = False
        self._wake.set()

    def beat(self) -> float:
        """Make the calls that are due. Returns the seconds until the next one."""
        now_s = self._clock.monotonic_s()
        idle = self.is_idle()
        for entry in self._entries:
            interval_s = entry.idle_s if idle else entry.every_s
            if entry.due_s <= now_s + _EARLY * interval_s:
                entry.due_s = now_s + interval_s
                with entry.guard:
                    entry.call()
            elif entry.due_s > now_s + interval_s:
                entry.due_s = now_s + interval_s  # it was put off while the process was idle
        self.asleep = idle
        longest_s = _LONGEST_IDLE_S if idle else _LONGEST_S
        return min((entry.due_s - now_s for entry in self._entries), default=longest_s)

    def _loop(self) -> None:
        while not self._stopped:
            wait_s = self.beat()
            self._wake.wait(min(max(wait_s, 0.001), _LONGEST_IDLE_S))
            self._wake.clear()
