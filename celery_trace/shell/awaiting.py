"""
``await`` at the top level of a shell: one event loop per session.

Only the standard library: the sandbox loads this module too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TypeVar

_T = TypeVar("_T")


class Loop:
    """An event loop that is created with the first ``await`` and lives as long as its session."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[object, object, _T]) -> _T:
        """
        Run a coroutine to its end and return its value.

        An interrupt cancels it; otherwise it would go on during the next command.
        """
        loop = self._made()
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with contextlib.suppress(BaseException):
                    loop.run_until_complete(asyncio.wait_for(asyncio.wait([task]), 1.0))
            raise

    def _made(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def close(self) -> None:
        """Cancel pending tasks and close; to be called in the thread that awaited."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            pending = [task for task in asyncio.all_tasks(loop) if not task.done()]
            for task in pending:
                task.cancel()
            if pending:
                loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
        finally:
            loop.close()
