"""Texts of a capture: valid Unicode, bounded, redacted, and their size in bytes."""

from __future__ import annotations

import datetime

import msgspec

from celery_trace.failures.capture.anatomy import is_instance
from celery_trace.redaction import Redactor

_json = msgspec.json.Encoder().encode
#: Further characters that are searched for secrets, so that none is cut in two.
BEYOND = 2048
_MARGIN = 1024  # the tail of a cut text, where a secret may be cut in two


def length_of_json(text: str) -> int:
    """The bytes that a text takes as JSON, with its quotes."""
    return len(_json(text))


def encodable(text: str) -> str:
    """The text as valid UTF-8 without NUL: lone surrogates and NULs become visible escapes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\x00") if "\0" in text else text


def cleaned(text: str, most: int, redactor: Redactor) -> tuple[str, int]:
    """
    A text, redacted and cut, and how many characters were left out.

    Args:
        text: An exact ``str``.
        most: Characters that may be kept.
        redactor: Removes what looks like a secret.
    """
    length = len(text)
    if length <= most:
        return redactor.text(encodable(text)), 0
    window = text[: most + BEYOND]
    kept = redactor.text(encodable(window))
    if kept is not window and len(window) < length:
        kept = kept[: max(0, len(kept) - _MARGIN)]
    kept = kept[:most]
    return kept, length - min(most, len(kept))


def as_name(value: object) -> str | None:
    """A text or bytes that can name something, else None; for a subclass, such as a header's name, its contents."""
    if type(value) is str:
        return value if len(value) <= 256 else None
    if type(value) is bytes:
        return value.decode("latin-1") if len(value) <= 256 else None
    if is_instance(value, str):
        return str.__str__(value) if str.__len__(value) <= 256 else None
    if is_instance(value, bytes):
        return bytes.decode(value, "latin-1") if bytes.__len__(value) <= 256 else None
    return None


def head_of_bytes(value: bytes | bytearray, most: int) -> tuple[bytes, int]:
    """The first bytes, at most ``most``, and how many there are; of a subclass by the builtin's own methods."""
    if is_instance(value, bytearray):
        return bytes(bytearray.__getitem__(value, slice(0, most))), bytearray.__len__(value)
    return bytes.__getitem__(value, slice(0, most)), bytes.__len__(value)


def bare_moment(value: datetime.datetime) -> datetime.datetime:
    """A datetime, or one of a subclass, as a plain one without its zone, which may be the user's code."""
    get = datetime.datetime
    return get(
        get.year.__get__(value),
        get.month.__get__(value),
        get.day.__get__(value),
        get.hour.__get__(value),
        get.minute.__get__(value),
        get.second.__get__(value),
        get.microsecond.__get__(value),
        fold=get.fold.__get__(value),
    )


def uuid_text(number: int) -> str:
    """The text of a UUID, from its 128 bits."""
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
