"""The attempts of one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, state, table
from celery_trace.model import FailureSummary
from celery_trace.model.attempts import Attempt
from celery_trace.text.format import NONE, duration


def attempts(rows: Sequence[Attempt], style: Style, *, least: int = 2) -> str:
    """All attempts, if there are several; empty otherwise."""
    if len(rows) < least:
        return ""
    return "\n" + table(
        [
            TableColumn("ATTEMPT", right=True), TableColumn("OUTCOME"), TableColumn("AT", right=True),
            TableColumn("FOR", right=True), TableColumn("REDELIVERED", spare=True),
            TableColumn("EXCEPTION", elastic=True), TableColumn("WORKER", elastic=True, spare=True),
            TableColumn("ID", whole=True),
        ],
        (
            [
                row.retries + 1, state(row.outcome), style.ago(row.started_at or row.ended_at), _lasted(row),
                "redelivered" if row.redelivered else "", row.error or NONE,
                f"{row.worker} ({row.pid})" if row.pid else row.worker or NONE, row.failure or NONE,
            ]
            for row in rows
        ),
        style,
    )  # fmt: skip


def _lasted(row: Attempt) -> str:
    known = row.started_at is not None and row.ended_at is not None
    return duration(max(0.0, (row.ended_at or 0.0) - (row.started_at or 0.0))) if known else NONE


def by_task(rows: Iterable[FailureSummary]) -> list[tuple[FailureSummary, str]]:
    """
    The latest failure of each task, in the given order, with the outcomes of all its failures in these rows, oldest
    first; empty for one alone.
    """
    together: dict[str, list[FailureSummary]] = {}
    for row in rows:
        together.setdefault(row.task_id or row.id, []).append(row)
    latest = [max(found, key=lambda row: row.at) for found in together.values()]
    outcomes = [
        ", ".join(str(one.outcome) for one in sorted(found, key=lambda one: one.at)) if len(found) > 1 else ""
        for found in together.values()
    ]
    return list(zip(latest, outcomes, strict=True))
