"""Queues, the messages of tasks in them, and beat's schedule."""

from __future__ import annotations

from collections.abc import Iterable

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, table
from celery_trace.model import QueueView, ScheduleView, TaskFlow
from celery_trace.text.format import NONE, duration


def queues(rows: Iterable[QueueView], style: Style) -> str:
    """Queues, by name."""
    return table(
        [
            TableColumn("QUEUE", elastic=True), TableColumn("WAITING", right=True), TableColumn("OLDEST", right=True),
            TableColumn("WAIT (P50)", right=True), TableColumn("WAIT (P95)", right=True),
            TableColumn("PUBLISHED", right=True, spare=True), TableColumn("STARTED", right=True),
            TableColumn("CONSUMERS", right=True),
        ],
        (
            [
                (row.name, "bold"), NONE if row.depth is None else f"{row.depth:,}", duration(row.oldest_age_s),
                duration(row.wait_p50_s), duration(row.wait_p95_s), f"{row.published:,}", f"{row.started:,}",
                _consumers(row),
            ]
            for row in rows
        ),
        style,
        "No queue was used within this time. The monitor reads their length from the broker.",
    )  # fmt: skip


def _consumers(row: QueueView) -> str | tuple[str, str]:
    if row.consumers is None:
        return NONE
    return (str(row.consumers), "red") if row.depth and not row.consumers else str(row.consumers)


def tasks(rows: Iterable[TaskFlow], style: Style) -> str:
    """The messages of tasks, the most started first; empty without any."""
    found = list(rows)
    if not found:
        return ""
    return "\n" + table(
        [
            TableColumn("TASK", elastic=True), TableColumn("QUEUE", elastic=True),
            TableColumn("PUBLISHED", right=True, spare=True), TableColumn("STARTED", right=True),
            TableColumn("WAIT (P50)", right=True), TableColumn("WAIT (P95)", right=True),
            TableColumn("REDELIVERED", right=True, spare=True),
        ],
        (
            [
                row.name, row.queue, f"{row.published:,}", f"{row.started:,}", duration(row.wait_p50_s),
                duration(row.wait_p95_s), f"{row.redelivered:,}",
            ]
            for row in found
        ),
        style,
    )  # fmt: skip


def schedules(rows: Iterable[ScheduleView], style: Style) -> str:
    """The entries of beat's schedule; empty without any."""
    found = list(rows)
    if not found:
        return ""
    return "\n" + table(
        [
            TableColumn("ENTRY", elastic=True), TableColumn("TASK", elastic=True), TableColumn("EVERY", spare=True),
            TableColumn("LAST PUBLISHED", right=True), TableColumn("PUBLISHED", right=True),
            TableColumn("MISSED", right=True),
        ],
        (
            [
                row.entry, row.task, row.every, style.ago(row.published_at), f"{row.published:,}",
                (f"{row.missed:,}", "red") if row.missed else "0",
            ]
            for row in found
        ),
        style,
    )  # fmt: skip
