"""
How a record stands in a spool file: one line, versioned and checksummed.

``<version> <crc32, 8 hexadecimal digits> <json>\\n``. The checksum covers the JSON only, so a line
that was cut, glued to its neighbour or overwritten is recognised by itself and the next one is read again.
"""

from __future__ import annotations

from zlib import crc32

from celery_trace.errors import TraceError
from celery_trace.model import FORMAT_VERSION, AnyRecord, decode

_PREFIX = b"%d " % FORMAT_VERSION


class CorruptLine(TraceError, ValueError):
    """A line that is no record of ours; the text says what is wrong with it."""


def pack(payload: bytes) -> bytes:
    """The line, with its line feed, for one encoded record."""
    return b"%b%08x %b\n" % (_PREFIX, crc32(payload), payload)


def unpack(line: bytes) -> AnyRecord:
    """
    The record that stands in a line (without its line feed).

    Raises:
        CorruptLine: The line was cut or altered, has another version, or holds no record that is known here.
    """
    version, _, rest = line.partition(b" ")
    checksum, _, payload = rest.partition(b" ")
    if not version.isdigit() or len(checksum) != 8:
        raise CorruptLine("it does not begin with a version and a checksum")
    if version + b" " != _PREFIX:
        raise CorruptLine(f"its version is {version.decode()}, known here is {FORMAT_VERSION}")
    try:
        expected = int(checksum, 16)
    except ValueError:
        raise CorruptLine("its checksum is no number") from None
    if crc32(payload) != expected:
        raise CorruptLine("its checksum does not fit: it was cut or altered")
    try:
        return decode(payload)
    except ValueError as error:  # msgspec.DecodeError and ValidationError are ValueErrors
        raise CorruptLine(f"it holds no known record: {error}") from None


#: What opens the JSON of a record of one class: msgspec writes the tag first, and within a JSON text
#: its quotes would be escaped, so that counting these bytes counts records.
def opening(tag: str) -> bytes:
    """The bytes by which a record's JSON begins, after the checksum."""
    return b' {"record":"%b"' % tag.encode()
