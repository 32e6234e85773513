"""JSON that somebody sent is read within bounds, and what is wrong with it is said."""

import json
import time

import pytest

from flower_plugin.web.wire import MOST_DEPTH, BadJson, check, read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), "nested too deeply"),
        (b"[" * 900 + b"]" * 900, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the name 'a' twice"),
        (b'{"x": {"type": 1, "type": 1}}', "the name 'type' twice"),
        (b"NaN", "no number in JSON"),
        (b"[Infinity, -Infinity]", "no number in JSON"),
        (b"1e400", "too large"),
        (b"-1e400", "too large"),
        (b"9223372036854775808", "too large"),
        (b"-9223372036854775809", "too large"),
        (b"9" * 100_000, "too large"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'"\xff"', "no UTF-8"),
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b"[1] [2]", "no JSON"),
        (b"\xef\xbb\xbf[]", "no JSON"),
        (b"[" + b"1," * 200_000 + b"1]", "at most 300,000 are read"),
    ],
)
def test_what_is_no_good_is_refused_with_what_is_wrong(text, said):
    with pytest.raises(BadJson, match=said):
        read(text, 300_000 if said.startswith("at most") else 10_000_000)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 2**63 - 1, 1.5, "ü 😀", {"rules": [{"rule": "leak", "above": 1}]}, [[[[]]]], {"": {}}],
)
def test_what_is_good_is_read_as_it_is(value):
    assert read(json.dumps(value), 10_000) == value
    assert read(json.dumps(value, ensure_ascii=False).encode(), 10_000) == value


def test_the_deepest_that_is_read_is_read():
    text = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert json.dumps(read(text, 10_000)) == text


def test_many_names_cost_no_more_than_reading_them():
    """A search of the whole list for each name would take minutes of the loop."""
    text = json.dumps({str(number): number for number in range(50_000)})[:-1] + ', "49999": 0}'
    begun_s = time.perf_counter()
    with pytest.raises(BadJson, match="'49999' twice"):
        read(text, 10_000_000)
    assert time.perf_counter() - begun_s < 5


def test_a_check_goes_into_tuples_and_keys():
    check(([1], {"a": (2,)}))
    with pytest.raises(BadJson, match="nested too deeply"):
        check(([[]],), 2)
