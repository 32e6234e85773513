"""The transcript of a room, in memory for users who join, and in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from celery_trace.guard import Guard
from celery_trace.model import ShellLine, ShellView, new_id
from celery_trace.shell.session import Event
from celery_trace.stores import Store
from flower_plugin.context import MonitorContext

#: Maximum number of lines in memory.
MOST_LINES = 2000


class RoomTranscript:
    """
    The lines of one session. Used on the loop; one thread writes them to the store.

    A session is stored with its first command or comment, so unused sessions are not stored.

    Attributes:
        id: The id of the session, in the store and for the browser.
        lines: The newest lines, oldest first.
        users: The users of the session, in order of arrival.
        mode: The mode of the session; empty until it is open.
    """

    def __init__(self, context: MonitorContext, writer: ThreadPoolExecutor, failure: str) -> None:
        self.id = new_id()
        self.lines: list[ShellLine] = []
        self.users: list[str] = []
        self.mode = ""
        self._context = context
        self._writer = writer
        self._failure = failure
        self._seq = 0
        self._stored = False
        # An input that may be the beginning of a block; not stored before it has run.
        self._unfinished: ShellLine | None = None

    def joined(self, user: str) -> None:
        """Add a user."""
        if user not in self.users:
            self.users.append(user)

    def note(self, kind: str, user: str, text: str) -> None:
        """Add a line; see :class:`~celery_trace.model.ShellLine` for the kinds."""
        self.keep_input()
        self._store_line(self._line(kind, user, text))

    def add_output(self, user: str, event: Event) -> None:
        """Add output of a user's command."""
        self.note({"error": "error", "notice": "event"}.get(event.kind, "output"), user, event.text)

    def began(self, user: str, code: str) -> None:
        """A command runs; it may be incomplete."""
        self._unfinished = self._line("input", user, code)

    def was_incomplete(self) -> None:
        """The command was the beginning of a block and will be sent again with more lines."""
        if self._unfinished is not None:
            self.lines.remove(self._unfinished)
            self._unfinished = None

    def keep_input(self) -> None:
        """The command was complete."""
        line, self._unfinished = self._unfinished, None
        if line is not None:
            self._store_line(line)

    def _line(self, kind: str, user: str, text: str) -> ShellLine:
        self._seq += 1
        line = ShellLine(seq=self._seq, at=self._context.clock.now_s(), user=user, kind=kind, text=text)
        self.lines.append(line)
        del self.lines[:-MOST_LINES]
        return line

    # --- the store --------------------------------------------------------------------------------------

    def _store_line(self, line: ShellLine) -> None:
        if not self._stored and line.kind in ("input", "remark") and self.mode:
            self._store_begin(line)
        if self._stored:
            self._keep(line)

    def _store_begin(self, first: ShellLine) -> None:
        view = ShellView(
            id=self.id,
            failure=self._failure,
            mode=self.mode,
            started_at=self._context.clock.now_s(),
            ended_at=None,
            users=list(self.users),
        )
        self._stored = True
        self._write(lambda store: store.add_shell(view))
        for line in self.lines:
            if line.seq < first.seq:
                self._keep(line)

    def _keep(self, line: ShellLine) -> None:
        self._write(lambda store: store.add_shell_line(self.id, line))

    def _write(self, call: Callable[[Store], object]) -> None:
        """Write to the store in the writer thread; if the store is down, only the transcript is lost."""

        def write() -> None:
            with Guard("shell transcript"):
                call(self._context.store)

        with Guard("shell transcript"):
            self._writer.submit(write)

    async def written(self) -> None:
        """Wait until all lines have been written."""
        with Guard("shell transcript"):
            await asyncio.get_running_loop().run_in_executor(self._writer, lambda: None)

    def end(self) -> None:
        """End the session."""
        self.keep_input()
        if self._stored:
            at_s, users = self._context.clock.now_s(), list(self.users)
            self._write(lambda store: store.end_shell(self.id, at_s, users))
