"""The one background thread of a traced process: everything that happens "every so often" happens here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from celery_trace.clock import Clock
from celery_trace.guard import Guard

#: Longest wait of an idle ticker, seconds; an entry added later is noticed within it.
_IDLE_S: Final = 1.0


class _Entry:
    __slots__ = ("call", "due_s", "every_s", "guard")

    def __init__(self, every_s: float, due_s: float, call: Callable[[], object], name: str) -> None:
        self.every_s = every_s
        self.due_s = due_s
        self.call = call
        self.guard = Guard(f"ticker: {name}")


class Ticker:
    """
    Calls things at their intervals, on one daemon thread.

    Calls must be short: they share the thread and the GIL with the task. A call that
    raises is counted by the guard and called again next time. Missed beats are
    skipped, never made up for.
    """

    def __init__(self, clock: Clock, name: str = "celery-trace-ticker") -> None:
        self._clock = clock
        self._name = name
        self._entries: list[_Entry] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def every(self, seconds: float, call: Callable[[], object], name: str) -> None:
        """Have ``call`` made each ``seconds``, the first time after that long."""
        self._entries = [*self._entries, _Entry(seconds, self._clock.monotonic_s() + seconds, call, name)]

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread. Waits for a call under way, for at most ``timeout_s``."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def beat(self) -> float:
        """Make the calls that are due. Returns the seconds until the next one."""
        now_s = self._clock.monotonic_s()
        for entry in self._entries:
            if entry.due_s <= now_s:
                entry.due_s = now_s + entry.every_s
                with entry.guard:
                    entry.call()
        return min((entry.due_s - now_s for entry in self._entries), default=_IDLE_S)

    def _loop(self) -> None:
        while not self._stop.is_set():
            wait_s = self.beat()
            self._stop.wait(min(max(wait_s, 0.001), _IDLE_S))
