"""The subcommands that show the store's contents, and the one that opens a shell into a failure."""

from __future__ import annotations

import time
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
from celery_trace.model import FailureDetail, Kind, Outcome, Verdict
from celery_trace.model.timelines import Timeline

if TYPE_CHECKING:
    from celery_trace.queries import Queries
    from celery_trace.queries.filters import FailureFilter, GroupFilter, LeakFilter

T = TypeVar("T")


#: The words of a search, see docs/monitor.md.
QUERY = click.argument("words", nargs=-1, metavar="[QUERY]...")


@command
@listing(
    QUERY, KIND, NAME, WORKER, SEARCH, SINCE,
    click.option("--verdict", type=click.Choice([verdict.value for verdict in Verdict]), default=None),
)  # fmt: skip
def leaks(
    context: CommandContext, words: tuple[str, ...], limit: int, cursor: str | None, **filters: Unpack[LeakFilter]
) -> None:
    """List leaks: how much per run, and where. QUERY is a search, such as task:shop.* since:2h."""
    with context.store() as (_, queries):
        filters["query"] = _joined(words)
        page = queries.leaks(limit=limit, cursor=cursor, **filters)
        blind = queries.not_looking()
    text = leak_text.leaks(page.rows, context.style) + leak_text.not_looking(blind, context.style)
    context.page(page, text, **({"not_looking": blind} if blind else {}))


def _joined(words: tuple[str, ...]) -> str:
    from celery_trace.queries.language import joined

    return joined(words)


@command
@listing(
    QUERY, KIND, NAME, WORKER, SEARCH, SINCE,
    click.option("--outcome", type=click.Choice([outcome.value for outcome in Outcome]), default=None),
    click.option("--task-id", default=None, help="Only this task's."),
    click.option("--fingerprint", default=None, help="Only this group's."),
    click.option("--live", is_flag=True, default=None, help="Only failures that a process still holds."),
    click.option("--each", is_flag=True, help="Each failure on its own; JSON and filters of single ones do so too."),
)  # fmt: skip
def failures(
    context: CommandContext,
    words: tuple[str, ...],
    limit: int,
    cursor: str | None,
    each: bool,
    **filters: Unpack[FailureFilter],
) -> None:
    """List failures by group, the last seen first. QUERY is a search, such as exception:KeyError order_id=7."""
    from celery_trace.queries import searches

    filters["query"] = query = _joined(words)
    single = any(filters.get(name) for name in ("worker", "task_id", "fingerprint", "live"))
    single = single or not searches.is_understood("groups", query)
    with context.store() as (_, queries):
        if not (each or single or context.json):
            of_groups: GroupFilter = {
                "kind": filters.get("kind"), "name": filters.get("name"), "outcome": filters.get("outcome"),
                "since_s": filters.get("since_s"), "search": filters.get("search"), "query": query,
            }  # fmt: skip
            groups = queries.groups(limit=limit, cursor=cursor, trends=False, **of_groups)
            context.page(groups, failure_text.groups(groups.rows, context.style))
            return
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
            text = failure_text.failure(found, style, _workflow(queries, found))
            return text + attempt_text.attempts(queries.attempts(found.task_id), style)

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


def _workflow(queries: Queries, found: FailureDetail) -> Timeline | None:
    """The stored tasks of the failure's workflow; None for a task on its own."""
    from celery_trace.queries import timelines

    if found.kind != Kind.TASK or not found.task_id:
        return None
    made = timelines.read(queries, timelines.no_events, found.root_id or found.task_id, time.time())
    return made if len(made.rows) > 1 else None


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
