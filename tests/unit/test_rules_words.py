"""Rules in words, and as a form has them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.alerting import rules


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
    assert rules.sentence(several) == "More than 3 runs of a name were lost to a kill within 1 h"
    assert all("`" not in rules.sentence(rule) for rule in rules.SHIPPED)
