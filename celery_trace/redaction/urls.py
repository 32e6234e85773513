"""Passwords in URLs, also with characters that should have been escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator

from celery_trace.redaction.spans import Span

#: The characters of a URL in running text. A quote between two letters is included: it is more likely part of a
#: password than the end of a literal.
_RUN = re.compile(r"""(?:[^\s"'<>]|(?<=\w)["'](?=\w))*""")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9.-]*\Z")
_PORT = re.compile(r"\d{1,5}(?!\w)")
_PORT_OF_WEB = re.compile(r"\d{1,5}(?=[/?#])")
_HOST = re.compile(r"[\w\[]")
#: Schemes of the web, where path or query often contain an ``@``.
_WEB = frozenset(("http", "https", "ws", "wss", "ftp", "git", "ssh", "svn", "hg"))
#: A user name without a password, of this length and with a digit, is a token: ``https://ghs1234…@github.com``.
_LONG_USER = 16


def url_passwords(text: str) -> Iterator[Span]:
    """The passwords after ``scheme://user:``, and tokens in place of a user."""
    mark = text.find("://")
    while mark >= 0:
        following = text.find("://", mark + 3)
        start = mark + 3
        stop = _RUN.match(text, start, following if following >= 0 else len(text)).end()  # type: ignore[union-attr]
        span = _password_in(text, mark, start, stop)
        if span is not None:
            yield span
        mark = following


def _password_in(text: str, mark: int, start: int, stop: int) -> Span | None:
    path = min((at for at in (text.find(each, start, stop) for each in "/?#") if at >= 0), default=stop)
    colon = text.find(":", start, path)
    any_at = text.find("@", start, stop) >= 0
    if colon < 0 or (text[start] == "[" and not any_at):
        return _token_in(text, start, text.find("@", start, path))
    first = colon + 1
    is_web = _scheme_of(text, mark) in _WEB
    if not any_at:
        # Cut before the host, or no login.
        return (first, stop) if stop == len(text) and not _PORT.match(text, first, stop) else None
    if _PORT_OF_WEB.match(text, first, stop) and (is_web or text.find("@", first, stop) < 0):
        return None
    last = _at_of_host(text, first, stop, is_web=is_web)
    return (first, last) if last >= 0 else None


def _at_of_host(text: str, first: int, stop: int, *, is_web: bool) -> int:
    """The ``@`` before the host: the last one, as a password may contain some too. -1 for none."""
    if is_web:
        # The query is data: `https://bob:pw@host/?mail=ada@example.org`.
        at = text.find("@", first, stop)
        query = text.find("?", at, stop) if at >= 0 else -1
        stop = query if query >= 0 else stop
    at = text.rfind("@", first, stop)
    while at >= 0 and not _HOST.match(text, at + 1):
        at = text.rfind("@", first, at)
    return at


def _token_in(text: str, start: int, at: int) -> Span | None:
    user = text[start:at] if at >= 0 else ""
    is_token = len(user) >= _LONG_USER and not user.isalpha() and user.replace("-", "").replace("_", "").isalnum()
    return (start, at) if is_token else None


def _scheme_of(text: str, mark: int) -> str:
    found = _SCHEME.search(text, max(0, mark - 20), mark)
    return found.group().lower() if found else ""
