"""
What a shell is to whoever talks to it: one set of words for the live and the recreated one.

A :class:`ShellSession` blocks and may be called from several threads: one runs a command,
another interrupts it. What happens while a command runs arrives as :class:`Event`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from celery_trace.errors import TraceError

Mode = Literal["live", "recreated"]

#: Longest piece of code, in characters, that one command may carry.
CODE_LIMIT = 64 * 1024

_WORD = re.compile(r"[^\W\d]?\w*\Z")


class ShellError(TraceError):
    """A session can't be opened, or it is over. The text says what, why and what to do."""


class SessionGone(ShellError):
    """The process or the sandbox behind a session is no longer there; a page falls back to recreated."""


class Event(Struct, frozen=True, omit_defaults=True):
    """
    A piece of what a command says, in order; the same from the process to the browser.

    ``kind`` is ``output`` (what it printed; ``stream`` is ``stdout`` or ``stderr``), ``result`` (the echo
    of an expression), ``error`` (its traceback) or ``notice`` (the shell's own words).
    """

    kind: str
    text: str
    stream: str = ""


class Done(Struct, frozen=True):
    """
    A command is over. ``more`` asks for further lines: the code is not complete yet and nothing ran.

    ``frame`` is the chosen frame afterwards.
    """

    ok: bool
    took_s: float = 0.0
    more: bool = False
    frame: int = 0


class FrameInfo(Struct, frozen=True):
    """A frame that can be chosen; index 0 is the innermost, as on the failure's page."""

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
        """Index of the chosen frame."""

    @property
    def notices(self) -> list[str]:
        """What a person should know before typing: which protections hold, until when the failure is kept."""

    @property
    def gone(self) -> str:
        """Why the session is over; empty while it is not."""

    def run(self, code: str, on_event: Callable[[Event], None], *, user: str = "") -> Done:
        """
        Run a command and wait for its end.

        ``user`` is who typed it, where several people share the session; by default who opened it.

        A block that is typed line by line is complete when it ends with an empty line; send a whole
        block with a line feed at its end.

        Raises:
            ShellError: The code is too long, or another command is running.
            SessionGone: The other side is no longer there.
        """

    def complete(self, code: str, cursor: int) -> list[str]:
        """What could stand at the cursor, whole words; they replace the text from :func:`completion_start`."""

    def interrupt(self, *, user: str = "") -> None:
        """Raise KeyboardInterrupt in the running command, if there is one. ``user`` is who wants that."""

    def select_frame(self, index: int) -> None:
        """Choose a frame; its names become plain variables."""

    def close(self) -> None: ...


def completion_start(code: str, cursor: int) -> int:
    """Where the word begins that a completion replaces."""
    head = code[: max(0, cursor)]
    match = _WORD.search(head)
    return match.start() if match else len(head)
