"""A line of the spool is read back as it was, or known to be damaged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_trace.model import AuditEntry, encode
from celery_trace.spool import CorruptLine, pack, unpack

RECORD = AuditEntry(id="a1", at_s=1.5, where="worker", command="x = 'é☃'")
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(command=texts, user=texts)
@settings(max_examples=100)
def test_any_record_comes_back_as_it_was(command, user):
    record = AuditEntry(id="a", at_s=0.25, where="monitor", command=command, user=user)
    line = pack(encode(record))
    assert line.count(b"\n") == 1
    assert unpack(line[:-1]) == record


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_a_line_with_one_flipped_bit_is_never_taken_for_a_record(at, bit):
    line = bytearray(pack(encode(RECORD))[:-1])
    at %= len(line)
    line[at] ^= 1 << bit
    try:
        record = unpack(bytes(line))
    except CorruptLine:
        return
    # Hexadecimal digits may change their case and still mean the same checksum.
    assert record == RECORD
    assert 2 <= at < 10


@given(end=st.integers(0, 200))
@settings(max_examples=100)
def test_a_line_that_was_cut_is_known_to_be(end):
    line = pack(encode(RECORD))[:-1]
    with pytest.raises(CorruptLine):
        unpack(line[: end % len(line)])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "does not begin"),
        (b"hello world", "does not begin"),
        (b"2" + pack(encode(RECORD))[1:-1], "version is 2"),
        (b"1 zzzzzzzz {}", "not a number"),
        (pack(b'{"record":"from the future"}')[:-1], "no known record"),
        (pack(b"[]")[:-1], "no known record"),
    ],
)
def test_a_foreign_line_is_refused_with_its_reason(line, why):
    with pytest.raises(CorruptLine, match=why):
        unpack(line)
