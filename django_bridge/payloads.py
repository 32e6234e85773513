"""
The records inside the rows' ``payload``, for the admin.

The store's own module reads them through SQLAlchemy, which a Django process never imports. The form is the
same: JSON of the record, compressed by zlib where that paid.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec

T = TypeVar("T")


def read(payload: bytes | memoryview | None, kind: type[T]) -> T | None:
    """
    The record in a payload.

    Returns:
        None where there is none, or where a newer version wrote one that this version can't read.
    """
    if not payload:
        return None
    data = bytes(payload)
    try:
        return msgspec.json.decode(data if data[:1] in (b"{", b"[") else zlib.decompress(data), type=kind)
    except (msgspec.DecodeError, zlib.error):
        return None
