"""
Where the memory or the time of one name goes, as a flame graph, optionally compared with another time or release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from celery_trace.model import Line, Measure
from celery_trace.profiles import flames
from celery_trace.queries import Queries
from celery_trace.text.format import duration
from flower_plugin.pages.page import RANGES, Context, MonitorPage, Visit
from flower_plugin.problems import NotFound
from flower_plugin.rendering.markup import show, size

#: Rows of the table below the graph.
MOST_LINES = 12
#: Labels of the ages in ``compare``.
AGES = {"1h": "an hour ago", "6h": "6 hours ago", "1d": "a day ago", "7d": "a week ago"}


class Words(Struct, frozen=True):
    """
    The words of one measure: its label, its name (alone and in a sentence), the verb of its values, what a line is, and
    what a width is.
    """

    label: str
    title: str
    noun: str
    verb: str
    line: str
    width: str


WORDS: Final = {
    Measure.MEMORY: Words("memory", "Retained memory", "retained memory", "retains", "Allocated at", "live memory"),
    Measure.WALL: Words("wall", "Wall time", "wall time", "takes", "Line", "time of runs"),
    Measure.CPU: Words("CPU", "CPU time", "CPU time", "takes", "Line", "processor time"),
    Measure.LOCK: Words(
        "lock", "Lock time", "lock time", "takes", "Line", "time waiting for a lock or for another thread"
    ),
}


def amount(measure: Measure) -> Callable[[float], str]:
    """Markup: a value of a measure."""
    return size if measure is Measure.MEMORY else lambda value: show(duration(value / 1e6))


def chosen(queries: Queries, visit: Visit, kind: str, name: str) -> Measure:
    """The measure that the visitor chose; otherwise memory, or wall time if no memory is retained."""
    wanted = visit.word("measure", [str(measure) for measure in Measure])
    return Measure(wanted) if wanted else next(iter(queries.profile_measures(kind, name)), Measure.MEMORY)


def flame(
    queries: Queries,
    visit: Visit,
    kind: str,
    name: str,
    measure: Measure,
    *,
    compare: str = "",
    since_s: float | None = None,
) -> Context:
    """
    A flame graph for the template: ``data`` for the script, ``lines`` for the table, and the totals.

    Raises:
        ValueError: ``compare`` is invalid.
    """
    view = queries.profile_view(kind, name, measure, compare=compare, since_s=since_s)
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
        "words": WORDS[measure],
        "switch": [(one, WORDS[one].label) for one in Measure if one in view.measures or one is measure],
        "amount": amount(measure),
        "data": {
            "frames": shown,
            "root": root,
            "aRun": view.a_run,
            "compared": before is not None,
            "isTime": measure is not Measure.MEMORY,
        },
        "lines": lines,
        "links": True,  # to its own page
    }


def _place(frame: Line, visit: Visit) -> str:
    if not frame.file:
        return ""
    return f"{visit.paths.short(frame.file)}:{frame.line}" if frame.line else visit.paths.short(frame.file)


def one_name(queries: Queries, visit: Visit, kind: str, name: str) -> Context:
    """
    One name's flame graph.

    Raises:
        NotFound: The release to compare with is unknown.
    """
    compare = visit.word("compare")
    measure = chosen(queries, visit, kind, name)
    try:
        found = flame(queries, visit, kind, name, measure, compare=compare, since_s=visit.since_s("day"))
    except ValueError as error:
        raise NotFound(
            "Nothing to compare with.",
            f"{str(error)[:1].upper()}{str(error)[1:]}.",
            ("trace_runs", "All names"),
        ) from error
    found["links"] = False
    releases = queries.profile_releases(kind, name, measure)
    words = WORDS[measure]
    return {
        "title": f"{words.title} of processes" if kind == "process" else f"{name} · {words.noun}",
        "kind": kind,
        "name": name,
        "flame": found,
        "words": words,
        "measure": visit.word("measure", [str(one) for one in Measure]),
        "is_memory": measure is Measure.MEMORY,
        "compare": compare,
        "ages": AGES,
        "releases": releases if len(releases) > 1 else [],
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "day"),
    }


PAGE = MonitorPage(
    path=r"/trace/flame/(task|request|block|process)/(.+)",
    name="trace_flame",
    title="Flame graph",
    template="trace/flame_page.html",
    tab="runs",
    context=one_name,
)
