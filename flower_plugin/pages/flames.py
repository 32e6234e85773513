"""Kept memory of one name as a flame graph, and how it differs from another time or release."""

from __future__ import annotations

from celery_trace.heap import flames
from celery_trace.model import Line
from celery_trace.queries import Queries
from flower_plugin.pages.page import RANGES, Context, MonitorPage, Visit
from flower_plugin.trouble import NotFound

#: Lines of the table below the graph.
MOST_LINES = 12
#: What an age in ``compare`` is called.
AGES = {"1h": "an hour ago", "6h": "6 hours ago", "1d": "a day ago", "7d": "a week ago"}


def flame(
    queries: Queries, visit: Visit, kind: str, name: str, *, compare: str = "", since_s: float | None = None
) -> Context:
    """
    What a page shows of a flame graph: ``data`` for the script, ``lines`` for a table, and the figures.

    Raises:
        ValueError: ``compare`` can't be used.
    """
    view: flames.HeapView = queries.heap_view(kind, name, compare=compare, since_s=since_s)
    after, before = view.after, view.before
    frames, root = flames.flat(flames.tree(after, before))
    shown = [
        [
            (frame.function if number else name) or "?",
            _place(frame, visit),
            frame.code,
            bool(frame.file) and visit.paths.is_users(frame.file),
        ]
        for number, frame in enumerate(frames)
    ]
    lines = [] if not after.stacks and not (before and before.stacks) else flames.lines_of(after, before)[:MOST_LINES]
    return {
        "kind": kind,
        "name": name,
        "view": view,
        "data": {"frames": shown, "root": root, "aRun": view.a_run, "compared": before is not None},
        "lines": lines,
    }


def _place(frame: Line, visit: Visit) -> str:
    if not frame.file:
        return ""
    return f"{visit.paths.short(frame.file)}:{frame.line}" if frame.line else visit.paths.short(frame.file)


def kept(queries: Queries, visit: Visit, kind: str, name: str) -> Context:
    """
    One name's flame graph.

    Raises:
        NotFound: There is no such release to compare with.
    """
    compare = visit.word("compare")
    releases = queries.heap_releases(kind, name)
    try:
        found = flame(queries, visit, kind, name, compare=compare, since_s=visit.since_s("day"))
    except ValueError as error:
        raise NotFound(
            "There is nothing to compare with.",
            f"{str(error)[:1].upper()}{str(error)[1:]}.",
            ("trace_runs", "All names"),
        ) from error
    return {
        "title": "Kept memory of processes" if kind == "process" else f"{name} · kept memory",
        "kind": kind,
        "name": name,
        "flame": found,
        "compare": compare,
        "ages": AGES,
        "releases": releases if len(releases) > 1 else [],
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "day"),
    }


PAGE = MonitorPage(
    path=r"/trace/kept/(task|request|block|process)/(.+)",
    name="trace_kept",
    title="Kept memory",
    template="trace/kept.html",
    tab="leaks",
    context=kept,
)
