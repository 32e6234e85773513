"""Where memory and time go, by line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, TableColumn, table
from celery_trace.heap.needs import Need
from celery_trace.model import Measure
from celery_trace.profiles.flames import ProfileView, lines_of
from celery_trace.text.escape import escaped
from celery_trace.text.format import duration, plural, size

#: Most lines of :func:`flame`.
_MOST_LINES: Final = 20
#: What a measure is called.
NOUNS: Final = {
    Measure.MEMORY: "retained memory",
    Measure.WALL: "wall time",
    Measure.CPU: "CPU time",
    Measure.LOCK: "lock time",
}
#: The verb of the summary, and the heading of the values.
_VERBS: Final = {
    Measure.MEMORY: ("retains", "KEPT"),
    Measure.WALL: ("takes", "TIME"),
    Measure.CPU: ("takes", "CPU"),
    Measure.LOCK: ("takes", "LOCK"),
}


def flame(name: str, view: ProfileView, need: Need | None, style: Style) -> str:
    """The lines with the most memory or time, at one time or compared."""
    unit = " per run" if view.a_run else ""
    after, before = view.after, view.before
    verb, heading = _VERBS[view.measure]
    shown = _shown(view.measure)
    noun = f" of {NOUNS[view.measure]}" if view.measure is not Measure.MEMORY else ""
    if before is not None:
        text = (
            f"{escaped(name)} {verb} {shown(after.total)}{noun}{unit} {escaped(view.after_is)}, "
            f"{shown(before.total)}{unit} {escaped(view.before_is)}\n"
        )
    else:
        text = (
            f"{escaped(name)} {verb} {shown(after.total)}{noun} in {plural(after.processes, 'process', 'processes')}, "
            f"sampled over {plural(after.runs, 'run')}{', the latest of more' if after.cut else ''}\n"
        )
        if need is not None:
            text += (
                f"Peak per run: p50 {size(need.p50_bytes)}, p99 {size(need.p99_bytes)} ({need.runs} runs measured)\n"
            )
    where = "ALLOCATED AT" if view.measure is Measure.MEMORY else "LINE"
    columns = [TableColumn(heading, right=True), TableColumn(where, elastic=True), TableColumn("CODE", elastic=True)]
    if before is not None:
        columns = [TableColumn("NOW", right=True), TableColumn("BEFORE", right=True), TableColumn(where, elastic=True)]
    rows: list[list[Cell]] = []
    for line, now, earlier in lines_of(after, before)[:_MOST_LINES]:
        place = f"{style.place(line.file, line.line)} in {line.function or '?'}" if line.file else line.function
        rows.append([shown(now), place, line.code] if before is None else [shown(now), shown(earlier), place])
    return f"{text}\n" + table(columns, rows, style, f"No {NOUNS[view.measure]}.")


def _shown(measure: Measure) -> Callable[[float], str]:
    return size if measure is Measure.MEMORY else lambda value: duration(value / 1e6)
