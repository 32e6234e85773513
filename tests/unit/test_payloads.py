"""A record in a row is the record that was written, whichever way it is stored."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_trace.stores.payloads import DeltaBase, is_difference, squeeze, unsqueeze


def capture(number, values=300):
    """JSON much like a capture's, of some 30 KB."""
    nodes = ",".join(
        f'["int","plain",{n * (number if n % 50 == 0 else 1)}],["str","plain","{n:x}-{n * n}"]' for n in range(values)
    )
    return f'{{"record":"failure","id":"f{number}","capture":{{"heap":[{nodes}]}}}}'.encode()


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=100_000), st.randoms(use_true_random=False))
def test_a_difference_to_any_record_gives_the_same_bytes_back(json, chance):
    changed = bytearray(json)
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(changed) + 1)
        changed[place : place + chance.randrange(40)] = chance.randbytes(chance.randrange(40))
    found = DeltaBase(json).difference(bytes(changed))
    if found is not None:
        assert DeltaBase(json).restored(found) == bytes(changed)


def test_like_records_take_a_tenth_whatever_their_length():
    for values in (300, 900, 3000):
        base = DeltaBase(capture(1, values))
        other = capture(7, values)
        difference = base.difference(other)
        assert is_difference(difference)
        assert len(difference) < len(squeeze(other)) / 10
        assert base.restored(difference) == other


def test_records_that_are_not_alike_have_no_difference():
    noise = random.Random(1).randbytes(3000).hex().encode()
    assert DeltaBase(capture(1)).difference(b'{"' + noise + b'"}') is None


def test_a_difference_that_was_cut_is_refused():
    base = DeltaBase(capture(1))
    with pytest.raises(Exception, match="incomplete"):
        base.restored(base.difference(capture(2))[:-3])


@given(st.binary(max_size=2000))
def test_what_is_squeezed_is_no_difference(payload):
    json = b"{" + payload
    assert not is_difference(squeeze(json))
    assert unsqueeze(squeeze(json)) == json
