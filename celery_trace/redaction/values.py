"""Where the value after a name ends: in quotes, in brackets, or at the next delimiter."""

from __future__ import annotations

import re

from celery_trace.redaction.spans import MARK

#: Values that reveal no secret.
HARMLESS = frozenset({"", "none", "null", "true", "false", "nil", MARK.lower(), MARK.strip("[]")})

#: A delimiter ends a value only if something else can follow it: passwords contain such characters too.
_BARE = re.compile(
    r"""[^\s,;&)\]}>"'](?:[^\s,;&)\]}>"']|[,;&](?![\s"']|[\w.%\[\]-]{0,64}[=:]|\Z)|[)\]}>](?=\w)|(?<=\w)["'](?=\w))*"""
)
_REST = re.compile(r"""[^\s,;&)\]}>"']*""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_IN_BRACKETS = re.compile(r"""[()\[\]{}]|\\*["']""")


def end_of_quoted(text: str, first: int, quote: str) -> int:
    """
    The end of a quoted value; the text's end if its closing quote was cut off.

    Args:
        text: The whole text.
        first: Where the value begins, after its opening quote.
        quote: The opening quote with the backslashes before it: a text inside a text has one, inside that three.
    """
    sign, depth = quote[-1], len(quote) - 1
    if not depth and text.startswith(sign * 2, first):  # Python's three quotes
        at = text.find(sign * 3, first + 2)
        return at if at >= 0 else len(text)
    at = text.find(sign, first)
    while at >= 0:
        slashes = 0
        while at - slashes > first and text[at - slashes - 1] == "\\":
            slashes += 1
        # Each level of quoting doubles the backslashes and adds one before a quote.
        if slashes % (2 * depth + 2) == depth:
            if text.startswith(sign, at + 1) and at > first and not slashes:
                at = text.find(sign, at + 2)  # SQL writes a quote as two
                continue
            return at - depth
        at = text.find(sign, at + 1)
    return len(text)


def end_of_brackets(text: str, opening: int) -> int:
    """The position after the closing bracket and its suffix; the text's end if there is none."""
    waiting = [_CLOSING[text[opening]]]
    at = opening + 1
    while waiting:
        match = _IN_BRACKETS.search(text, at)
        if match is None:
            return len(text)
        found = match.group()
        at = match.end()
        if found in _CLOSING:
            waiting.append(_CLOSING[found])
        elif found == waiting[-1]:
            waiting.pop()
        elif found[-1] in "\"'":
            at = min(len(text), end_of_quoted(text, at, found) + len(found))
    return _REST.match(text, at).end()  # type: ignore[union-attr]


def end_of_bare(text: str, first: int) -> int:
    """The end of a value without quotes; ``first`` if there is none."""
    match = _BARE.match(text, first)
    return match.end() if match else first


def is_harmless(text: str, start: int, stop: int) -> bool:
    """Whether a value reveals nothing, like ``None`` and an empty text."""
    return stop - start < 12 and text[start:stop].lower() in HARMLESS
