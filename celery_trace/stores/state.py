"""The monitor's writes: alerts, deliveries, shell sessions, and resolved groups and leaks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from celery_trace.alerting.rules import StoredRules
from celery_trace.model import AlertView, Delivery, ShellLine, ShellView
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.mapping import text
from celery_trace.stores.statements import add_tallies, locked, upsert


def _changed(connection: sa.Connection) -> None:
    add_tallies(connection, tables.tallies, {"changes": 1})


def save_alert(connection: sa.Connection, alert: AlertView) -> None:
    """Insert or overwrite an alert."""
    upsert(connection, tables.alerts, [rows_of.ALERTS.row(alert)])
    _changed(connection)


def save_delivery(connection: sa.Connection, delivery: Delivery) -> None:
    """Insert or overwrite a delivery."""
    upsert(connection, tables.deliveries, [rows_of.DELIVERIES.row(delivery)])
    _changed(connection)


def add_shell(connection: sa.Connection, shell: ShellView) -> None:
    """Insert or overwrite a session, and add its lines."""
    upsert(connection, tables.shells, [rows_of.SHELLS.row(shell)])
    for line in shell.lines:
        _line(connection, shell.id, line)
    _changed(connection)


def add_shell_line(connection: sa.Connection, shell_id: str, line: ShellLine) -> None:
    """Add a line, or overwrite the line with its number."""
    _line(connection, shell_id, line)
    _changed(connection)


def _line(connection: sa.Connection, shell_id: str, line: ShellLine) -> None:
    row = rows_of.SHELL_LINES.row(line, id=f"{shell_id}:{line.seq}", shell=shell_id)
    upsert(connection, tables.shell_lines, [row])


def end_shell(connection: sa.Connection, shell_id: str, at_s: float, users: Sequence[str]) -> None:
    """Set a session's end, and add its users."""
    found = locked(connection, tables.shells, [shell_id])
    if shell_id in found:
        before: list[str] = msgspec.json.decode(found[shell_id].users or "[]")
        together = before + [user for user in users if user not in before]
        connection.execute(
            sa.update(tables.shells).where(tables.shells.c.id == shell_id).values(ended_at_s=at_s, users=text(together))
        )
        _changed(connection)


def resolve_group(connection: sa.Connection, fingerprint: str, by: str, at_s: float) -> None:
    """Record who resolved a group and when."""
    connection.execute(
        sa.update(tables.groups)
        .where(tables.groups.c.fingerprint == fingerprint)
        .values(resolved_at_s=at_s, resolved_by=by)
    )
    _changed(connection)


def resolve_leak(connection: sa.Connection, id: str, by: str, at_s: float) -> None:
    """Record who resolved a leak and when."""
    upsert(
        connection,
        tables.leak_state,
        [{"id": f"leak:{id}", "kind": "", "name": "", "at_s": at_s, "username": by}],
    )
    _changed(connection)


#: The key in ``meta`` of the rules that were set in the monitor.
RULES = "alert_rules"


def save_alert_rules(connection: sa.Connection, rules: StoredRules | None) -> None:
    """Save the rules set in the monitor; None restores the configured ones."""
    if rules is None:
        connection.execute(sa.delete(tables.meta).where(tables.meta.c.id == RULES))
    else:
        upsert(connection, tables.meta, [{"id": RULES, "value": text(rules)}])
    _changed(connection)
