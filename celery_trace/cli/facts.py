"""The subcommands that show the store's contents, and the one that opens a shell into a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, Unpack

import click

from celery_trace.cli.context import (
    KIND,
    NAME,
    SEARCH,
    SINCE,
    WORKER,
    CommandContext,
    Refusal,
    command,
    listing,
    unknown,
    user,
)
from celery_trace.cli.renderers import alerts as alert_text
from celery_trace.cli.renderers import attempts as attempt_text
from celery_trace.cli.renderers import failures as failure_text
from celery_trace.cli.renderers import leaks as leak_text
from celery_trace.cli.renderers import shells as shell_text
from celery_trace.cli.renderers import workers as worker_text
from celery_trace.cli.renderers.style import Style
from celery_trace.model import FailureDetail, Outcome, Verdict

if TYPE_CHECKING:
    from celery_trace.queries.filters import FailureFilter, LeakFilter

T = TypeVar("T")


@command
@listing(
    KIND, NAME, WORKER, SEARCH, SINCE,
    click.option("--verdict", type=click.Choice([verdict.value for verdict in Verdict]), default=None),
)  # fmt: skip
def leaks(context: CommandContext, limit: int, cursor: str | None, **filters: Unpack[LeakFilter]) -> None:
    """List leaks: how much per run, and where."""
    with context.store() as (_, queries):
        page = queries.leaks(limit=limit, cursor=cursor, **filters)
    context.page(page, leak_text.leaks(page.rows, context.style))


@command
@listing(
    KIND, NAME, WORKER, SEARCH, SINCE,
    click.option("--outcome", type=click.Choice([outcome.value for outcome in Outcome]), default=None),
    click.option("--task-id", default=None, help="Only this task's."),
    click.option("--fingerprint", default=None, help="Only this group's."),
    click.option("--live", is_flag=True, default=None, help="Only failures that a process still holds."),
)  # fmt: skip
def failures(context: CommandContext, limit: int, cursor: str | None, **filters: Unpack[FailureFilter]) -> None:
    """List failed, killed and lost runs, newest first."""
    with context.store() as (_, queries):
        page = queries.failures(limit=limit, cursor=cursor, **filters)
    context.page(page, failure_text.failures(page.rows, context.style))


@command
@listing(SINCE)
def workers(context: CommandContext, since_s: float | None, limit: int, cursor: str | None) -> None:
    """List workers and their processes, with memory and overhead."""
    with context.store() as (_, queries):
        page = queries.workers(since_s=since_s, limit=limit, cursor=cursor)
        forecasts = queries.forecasts()
        proposals = [(worker.name, found) for worker in page.rows if (found := queries.proposal(worker)) is not None]
    text = worker_text.workers(page.rows, context.style) + worker_text.forecasts(forecasts, proposals, context.style)
    context.page(page, text, forecasts=forecasts, proposals=dict(proposals))


# --- details ------------------------------------------------------------------------------------------------


@command
@click.argument("id")
def show(context: CommandContext, id: str) -> None:
    """
    Show a leak, failure, alert or shell session by its id.

    A failure is shown with all attempts of its task; with a task's id, only these are.
    """

    def is_shown(read: Callable[[str], T | None], text: Callable[[T, Style], str]) -> bool:
        found = read(id)
        if found is None:
            return False
        context.show(text(found, context.style), found)
        return True

    with context.store() as (_, queries):

        def failed(found: FailureDetail, style: Style) -> str:
            return failure_text.failure(found, style) + attempt_text.attempts(queries.attempts(found.task_id), style)

        if (
            is_shown(queries.failure, failed)
            or is_shown(queries.leak, leak_text.leak)
            or is_shown(queries.alert, lambda alert, style: alert_text.alerts([alert], style))
            or is_shown(queries.shell, shell_text.shell)
        ):
            return
        attempts = queries.attempts(id)
    if attempts:
        context.show(attempt_text.attempts(attempts, context.style, least=1), {"attempts": attempts})
        return
    raise unknown(id, "leak, failure, alert, shell session or task with attempts")


@command
@click.argument("id")
@click.option("--recreated", is_flag=True, help="Use the capture, even if the process still lives.")
def shell(context: CommandContext, id: str, recreated: bool) -> None:
    """Open a shell into a failure: live in the process that failed, or recreated from its capture."""
    if context.settings.shell == "off":
        raise Refusal("The shell is off (trace_shell = 'off'). Set CELERY_TRACE_SHELL=recreated to use captures.")
    with context.store() as (store, queries):
        if queries.failure_record(id) is None:
            raise unknown(id, "failure")
        from celery_trace.cli.terminal import run

        status = run(
            id, queries=queries, store=store, settings=context.settings, connect=context.app.connection_for_write,
            user=user(), live=not recreated,
        )  # fmt: skip
    if status:
        raise click.exceptions.Exit(status)
