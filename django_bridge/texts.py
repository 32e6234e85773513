"""Text as a record can hold it."""

from __future__ import annotations


def plain(text: object) -> str:
    """
    The text of an object, as a ``str`` and no subclass, and as valid UTF-8.

    Django's templates make ``SafeString``, its routes may be lazy translations, and headers
    may hold lone surrogates; none of these can be encoded.
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
