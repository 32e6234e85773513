"""
The interface of a shell session, live or recreated.

A :class:`ShellSession` blocks and may be called from several threads: one runs a command, another interrupts it. The
output of a running command arrives as :class:`Event`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from celery_trace.errors import TraceError

Mode = Literal["live", "recreated"]

#: Longest code of a command, characters.
CODE_LIMIT = 64 * 1024

_WORD = re.compile(r"[^\W\d]?\w*\Z")


class ShellError(TraceError):
    """A session can't be opened, or it has ended. The text says what, why and what to do."""


class SessionGone(ShellError):
    """The process or the sandbox of a session is gone; a page falls back to a recreated one."""


class Event(Struct, frozen=True, omit_defaults=True):
    """
    A piece of a command's output, in order; the same from the process to the browser.

    ``kind`` is ``output`` (printed text; ``stream`` is ``stdout`` or ``stderr``), ``result`` (the echo of an
    expression), ``error`` (a traceback) or ``notice`` (a message of the shell).
    """

    kind: str
    text: str
    stream: str = ""


class Done(Struct, frozen=True):
    """
    A command has ended. ``more`` asks for further lines: the code is incomplete and nothing ran.

    ``frame`` is the selected frame afterwards.
    """

    ok: bool
    took_s: float = 0.0
    more: bool = False
    frame: int = 0


class FrameInfo(Struct, frozen=True):
    """A frame that can be selected; index 0 is the innermost, as on the failure's page."""

    file: str
    line: int
    function: str


class ShellSession(Protocol):
    """A shell over one failure."""

    @property
    def id(self) -> str: ...

    @property
    def mode(self) -> Mode: ...

    @property
    def frames(self) -> list[FrameInfo]: ...

    @property
    def frame(self) -> int:
        """Index of the selected frame."""

    @property
    def notices(self) -> list[str]:
        """Notices for the user before typing: which protections hold, how long the failure is kept."""

    @property
    def gone(self) -> str:
        """Why the session has ended; empty while it is open."""

    def run(self, code: str, on_event: Callable[[Event], None], *, user: str = "") -> Done:
        """
        Run a command and wait for its end.

        ``user`` is who typed it, if several users share the session; by default who opened it.

        A block typed line by line is complete when it ends with an empty line; send a whole block with a line feed at
        its end.

        Raises:
            ShellError: The code is too long, or another command is running.
            SessionGone: The process or the sandbox is gone.
        """

    def complete(self, code: str, cursor: int) -> list[str]:
        """Completions at the cursor, whole words; they replace the text from :func:`completion_start`."""

    def interrupt(self, *, user: str = "") -> None:
        """Raise KeyboardInterrupt in the running command, if any. ``user`` is who interrupts."""

    def select_frame(self, index: int) -> None:
        """Select a frame; its names become plain variables."""

    def close(self) -> None: ...


def completion_start(code: str, cursor: int) -> int:
    """The start of the word that a completion replaces."""
    head = code[: max(0, cursor)]
    match = _WORD.search(head)
    return match.start() if match else len(head)
