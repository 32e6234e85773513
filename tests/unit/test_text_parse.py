"""Sizes, durations and shares as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.text.parse import (
    read_bytes,
    read_seconds,
    read_share,
    read_whole,
    written_bytes,
    written_seconds,
    written_share,
)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("100 KiB", 102400),
        ("1kb", 1000),
        ("1.5 MB", 1.5e6),
        ("7", 7),
        ("7 B", 7),
        ("2g", 2e9),
        ("1 TiB", 2**40),
        (5, 5),
    ],
)
def test_sizes_are_read(value: Any, number: float) -> None:
    assert read_bytes(value) == number


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("10 min", 600),
        ("4h", 14400),
        ("2d", 172800),
        ("1w", 604800),
        ("250ms", 0.25),
        (3, 3),
    ],
)
def test_times_are_read(value: Any, seconds: float) -> None:
    assert read_seconds(value) == seconds


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_whatever_is_not_understood_is_none_and_never_an_error(value: Any) -> None:
    for read in (read_bytes, read_seconds, read_share, read_whole):
        number = read(value)
        assert number is None or 0 <= number < float("inf")


@pytest.mark.parametrize("value", ["", "KiB", "1 XB", "-1", "1e9", "inf", "nan", "1,5", "٣"])
def test_what_could_mean_anything_is_not_guessed(value: str) -> None:
    assert read_bytes(value) is None
    assert read_seconds(value) is None


@given(st.integers(0, 10**15), st.integers(0, 366 * 86400), st.integers(0, 1000))
def test_what_is_written_reads_back_as_the_same_number(number_bytes: int, seconds: int, promille: int) -> None:
    assert read_bytes(written_bytes(number_bytes)) == number_bytes
    assert read_seconds(written_seconds(seconds)) == seconds
    assert read_share(written_share(promille / 1000)) == pytest.approx(promille / 1000)
