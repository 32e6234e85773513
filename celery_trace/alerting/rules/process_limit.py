"""The rule ``process_limit``: a process, or its container, grows and will reach its memory limit."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SHARE
from celery_trace.heap import forecasting
from celery_trace.text.format import size


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    # One subject per worker and limit, the process that reaches it first.
    for forecast in facts.forecasts:
        if not rule.wants(forecast.worker):
            continue
        later_bytes = forecast.used_bytes + forecast.bytes_per_hour / 3600 * rule.window_s
        yield Reading(
            subject=f"{forecast.worker} ({forecast.limit})",
            value=later_bytes / forecast.limit_bytes,
            text=f"{forecasting.who(forecast)} {forecasting.sentence(forecast)}; now {size(forecast.used_bytes)}.",
            link=link("workers", worker=forecast.worker),
        )


KIND = RuleKind(
    name="process_limit",
    read=_read,
    needs=("forecasts",),
    unit=SHARE,
    quantity="Share of the limit",
    shipped=Rule(
        rule="process_limit", name="process_limit", above=0.99, window_s=4 * 3600, for_s=60, clear=0.9,
        severity="warning",
    ),
    meaning="A growing process will have used more than `above` of its limit (worker_max_memory_per_child, its "
    "container's or the machine's memory) within `window`",
)  # fmt: skip
