"""Passes a command's output from the session's thread to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from celery_trace.shell.session import Event

#: Maximum output of one command, characters.
MOST_OUTPUT = 1024 * 1024
#: Maximum number of pieces of one command's output that can't be joined: each is a line of the transcript.
MOST_PIECES = 10_000
#: Time for collecting a batch, seconds.
BATCH_S = 0.02


class OutputBatches:
    """
    Passes events to the loop in batches, so that many prints become a few messages.

    Output beyond :data:`MOST_OUTPUT` characters or :data:`MOST_PIECES` pieces of one command is dropped with one
    notice, as code in a sandbox may try to overload the monitor.

    Args:
        emit: Receives an event, on the loop.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[Event] = []
        self._characters = 0
        self._pieces = 0
        self._cut = False
        self._scheduled = False

    def add(self, event: Event) -> None:
        """Add an event, in the session's thread."""
        with self._lock:
            if self._cut or not event.text:
                return
            last = self._waiting[-1] if self._waiting else None
            joins = last is not None and event.kind == "output" == last.kind and event.stream == last.stream
            self._characters += len(event.text)
            self._pieces += not joins
            if self._characters > MOST_OUTPUT or self._pieces > MOST_PIECES:
                self._cut, joins = True, False
                event = Event("notice", f"Output was cut after {MOST_OUTPUT:,} characters or {MOST_PIECES:,} pieces.")
            if joins and last is not None:
                self._waiting[-1] = Event(last.kind, last.text + event.text, last.stream)
            else:
                self._waiting.append(event)
            if self._scheduled:
                return
            self._scheduled = True
        self._loop.call_soon_threadsafe(self._loop.call_later, BATCH_S, self.flush)

    def flush(self) -> None:
        """Emit the collected events, on the loop."""
        with self._lock:
            self._scheduled = False
            waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._emit(event)
