"""What runs now, and the stack of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from celery_trace.cli.renderers.failures import value_lines
from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, TableColumn, table
from celery_trace.model import RunningView, StackLine
from celery_trace.text.code_owner import CodeOwner
from celery_trace.text.escape import escaped
from celery_trace.text.format import NONE, duration, moment, plural, size

#: Frames of one stack that are printed.
_MOST_FRAMES = 60


def running(rows: Sequence[RunningView], style: Style) -> str:
    """Runs in progress; stuck ones first, then those that began first."""
    ordered = sorted(rows, key=lambda row: (not row.stuck, row.since))
    return table(
        [
            TableColumn("TASK", elastic=True), TableColumn("STATE"), TableColumn("FOR", right=True),
            TableColumn("P50", right=True, spare=True), TableColumn("P99", right=True, spare=True),
            TableColumn("LINE", elastic=True), TableColumn("WAITING", elastic=True, spare=True),
            TableColumn("ATTEMPT", right=True, spare=True), TableColumn("QUEUE", elastic=True, spare=True),
            TableColumn("RSS", right=True), TableColumn("WORKER", elastic=True, spare=True),
            TableColumn("PID", right=True), TableColumn("ID", whole=True),
        ],
        (_line(row, style) for row in ordered),
        style,
        "Nothing is running.",
    )  # fmt: skip


def _line(row: RunningView, style: Style) -> Sequence[Cell]:
    line = innermost(row, style)
    return [
        (escaped(row.name), "bold"), ("stuck", "red") if row.stuck else ("running", ""), duration(round(row.elapsed_s)),
        _usual(row.p50_s), _usual(row.p99_s), style.place(line.file, line.line) if line is not None else NONE,
        row.waiting_for or NONE, row.retries + 1, row.queue or NONE, size(row.rss_bytes or None), row.worker, row.pid,
        row.task_id or NONE,
    ]  # fmt: skip


def innermost(row: RunningView, style: Style) -> StackLine | None:
    """The innermost line of the user's own code, or the innermost one of all."""
    owner = CodeOwner(roots=[style.root])
    return row.stack[owner.first(tuple((line.file, line.line) for line in row.stack))] if row.stack else None


def _usual(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else NONE


def top(rows: Sequence[RunningView], style: Style) -> str:
    """The same, with a line above it."""
    stuck = sum(row.stuck for row in rows)
    head = f"{plural(len(rows), 'run')} in progress, {stuck} stuck, {moment(style.now_s)}. q quits."
    return f"{style.paint(head, 'bold')}\n\n{running(rows, style)}"


def stack(row: RunningView, style: Style) -> str:
    """One run with its stack, innermost first, and its locals if there are any."""
    return "".join(f"{line}\n" for line in _stack(row, style))


def _stack(row: RunningView, style: Style) -> Iterator[str]:
    state = style.paint("stuck", "red") if row.stuck else "running"
    name = style.paint(escaped(row.name), "bold")
    yield f"{name} {state} for {duration(round(row.elapsed_s))}, attempt {row.retries + 1}"
    memory = f"{size(row.rss_bytes)} resident" if row.rss_bytes else "memory unknown"
    yield f"on {escaped(row.worker)}, pid {row.pid}, {memory}, id {escaped(row.task_id) or NONE}"
    if row.p50_s is not None:
        yield f"Runs of this name: p50 {_usual(row.p50_s)}, p99 {_usual(row.p99_s)}"
    if row.waiting_for:
        yield escaped(row.waiting_for[:1].upper() + row.waiting_for[1:])
    if row.stack_why:
        yield f"No locals: {escaped(row.stack_why)}."
    yield ""
    for line in row.stack[:_MOST_FRAMES]:
        yield f"  {style.place(line.file, line.line)} in {escaped(line.function)}"
        if line.code:
            yield f"    {style.paint('> ' + escaped(line.code.strip()), 'cyan')}"
        yield from value_lines(line.locals or (), "      ")
    if not row.stack:
        yield "  Its stack has not been sampled yet."
