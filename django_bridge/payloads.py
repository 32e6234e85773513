"""The records inside the rows' ``payload``, for the admin; see :mod:`celery_trace.stores.payloads`."""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec

from celery_trace.stores.payloads import DeltaBase, is_difference, unsqueeze

T = TypeVar("T")


def read(payload: bytes | memoryview | None, kind: type[T], shared: bytes | memoryview | None = None) -> T | None:
    """
    The record in a payload.

    Args:
        payload: From the row.
        kind: The record's class.
        shared: For a failure stored as a difference, the payload of the capture.

    Returns:
        None without a payload, or if a newer version wrote one that this version can't read.
    """
    if not payload:
        return None
    data = bytes(payload)
    try:
        if is_difference(data):
            if not shared:
                return None
            json = DeltaBase(unsqueeze(bytes(shared))).restored(data)
        else:
            json = unsqueeze(data)
        return msgspec.json.decode(json, type=kind)
    except (msgspec.DecodeError, zlib.error):
        return None
