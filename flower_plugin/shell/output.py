"""A command's output on its way from the session's thread to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from celery_trace.shell.session import Event

#: Characters of one command's output that are shown.
MOST_OUTPUT = 1024 * 1024
#: Pieces of output of one command that can't be joined: each is a line of the transcript.
MOST_PIECES = 10_000
#: So long pieces wait for further ones, seconds.
TOGETHER_S = 0.02


class OutputBatches:
    """
    Carries events to the loop in batches, so that a flood of prints is a few messages.

    What goes beyond :data:`MOST_OUTPUT` characters or :data:`MOST_PIECES` pieces of one command is dropped and said
    once: what a sandbox says may have been made to drown the monitor.

    Args:
        say: Takes an event, on the loop.
    """

    def __init__(self, say: Callable[[Event], None]) -> None:
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[Event] = []
        self._characters = 0
        self._pieces = 0
        self._cut = False
        self._planned = False

    def hear(self, event: Event) -> None:
        """In the session's thread."""
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
            if self._planned:
                return
            self._planned = True
        self._loop.call_soon_threadsafe(self._loop.call_later, TOGETHER_S, self.flush)

    def flush(self) -> None:
        """On the loop: what was heard is told."""
        with self._lock:
            self._planned = False
            waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._say(event)
