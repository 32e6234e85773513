"""Where shells block: threads for the sessions, and one that writes transcripts."""

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
        most: Threads for sessions; one is made when it is needed.
    """

    def __init__(self, most: int) -> None:
        self.sessions = ThreadPoolExecutor(most, thread_name_prefix="trace-shell")
        # One thread, so that a transcript's lines reach the store in their order.
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="trace-transcript")

    async def call(self, call: Callable[[], T]) -> T:
        """What a call returns that blocks on a session."""
        return await asyncio.get_running_loop().run_in_executor(self.sessions, call)

    def close_session(self, session: ShellSession) -> None:
        """End a session in a thread: it may wait for its process."""
        try:
            self.sessions.submit(_close, session)
        except RuntimeError:  # the monitor stops, and this one was still being opened
            _close(session)

    def close(self) -> None:
        """Once every room has ended: write what is left."""
        self.writer.shutdown(wait=True)
        # Nothing is cancelled: the sessions that end here are closed by these threads.
        self.sessions.shutdown(wait=False)


def _close(session: ShellSession) -> None:
    with Guard("closing a shell"):
        session.close()
