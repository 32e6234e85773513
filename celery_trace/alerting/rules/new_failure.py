"""The rule ``new_failure``: a failure that was not known, or that came back after it was resolved."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind
from celery_trace.alerting.rules.units import COUNT
from celery_trace.model import FailureGroup, Outcome
from celery_trace.text.format import times


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for group in facts.groups:
        if group.outcome in {Outcome.REVOKED, Outcome.LOST}:  # a revoke was wanted; the rule `lost` reports kills
            continue
        newly = group.first_seen if group.state == "new" else group.last_seen
        if group.state not in {"new", "regressed"} or facts.now_s - newly > rule.window_s or not rule.wants(group.name):
            continue
        yield _reading(group)


def _reading(group: FailureGroup) -> Reading:
    raised = group.exception.type if group.exception else str(group.outcome)
    what = f"{raised}: {group.exception.message[:160]}" if group.exception else raised
    came = "New failure" if group.state == "new" else "A resolved failure is back"
    return Reading(
        subject=f"{group.kind} {group.name}: {raised} ({group.fingerprint[:8]})",
        value=float(group.count),
        text=f"{came} in {group.kind} {group.name}: {what} ({times(group.count)}).",
        link=f"failures/{group.latest_id}",
    )


KIND = RuleKind(
    name="new_failure",
    read=_read,
    needs=("groups",),
    unit=COUNT,
    quantity="Occurrences",
    shipped=Rule(rule="new_failure", name="new_failure", above=0, window_s=900, hold_s=0, severity="info"),
    meaning="A failure group that was not known before or is back after it was resolved, more than `above` times",
    happens=True,
    at_zero="A failure group appears that was not known before, or is back after it was resolved",
)
