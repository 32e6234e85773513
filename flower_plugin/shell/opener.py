"""Opens sessions: live in the process that failed, or recreated from the capture."""

from __future__ import annotations

from typing import Protocol

import msgspec

from celery_trace.control.signing import load_key
from celery_trace.model import Failure, Kept
from celery_trace.shell.live.client import LiveClient
from celery_trace.shell.sandbox.recreated import open_session
from celery_trace.shell.session import ShellSession
from flower_plugin.context import MonitorContext


class Opener(Protocol):
    """Opens sessions. Blocks."""

    def live(self, kept: Kept, failure: Failure, user: str) -> ShellSession: ...

    def recreated(self, failure: Failure) -> ShellSession: ...


class ProductOpener:
    """Opens sessions over the broker and in the sandbox."""

    def __init__(self, context: MonitorContext) -> None:
        self._context = context

    def live(self, kept: Kept, failure: Failure, user: str) -> ShellSession:
        """
        Open a session in the process that failed.

        Raises:
            ShellError: The process does not respond, or refuses.
        """
        client = LiveClient(self._context.capp.connection_for_write, load_key(self._context.settings))
        return client.open(kept, failure.id, user, leaks=self._leaks(failure))

    def recreated(self, failure: Failure) -> ShellSession:
        """
        Open a session from the capture, in a sandbox.

        Raises:
            ShellError: The failure has no capture, or the sandbox does not start.
        """
        return open_session(failure, leaks=self._leaks(failure))

    def _leaks(self, failure: Failure) -> list[dict[str, object]]:
        """The value of ``trace.leaks``: the rows of the leak table for this task."""
        rows = self._context.queries.leaks(kind=failure.kind, name=failure.name, limit=20).rows
        return [msgspec.to_builtins(row) for row in rows]
