"""The rule ``queue_latency``: messages of a queue wait too long before they are run."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.text.format import duration, plural


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for queue in facts.queues:
        if queue.wait_p95_s is None or queue.started < rule.runs or not rule.wants(queue.name):
            continue
        waiting = f"; {plural(queue.depth, 'message')} wait now" if queue.depth else ""
        yield Reading(
            subject=queue.name,
            value=queue.wait_p95_s,
            text=f"Of the runs from queue {queue.name} in the last {duration(rule.window_s)}, one in twenty waited "
            f"longer than {duration(queue.wait_p95_s)}{waiting}.",
            link=link("queues", queue=queue.name),
        )


KIND = RuleKind(
    name="queue_latency",
    read=_read,
    needs=("queues",),
    unit=SECONDS,
    quantity="Wait (p95)",
    shipped=Rule(
        rule="queue_latency", name="queue_latency", above=300, window_s=900, runs=20, for_s=60, severity="warning"
    ),
    meaning="Of the runs from a queue within `window`, at least `runs`, one in twenty waited longer than `above` from "
    "its publication, or its ETA",
)
