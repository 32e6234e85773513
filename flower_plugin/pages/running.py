"""Running: what runs now on every worker, and the stack of one run."""

from __future__ import annotations

from msgspec import Struct

from celery_trace.failures.views import arguments, frames, keywords
from celery_trace.model import FrameView, LocalValue, RunningView, RunStack
from celery_trace.queries import Queries
from celery_trace.running.client import StackUnavailable, with_stack
from celery_trace.text.code_owner import innermost_own
from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.failures import in_groups
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.problems import NotFound

#: Rows of the page: those that run longest.
MOST_ROWS = 300


class ShownRun(Struct, frozen=True, kw_only=True):
    """A row. ``place`` is its innermost line of user code."""

    run: RunningView
    place: str
    code: str


class Values(Struct, frozen=True, kw_only=True):
    """What a run was called with."""

    args: list[LocalValue] = []
    kwargs: list[LocalValue] = []


def _shown(run: RunningView, visit: Visit) -> ShownRun:
    own = innermost_own(run.stack, visit.paths.is_users)
    line = own or (run.stack[0] if run.stack else None)
    place = f"{visit.paths.short(line.file)}:{line.line}" if line is not None else ""
    return ShownRun(run=run, place=place, code=line.code if line is not None else "")


def listing(queries: Queries, visit: Visit) -> Context:
    """Every run in progress; stuck ones first, then those that began first."""
    found = queries.running().rows
    worker, name = visit.word("worker"), visit.word("name")
    wanted = [run for run in found if worker in ("", run.worker) and name in ("", run.name)]
    wanted.sort(key=lambda run: (not run.stuck, run.since))
    return {
        "rows": [_shown(run, visit) for run in wanted[:MOST_ROWS]],
        "total": len(wanted),
        "stuck": sum(run.stuck for run in wanted),
        "workers": sorted({run.worker for run in found}),
        "names": sorted({run.name for run in found}),
        "worker": worker,
        "name": name,
        "any": bool(found),
    }


def one(queries: Queries, visit: Visit, process: str, key: str) -> Context:
    """
    One run. Its stack is read from the process now, for users who may see locals; for others it is the last sample.

    Raises:
        NotFound: It does not run.
    """
    found = next((run for run in queries.running().rows if run.process == process and run.key == key), None)
    if found is None:
        raise NotFound(
            "This run is not in progress.",
            "It has ended, or its host has not reported for a while.",
            ("trace_running", "All that runs"),
        )
    shows_values = visit.may(UserRole.LOCALS)
    stack, why = _read(found, visit) if shows_values and not visit.refreshes else (None, "")
    run = with_stack(found, stack) if stack is not None else found
    capture = stack.capture if stack is not None else None
    shown = frames(capture) if capture is not None else _sampled(run)
    return {
        "title": f"{run.name} is running",
        "run": run,
        "why": why or run.stack_why,
        "groups": in_groups(shown, visit, first=True, sampled=capture is None),
        "heap": {"heap": capture.heap if capture is not None else []},
        "values": Values(args=arguments(capture), kwargs=keywords(capture)) if capture is not None else Values(),
        "shows_values": shows_values,
        "attempts": queries.attempts(run.task_id),
    }


def _read(run: RunningView, visit: Visit) -> tuple[RunStack | None, str]:
    try:
        return visit.monitor.stack(run, visit.user.name), ""
    except StackUnavailable as error:
        return None, f"{error.why}. {error.next}"


def _sampled(run: RunningView) -> list[FrameView]:
    """Frames without values."""
    return [
        FrameView(
            file=line.file, line=line.line, function=line.function, code=line.code, context=[], in_app=True, locals=[]
        )
        for line in run.stack
    ]


LIST = MonitorPage(
    path=r"/trace/running",
    name="trace_running",
    title="Running",
    template="trace/running.html",
    tab="running",
    context=listing,
    place=NavPlace.BAR,
)
ONE = MonitorPage(
    path=r"/trace/running/([^/]+)/([^/]+)",
    name="trace_run_in_progress",
    title="Running",
    template="trace/run_in_progress.html",
    tab="running",
    context=one,
)
