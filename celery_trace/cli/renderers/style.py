"""Terminal style: colours, width, times and file names."""

from __future__ import annotations

import re
from typing import Final, TypedDict

import click
from msgspec import Struct

from celery_trace.text import format
from celery_trace.text.code_owner import CodeOwner
from celery_trace.text.escape import escaped


class _Look(TypedDict, total=False):
    fg: str
    bold: bool
    dim: bool


_LOOKS: dict[str, _Look] = {
    "red": {"fg": "red"}, "green": {"fg": "green"}, "yellow": {"fg": "yellow"}, "cyan": {"fg": "cyan"},
    "bold": {"bold": True}, "dim": {"dim": True},
}  # fmt: skip

#: The colour of a state, a verdict or an outcome.
OF_STATE = {
    "leaking": "red", "growing": "yellow", "suspect": "yellow", "steady": "green",
    "firing": "red", "pending": "yellow", "resolved": "green",
    "lost": "red", "failed": "red", "time_limit": "red", "retried": "yellow",
}  # fmt: skip


#: A command in a hint, as it is written for any project.
_COMMAND: Final = re.compile(r"\bcelery (?:-A (?:proj|PROJECT) )?(?=(?:trace|worker|monitor)\b)")


class Style(Struct, frozen=True, kw_only=True):
    """
    How text is shown.

    ``colour`` is for terminals only; ``width`` limits tables, in columns, 0 means no limit; ``now_s`` is the current
    time; files below ``root`` are shown relative to it. ``app`` is the app as the user has given it to celery.
    """

    now_s: float
    colour: bool = False
    width: int = 0
    root: str = ""
    app: str = ""

    def hint(self, text: str) -> str:
        """A hint of ours with its commands as the user can run them: ``celery -A config trace doctor``."""
        return _COMMAND.sub(lambda _: f"celery -A {self.app} ", text) if self.app else text

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, if colours are on."""
        return click.style(text, **_LOOKS[colour]) if self.colour and colour else text

    def ago(self, at_s: float | None) -> str:
        """How long ago."""
        return format.ago(at_s, self.now_s)

    def place(self, file: str, line: int) -> str:
        """``file:line``, relative to the root or to the installed packages."""
        return f"{escaped(CodeOwner(roots=[self.root]).short(file))}:{line}" if file else format.NONE
