"""Numbers as people write and read them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.alerting import rules
from celery_trace.words import duration, read_bytes, read_seconds, read_share, read_whole, size, times


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**40, "1024.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_fits(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (45, "45 s"), (900, "15 min"), (7500, "2 h 5 min"), (7200, "2 h"), (3 * 86400, "3 d")],
)
def test_seconds_are_shown_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_are_words() -> None:
    assert [times(count) for count in (1, 2, 3)] == ["once", "twice", "3 times"]


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


@pytest.mark.parametrize("rule", rules.SHIPPED, ids=lambda rule: rule.name)
def test_a_rule_as_written_in_the_form_reads_back_as_the_same_rule(rule):
    entry = {key: value for key, value in rules.written(rule).items() if value}
    assert rules.configured([entry]) == (rule,)


@given(
    st.integers(0, 2**50), st.integers(0, 40 * 86_400), st.integers(0, 10_000), st.integers(0, 100),
    st.lists(st.text("abc.*", min_size=1), max_size=3),
)  # fmt: skip
def test_whatever_a_form_shows_is_what_holds(above, seconds, runs, clear, names):
    rule = msgspec.structs.replace(
        rules.SHIPPED[0], above=float(above), for_s=float(seconds), runs=runs, clear=clear / 100, names=tuple(names)
    )
    entry = {key: value for key, value in rules.written(rule).items() if value}
    (read,) = rules.configured([entry])
    assert (read.above, read.for_s, read.runs, read.names) == (rule.above, rule.for_s, rule.runs, rule.names)
    assert read.clear == pytest.approx(rule.clear)


def test_a_sentence_tells_the_rules_own_values():
    (lost, several) = rules.configured([{"rule": "lost"}, {"rule": "lost", "name": "many", "above": 3, "window": "1h"}])
    assert rules.sentence(lost) == "A run was lost to a kill (out of memory, SIGKILL, a crash) within 15 min"
    assert rules.sentence(several) == "More than 3 runs of a name were lost to a kill within 60 min"
    assert all("`" not in rules.sentence(rule) for rule in rules.SHIPPED)
