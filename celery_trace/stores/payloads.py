"""
The bytes in a row's ``payload``: a record's JSON, compressed alone or against a similar record.

Failures of a group are alike: the same frames, and nearly the same values. With a similar record as zlib's dictionary,
only the differences are stored. This module needs no database: the store and Django's admin both read payloads.
"""

from __future__ import annotations

import zlib
from typing import Final

#: Below this, compressing costs more than it saves.
COMPRESS_FROM_BYTES: Final = 400
#: The first byte of a difference; JSON begins with a brace and zlib with an x.
_DIFFERENCE: Final = b"\x01"
#: A record is compressed in slices of this size, each with the part of the other record at about the same offset:
#: zlib's window is limited, and captures may be eight times as long.
_SLICE_BYTES: Final = 16 * 1024
_AROUND_BYTES: Final = 8 * 1024 - 256
_LEVEL: Final = 6
#: A difference is used only below this share of the record's own compressed size.
_WORTH: Final = 0.6


def squeeze(payload: bytes) -> bytes:
    """Compress where it pays."""
    return zlib.compress(payload, 1) if len(payload) >= COMPRESS_FROM_BYTES else payload


def unsqueeze(payload: bytes) -> bytes:
    """The JSON that was passed to :func:`squeeze`."""
    return payload if payload[:1] in (b"{", b"[") else zlib.decompress(payload)


def is_difference(payload: bytes) -> bool:
    """Whether a payload can be read only with the record that it was compressed against."""
    return payload[:1] == _DIFFERENCE


class DeltaBase:
    """
    A record that others are compressed against.

    Args:
        json: The record.
    """

    __slots__ = ("_share", "json")

    def __init__(self, json: bytes) -> None:
        self.json = json
        self._share = len(squeeze(json)) / len(json) * _WORTH

    def difference(self, json: bytes) -> bytes | None:
        """Another record compressed against this one; None if the two are not similar."""
        squeezed = [_DIFFERENCE]
        for start in range(0, len(json), _SLICE_BYTES):
            squeezer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=self._around(start))
            squeezed += (squeezer.compress(json[start : start + _SLICE_BYTES]), squeezer.flush())
        found = b"".join(squeezed)
        return found if len(found) < len(json) * self._share else None

    def restored(self, payload: bytes) -> bytes:
        """The record of a :meth:`difference`."""
        slices: list[bytes] = []
        rest = payload[1:]
        while rest:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=self._around(_SLICE_BYTES * len(slices)))
            slices.append(inflater.decompress(rest))
            if not inflater.eof:
                raise zlib.error("the difference is incomplete")
            rest = inflater.unused_data
        return b"".join(slices)

    def _around(self, start: int) -> bytes:
        return self.json[max(0, start - _AROUND_BYTES) : start + _SLICE_BYTES + _AROUND_BYTES]
