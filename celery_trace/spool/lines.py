"""
The format of a record in a spool file: one line, versioned and checksummed.

``<version> <crc32, 8 hexadecimal digits> <json>\\n``. The checksum covers the JSON only, so a line that was cut,
joined with the next or overwritten is detected by itself, and reading resumes at the next line.
"""

from __future__ import annotations

from zlib import crc32

from celery_trace.errors import TraceError
from celery_trace.model import FORMAT_VERSION, AnyRecord, decode

_PREFIX = b"%d " % FORMAT_VERSION


class CorruptLine(TraceError, ValueError):
    """A line that can't be read as a record; the text gives the reason."""


def pack(payload: bytes) -> bytes:
    """The line for one encoded record, with its line feed."""
    return b"%b%08x %b\n" % (_PREFIX, crc32(payload), payload)


def unpack(line: bytes) -> AnyRecord:
    """
    The record in a line (without its line feed).

    Raises:
        CorruptLine: The line was cut or altered, has another version, or holds an unknown record.
    """
    version, _, rest = line.partition(b" ")
    checksum, _, payload = rest.partition(b" ")
    if not version.isdigit() or len(checksum) != 8:
        raise CorruptLine("it does not begin with a version and a checksum")
    if version + b" " != _PREFIX:
        raise CorruptLine(f"its version is {version.decode()}, expected {FORMAT_VERSION}")
    try:
        expected = int(checksum, 16)
    except ValueError:
        raise CorruptLine("its checksum is not a number") from None
    if crc32(payload) != expected:
        raise CorruptLine("its checksum does not match: it was cut or altered")
    try:
        return decode(payload)
    except ValueError as error:  # msgspec.DecodeError and ValidationError are ValueErrors
        raise CorruptLine(f"it holds no known record: {error}") from None


# msgspec writes the tag first, and inside a JSON string the quotes would be escaped: counting these bytes counts
# records.
def opening(tag: str) -> bytes:
    """The bytes with which a record's JSON begins, after the checksum."""
    return b' {"record":"%b"' % tag.encode()
