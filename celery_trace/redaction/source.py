"""
Finds secret literals in source: not ``password = read()``, but ``password = "X"``.

It finds literals that are assigned to a secret name, passed to it as an argument or a default, compared with it, or
follow it in a dictionary or a call (``getenv("DB_PASSWORD", "X")``); all literals in a call of a secret name
(``set_password("X")``); and all but the first in a call that logs in (``connect("host", "bob", "X")``). A literal in
any other call is found only if the capture has found it as a secret elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from celery_trace.redaction.names import split_name
from celery_trace.redaction.spans import Span

#: A name, possibly in quotes or a subscript, and the text up to a literal or to brackets that may hold some.
_NAMED = re.compile(
    r"""(?<![\w\-])(?P<name>[\w\-]++)
        (?P<gap>["']?\s{0,40}+\]?\s{0,40}+(?::(?![=])[^=,(){}\n"']{1,60}(?==))?
            (?::=|[=!]=|=|:|,|\bin\b|\bis\b|\()\s{0,40}+)
        (?=[bBrRuUfF]{0,2}["']|[(\[{]|[\w.]*(?i:secret|bytes|decode|str)\w*\(
           |[^\n=,;{}]{1,80}?\b(?:or|else)\s[bBrRuUfF]{0,2}["'])""",
    re.VERBOSE,
)
_LITERAL = re.compile(r"""[bBrRuUfF]{0,2}(?P<quote>\"\"\"|'''|["'])""")
_STEP = re.compile(r"""[bBrRuUfF]{0,2}(?P<quote>\"\"\"|'''|["'])|[()\[\]{}]|\#[^\n]*|,|\n|;|=(?!=)""")
#: The end of an expression outside of brackets.
_ENDS = ",\n;="
#: Characters of one expression that are searched.
_LONGEST = 4096
#: Calls that take a password after other texts.
_LOGINS = frozenset(("connect", "login", "authenticate", "signin", "logon", "bind"))


def literals(text: str, is_secret: Callable[[str], bool]) -> Iterator[Span]:
    """The contents of secret literals in one or more lines of Python."""
    at = 0
    while (match := _NAMED.search(text, at)) is not None:
        name, gap = match["name"], match["gap"].strip()
        at = match.end()
        is_call = gap.endswith("(")
        if is_call and _logs_in(name):
            spans, _ = _in_expression(text, at, depth=1)
            yield from spans[1:]  # from here on, as the first one may be a name
        elif not is_secret(name):
            # The text of a literal is not code; the first one of a call may be the name of the second.
            literal = None if is_call else _LITERAL.match(text, at)
            at = _end(text, literal)[1] if literal else at
        elif gap.endswith(","):
            literal = _LITERAL.match(text, at)
            if literal:
                span, at = _end(text, literal)
                yield span
        else:
            spans, at = _in_expression(text, at, depth=1 if is_call else 0)
            yield from spans


def _logs_in(name: str) -> bool:
    words = split_name(name)
    return bool(words) and words[0 if len(words) == 1 else -1] in _LOGINS


def _in_expression(text: str, at: int, *, depth: int) -> tuple[list[Span], int]:
    """The contents of all literals from a place to the end of the expression, and that end."""
    spans: list[Span] = []
    stop = at + _LONGEST
    while (match := _STEP.search(text, at, stop)) is not None:
        found = match.group()
        if match["quote"]:
            span, at = _end(text, match)
            spans.append(span)
            continue
        if found in ("(", "[", "{"):
            depth += 1
        elif found in (")", "]", "}"):
            depth -= 1
        if depth < 0 or (depth == 0 and found[0] in _ENDS):
            break
        at = match.end()
    return spans, at


def _end(text: str, opening: re.Match[str]) -> tuple[Span, int]:
    """The contents of a literal, and where it ends; a line's or the text's end if its closing quote is missing."""
    quote, first = opening["quote"], opening.end()
    at = text.find(quote, first)
    while at >= 0:
        slashes = 0
        while at - slashes > first and text[at - slashes - 1] == "\\":
            slashes += 1
        if slashes % 2 == 0:
            break
        at = text.find(quote, at + 1)
    if len(quote) == 1:
        line = text.find("\n", first, at if at >= 0 else len(text))
        if line >= 0:
            return (first, line), line
    return ((first, at), at + len(quote)) if at >= 0 else ((first, len(text)), len(text))
