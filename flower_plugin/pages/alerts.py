"""Alerts: states, rules, channels and deliveries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from urllib.parse import urlsplit

from msgspec import Struct

from celery_trace.alerting.rules import SEVERITIES, SHIPPED, Rule, configured, in_force, kind_of, sentence, written
from celery_trace.model import AlertView, Page
from celery_trace.queries import Queries
from celery_trace.settings import SettingError
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.searching import asked

_ORDER = {"firing": 0, "pending": 1, "resolved": 2}
STATES = ("firing", "pending", "resolved")


def channel_name(url: str) -> str:
    """
    A channel's scheme and host, without secrets.

    Apprise URLs may have tokens anywhere in the path, so the path is not shown.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").strip()
    if not parts.scheme:
        return "(no scheme)"
    # Slack and others put their token in the place of the host.
    looks_like_host = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+|localhost|\d+(\.\d+){3}", host)
    return f"{parts.scheme}://{host}/…" if looks_like_host else f"{parts.scheme}:…" if host else f"{parts.scheme}:"


#: Label and hint of each key in the form of a rule. The label of `above` is the quantity of the rule.
LABELS = {
    "severity": ("Severity", ""),
    "for": ("For", "time above the threshold before the alert fires, such as 0s, 60s or 5m"),
    "hold": ("Resolve after", "time below the threshold before the alert is resolved, such as 10m"),
    "clear": ("Resolve below", "share of the threshold, such as 80%"),
    "repeat": ("Repeat every", "interval of reminders, such as 4h; 0s for none"),
    "window": ("Window", "time range that the rule evaluates, such as 15m or 24h"),
    "runs": ("Minimum runs", "a whole number"),
    "names": ("Names", "comma-separated patterns, such as shop.*; empty for all"),
}


class Field(Struct, frozen=True):
    """One input of a rule's form."""

    key: str
    label: str
    hint: str
    value: str


class ShownRule(Struct, frozen=True, kw_only=True):
    """A rule for the template: its sentence and its form fields."""

    kind: str
    name: str
    sentence: str
    severity: str
    fields: list[Field]


def described(rules: Iterable[Rule]) -> list[ShownRule]:
    """Rules for the template."""
    rows = []
    for rule in rules:
        values, kind = written(rule), kind_of(rule)
        labels = {"above": (f"{kind.quantity}, threshold", kind.unit.hint), **LABELS}
        fields = [Field(key, *labels[key], values[key]) for key in values if key in labels]
        rows.append(
            ShownRule(kind=rule.rule, name=rule.name, sentence=sentence(rule), severity=rule.severity, fields=fields)
        )
    return rows


def rank(alert: AlertView) -> tuple[int, bool, float]:
    """Sort key: firing, pending, resolved; within these unacknowledged first, then newest first."""
    return (_ORDER.get(alert.state, 3), bool(alert.acknowledged_by), -(alert.fired_at or alert.since))


def _of_state(queries: Queries, state: str, query: str) -> Page[AlertView]:
    return queries.alerts(state=state, query=query, limit=200)


def alerts(queries: Queries, visit: Visit) -> Context:
    """The context of the page."""
    wanted = asked(visit, "alerts")
    # One query per state, so that 200 resolved alerts do not hide a firing one.
    pages = [wanted.page(partial(_of_state, queries, one)) for one in STATES]
    found = [alert for page in pages for alert in page.rows]
    state = next((word for word in STATES if wanted.query == f"is:{word}"), "")
    rows = sorted(map(visit.alert, found), key=rank)
    stored, rules_error = queries.alert_rules(), ""
    try:
        rules = in_force(visit.settings.alert_rules, stored)
    except SettingError as error:
        rules, rules_error = configured(visit.settings.alert_rules), str(error)
    deliveries = queries.deliveries(limit=50).rows
    about = {alert.id: alert for alert in rows}
    for delivery in deliveries:
        if delivery.alert not in about and (alert := queries.alert(delivery.alert)) is not None:
            about[delivery.alert] = visit.alert(alert)
    return {
        "rows": rows,
        "state": state,
        "asked": wanted,
        "views": queries.saved_views(visit.user.name, "alerts"),
        "sort": "",
        "sorts": (),
        "filtered": bool(wanted.query),
        "states": STATES,
        "deliveries": deliveries,
        "about": about,
        "channels": [channel_name(url) for url in visit.settings.alert_channels],
        "rules": described(rules),
        "rules_set": stored,
        "rules_error": rules_error,
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
