"""Threads for blocking calls of shells: a pool for sessions, and one that writes transcripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from celery_trace.guard import Guard
from celery_trace.shell.session import ShellSession

T = TypeVar("T")


class ShellThreads:
    """
    The threads of all rooms.

    Args:
        most: Maximum number of threads for sessions.
    """

    def __init__(self, most: int) -> None:
        self.sessions = ThreadPoolExecutor(most, thread_name_prefix="trace-shell")
        # A single thread, so that a transcript's lines are stored in order.
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="trace-transcript")

    async def call(self, call: Callable[[], T]) -> T:
        """Run a blocking call of a session."""
        return await asyncio.get_running_loop().run_in_executor(self.sessions, call)

    def close_session(self, session: ShellSession) -> None:
        """Close a session in a thread, as it may wait for its process."""
        try:
            self.sessions.submit(_close, session)
        except RuntimeError:  # the monitor is stopping
            _close(session)

    def close(self) -> None:
        """Write the remaining lines. Called when all rooms have ended."""
        self.writer.shutdown(wait=True)
        # Not cancelled: these threads close the sessions.
        self.sessions.shutdown(wait=False)


def _close(session: ShellSession) -> None:
    with Guard("closing a shell"):
        session.close()
