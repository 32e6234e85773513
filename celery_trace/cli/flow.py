"""The subcommands about messages: queues, and the timeline of a workflow."""

from __future__ import annotations

import click

from celery_trace.cli.context import SINCE, CommandContext, command, listing
from celery_trace.cli.renderers import queues as queue_text
from celery_trace.cli.renderers import timeline as timeline_text
from celery_trace.text.escape import escaped


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


@command
@click.argument("task_id")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def timeline(context: CommandContext, task_id: str, as_json: bool) -> None:
    """
    Show what waited and ran when in a workflow, by the id of its first task, of another one or of its request.

    The monitor knows more: it has seen Celery's events.
    """
    from celery_trace.queries import timelines

    with context.store() as (_, queries):
        found = timelines.read(queries, timelines.no_events, task_id, context.style.now_s)
    if not found.rows:
        raise click.ClickException(
            f"No workflow with the id {escaped(task_id)} is stored: its tasks succeeded without a row of their own, or "
            "were removed. See celery trace diagnose ID."
        )
    context.json = context.json or as_json
    context.show(timeline_text.timeline(found, context.style), found)
