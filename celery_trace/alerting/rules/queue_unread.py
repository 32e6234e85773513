"""The rule ``queue_unread``: messages wait in a queue that no worker consumes."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import COUNT
from celery_trace.model import QueueView
from celery_trace.text.format import duration, plural


def _why(queue: QueueView, grown: int, rule: Rule) -> str:
    """Why a queue counts as unread; empty if it does not."""
    if grown < 0 or queue.started:  # somebody takes messages
        return ""
    if not queue.consumers:
        return "no worker consumes it"
    if grown:
        return (
            f"none was started within {duration(rule.window_s)}, though {plural(queue.consumers, 'worker')} consume it"
        )
    return ""


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for queue in facts.queues:
        if not queue.depth or not rule.wants(queue.name):
            continue
        why = _why(queue, facts.depth_changes.get(queue.name, 0), rule)
        if why:
            oldest = f", the oldest for {duration(queue.oldest_age_s)}" if queue.oldest_age_s else ""
            yield Reading(
                subject=queue.name,
                value=float(queue.depth),
                text=f"{plural(queue.depth, 'message')} wait in queue {queue.name}{oldest}: {why}.",
                link=link("queues", queue=queue.name),
            )


KIND = RuleKind(
    name="queue_unread",
    read=_read,
    needs=("queues", "depth_changes"),
    unit=COUNT,
    quantity="Waiting messages",
    shipped=Rule(
        rule="queue_unread", name="queue_unread", above=0, window_s=600, for_s=120, severity="critical"
    ),
    meaning="More than `above` messages wait in a queue that no worker consumes, or of which no message was started "
    "within `window` while it grew",
    at_zero="Messages wait in a queue that no worker consumes, or of which no message was started within `window` "
    "while it grew",
)  # fmt: skip
