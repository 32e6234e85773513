"""How facts read everywhere. The cases in ``format_cases.json`` hold for the page's script too."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.text import escape, format
from celery_trace.text.escape import escaped, escaped_lines

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "support" / "format_cases.json").read_text())
SHOWN = {
    "size": format.size,
    "signed_size": lambda number: format.size(number, signed=True),
    "duration": format.duration,
    "ago": lambda seconds: format.ago(1e9 - seconds, 1e9),
    "percent": format.percent,
    "count": format.count,
    "escaped": escaped,
    "escaped_lines": escaped_lines,
}


@pytest.mark.parametrize(
    ("figure", "value", "text"), [(figure, value, text) for figure in SHOWN for value, text in CASES[figure]]
)
def test_each_case_reads_as_the_table_says(figure: str, value: Any, text: str) -> None:
    assert SHOWN[figure](value) == text


def test_the_table_has_the_ranges_that_are_escaped() -> None:
    assert [tuple(pair) for pair in CASES["hidden"]] == list(escape.HIDDEN_RANGES)


#: Format characters that are seen: Arabic, Syriac and Kaithi marks before or around numbers.
_SEEN = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"


def test_every_control_and_format_character_of_unicode_is_escaped() -> None:
    characters = map(chr, range(sys.maxunicode + 1))
    hidden = [one for one in characters if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    left = [one for one in hidden if escaped(one) == one]
    assert "".join(left) == _SEEN


@given(st.text(alphabet=st.characters(), max_size=50))
def test_an_escaped_text_is_one_line_and_can_be_written(text: str) -> None:
    shown = escaped(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode("utf-8")
    assert escaped(shown) == shown
    assert len(shown.splitlines()) <= 1


@given(st.integers(0, 2**62))
def test_a_size_is_below_1024_of_its_unit(number_bytes: int) -> None:
    number, unit = format.size(number_bytes).split()
    assert float(number) < 1024 or unit == "TiB"
    assert format.size(-number_bytes).lstrip("-") == format.size(number_bytes)


@given(st.floats(0, 1e12))
def test_a_duration_has_one_unit_or_two(seconds: float) -> None:
    assert re.fullmatch(
        r"0 s|[\d.]+ (µs|ms|s)|\d+ min( \d+ s)?|\d+ h( \d+ min)?|\d+ d( \d+ h)?", format.duration(seconds)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "a minute"), (600, "10 min"), (2500, "40 min"), (3 * 3600 + 100, "3 h"), (50 * 3600, "2 d")],
)
def test_an_estimate_is_no_more_precise_than_it_deserves(seconds: float, text: str) -> None:
    assert format.about(seconds) == text


@pytest.mark.parametrize("at_s", [float("inf"), float("nan"), 1e300, -1e300])
def test_a_year_that_there_is_not_is_a_dash(at_s: float) -> None:
    assert format.moment(at_s) == format.moment(at_s, utc=True) == "–"


def test_a_moment_has_seconds_and_its_zone_where_it_is_not_the_readers() -> None:
    assert format.moment(1_700_000_000, utc=True) == "2023-11-14 22:13:20 UTC"
    assert re.fullmatch(r"2023-11-1\d \d\d:\d\d:20", format.moment(1_700_000_000))


def test_counts_in_words() -> None:
    assert [format.times(number) for number in (1, 2, 3, 1500)] == ["once", "twice", "3 times", "1,500 times"]
    assert [format.plural(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]
    assert format.clip("abcdef", 4) == "abc…"
