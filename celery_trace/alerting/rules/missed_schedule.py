"""The rule ``missed_schedule``: an entry of beat's schedule is due and was not published, or is published twice."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.model import ScheduleView
from celery_trace.text.format import duration


def overdue_s(entry: ScheduleView, now_s: float) -> float:
    """How long an entry has been due without a message, seconds; 0 if it is not."""
    if entry.due_at is None:
        return 0.0
    if now_s > entry.due_at:
        return now_s - entry.due_at
    before_s = entry.due_at - entry.interval_s  # the due time before the next one
    if entry.failed and (entry.published_at is None or entry.published_at < before_s - 1.0):
        return max(0.0, now_s - before_s)
    return 0.0


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for entry in facts.schedules:
        if not rule.wants(entry.entry):
            continue
        late_s = overdue_s(entry, facts.now_s)
        if entry.processes > 1:
            yield Reading(
                subject=entry.entry,
                value=rule.above + 1,
                text=f"Entry {entry.entry} is published by {entry.processes} schedulers: each of its runs "
                f"({entry.task}) happens more than once. Run one beat only.",
                link=link("queues"),
            )
        elif 0 < late_s <= rule.window_s:
            failed = " Publishing it fails." if entry.failed else ""
            yield Reading(
                subject=entry.entry,
                value=late_s,
                text=f"Entry {entry.entry} ({entry.task}, {entry.every}) was due {duration(late_s)} ago and is not "
                f"published.{failed} Does beat run?",
                link=link("queues"),
            )


KIND = RuleKind(
    name="missed_schedule",
    read=_read,
    needs=("schedules",),
    unit=SECONDS,
    quantity="Delay",
    shipped=Rule(
        rule="missed_schedule", name="missed_schedule", above=60, window_s=86400, hold_s=0, clear=1,
        severity="critical",
    ),
    meaning="An entry of beat's schedule has been due for more than `above` and was not published, or two schedulers "
    "publish it; given up after `window`",
    above_at_least=30,
    why_at_least="beat and the collector report every ten seconds",
)  # fmt: skip
