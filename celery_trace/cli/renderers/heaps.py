"""Retained memory by allocation site."""

from __future__ import annotations

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, TableColumn, table
from celery_trace.heap.flames import HeapView, lines_of
from celery_trace.heap.needs import Need
from celery_trace.text.escape import escaped
from celery_trace.text.format import size

#: Most lines of :func:`kept`.
_MOST_KEPT = 20


def kept(name: str, view: HeapView, need: Need | None, style: Style) -> str:
    """Where retained memory was allocated: the largest lines, at one time or compared."""
    unit = " per run" if view.a_run else ""
    after, before = view.after, view.before
    if before is not None:
        text = (
            f"{escaped(name)} retains {size(after.bytes)}{unit} {escaped(view.after_is)}, "
            f"{size(before.bytes)}{unit} {escaped(view.before_is)}\n"
        )
    else:
        text = (
            f"{escaped(name)} retains {size(after.bytes)}{unit} in {after.processes} processes, "
            f"sampled over {after.runs} runs\n"
        )
        if need is not None:
            text += (
                f"Peak per run: p50 {size(need.p50_bytes)}, p99 {size(need.p99_bytes)} ({need.runs} runs measured)\n"
            )
    columns = [
        TableColumn("KEPT", right=True),
        TableColumn("ALLOCATED AT", elastic=True),
        TableColumn("CODE", elastic=True),
    ]
    if before is not None:
        columns = [
            TableColumn("NOW", right=True),
            TableColumn("BEFORE", right=True),
            TableColumn("ALLOCATED AT", elastic=True),
        ]
    rows: list[list[Cell]] = []
    for line, now, earlier in lines_of(after, before)[:_MOST_KEPT]:
        where = f"{style.place(line.file, line.line)} in {line.function or '?'}" if line.file else line.function
        rows.append([size(now), where, line.code] if before is None else [size(now), size(earlier), where])
    return f"{text}\n" + table(columns, rows, style, "No retained memory.")
