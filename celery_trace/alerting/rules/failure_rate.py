"""The rule ``failure_rate``: a large share of a name's runs fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SHARE
from celery_trace.model import Rollup
from celery_trace.text.format import duration, percent


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    since_s = facts.now_s - rule.window_s
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for rollup in facts.rollups:
        if rollup.bucket_s + Rollup.BUCKET_S > since_s and rule.wants(rollup.name):
            total = totals[str(rollup.kind), rollup.name]
            total[0] += rollup.runs
            total[1] += rollup.failed
    for (kind, name), (runs, failed) in totals.items():
        if failed and runs >= rule.runs:
            yield Reading(
                subject=f"{kind} {name}",
                value=failed / runs,
                text=f"{failed} of {runs} runs of {kind} {name} failed in the last {duration(rule.window_s)} "
                f"({percent(failed / runs)}; threshold {percent(rule.above)}).",
                link=link("failures", name=name),
            )


KIND = RuleKind(
    name="failure_rate",
    read=_read,
    needs=("rollups",),
    unit=SHARE,
    quantity="Failed runs",
    shipped=Rule(
        rule="failure_rate", name="failure_rate", above=0.2, window_s=900, runs=20, for_s=60, severity="warning"
    ),
    meaning="More than `above` of a name's runs failed within `window`, of at least `runs` runs",
)
