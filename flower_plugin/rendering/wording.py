"""
Markup of the pages' facts: texts, sizes, times, file names and the data of their scripts.

What a template prints goes through :func:`show`, which escapes hidden characters and HTML. How a figure reads is
``celery_trace.text.format``'s matter. Functions that return markup say so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from tornado.escape import xhtml_escape

from celery_trace.redaction import Redactor
from celery_trace.text import format
from celery_trace.text.code_owner import CodeOwner
from celery_trace.text.escape import escaped_lines

_MOST_SOURCE_BYTES = 1024 * 1024


def show(text: object) -> str:
    """Markup: text with its hidden characters as escapes, and escaped for HTML. The autoescape of our templates."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return str(xhtml_escape(escaped_lines(text)))


def size(number_bytes: float | None, *, signed: bool = False) -> str:
    """Markup: bytes for people, the exact number on hover."""
    if number_bytes is None:
        return f'<span class="tr-none">{format.NONE}</span>'
    text = format.size(number_bytes, signed=signed)
    return f'<span class="tr-number" title="{number_bytes:,.0f} bytes">{text}</span>'


def ago(at_s: float | None, now_s: float) -> str:
    """
    Markup: a time relative to now, the exact one on hover.

    The page's script keeps the words current and puts the exact time in the reader's zone.
    """
    try:
        exact = datetime.fromtimestamp(at_s, UTC) if at_s is not None else None
    except (OverflowError, OSError, ValueError):
        exact = None
    if at_s is None or exact is None:
        return f'<span class="tr-none">{format.NONE}</span>'
    return (
        f'<time class="tr-time" datetime="{exact.isoformat(timespec="milliseconds")}" data-at="{at_s:.3f}" '
        f'title="{format.moment(at_s, utc=True)}">{format.ago(at_s, now_s)}</time>'
    )


# --- file names -----------------------------------------------------------------------------------------


class Paths:
    """
    File names as records hold them, shown relative to the project.

    Args:
        project: The folders that count as the project's root.
        redactor: Takes literal secrets out of the lines that are read.
        in_app: The setting.
    """

    def __init__(
        self, project: Iterable[str] = (), redactor: Redactor | None = None, in_app: Sequence[str] = ()
    ) -> None:
        self._redactor = redactor if redactor is not None else Redactor()
        folders = {os.path.abspath(folder) for folder in (*project, *in_app) if os.sep in folder}
        self._own = tuple(folder + os.sep for folder in folders if folder != os.sep)
        #: Whether a file is the user's own.
        self.is_users = CodeOwner(in_app, folders)

    def short(self, file: str) -> str:
        """Relative to the project, or to the folder of installed packages on whatever host it was."""
        return self.is_users.short(file)

    def in_text(self, text: str) -> str:
        """A sentence with the files that it names shown as :meth:`short` shows them."""
        return re.sub(r"/[^\s:'\"]+\.py(?=:\d|\b)", lambda match: self.short(match.group()), text)

    def own_source(self, file: str, line: int, expected: str, around: int = 8) -> list[tuple[int, str]]:
        """
        The lines around one, where this host has the file that the record speaks of.

        A record's file name is a claim of whoever wrote the record, so only Python files below the
        project's own folders are read, and only where the claimed line still says what was recorded.

        Returns:
            ``(number, text)`` pairs in order, without literal secrets; empty when the source is not to be had.
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
        said = lines[line - 1].strip()  # as it stands in records of 0.1.0; newer ones are redacted
        if expected.strip() not in (said, self._redactor.source(said)):
            return []
        first = max(1, line - around)
        shown = self._redactor.source("\n".join(lines[first - 1 : line + around])).split("\n")
        return list(enumerate(shown, first))


# --- data for scripts ------------------------------------------------------------------------------------


def data_block(value: Any) -> str:
    """
    Markup: a value as JSON for a ``<script type="application/json">``.

    Everything that could end the element or the line is escaped, so a string in a record stays a string.
    """
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def json_text(value: Any) -> str:
    """A value as indented JSON, for people."""
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False)
