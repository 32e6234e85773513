"""The rule ``lost``: runs were lost to a kill by the kernel, an operator or a crash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind
from celery_trace.alerting.rules.units import COUNT
from celery_trace.model import FailureSummary, Outcome
from celery_trace.text.format import duration, times


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    by_name: dict[tuple[str, str], list[FailureSummary]] = defaultdict(list)
    for failure in facts.losses:
        recent = facts.now_s - failure.at <= rule.window_s
        if failure.outcome is Outcome.LOST and recent and rule.wants(failure.name):
            by_name[failure.kind, failure.name].append(failure)
    for (kind, name), failures in by_name.items():
        latest = max(failures, key=lambda failure: failure.at)
        # A message that is redelivered after each kill is one failure with many kills.
        killed = sum(max(1, failure.kills) for failure in failures)
        where = latest.worker or latest.hostname
        yield Reading(
            subject=f"{kind} {name}",
            value=float(killed),
            text=f"{kind} {name} was killed while it ran ({times(killed)} in {duration(rule.window_s)}), "
            f"last on {where or 'an unknown host'}, pid {latest.pid}.",
            link=f"failures/{latest.id}",
        )


KIND = RuleKind(
    name="lost",
    read=_read,
    needs=("losses",),
    unit=COUNT,
    quantity="Lost runs",
    shipped=Rule(rule="lost", name="lost", above=0, window_s=900, hold_s=0, severity="critical"),
    meaning="More than `above` runs of a name were lost to a kill within `window`",
    happens=True,
    at_zero="A run was lost to a kill (out of memory, SIGKILL, a crash) within `window`",
)
