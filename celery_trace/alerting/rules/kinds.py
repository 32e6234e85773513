"""All kinds of alert rules, and the evaluation of one rule."""

from __future__ import annotations

from typing import cast

from celery_trace.alerting.rules import (
    duplicate_runs,
    failure_rate,
    leak,
    lost,
    missed_schedule,
    new_failure,
    process_limit,
    process_memory,
    queue_latency,
    queue_unread,
    spool_dropping,
    stuck,
    worker_silent,
)
from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind
from celery_trace.model import stable_id
from celery_trace.text.escape import escaped

#: In the order in which pages and the command line list them.
KINDS: tuple[RuleKind, ...] = (
    leak.KIND,
    process_memory.KIND,
    process_limit.KIND,
    failure_rate.KIND,
    new_failure.KIND,
    lost.KIND,
    stuck.KIND,
    spool_dropping.KIND,
    worker_silent.KIND,
    queue_latency.KIND,
    queue_unread.KIND,
    duplicate_runs.KIND,
    missed_schedule.KIND,
)

#: The rules if ``trace_alert_rules`` is not set.
SHIPPED: tuple[Rule, ...] = tuple(kind.shipped for kind in KINDS)

_MOST_SUBJECT, _MOST_TEXT = 200, 600


def kinds_by_name() -> dict[str, RuleKind]:
    """All kinds by their names."""
    return {kind.name: kind for kind in KINDS}


def kind_of(rule: Rule) -> RuleKind:
    """The kind of a rule."""
    return kinds_by_name()[rule.rule]


class _Needed:
    """
    The facts that one kind of rule needs; any other raises.

    The engine fetches only what the active rules need. Without this check, a rule that reads a fact it does not declare
    would work together with another rule that declares it, and never fire alone.
    """

    def __init__(self, facts: Facts, kind: RuleKind) -> None:
        self._facts = facts
        self._kind = kind

    def __getattr__(self, name: str) -> object:
        if name != "now_s" and name not in self._kind.needs:
            raise AttributeError(
                f"The alert rule {self._kind.name!r} reads the fact {name!r}, which its KIND does not declare. "
                f"Add {name!r} to its `needs`."
            )
        return getattr(self._facts, name)


def evaluate(rule: Rule, facts: Facts) -> list[Reading]:
    """
    All readings of one rule, the greatest value first; one for each subject.

    Raises:
        AttributeError: The rule reads a fact that is not in its kind's ``needs``.
    """
    kind = kind_of(rule)
    readings: dict[str, Reading] = {}
    for found in kind.read(cast("Facts", _Needed(facts, kind)), rule):
        reading = found._replace(subject=one_line(found.subject, _MOST_SUBJECT), text=one_line(found.text, _MOST_TEXT))
        known = readings.get(reading.subject)
        if known is None or reading.value > known.value:
            readings[reading.subject] = reading
    return sorted(readings.values(), key=lambda reading: (-reading.value, reading.subject))


def one_line(text: str, most: int) -> str:
    """
    One line of bounded length, without hidden characters: it goes to logs, mails and terminals, and parts of it come
    from a task.

    A cut line ends with a digest of the whole, so that it stays unique.
    """
    line = escaped(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 12]}… {stable_id(line)[:8]}"
