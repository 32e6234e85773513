"""Text that a record can hold."""

from __future__ import annotations


def plain(text: object) -> str:
    """
    The text of an object, as a plain ``str`` of valid UTF-8.

    Django's templates return ``SafeString``, its routes may be lazy translations, and headers may have lone surrogates;
    none of these can be encoded.
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
