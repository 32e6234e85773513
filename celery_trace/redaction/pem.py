"""Private keys in PEM (RFC 7468), also if they are cut or their lines are separate."""

from __future__ import annotations

import re
from collections.abc import Iterator

from celery_trace.redaction.spans import Span

_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z0-9 ]{0,20}-----")
_END = re.compile(r"-----END [A-Z0-9 ]{0,60}-----")
#: Base64 in the line widths of key encoders (64, OpenSSH 70). A hexadecimal digest does not mix capitals and small
#: letters; a hash for the web follows ``sha384-``.
_MIXED = r"(?=[a-z0-9+/]*[A-Z])(?=[A-Za-f0-9+/]*[g-z])(?=[A-Za-z+/]*\d)"
_BODY = re.compile(
    rf"(?:(?<![A-Za-z0-9+/=_-])|(?<=\\n)){_MIXED}(?:[A-Za-z0-9+/]{{64}}|[A-Za-z0-9+/]{{70}})(?![A-Za-z0-9+/=_-])"
)
_PIECE = re.compile(r"[A-Za-z0-9+/=]{16,}")


def pem_bodies(text: str) -> Iterator[Span]:
    """The text between the first and the last line of a private key; to the end if it is cut."""
    begin = _BEGIN.search(text)
    while begin is not None:
        end = _END.search(text, begin.end())
        stop = end.start() if end else len(text)
        yield begin.end(), stop
        begin = _BEGIN.search(text, stop) if end else None


def is_open(redacted: str) -> bool:
    """Whether a redacted text ends inside a private key, so that what comes next is its body."""
    begin = redacted.rfind("-----BEGIN ")
    return begin >= 0 and "PRIVATE KEY" in redacted[begin:] and "-----END " not in redacted[begin:]


def ends(text: str) -> bool:
    """Whether a private key ends in a text."""
    return _END.search(text) is not None


def pieces_of(text: str) -> Iterator[str]:
    """The lines of the private keys in a text, to find them as separate lines."""
    for start, stop in pem_bodies(text):
        yield from _PIECE.findall(text, start, stop)


def body_lines(text: str) -> Iterator[Span]:
    """Lines of a private key's body, without its first and last lines."""
    if len(text) >= 64:
        for match in _BODY.finditer(text):
            yield match.span()
