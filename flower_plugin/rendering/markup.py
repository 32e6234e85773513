"""
Markup of texts, sizes, times, file names and script data.

All output of templates goes through :func:`show`, which escapes hidden characters and HTML. Figures are
formatted by ``celery_trace.text.format``. Functions that return markup say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from tornado.escape import xhtml_escape

from celery_trace.redaction import Redactor
from celery_trace.text import format
from celery_trace.text.code_owner import CodeOwner
from celery_trace.text.escape import escaped_lines

_MOST_SOURCE_BYTES = 1024 * 1024


def show(text: object) -> str:
    """Markup: text with hidden characters and HTML escaped. The autoescape of our templates."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return str(xhtml_escape(escaped_lines(text)))


def size(number_bytes: float | None, *, signed: bool = False) -> str:
    """Markup: a formatted size, with the exact number of bytes on hover."""
    if number_bytes is None:
        return f'<span class="tr-none">{format.NONE}</span>'
    text = format.size(number_bytes, signed=signed)
    return f'<span class="tr-number" title="{number_bytes:,.0f} bytes">{text}</span>'


def ago(at_s: float | None, now_s: float, *, left: bool = False) -> str:
    """
    Markup: a time relative to now, with the exact one on hover; with ``left`` the time until then, as ``60 min``.

    The page's script updates the text and shows the exact time in the browser's time zone.
    """
    try:
        exact = datetime.fromtimestamp(at_s, UTC) if at_s is not None else None
    except (OverflowError, OSError, ValueError):
        exact = None
    if at_s is None or exact is None:
        return f'<span class="tr-none">{format.NONE}</span>'
    text = format.ago(at_s, now_s)
    return (
        f'<time class="tr-time" datetime="{exact.isoformat(timespec="milliseconds")}" data-at="{at_s:.3f}" '
        f'{"data-left " if left else ""}title="{format.moment(at_s, utc=True)}">'
        f"{text.removeprefix('in ') if left else text}</time>"
    )


# --- file names -----------------------------------------------------------------------------------------


class Paths:
    """
    File names of records, shown relative to the project.

    Args:
        project: The project's root folders.
        redactor: Redacts literal secrets in source lines.
        in_app: The setting ``trace_in_app``.
    """

    def __init__(
        self, project: Iterable[str] = (), redactor: Redactor | None = None, in_app: Sequence[str] = ()
    ) -> None:
        self._redactor = redactor if redactor is not None else Redactor()
        folders = {os.path.abspath(folder) for folder in (*project, *in_app) if os.sep in folder}
        self._own = tuple(folder + os.sep for folder in folders if folder != os.sep)
        #: Whether a file is user code.
        self.is_users = CodeOwner(in_app, folders)

    def short(self, file: str) -> str:
        """Relative to the project or to the folder of installed packages, also for files of other hosts."""
        return self.is_users.short(file)

    def in_text(self, text: str) -> str:
        """A text with all file names shortened by :meth:`short`."""
        return re.sub(r"/[^\s:'\"]+\.py(?=:\d|\b)", lambda match: self.short(match.group()), text)

    def own_source(self, file: str, line: int, expected: str, around: int = 8) -> list[tuple[int, str]]:
        """
        The source lines around a line, if this host has the file.

        A record's file name is untrusted, so only Python files below the project's own folders are read,
        and only if the line still has the recorded text.

        Returns:
            ``(number, text)`` pairs in order, without literal secrets; empty if the source is not available.
        """
        real = os.path.realpath(file)
        if not real.endswith(".py") or not real.startswith(self._own) or not expected.strip():
            return []
        if not self.is_users(real):
            return []
        try:
            if os.path.getsize(real) > _MOST_SOURCE_BYTES:
                return []
            with open(real, encoding="utf-8", errors="replace") as source:
                lines = source.read().splitlines()
        except OSError:
            return []
        if not 1 <= line <= len(lines):
            return []
        text = lines[line - 1].strip()  # records of 0.1.0 have it as it is, newer ones redacted
        if expected.strip() not in (text, self._redactor.source(text)):
            return []
        first = max(1, line - around)
        shown = self._redactor.source("\n".join(lines[first - 1 : line + around])).split("\n")
        return list(enumerate(shown, first))


# --- data for scripts ------------------------------------------------------------------------------------


def data_block(value: object) -> str:
    """
    Markup: a value as JSON for a ``<script type="application/json">``.

    Characters that could end the element or the line are escaped, so a string of a record stays a string.
    """
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
