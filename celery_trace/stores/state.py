"""What the monitor writes: alerts, deliveries, shell sessions, and what somebody declared as dealt with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from celery_trace.alerting.rules import StoredRules
from celery_trace.model import AlertView, Delivery, ShellLine, ShellView
from celery_trace.stores import schema
from celery_trace.stores.rows import text
from celery_trace.stores.statements import add_tallies, locked, upsert


def _changed(connection: sa.Connection) -> None:
    add_tallies(connection, schema.tallies, {"changes": 1})


def save_alert(connection: sa.Connection, alert: AlertView) -> None:
    """Insert or overwrite an alert."""
    upsert(
        connection,
        schema.alerts,
        [
            {
                "id": alert.id,
                "rule": alert.rule,
                "subject": alert.subject,
                "state": alert.state,
                "severity": alert.severity,
                "text": alert.text,
                "value": alert.value,
                "threshold": alert.threshold,
                "since_s": alert.since,
                "fired_at_s": alert.fired_at,
                "resolved_at_s": alert.resolved_at,
                "acknowledged_by": alert.acknowledged_by,
                "acknowledged_at_s": alert.acknowledged_at,
                "silenced_until_s": alert.silenced_until,
                "link": alert.link,
                "count": alert.count,
            }
        ],
    )
    _changed(connection)


def save_delivery(connection: sa.Connection, delivery: Delivery) -> None:
    """Insert or overwrite a delivery."""
    upsert(
        connection,
        schema.deliveries,
        [
            {
                "id": delivery.id,
                "alert": delivery.alert,
                "channel": delivery.channel,
                "at_s": delivery.at,
                "ok": delivery.ok,
                "error": delivery.error,
                "attempt": delivery.attempt,
            }
        ],
    )
    _changed(connection)


def add_shell(connection: sa.Connection, shell: ShellView) -> None:
    """Insert or overwrite a session, and add the lines that it has."""
    upsert(
        connection,
        schema.shells,
        [
            {
                "id": shell.id,
                "failure": shell.failure,
                "mode": shell.mode,
                "started_at_s": shell.started_at,
                "ended_at_s": shell.ended_at,
                "users": text(shell.users),
            }
        ],
    )
    for line in shell.lines:
        _line(connection, shell.id, line)
    _changed(connection)


def add_shell_line(connection: sa.Connection, shell_id: str, line: ShellLine) -> None:
    """Add a line, or overwrite the one with its number."""
    _line(connection, shell_id, line)
    _changed(connection)


def _line(connection: sa.Connection, shell_id: str, line: ShellLine) -> None:
    upsert(
        connection,
        schema.shell_lines,
        [
            {
                "id": f"{shell_id}:{line.seq}",
                "shell": shell_id,
                "seq": line.seq,
                "at_s": line.at,
                "username": line.user,
                "kind": line.kind,
                "text": line.text,
            }
        ],
    )


def end_shell(connection: sa.Connection, shell_id: str, at_s: float, users: Sequence[str]) -> None:
    """Set a session's end, and add to who took part."""
    found = locked(connection, schema.shells, [shell_id])
    if shell_id in found:
        before: list[str] = msgspec.json.decode(found[shell_id].users or "[]")
        together = before + [user for user in users if user not in before]
        connection.execute(
            sa.update(schema.shells).where(schema.shells.c.id == shell_id).values(ended_at_s=at_s, users=text(together))
        )
        _changed(connection)


def resolve_group(connection: sa.Connection, fingerprint: str, by: str, at_s: float) -> None:
    """Note who dealt with a group and when."""
    connection.execute(
        sa.update(schema.groups)
        .where(schema.groups.c.fingerprint == fingerprint)
        .values(resolved_at_s=at_s, resolved_by=by)
    )
    _changed(connection)


def resolve_leak(connection: sa.Connection, id: str, by: str, at_s: float) -> None:
    """Note who dealt with a leak and when."""
    upsert(
        connection,
        schema.leak_state,
        [{"id": f"leak:{id}", "kind": "", "name": "", "at_s": at_s, "username": by}],
    )
    _changed(connection)


#: Where the rules that somebody set in the monitor stand among the store's facts.
RULES = "alert_rules"


def save_alert_rules(connection: sa.Connection, rules: StoredRules | None) -> None:
    """Keep the rules that somebody set, or None to go back to the configured ones."""
    if rules is None:
        connection.execute(sa.delete(schema.meta).where(schema.meta.c.id == RULES))
    else:
        upsert(connection, schema.meta, [{"id": RULES, "value": text(rules)}])
    _changed(connection)
