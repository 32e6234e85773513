"""Parts of a text that are to be hidden, and the text without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

#: In place of a secret.
MARK = "[redacted]"

#: Start and end of a secret.
Span = tuple[int, int]
#: Finds secrets in a text, in linear time.
Find = Callable[[str], Iterable[Span]]


def without(text: str, spans: Iterable[Span], *, keep_lines: bool = False) -> str:
    """
    The text with a mark in place of each span; the same object if there is none.

    Args:
        text: What was searched.
        spans: In any order; they may overlap. Empty ones are ignored.
        keep_lines: Whether the line feeds inside a span are kept, so that line numbers stay the same.
    """
    ordered = sorted(span for span in spans if span[0] < span[1])
    if not ordered:
        return text
    parts: list[str] = []
    at = 0
    for start, stop in _merged(ordered):
        parts += (text[at:start], MARK)
        if keep_lines:
            parts.append("\n" * text.count("\n", start, stop))
        at = stop
    parts.append(text[at:])
    return "".join(parts)


def _merged(ordered: list[Span]) -> Iterator[Span]:
    start, stop = ordered[0]
    for first, last in ordered[1:]:
        if first <= stop:
            stop = max(stop, last)
        else:
            yield start, stop
            start, stop = first, last
    yield start, stop
