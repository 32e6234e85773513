"""
What needs attention in the system now, the most urgent first.

To add a check, write a function from :class:`System` to concerns, and add it to :data:`CHECKS`. A new alert rule is
checked without that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from celery_trace.alerting.facts import FactReader
from celery_trace.alerting.rules import evaluate
from celery_trace.alerting.rules.configuration import in_force, sentence
from celery_trace.cli import doctor
from celery_trace.model.diagnosis import Concern
from celery_trace.settings import Settings
from celery_trace.text.format import plural

if TYPE_CHECKING:
    from celery import Celery

    from celery_trace.queries import Queries

#: Checks of ``celery trace doctor`` about what happens now, and not about the installation.
_OF_THE_DOCTOR: Final = ("store", "collector", "broker")
_SEVERITIES: Final = {"fail": "critical", "warn": "warning"}
_ORDER: Final = ("critical", "warning", "info")
DAY_S: Final = 86400.0
#: Groups of failures that are listed.
MOST_GROUPS: Final = 3


class System(Struct, frozen=True):
    """What is checked. ``queries`` is None if the store can't be opened."""

    app: Celery
    settings: Settings
    queries: Queries | None
    now_s: float


def records_on_their_way(system: System) -> Iterator[Concern]:
    """The store, the collector and the broker, as the doctor sees them."""
    here = doctor.Installation(system.app, system.settings)
    for name, check in doctor.CHECKS:
        if name in _OF_THE_DOCTOR:
            for finding in check(here):
                if finding.level in _SEVERITIES:
                    how = f"celery trace doctor, check {finding.check}"
                    severity = _SEVERITIES[finding.level]
                    yield Concern(severity=severity, what=f"{name}: {finding.found}", how=how, next=finding.advice)


def alert_rules(system: System) -> Iterator[Concern]:
    """Everything over the threshold of an active alert rule: workers, leaks, failures, dropped records, limits."""
    if system.queries is None:
        return
    rules = in_force(system.settings.alert_rules, system.queries.alert_rules())
    facts = FactReader(system.queries).read(rules, system.now_s)
    for rule in rules:
        for reading in evaluate(rule, facts):
            if reading.value > rule.above:
                how = f"alert rule {rule.name}: {sentence(rule)}"
                next = f"/trace/{reading.link} of the monitor" if reading.link else ""
                yield Concern(severity=rule.severity, what=reading.text, how=how, next=next)


def failing_groups(system: System) -> Iterator[Concern]:
    """The groups with the most failures of the last day."""
    if system.queries is None:
        return
    page = system.queries.groups(state="open", sort="count", since_s=system.now_s - DAY_S, limit=MOST_GROUPS)
    for group in page.rows:
        error = f": {group.exception.type}" if group.exception is not None else ""
        what = f"{group.kind} {group.name} {group.outcome}{error}, {plural(group.count, 'time')} so far"
        next = f"celery trace failures --fingerprint {group.fingerprint}"
        yield Concern(severity="info", what=what, how="the most frequent groups of the last day", next=next)


#: All checks.
CHECKS: tuple[Callable[[System], Iterator[Concern]], ...] = (records_on_their_way, alert_rules, failing_groups)


def concerns(system: System) -> list[Concern]:
    """What needs attention, the most urgent first. A check that fails is a concern itself."""
    found: list[Concern] = []
    for check in CHECKS:
        try:
            found += check(system)
        except Exception as error:
            what = f"{check.__name__} can't be checked: {type(error).__name__}: {error}"[:300]
            found.append(Concern(severity="warning", what=what, how="this command", next="celery trace doctor"))
    return sorted(found, key=lambda concern: _ORDER.index(concern.severity))
