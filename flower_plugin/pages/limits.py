"""Memory limits of workers' processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from celery_trace.alerting.rules import Rule, configured, in_force
from celery_trace.model import ProcessView, Role
from celery_trace.queries import Queries
from celery_trace.settings import SettingError
from flower_plugin.pages.page import Visit

#: The meaning of Celery's limit.
REPLACED = "max-memory-per-child"


class Limit(Struct, frozen=True):
    """A memory limit of a process: the threshold of an alert rule, or Celery's limit (``rule`` is None)."""

    bytes: float
    what: str
    rule: Rule | None


def limits(rules: Iterable[Rule], child_limit_bytes: float | None) -> list[Limit]:
    """The thresholds of alert rules, and Celery's ``worker_max_memory_per_child``."""
    found = [
        Limit(rule.above, f"threshold of the alert rule {rule.name}", rule)
        for rule in rules
        if rule.rule == "process_memory" and rule.above > 0
    ]
    if child_limit_bytes:
        found.append(Limit(child_limit_bytes, REPLACED, None))
    return found


def of_process(process: ProcessView, worker: str, known: Sequence[Limit]) -> list[Limit]:
    """The known limits that apply to a process. Celery's limit comes from the process, if it reports one."""
    found = [limit for limit in known if limit.rule is not None and limit.rule.wants(worker)]
    own = process.memory.child_limit_bytes if process.memory is not None else None
    if own:
        found.append(Limit(own, REPLACED, None))
    elif process.role is Role.CHILD:
        found += [limit for limit in known if limit.rule is None]
    return found


def limits_of(queries: Queries, visit: Visit) -> list[Limit]:
    """The limits that are known to this monitor."""
    try:
        rules = in_force(visit.settings.alert_rules, queries.alert_rules())
    except SettingError:
        rules = configured(visit.settings.alert_rules)  # the Alerts page shows the error
    return limits(rules, visit.monitor.child_limit_bytes)
