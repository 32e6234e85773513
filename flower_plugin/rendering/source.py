"""Lines of Python as markup, with Pygments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

from msgspec import Struct
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from celery_trace.text.escape import escaped_lines

_LONGEST_LINE = 500


class SourceLine(Struct, frozen=True):
    """A source line. ``markup`` is safe HTML; ``lit`` is true for the line that was executed."""

    number: int
    markup: str
    lit: bool


def _formatter() -> HtmlFormatter:
    return HtmlFormatter(nowrap=True, classprefix="py-")


@lru_cache(maxsize=2048)
def _lines(text: str) -> tuple[str, ...]:
    # Pygments closes its spans at the end of each line, so the markup can be split into lines.
    markup = highlight(text, PythonLexer(stripnl=False, ensurenl=True), _formatter())
    return tuple(markup.split("\n"))


def _clean(line: str) -> str:
    line = escaped_lines(line.expandtabs(4).replace("\n", " "))
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " …"


def source_lines(
    lines: Sequence[tuple[int, str]], lit: int, columns: tuple[int, int, int] | None = None
) -> list[SourceLine]:
    """
    Lines with syntax highlighting.

    Args:
        lines: ``(number, text)`` in order.
        lit: The number of the line that was being executed.
        columns: End line, first and end column of the expression, if known; it is marked if it
            is entirely on the executed line.

    Returns:
        One :class:`SourceLine` per line.
    """
    cleaned = [_clean(text) for _, text in lines]
    highlighted = _lines("\n".join(cleaned))
    found = []
    for index, (number, text) in enumerate(lines):
        markup = highlighted[index] if index < len(highlighted) else ""
        if number == lit and columns is not None and columns[0] == lit:
            markup = _marked(text, columns[1], columns[2]) or markup
        found.append(SourceLine(number, markup, number == lit))
    return found


def _marked(text: str, first: int, end: int) -> str:
    """One line with the part between two columns (UTF-8 bytes, as code objects count) inside ``<mark>``."""
    data = text.encode("utf-8", "surrogatepass")
    if not 0 <= first < end <= len(data) or "\t" in text or len(text) > _LONGEST_LINE:
        return ""
    if first <= len(data) - len(data.lstrip()) and end >= len(data.rstrip()):
        return ""  # the whole line: a mark adds nothing
    parts = [part.decode("utf-8", "replace") for part in (data[:first], data[first:end], data[end:])]
    before, marked, after = ("".join(_lines(escaped_lines(part))[:1]) if part else "" for part in parts)
    return f"{before}<mark>{marked}</mark>{after}"


def one_line(code: str) -> str:
    """Markup: a single line of code."""
    return _lines(_clean(code.strip()))[0]


def source_link(template: str, file: str, path: str, line: int, release: str) -> str:
    """
    The address of a line in an editor or on a forge; empty if it can't be made.

    All values are escaped, so that a record can't change where the link goes.

    Args:
        template: The setting ``trace_source_url``.
        file: The absolute file name, or one that the process knows.
        path: The file below the project; empty if it is not the project's.
        line: The line's number.
        release: What was deployed, empty if that is not known.
    """
    values = {"file": file if file.startswith("/") else "", "path": path, "line": str(line), "release": release}
    wanted = _PLACES.findall(template)
    if not wanted or line < 1 or not all(values[name] for name in wanted):
        return ""
    return _PLACES.sub(lambda match: quote(values[match[1]], safe="/"), template)


_PLACES = re.compile(r"\{(file|path|line|release)\}")
