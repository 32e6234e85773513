"""The subcommand that lists queues."""

from __future__ import annotations

from celery_trace.cli.context import SINCE, CommandContext, command, listing
from celery_trace.cli.renderers import queues as queue_text


@command
@listing(SINCE)
def queues(context: CommandContext, since_s: float | None, limit: int, cursor: str | None) -> None:
    """List queues: how many messages wait, for how long, and who consumes them."""
    with context.store() as (_, queries):
        page = queries.queue_views(since_s=since_s, limit=limit, cursor=cursor)
        tasks = queries.task_flows(since_s=since_s)
        schedules = queries.schedules()
    text = queue_text.queues(page.rows, context.style)
    text += queue_text.tasks(tasks, context.style) + queue_text.schedules(schedules, context.style)
    context.page(page, text, tasks=tasks, schedules=schedules)
