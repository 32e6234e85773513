"""
Alert rules: one module per kind, all of them in :data:`celery_trace.alerting.rules.kinds.KINDS`.

A module ends with ``KIND``, a :class:`RuleKind`: the function that reads the facts, the facts that it needs, the unit
of its threshold, its defaults and its meaning. The engine fetches the facts, as far back as the rule's ``window``.
"""

from celery_trace.alerting.rules.configuration import (
    StoredRules,
    configured,
    describe,
    in_force,
    sentence,
    written,
)
from celery_trace.alerting.rules.kinds import KINDS, SHIPPED, evaluate, kind_of
from celery_trace.alerting.rules.leak import holder_of
from celery_trace.alerting.rules.rule import SEVERITIES, Facts, Reading, Rule, RuleKind
from celery_trace.alerting.rules.worker_silent import NO_WORKERS

__all__ = [
    "KINDS",
    "NO_WORKERS",
    "SEVERITIES",
    "SHIPPED",
    "Facts",
    "Reading",
    "Rule",
    "RuleKind",
    "StoredRules",
    "configured",
    "describe",
    "evaluate",
    "holder_of",
    "in_force",
    "kind_of",
    "sentence",
    "written",
]
