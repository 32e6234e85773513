"""Alerts: states, rules, channels, and what was delivered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from celery_trace.model import AlertView
from celery_trace.rules import Rule, configured, describe
from flower_plugin.pages.page import Context, Page, Visit
from flower_plugin.roles import Role
from flower_plugin.values import without_words
from flower_plugin.wording import duration, size_text

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


def described(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """Rules as rows: ``name``, ``meaning`` and the rest as ``name, value`` pairs."""
    rows = []
    for rule in rules:
        fields = describe(rule)
        meaning = str(fields.pop("meaning", "")).replace("`", "")
        unit = fields.pop("unit", "")
        if unit == "bytes" and fields.get("above") is not None:
            fields["above"] = size_text(fields["above"])
        name = str(fields.pop("name", "") or fields["rule"])
        if fields.get("rule") == name:
            del fields["rule"]
        rest = [
            (key.removesuffix("_s"), duration(value) if key.endswith("_s") else value)
            for key, value in fields.items()
            if value not in (None, "", (), [], False)
        ]
        rows.append({"name": name, "meaning": meaning, "fields": rest})
    return rows


def rank(alert: AlertView) -> tuple[Any, ...]:
    """Firing before pending before resolved; what nobody has looked at first; newest first."""
    return (_ORDER.get(alert.state, 3), bool(alert.acknowledged_by), -(alert.fired_at or alert.since))


def alerts(queries: Any, visit: Visit) -> Context:
    """All alerts with what can be done about them."""
    state = visit.word("state", STATES)
    page = queries.alerts(**({"state": state} if state else {}), limit=200)
    shows_values = visit.may(Role.LOCALS)
    rows = sorted((alert if shows_values else without_words(alert) for alert in page.rows), key=rank)
    return {
        "rows": rows,
        "state": state,
        "states": STATES,
        "deliveries": queries.deliveries(limit=50).rows,
        "channels": [channel_name(url) for url in visit.settings.alert_channels],
        "rules": described(configured(visit.settings.alert_rules)),
        "own_rules": visit.settings.alert_rules is not None,
        "silenced": lambda alert: bool(alert.silenced_until and alert.silenced_until > visit.now_s),
    }


PAGE: Page = Page(
    path=r"/trace/alerts",
    name="trace_alerts",
    title="Alerts",
    template="trace/alerts.html",
    tab="alerts",
    context=alerts,
)
