"""Sizes that a worker's process must not outgrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from celery_trace.alerting.rules import Rule, configured, in_force
from celery_trace.model import ProcessView, Role
from celery_trace.queries import Queries
from celery_trace.settings import SettingError
from flower_plugin.pages.page import Visit

#: What a limit is that is not an alert rule's.
REPLACED = "where Celery replaces it"


class Limit(Struct, frozen=True):
    """A size that a process must not outgrow; ``rule`` is None where it is not an alert rule's."""

    bytes: float
    what: str
    rule: Rule | None


def limits(rules: Iterable[Rule], child_limit_bytes: float | None) -> list[Limit]:
    """What a process must not outgrow: the thresholds of rules, and Celery's ``worker_max_memory_per_child``."""
    found = [
        Limit(rule.above, f"where the alert {rule.name} fires", rule)
        for rule in rules
        if rule.rule == "process_memory" and rule.above > 0
    ]
    if child_limit_bytes:
        found.append(Limit(child_limit_bytes, REPLACED, None))
    return found


def of_process(process: ProcessView, worker: str, known: Sequence[Limit]) -> list[Limit]:
    """Those of the known limits that hold for a process; what Celery replaces it at is its own word, if it says so."""
    found = [limit for limit in known if limit.rule is not None and limit.rule.wants(worker)]
    own = process.memory.child_limit_bytes if process.memory is not None else None
    if own:
        found.append(Limit(own, REPLACED, None))
    elif process.role is Role.CHILD:
        found += [limit for limit in known if limit.rule is None]
    return found


def limits_of(queries: Queries, visit: Visit) -> list[Limit]:
    """The limits that hold for this monitor."""
    try:
        rules = in_force(visit.settings.alert_rules, queries.alert_rules())
    except SettingError:
        rules = configured(visit.settings.alert_rules)  # the Alerts page says what is wrong with the others
    return limits(rules, visit.monitor.child_limit_bytes)
