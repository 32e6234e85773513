"""The language of searches: what is understood, and what is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.queries.language import (
    LONGEST,
    BadSearch,
    Qualifier,
    Suggestion,
    read,
    suggestions_of_names,
    word_at_end,
    written,
)

NOW_S = 1_764_504_000.0  # 2025-11-30T12:00 UTC
QUALIFIERS = {
    one.name: one
    for one in (
        Qualifier(name="task", meaning="the task"), Qualifier(name="since", meaning="since", is_time=True),
        Qualifier(name="is", meaning="the state", words=("new", "live")),
        Qualifier(name="message", meaning="the message", reads_values=True),
    )
}  # fmt: skip


def terms(text):
    found = read(text, QUALIFIERS, NOW_S)
    return [("-" if term.negative else "") + term.qualifier.name + ":" + "|".join(term.values) for term in found.terms]


def test_a_search_has_qualifiers_and_texts():
    found = read('task:shop.* -is:live order_id=7  "no such card" since:2h x', QUALIFIERS, NOW_S)
    assert found.texts == ("order_id=7", "no such card", "x")
    assert [term.qualifier.name for term in found.terms] == ["task", "is", "since"]
    assert found.of("since")[0].at_s == NOW_S - 7200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task:a", ["task:a"]), ("task:a,b", ["task:a|b"]), ('task:"a, b",c', ["task:a, b|c"]),
        ("-task:a*", ["-task:a*"]),
        ("task:celery@x:y", ["task:celery@x:y"]), ('task:"unclosed word', ["task:unclosed word"]), ("task: a", []),
        ('"task:a"', []), ("http://x/y", []), ("KeyError:x", []), ("", []), ("   ", []),
    ],
)  # fmt: skip
def test_words_are_qualifiers_or_text(text, expected):
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("tsak:a", "Did you mean task"), ("nothing:a", "Unknown qualifier 'nothing'"), ("is:old", "one of new, live"),
        ("since:soon", "Invalid time 'soon'"), ("since:1h,2h", "Invalid time"), ("-since:1h", "Invalid time"),
        ("task:,", "no value"), ("a b c d e", "too many words"), ("x" * (LONGEST + 1), "too long"),
        ("task:a " * 21, "too long"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_the_reason(text, what):
    with pytest.raises(BadSearch, match=what):
        read(text, QUALIFIERS, NOW_S)


@pytest.mark.parametrize(
    ("value", "at_s"),
    [
        ("2h", NOW_S - 7200), ("7d", NOW_S - 7 * 86400), ("2025-11-30", NOW_S - 12 * 3600),
        ("2025-11-30T11:30", NOW_S - 1800),
        ("2025-11-30T12:30:00+01:00", NOW_S - 1800),
    ],
)  # fmt: skip
def test_a_time_is_an_age_or_a_date(value, at_s):
    assert read(f"since:{value}", QUALIFIERS, NOW_S).terms[0].at_s == at_s


def test_a_term_fits_texts_as_the_database_would():
    (wild,) = read("task:shop.*_1", QUALIFIERS, NOW_S).terms
    assert wild.fits("shop.pay_1")
    assert wild.fits("SHOP.pay_1")
    assert not wild.fits("shop.payx1")
    (exact,) = read("task:shop.pay", QUALIFIERS, NOW_S).terms
    assert (exact.fits("shop.pay"), exact.fits("Shop.pay"), exact.exact) == (True, False, "shop.pay")
    (negative,) = read("-task:shop.pay,shop.mail", QUALIFIERS, NOW_S).terms
    assert (negative.fits("shop.mail"), negative.fits("shop.x"), negative.exact) == (False, True, None)


def test_what_reads_values_is_known():
    for text, reads in (("task:a since:1h", False), ("message:a", True), ("a", True), ("x=1", True), ("", False)):
        assert read(text, QUALIFIERS, NOW_S).reads_values is reads


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text):
    with suppress(BadSearch):
        found = read(text, QUALIFIERS, NOW_S)
        assert all(term.values for term in found.terms)


@given(st.text(st.characters(exclude_characters='"\0', exclude_categories=("Cs",)), min_size=1, max_size=30))
def test_a_written_value_is_read_as_it_was(value):
    stripped = value
    if not stripped.strip():
        return
    assert terms(written("task", stripped)) == [f"task:{stripped}"]


def test_the_last_word_is_completed():
    assert word_at_end("a task:sh") == (2, "task:sh")
    assert word_at_end("a ") == (2, "")
    assert word_at_end('task:"a b') == (0, 'task:"a b')
    assert suggestions_of_names("x ta", QUALIFIERS.values()) == [Suggestion(2, "task:", "the task")]
    assert suggestions_of_names("-is:n", QUALIFIERS.values(), ["new"]) == [Suggestion(0, "-is:new ")]
    assert suggestions_of_names("task:", QUALIFIERS.values(), ["a b"])[0].text == 'task:"a b" '
