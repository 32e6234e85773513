"""Leaks: a table, and one with its line, holder and types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from celery_trace.cli.renderers.style import OF_STATE, Style
from celery_trace.cli.renderers.tables import TableColumn, fact, state, table, wrapped
from celery_trace.model import Leak, Line
from celery_trace.text import roles
from celery_trace.text.escape import escaped
from celery_trace.text.format import moment, percent, size

#: Processes that :func:`not_looking` names.
_MOST_NAMES = 5


def leaks(rows: Iterable[Leak], style: Style) -> str:
    """The leak table: how much each run leaks, and where."""
    return table(
        [
            TableColumn("VERDICT"), TableColumn("KEPT/RUN", right=True), TableColumn("KEPT", right=True, spare=True),
            TableColumn("RUNS", right=True, spare=True), TableColumn("NAME", elastic=True),
            TableColumn("LOCATION", elastic=True),
            TableColumn("SEEN", right=True, spare=True), TableColumn("ID", whole=True),
        ],
        (
            [
                state(leak.verdict), amount(leak), size(leak.kept_bytes_total), leak.runs,
                f"{leak.kind} {leak.name}" if leak.kind != "process" else f"({roles.of_leak(leak.role)})",
                style.place(leak.file, leak.line) if leak.file else _without_line(leak),
                style.ago(leak.last_seen), leak.id,
            ]
            for leak in rows
        ),
        style,
        "No leaks. A verdict needs 120 runs of a task; `celery trace workers` shows the workers and their runs.",
    )  # fmt: skip


def not_looking(found: Mapping[str, list[str]], style: Style) -> str:
    """Living processes in which no leak can be found, by reason; shown below the table."""
    lines = [
        f"Not looked at: {escaped(', '.join(names[:_MOST_NAMES]))}"
        + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
        + f": {reason}."
        for reason, names in found.items()
    ]
    return "".join(style.paint(f"\n{wrapped(line, style)}\n", "yellow") for line in lines)


def _without_line(leak: Leak) -> str:
    return f"native ({leak.resource or 'memory'})" if leak.native else "line not found yet"


def amount(leak: Leak) -> str:
    """What one run leaks, in the leak's unit."""
    if leak.resource in {"fds", "threads", "children"}:
        return f"{leak.kept_blocks_per_run:.3g} {leak.resource}"
    return size(leak.kept_bytes_per_run)


def leak(found: Leak, style: Style) -> str:
    """One leak: how much, where, its types and holder."""
    lines = [
        style.paint(f"{found.kind} {escaped(found.name)}: {found.verdict}", OF_STATE.get(found.verdict, "bold")),
        "",
        *_facts(found),
        *_where(found, style),
    ]
    if found.retained_by:
        lines += ["", "Held by"]
        for depth, holder in enumerate(found.retained_by):
            lines.append(f"  {'  ' * depth}{'└ ' if depth else ''}{escaped(holder)}")
    if found.types:
        kinds = ([kind.type, kind.count, size(kind.bytes)] for kind in found.types)
        columns = [
            TableColumn("TYPE", elastic=True),
            TableColumn("COUNT", right=True),
            TableColumn("BYTES", right=True),
        ]
        lines += ["", "Retained types", table(columns, kinds, style)]
    return "\n".join(lines).rstrip() + "\n"


def _facts(found: Leak) -> Iterator[str]:
    yield fact("retained", f"{amount(found)} per run, {size(found.kept_bytes_total)} in total")
    seen = f"from {moment(found.first_seen)} to {moment(found.last_seen)}"
    yield fact("seen over", f"{found.runs} runs in {found.processes} processes, {seen}")
    if found.why:
        sure = f" ({percent(found.confidence)} confidence)" if found.confidence else ""
        yield fact("reason", escaped(found.why) + sure)
    if found.waits_for:
        yield fact("waits for", escaped(found.waits_for))
    if found.began_with:
        at = f", {moment(found.began_at)}" if found.began_at else ""
        yield fact("began with", f"release {escaped(found.began_with)}{at}")
    if found.bounded:
        yield fact("bound", escaped(found.bounded))
    if found.concurrent:
        yield "  runs overlapped: the growth is the process's, not certainly this name's"
    if found.note:
        yield fact("note", escaped(found.note))


def _where(found: Leak, style: Style) -> Iterator[str]:
    if found.file:
        yield from ("", "Allocated at")
        yield from stack([Line(found.file, found.line, found.function, found.code)], style)
    if len(found.traceback) > 1:
        yield "called from"
        yield from stack(found.traceback[1:], style)


def stack(lines: Iterable[Line], style: Style) -> Iterator[str]:
    """Lines of code, each with its place and function."""
    for line in lines:
        yield f"  {style.place(line.file, line.line)} in {escaped(line.function or '?')}"
        if line.code:
            yield f"    {escaped(line.code.strip())}"
