"""What was said in a room, in memory for who joins and in the store for later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from celery_trace.guard import Guard
from celery_trace.model import ShellLine, ShellView, new_id
from celery_trace.shell.session import Event
from celery_trace.stores import Store
from flower_plugin.context import MonitorContext

#: Lines that are kept in memory.
MOST_LINES = 2000


class RoomTranscript:
    """
    The lines of one session. Used on the loop; the store is written in one thread.

    A session that nobody typed into is not worth a row, so it is stored with the first command or remark.

    Attributes:
        id: The session's, in the store and for the browser.
        lines: The newest, oldest first.
        users: Who was in the room, in the order in which they came.
        mode: The session's; empty until it is open.
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
        # An input that may turn out to be the beginning of a block: not a line of the transcript before it has run.
        self._unfinished: ShellLine | None = None

    def joined(self, user: str) -> None:
        """Somebody came."""
        if user not in self.users:
            self.users.append(user)

    def note(self, kind: str, user: str, text: str) -> None:
        """A line; see :class:`~celery_trace.model.ShellLine` for the kinds."""
        self.keep_input()
        self._store_line(self._line(kind, user, text))

    def said(self, user: str, event: Event) -> None:
        """What a command of a user said."""
        self.note({"error": "error", "notice": "event"}.get(event.kind, "output"), user, event.text)

    def began(self, user: str, code: str) -> None:
        """A command runs; it may turn out to be incomplete."""
        self._unfinished = self._line("input", user, code)

    def was_incomplete(self) -> None:
        """The command was the beginning of a block, and is typed again with more."""
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
        """Write to the store in the one writing thread; a store that is down costs the transcript, not the shell."""

        def write() -> None:
            with Guard("shell transcript"):
                call(self._context.store)

        with Guard("shell transcript"):
            self._writer.submit(write)

    async def written(self) -> None:
        """What was to be written until now is."""
        with Guard("shell transcript"):
            await asyncio.get_running_loop().run_in_executor(self._writer, lambda: None)

    def end(self) -> None:
        """The session is over."""
        self.keep_input()
        if self._stored:
            at_s, users = self._context.clock.now_s(), list(self.users)
            self._write(lambda store: store.end_shell(self.id, at_s, users))
