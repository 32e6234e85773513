"""Alerts: states, rules, channels, and what was delivered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from msgspec import Struct

from celery_trace.alerting.rules import SEVERITIES, SHIPPED, Rule, configured, in_force, kind_of, sentence, written
from celery_trace.model import AlertView
from celery_trace.queries import Queries
from celery_trace.settings import SettingError
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit

_ORDER = {"firing": 0, "pending": 1, "resolved": 2}
STATES = ("firing", "pending", "resolved")


def channel_name(url: str) -> str:
    """
    A channel without its secrets: scheme and host.

    Apprise URLs hide tokens anywhere in the path, so nothing of it is shown.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").strip()
    if not parts.scheme:
        return "(no scheme)"
    # Slack and others put their token where a host would stand.
    looks_like_host = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+|localhost|\d+(\.\d+){3}", host)
    return f"{parts.scheme}://{host}/…" if looks_like_host else f"{parts.scheme}:…" if host else f"{parts.scheme}:"


#: What the keys of a rule are called in a form, and what may be written there; `above` is the rule's own quantity.
LABELS = {
    "severity": ("Severity", ""),
    "for": ("For at least", "how long it must hold before it fires: 0s, 60s, 5m"),
    "hold": ("Ends after", "how long it must be over before it is resolved: 10m"),
    "clear": ("Over below", "share of the threshold: 80%"),
    "repeat": ("Remind every", "0s for never: 4h"),
    "window": ("Looks back", "15m, 24h"),
    "runs": ("At least runs", "a whole number"),
    "names": ("Only these names", "patterns with commas between, such as shop.*; empty for all"),
}


class Field(Struct, frozen=True):
    """One input of a rule's form."""

    key: str
    label: str
    hint: str
    value: str


class ShownRule(Struct, frozen=True, kw_only=True):
    """A rule as the page shows it: its sentence, and the fields that change it."""

    kind: str
    name: str
    sentence: str
    severity: str
    fields: list[Field]


def described(rules: Iterable[Rule]) -> list[ShownRule]:
    """Rules for the page."""
    rows = []
    for rule in rules:
        values, kind = written(rule), kind_of(rule)
        labels = {"above": (f"{kind.quantity}, more than", kind.unit.hint), **LABELS}
        fields = [Field(key, *labels[key], values[key]) for key in values if key in labels]
        rows.append(
            ShownRule(kind=rule.rule, name=rule.name, sentence=sentence(rule), severity=rule.severity, fields=fields)
        )
    return rows


def rank(alert: AlertView) -> tuple[int, bool, float]:
    """Firing before pending before resolved; what nobody has looked at first; newest first."""
    return (_ORDER.get(alert.state, 3), bool(alert.acknowledged_by), -(alert.fired_at or alert.since))


def alerts(queries: Queries, visit: Visit) -> Context:
    """All alerts with what can be done about them."""
    state = visit.word("state", STATES)
    # State by state: two hundred that are resolved do not hide one that fires.
    found = [alert for one in ((state,) if state else STATES) for alert in queries.alerts(state=one, limit=200).rows]
    rows = sorted(map(visit.alert, found), key=rank)
    stored, complaint = queries.alert_rules(), ""
    try:
        rules = in_force(visit.settings.alert_rules, stored)
    except SettingError as error:
        rules, complaint = configured(visit.settings.alert_rules), str(error)
    deliveries = queries.deliveries(limit=50).rows
    about = {alert.id: alert for alert in rows}
    for delivery in deliveries:
        if delivery.alert not in about and (alert := queries.alert(delivery.alert)) is not None:
            about[delivery.alert] = visit.alert(alert)
    return {
        "rows": rows,
        "state": state,
        "states": STATES,
        "deliveries": deliveries,
        "about": about,
        "channels": [channel_name(url) for url in visit.settings.alert_channels],
        "rules": described(rules),
        "rules_set": stored,
        "rules_complaint": complaint,
        "kinds": described(SHIPPED),
        "severities": SEVERITIES,
        "own_rules": visit.settings.alert_rules is not None,
        "silenced": lambda alert: bool(alert.silenced_until and alert.silenced_until > visit.now_s),
    }


PAGE = MonitorPage(
    path=r"/trace/alerts",
    name="trace_alerts",
    title="Alerts",
    template="trace/alerts.html",
    tab="alerts",
    context=alerts,
    place=NavPlace.BAR,
)
