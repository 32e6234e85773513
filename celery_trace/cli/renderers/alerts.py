"""Alerts, their deliveries and the rules in force."""

from __future__ import annotations

from collections.abc import Iterable

from celery_trace.alerting.rules.rule import Rule, RuleKind
from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, state, table
from celery_trace.model import AlertView, Delivery
from celery_trace.text.format import NONE, duration, moment, times


def alerts(rows: Iterable[AlertView], style: Style) -> str:
    """A table of alerts."""
    return table(
        [
            TableColumn("STATE"), TableColumn("SEVERITY", spare=True), TableColumn("RULE"),
            TableColumn("SINCE", right=True),
            TableColumn("TEXT", elastic=True), TableColumn("NOTE", elastic=True), TableColumn("ID", whole=True),
        ],
        (
            [
                state(alert.state), alert.severity, alert.rule, style.ago(alert.fired_at or alert.since), alert.text,
                _note(alert, style), alert.id,
            ]
            for alert in rows
        ),
        style,
        "No alerts. Rules are evaluated while the monitor runs, and by `celery trace alerts --evaluate`.",
    )  # fmt: skip


def _note(alert: AlertView, style: Style) -> str:
    notes = []
    if alert.acknowledged_by:
        notes.append(f"acknowledged by {alert.acknowledged_by}")
    if (alert.silenced_until or 0.0) > style.now_s:
        notes.append(f"silenced until {moment(alert.silenced_until or 0.0)}")
    if alert.count > 1:
        notes.append(f"fired {times(alert.count)}")
    return ", ".join(notes)


def deliveries(rows: Iterable[Delivery], style: Style) -> str:
    """The delivery log."""
    return table(
        [
            TableColumn("AT"), TableColumn("RESULT"), TableColumn("CHANNEL"), TableColumn("ATTEMPT", right=True),
            TableColumn("ALERT", whole=True), TableColumn("ERROR", elastic=True),
        ],
        (
            [
                moment(delivery.at), ("ok", "green") if delivery.ok else ("failed", "red"), delivery.channel,
                delivery.attempt, delivery.alert, delivery.error,
            ]
            for delivery in rows
        ),
        style,
        "No deliveries yet.",
    )  # fmt: skip


def rules(in_force: Iterable[tuple[Rule, RuleKind]], style: Style) -> str:
    """Rules and their kinds."""
    return table(
        [
            TableColumn("RULE"), TableColumn("SEVERITY", spare=True), TableColumn("ABOVE", right=True),
            TableColumn("FOR", right=True), TableColumn("HOLD", right=True, spare=True),
            TableColumn("REPEAT", right=True, spare=True),
            TableColumn("MEANING", elastic=True),
        ],
        (
            [
                rule.name, rule.severity, kind.unit.in_words(rule.above), _time(rule.for_s), _time(rule.hold_s),
                _time(rule.repeat_s), kind.meaning,
            ]
            for rule, kind in in_force
        ),
        style,
        "No rules: trace_alert_rules is empty.",
    )  # fmt: skip


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else NONE
