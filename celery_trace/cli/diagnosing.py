"""The subcommand that says what is known about a task, or what needs attention."""

from __future__ import annotations

import click

from celery_trace.cli.context import CommandContext, command
from celery_trace.cli.diagnosis import system, task
from celery_trace.cli.renderers import diagnosis as text
from celery_trace.errors import Unavailable


@command
@click.argument("task_id", required=False)
def diagnose(context: CommandContext, task_id: str | None) -> None:
    """
    Say what is known about TASK_ID, how, and what can't be known.

    Without an id, list what needs attention in the system, the most urgent first.
    """
    if task_id is not None:
        with context.store() as (_, queries):
            found = task.diagnose(task.Asked(task_id, queries, context.app, context.settings))
        context.show(text.diagnosis(found, context.style), found)
        return
    try:
        with context.store() as (_, queries):
            concerns = system.concerns(system.System(context.app, context.settings, queries, context.style.now_s))
    except Unavailable:  # which is the first concern
        concerns = system.concerns(system.System(context.app, context.settings, None, context.style.now_s))
    context.show(text.concerns(concerns, context.style), {"concerns": concerns})
