"""The rule ``duplicate_runs``: a message is run twice, or is held so long that the broker will deliver it again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SHARE
from celery_trace.model import RepeatedRun
from celery_trace.text.format import duration, plural


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    repeated: dict[str, list[RepeatedRun]] = defaultdict(list)
    for run in facts.repeated_runs:
        if run.at > facts.now_s - rule.window_s:
            repeated[run.name].append(run)
    for name, runs in repeated.items():
        if rule.wants(name):
            last = runs[0]
            how = "while it ran" if last.overlapping else "after it had succeeded"
            yield Reading(
                subject=f"task {name}",
                value=float(len(runs)),
                text=f"{plural(len(runs), 'message')} of task {name} ran more than once within "
                f"{duration(rule.window_s)}; {last.task_id} was started again {how}, on {' and '.join(last.workers)}.",
                link=link("queues", queue=last.queue),
            )
    for risk in facts.redelivery_risks:
        if rule.wants(risk.name) and risk.name not in repeated:
            yield Reading(
                subject=f"task {risk.name}",
                value=risk.share,
                text=f"Messages of task {risk.name} stay unacknowledged for up to {duration(risk.held_s)} "
                f"({risk.why}); after {duration(risk.visibility_timeout_s)}, the visibility timeout of queue "
                f"{risk.queue}, the broker delivers them again.",
                link=link("queues", queue=risk.queue),
            )


KIND = RuleKind(
    name="duplicate_runs",
    read=_read,
    needs=("repeated_runs", "redelivery_risks"),
    unit=SHARE,
    quantity="Share of the visibility timeout",
    shipped=Rule(
        rule="duplicate_runs", name="duplicate_runs", above=0.8, window_s=3600, for_s=0, severity="warning"
    ),
    meaning="A message was started again within `window` while it ran or after it had succeeded; or messages stay "
    "unacknowledged for more than `above` of the visibility timeout, by their ETA or by the p99 of runs with acks_late",
)  # fmt: skip
