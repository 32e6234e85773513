"""Lines of Python as markup, with Pygments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from celery_trace.text.escape import escaped_lines

_LONGEST_LINE = 500


class SourceLine(Struct, frozen=True):
    """A line to print. ``markup`` is safe HTML; ``lit`` marks the line that was executed."""

    number: int
    markup: str
    lit: bool


def _formatter() -> HtmlFormatter:
    return HtmlFormatter(nowrap=True, classprefix="py-")


@lru_cache(maxsize=2048)
def _lines(text: str) -> tuple[str, ...]:
    # Pygments closes its spans at the end of each line, so lines can be taken apart.
    markup = highlight(text, PythonLexer(stripnl=False, ensurenl=True), _formatter())
    return tuple(markup.split("\n"))


def _clean(line: str) -> str:
    line = escaped_lines(line.expandtabs(4).replace("\n", " "))
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " …"


def source_lines(
    lines: Sequence[tuple[int, str]], lit: int, columns: tuple[int, int, int] | None = None
) -> list[SourceLine]:
    """
    Lines with their colours.

    Args:
        lines: ``(number, text)`` in order.
        lit: The number of the line that was being executed.
        columns: End line, first and end column of the expression, where Python told; marked when it
            stands on the lit line alone.

    Returns:
        One :class:`SourceLine` for each line given.
    """
    cleaned = [_clean(text) for _, text in lines]
    coloured = _lines("\n".join(cleaned))
    found = []
    for index, (number, text) in enumerate(lines):
        markup = coloured[index] if index < len(coloured) else ""
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
        return ""  # the whole line: marking it says nothing
    parts = [part.decode("utf-8", "replace") for part in (data[:first], data[first:end], data[end:])]
    before, marked, after = ("".join(_lines(escaped_lines(part))[:1]) if part else "" for part in parts)
    return f"{before}<mark>{marked}</mark>{after}"


def one_line(code: str) -> str:
    """Markup: a single line of code."""
    return _lines(_clean(code.strip()))[0]
