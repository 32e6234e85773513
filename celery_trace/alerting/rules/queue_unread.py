"""The rule ``queue_unread``: messages wait in a queue that no worker consumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import COUNT
from celery_trace.model import Consuming, QueueView
from celery_trace.text.format import duration, plural

#: Workers of which the reason is given in one alert.
_MOST_REASONS: Final = 3


def _why(queue: QueueView, facts: Facts, rule: Rule) -> str:
    """Why a queue counts as unread; empty if it does not."""
    grown = facts.depth_changes.get(queue.name, 0)
    if grown < 0 or queue.started:  # somebody takes messages
        return ""
    if not queue.consumers:
        return "no worker consumes it"
    workers = [state for state in facts.consuming if state.queue == queue.name]
    reasons = [reason for state in workers if (reason := _reason(state, facts))]
    if not grown and (not workers or len(reasons) < len(workers)):
        return ""
    started = f"none was started within {duration(rule.window_s)}, though {_consumed_by(queue.consumers)}"
    return ". ".join([started, *sorted(reasons)[:_MOST_REASONS]])


def _consumed_by(workers: int) -> str:
    return "a worker consumes it" if workers == 1 else f"{plural(workers, 'worker')} consume it"


def _reason(state: Consuming, facts: Facts) -> str:
    """Why a worker takes no messages from a queue; empty if that is unknown."""
    stalled = next((one for one in facts.stalled if one.process == state.process), None)
    if stalled is not None:
        since_s, because = stalled.since_s, f"its main thread is blocked, {stalled.waiting_for}".removesuffix(", ")
    elif state.idle_because:
        since_s, because = state.idle_since_s or state.at_s, state.idle_because
    else:
        return ""
    return f"{state.worker} has taken none for {duration(max(0.0, facts.now_s - since_s))}: {because}"


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for queue in facts.queues:
        if not queue.depth or not rule.wants(queue.name):
            continue
        why = _why(queue, facts, rule)
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
    needs=("queues", "depth_changes", "consuming", "stalled"),
    unit=COUNT,
    quantity="Waiting messages",
    shipped=Rule(
        rule="queue_unread", name="queue_unread", above=0, window_s=600, for_s=120, severity="critical"
    ),
    meaning="More than `above` messages wait in a queue that no worker consumes, or of which no message was started "
    "within `window` while it grew or while its workers were idle",
    at_zero="Messages wait in a queue that no worker consumes, or of which no message was started within `window` "
    "while it grew or while its workers were idle",
)  # fmt: skip
