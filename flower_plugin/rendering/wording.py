"""
Facts as people read them: sizes, times, file names, and strings that come from anywhere.

What a template prints goes through :func:`show`, which makes control characters and direction
marks visible and escapes HTML. Functions that return markup say so.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from tornado.escape import xhtml_escape

from celery_trace.redaction import Redactor

_MIB = 1024 * 1024

# C0 and C1 controls except tab and line feed, bidirectional controls and isolates, zero-width characters,
# line and paragraph separators, lone surrogates: each can make a text look like another one.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def _visible(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def visible(text: object) -> str:
    """Text with each character that hides or turns others spelled out."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return _UNSEEN.sub(_visible, str(text))


def show(text: object) -> str:
    """Markup: text made :func:`visible` and escaped. The autoescape function of our templates."""
    return str(xhtml_escape(visible(text)))


def clip(text: object, most: int = 200) -> str:
    """Text cut to a length, with an ellipsis where it was."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


# --- figures --------------------------------------------------------------------------------------------


def size_text(count: float | None, *, signed: bool = False) -> str:
    """Bytes for people: MiB, and KiB or B where MiB would read 0.0."""
    if count is None:
        return "–"
    sign = "+" if signed and count > 0 else ""
    number = abs(count)
    if number >= 1000 * _MIB:
        return f"{sign}{count / (1024 * _MIB):,.2f} GiB"
    if number >= _MIB / 10:
        return f"{sign}{count / _MIB:,.1f} MiB"
    if number >= 1000:
        return f"{sign}{count / 1024:,.1f} KiB"
    return f"{sign}{count:,.0f} B"


def size(count: float | None, *, signed: bool = False) -> str:
    """Markup: bytes for people, the exact number on hover."""
    if count is None:
        return '<span class="tr-none">–</span>'
    return f'<span class="tr-number" title="{count:,.0f} bytes">{size_text(count, signed=signed)}</span>'


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "–"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def ratio(share: float | None, digits: int = 2) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def count(number: float | None) -> str:
    """A number with thousands apart."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if float(number).is_integer() or abs(number) >= 100 else f"{number:,.1f}"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def ago_text(at_s: float, now_s: float) -> str:
    """How long ago, or how far ahead, in words."""
    seconds = now_s - at_s
    ahead = seconds < -1
    seconds = abs(seconds)
    if seconds < 5:
        return "now"
    for limit, step, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h"), (float("inf"), 86_400, "days")):
        if seconds < limit:
            number = round(seconds / step)
            text = f"{number} {unit}"
            return f"in {text}" if ahead else f"{text} ago"
    return "long ago"


def ago(at_s: float | None, now_s: float) -> str:
    """
    Markup: a time relative to now, the exact one on hover.

    The page's script keeps the words current and puts the exact time in the reader's zone.
    """
    if at_s is None:
        return '<span class="tr-none">–</span>'
    try:
        exact = datetime.fromtimestamp(at_s, UTC)
    except (OverflowError, OSError, ValueError):
        return '<span class="tr-none">–</span>'
    return (
        f'<time class="tr-time" datetime="{exact.isoformat(timespec="milliseconds")}" data-at="{at_s:.3f}" '
        f'title="{exact:%Y-%m-%d %H:%M:%S} UTC">{ago_text(at_s, now_s)}</time>'
    )


# --- file names -----------------------------------------------------------------------------------------


class Paths:
    """
    File names as records hold them, shown relative to the project.

    Args:
        project: The folders that count as the project's root, most specific first.
        redactor: Takes literal secrets out of the lines that are read.
    """

    def __init__(self, project: Iterable[str] = (), redactor: Redactor | None = None) -> None:
        self._redactor = redactor if redactor is not None else Redactor()
        own = {os.path.abspath(folder) for folder in project if folder}
        libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
        roots = own | {path for path in libraries if path} | {os.path.dirname(path) for path in libraries if path}
        self._roots = sorted((root.rstrip("/") + "/" for root in roots if root != "/"), key=len, reverse=True)
        self._own = tuple(sorted((folder.rstrip("/") + "/" for folder in own if folder != "/"), key=len, reverse=True))

    def short(self, file: str) -> str:
        """Relative to the project, or to the folder of installed packages on whatever host it was."""
        for root in self._roots:
            if file.startswith(root):
                return file[len(root) :]
        for mark in ("/site-packages/", "/dist-packages/"):
            if mark in file:
                return file.rpartition(mark)[2]
        return re.sub(r"^.*/lib/(python3\.\d+)/", r"\1/", file)

    def in_text(self, text: str) -> str:
        """A sentence with the files that it names shown as :meth:`short` shows them."""
        return re.sub(r"/[^\s:'\"]+\.py(?=:\d|\b)", lambda match: self.short(match.group()), text)

    def is_library(self, file: str) -> bool:
        """Whether a file is an installed package's, Python's own, or a program that starts one (``bin/celery``)."""
        if any(mark in file for mark in ("/site-packages/", "/dist-packages/")) or file.startswith("<frozen "):
            return True
        return bool(re.search(r"/lib/python3\.\d+/|/bin/[^/.]+$", file))

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
        if any(f"/{name}/" in real for name in ("site-packages", "dist-packages")):
            return []
        try:
            if os.path.getsize(real) > _MIB:
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


def project_roots(in_app: Sequence[str] = ()) -> list[str]:
    """The working folder, what ``sys.path`` adds below it, and the folders of ``trace_in_app``."""
    here = os.getcwd()
    return [here, *(entry for entry in sys.path if entry.startswith(here + os.sep)), *in_app]


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
