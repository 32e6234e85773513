"""
Text for terminals: tables and pages of what the store knows, and the "Top 10 differences".

Every function is pure: structs and a :class:`Style` go in, text comes out. What came from a traced process is data: its
control characters are shown as escapes, so that a task's message can't steer the reader's terminal.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from celery_trace.heap import forecasting
from celery_trace.heap.flames import HeapView, lines_of
from celery_trace.heap.needs import Need, Proposal
from celery_trace.model import (
    AlertView,
    ChainLink,
    Delivery,
    FailureDetail,
    FailureSummary,
    Forecast,
    FrameView,
    Leak,
    Line,
    LocalValue,
    MemoryState,
    ProcessView,
    ShellView,
    Site,
    WorkerView,
)
from celery_trace.words import duration, moment, size, times

#: Lines of :func:`kept`.
_MOST_KEPT = 20

#: Kills of one message that :func:`failure` lists, the last ones.
_MOST_KILLS = 10

_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
_OF_STATE = {
    "leaking": "red", "growing": "yellow", "suspect": "yellow", "steady": "green",
    "firing": "red", "pending": "yellow", "resolved": "green",
    "lost": "red", "failed": "red", "time_limit": "red", "retried": "yellow",
}  # fmt: skip


class Style(Struct, frozen=True, kw_only=True):
    """
    How it is shown.

    ``colour`` is for terminals only; ``width`` in columns cuts tables, 0 cuts nothing; ``now_s`` is the reader's clock;
    files below ``root`` are shown relative to it.
    """

    now_s: float
    colour: bool = False
    width: int = 0
    root: str = ""

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, where colours are shown."""
        code = _CODES.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text

    def ago(self, at_s: float | None) -> str:
        """How long ago, in words."""
        if at_s is None:
            return "–"
        seconds = self.now_s - at_s
        return f"in {duration(-seconds)}" if seconds < -1 else f"{duration(max(1.0, seconds))} ago"

    def at(self, at_s: float) -> str:
        """The moment, in the reader's zone."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))

    def place(self, file: str, line: int) -> str:
        """``file:line``, relative to the root or to the installed packages where the file is below them."""
        if not file:
            return "–"
        if self.root and Path(file).is_relative_to(self.root):
            file = str(Path(file).relative_to(self.root))
        for packages in ("/site-packages/", "/dist-packages/"):
            file = file.rpartition(packages)[2]
        return f"{file}:{line}"


def plain(text: object, *, lines: bool = False) -> str:
    """
    Text that is safe in a terminal: control, format and direction characters as escapes.

    ``lines`` keeps line feeds and tabs.
    """
    kept = {"\n", "\t"} if lines else set()
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def columns_of(text: str) -> int:
    """How many columns a plain text takes."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def shortened(text: str, columns: int) -> str:
    """The text, cut in its middle to so many columns: the ends of a name or a path say most."""
    if columns_of(text) <= columns or columns < 8:
        return text
    head, tail = (columns - 1) // 2, columns - 1 - (columns - 1) // 2
    return f"{text[:head]}…{text[-tail:]}"


class Column(Struct, frozen=True):
    """A column of a table. Wide ones give way first when the terminal is narrow."""

    title: str
    right: bool = False
    elastic: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], style: Style, empty: str = "Nothing.") -> str:
    """
    A table with a line under its head.

    Args:
        rows: Cells; a cell that is a ``(text, colour)`` pair is painted.
        empty: What stands there instead when there is no row.
    """
    cells = [[cell if isinstance(cell, tuple) else (plain(cell), "") for cell in row] for row in rows]
    if not cells:
        return empty + "\n"
    widths = [
        max(columns_of(column.title), *(columns_of(row[index][0]) for row in cells))
        for index, column in enumerate(columns)
    ]
    over = sum(widths) + 2 * (len(widths) - 1) - style.width if style.width else 0
    while over > 0:
        elastic = [index for index, column in enumerate(columns) if column.elastic and widths[index] > 16]
        if not elastic:
            break
        widest = max(elastic, key=lambda index: widths[index])
        widths[widest] -= 1
        over -= 1

    def laid(text: str, index: int) -> str:
        text = shortened(text, widths[index])
        space = " " * max(0, widths[index] - columns_of(text))
        return space + text if columns[index].right else text + space

    head = "  ".join(laid(column.title, index) for index, column in enumerate(columns)).rstrip()
    lines = [style.paint(head, "bold"), style.paint("  ".join("─" * width for width in widths), "dim")]
    for row in cells:
        painted = [style.paint(laid(text, index), colour) for index, (text, colour) in enumerate(row)]
        lines.append("  ".join(painted).rstrip())
    return "\n".join(lines) + "\n"


def _state(state: str) -> tuple[str, str]:
    return plain(state), _OF_STATE.get(state, "")


# --- lists ------------------------------------------------------------------------------------------------


def _without_line(leak: Leak) -> str:
    return f"native ({leak.resource or 'memory'})" if leak.native else "line not found yet"


def leaks(rows: Iterable[Leak], style: Style) -> str:
    """The leak table: what each run keeps, where."""
    return table(
        [
            Column("VERDICT"), Column("KEPT/RUN", right=True), Column("KEPT", right=True), Column("RUNS", right=True),
            Column("NAME", elastic=True), Column("WHERE", elastic=True), Column("SEEN", right=True), Column("ID"),
        ],
        (
            [
                _state(leak.verdict), amount(leak), size(leak.kept_bytes_total), leak.runs,
                f"{leak.kind} {leak.name}" if leak.kind != "process" else f"process ({leak.role or '?'})",
                style.place(leak.file, leak.line) if leak.file else _without_line(leak),
                style.ago(leak.last_seen), leak.id,
            ]
            for leak in rows
        ),
        style,
        "No leak was found. A verdict needs 120 runs of a task; `celery trace workers` shows what was seen.",
    )  # fmt: skip


def amount(leak: Leak) -> str:
    """What one run keeps, in the unit that fits the leak."""
    if leak.resource in {"fds", "threads", "children"}:
        return f"{leak.kept_blocks_per_run:.3g} {leak.resource}"
    return size(leak.kept_bytes_per_run)


def failures(rows: Iterable[FailureSummary], style: Style) -> str:
    """Failed runs, one a line."""
    return table(
        [
            Column("AT", right=True), Column("OUTCOME"), Column("NAME", elastic=True), Column("WHAT", elastic=True),
            Column("COUNT", right=True), Column("WORKER", elastic=True), Column("LIVE"), Column("ID"),
        ],
        (
            [
                style.ago(failure.at), _state(failure.outcome), f"{failure.kind} {failure.name}",
                _what(failure),
                failure.count, f"{failure.worker or failure.hostname} ({failure.pid})",
                ("live", "green") if failure.live else "", failure.id,
            ]
            for failure in rows
        ),
        style,
        "No failure was recorded.",
    )  # fmt: skip


def _what(failure: FailureSummary) -> str:
    words = [f"{failure.exception.type}: {failure.exception.message}"] if failure.exception else []
    if failure.kills > 1:
        words.insert(0, f"killed {times(failure.kills)}")
    return "; ".join(words) or "–"


def workers(rows: Iterable[WorkerView], style: Style) -> str:
    """Workers, and their living processes below each; ended ones are counted."""
    lines: list[list[object]] = []
    for worker in rows:
        lines.append(
            [
                (plain(worker.name), "bold"), ("alive", "green") if worker.alive else ("silent", "yellow"), worker.role,
                size(worker.rss_bytes), "", "", "", f"{worker.overhead_ratio:.2%}", style.ago(worker.last_seen), "",
            ]
        )  # fmt: skip
        ended = [process for process in worker.processes if process.ended_at is not None]
        for process in worker.processes:
            if process.ended_at is None:
                memory = process.memory or MemoryState()
                lines.append(
                    [
                        f"  pid {process.pid}", "", process.role, size(memory.rss_bytes) if process.memory else "–",
                        size(memory.uss_bytes) if memory.uss_bytes is not None else "–",
                        memory.fds if memory.fds is not None else "–", process.runs, f"{process.overhead_ratio:.2%}",
                        style.ago(process.at), process.running,
                    ]
                )  # fmt: skip
        if ended:
            lines.append([f"  {_ended(ended)}", *[""] * 9])
    return table(
        [
            Column("WORKER", elastic=True), Column("STATE"), Column("ROLE"), Column("RSS", right=True),
            Column("USS", right=True), Column("FDS", right=True), Column("RUNS", right=True),
            Column("OVERHEAD", right=True), Column("SEEN", right=True), Column("RUNNING", elastic=True),
        ],
        lines,
        style,
        "No worker has reported. Start one with: CELERY_TRACE=1 celery -A proj worker -E",
    )  # fmt: skip


def forecasts(found: Iterable[Forecast], proposals: Iterable[tuple[str, Proposal]], style: Style) -> str:
    """What reaches its limit, and the limits that workers need, below their table."""
    lines = [
        style.paint(f"{plain(forecasting.who(one))} {plain(forecasting.sentence(one))}.", "yellow")
        + f" Now {size(one.used_bytes)}, {size(one.bytes_per_hour)} more an hour."
        for one in found
    ]
    for worker, proposal in proposals:
        lines.append(
            f"{plain(worker)} needs --max-memory-per-child {proposal.child_kib} -c {proposal.concurrency} "
            f"and a container with {size(proposal.container_bytes)}. {plain(proposal.how)}."
        )
    return "".join(f"\n{line}\n" for line in lines)


def kept(name: str, view: HeapView, need: Need | None, style: Style) -> str:
    """Where memory that is kept was allocated: the largest lines, of one time or of two."""
    unit = " a run" if view.a_run else ""
    after, before = view.after, view.before
    lines = [
        f"{plain(name)} keeps {size(after.bytes)}{unit} in {after.processes} processes, sampled over {after.runs} runs"
    ]
    if before is not None:
        lines = [
            f"{plain(name)} keeps {size(after.bytes)}{unit} {plain(view.after_is)}, "
            f"{size(before.bytes)}{unit} {plain(view.before_is)}"
        ]
    if need is not None and before is None:
        lines.append(
            f"A run holds {size(need.p50_bytes)} at its peak, 99 % of the runs up to {size(need.p99_bytes)} "
            f"({need.runs} runs were weighed)"
        )
    columns = [Column("KEPT", right=True), Column("ALLOCATED AT", elastic=True), Column("CODE", elastic=True)]
    if before is not None:
        columns = [Column("NOW", right=True), Column("BEFORE", right=True), Column("ALLOCATED AT", elastic=True)]
    rows: list[list[object]] = []
    for line, now, earlier in lines_of(after, before)[:_MOST_KEPT]:
        where = f"{style.place(line.file, line.line)} in {line.function or '?'}" if line.file else line.function
        rows.append([size(now), where, plain(line.code)] if before is None else [size(now), size(earlier), where])
    return "\n".join(lines) + "\n\n" + table(columns, rows, style, "Nothing was seen to be kept.")


def _ended(processes: Sequence[ProcessView]) -> str:
    """How many processes ended, and in which way: ``3 ended: 2 by exit, 1 killed``."""
    ways = Counter("by exit" if process.ended_how in {"", "exit"} else process.ended_how for process in processes)
    return f"{len(processes)} ended: " + ", ".join(f"{count} {how}" for how, count in sorted(ways.items()))


def alerts(rows: Iterable[AlertView], style: Style) -> str:
    """Alerts with what they say."""
    return table(
        [
            Column("STATE"), Column("SEVERITY"), Column("RULE"), Column("SINCE", right=True),
            Column("TEXT", elastic=True), Column("NOTE"), Column("ID"),
        ],
        (
            [
                _state(alert.state), alert.severity, alert.rule, style.ago(alert.fired_at or alert.since), alert.text,
                _note(alert, style), alert.id,
            ]
            for alert in rows
        ),
        style,
        "No alert. Rules are evaluated while the monitor runs, and by `celery trace alerts --evaluate`.",
    )  # fmt: skip


def _note(alert: AlertView, style: Style) -> str:
    notes = []
    if alert.acknowledged_by:
        notes.append(f"acknowledged by {alert.acknowledged_by}")
    if (alert.silenced_until or 0.0) > style.now_s:
        notes.append(f"silenced until {style.at(alert.silenced_until or 0.0)}")
    if alert.count > 1:
        notes.append(f"fired {alert.count} times")
    return ", ".join(notes)


def deliveries(rows: Iterable[Delivery], style: Style) -> str:
    """The delivery log."""
    return table(
        [
            Column("AT"), Column("TAKEN"), Column("CHANNEL"), Column("ATTEMPT", right=True),
            Column("ALERT"), Column("ERROR", elastic=True),
        ],
        (
            [
                style.at(delivery.at), ("yes", "green") if delivery.ok else ("no", "red"), delivery.channel,
                delivery.attempt, delivery.alert, delivery.error,
            ]
            for delivery in rows
        ),
        style,
        "Nothing was delivered yet.",
    )  # fmt: skip


# --- one of them ------------------------------------------------------------------------------------------


def leak(found: Leak, style: Style) -> str:
    """One leak: how much, where, what and what holds it."""
    lines = [
        style.paint(f"{found.kind} {plain(found.name)}: {found.verdict}", _OF_STATE.get(found.verdict, "bold")),
        "",
        f"  keeps      {amount(found)} a run, {size(found.kept_bytes_total)} in all",
        f"  seen over  {found.runs} runs in {found.processes} processes, "
        f"from {style.at(found.first_seen)} to {style.at(found.last_seen)}",
    ]
    if found.why:
        sure = f" ({found.confidence:.1%} sure that it grows)" if found.confidence else ""
        lines.append(f"  why        {plain(found.why)}{sure}")
    if found.waits_for:
        lines.append(f"  waits for  {plain(found.waits_for)}")
    at_s = found.began_at
    if found.began_with:
        lines.append(f"  began with release {plain(found.began_with)}" + (f", {moment(at_s)}" if at_s else ""))
    if found.bounded:
        lines.append(f"  bounded by {plain(found.bounded)}")
    if found.concurrent:
        lines.append("  runs overlapped: the growth belongs to the process, not surely to this name")
    if found.note:
        lines.append(f"  note       {plain(found.note)}")
    if found.file:
        lines += ["", "Allocated at", *_traceback([Line(found.file, found.line, found.function, found.code)], style)]
    if len(found.traceback) > 1:
        lines += ["called from", *_traceback(found.traceback[1:], style)]
    if found.retained_by:
        lines += ["", "Held by"]
        for depth, holder in enumerate(found.retained_by):
            lines.append(f"  {'  ' * depth}{'└ ' if depth else ''}{plain(holder)}")
    if found.types:
        kinds = ([kind.type, kind.count, size(kind.bytes)] for kind in found.types)
        lines += ["", "What stays"]
        lines.append(table([Column("TYPE"), Column("COUNT", right=True), Column("BYTES", right=True)], kinds, style))
    return "\n".join(lines).rstrip() + "\n"


def _traceback(lines: Iterable[Line], style: Style) -> list[str]:
    shown = []
    for line in lines:
        shown.append(f"  {plain(style.place(line.file, line.line))} in {plain(line.function or '?')}")
        if line.code:
            shown.append(f"    {plain(line.code.strip())}")
    return shown


def failure(found: FailureDetail, style: Style) -> str:
    """One failure: its exceptions with frames, source and locals, and where it came from."""
    what = f"{found.exception.type}: {found.exception.message}" if found.exception else str(found.outcome)
    lines = [
        style.paint(f"{found.kind} {plain(found.name)}: {found.outcome}", "red"),
        f"  {plain(what, lines=True)}",
        "",
        f"  at         {style.at(found.at)} ({style.ago(found.at)})",
        f"  where      {plain(found.worker or found.hostname)}"
        + (f", pid {found.pid}" if found.pid else ", in no process of its pool")
        + (f"; still held there until {style.at(found.live_until)}" if found.live and found.live_until else ""),
    ]
    if found.task_id:
        lines.append(f"  task       {plain(found.task_id)}, {found.retries} retries before")
    if found.task is not None and found.task.queue:
        lines.append(f"  queue      {plain(found.task.queue)}")
    if found.request is not None:
        lines.append(f"  request    {plain(found.request.method)} {plain(found.request.path)}")
    if found.duration_s is not None:
        lines.append(f"  took       {duration(found.duration_s)}")
    if found.memory is not None:
        lines.append(f"  memory     {size(found.memory.rss_bytes)} resident")
    if found.count > 1:
        lines.append(f"  group      {found.count} of the same (fingerprint {found.fingerprint})")
    if len(found.killed) > 1:
        lines.append(f"  killed     {times(len(found.killed))}, once at each delivery of the message")
        for kill in found.killed[-_MOST_KILLS:]:
            lines.append(f"             {style.at(kill.at_s)} {plain(kill.worker)}, pid {kill.pid}")
    if found.note:
        lines.append(f"  note       {plain(found.note)}")
    if found.returned:
        lines.append(f"  returned   {plain(found.returned)}")
    for title, values in (("Arguments", [*found.args, *found.kwargs]),):
        if values:
            lines += ["", title, *_values(values, "  ")]
    chain = found.chain
    for link in chain:
        lines += ["", *_chain_link(link, style)]
    if not chain and found.frames:
        lines += ["", "Frames, innermost first", *[line for frame in found.frames for line in _frame(frame, style)]]
    # A killed run's frames are the black box's where nobody else saw it; they need not be told twice.
    told = [(frame.file, frame.line) for frame in found.frames] if not chain else []
    if found.last_sample is not None and [(line.file, line.line) for line in found.last_sample.stack] != told:
        crash = found.last_sample.crash
        when = f"{duration(found.last_sample.age_s)} before its end"
        lines += ["", f"Where it crashed ({crash})" if crash else f"Last seen {when}, innermost first"]
        lines += _traceback(found.last_sample.stack, style)
    if found.traceback_text and not chain:
        lines += ["", plain(found.traceback_text.rstrip(), lines=True)]
    if found.cut_values or found.redacted_values:
        lines += ["", f"{found.cut_values} values were cut, {found.redacted_values} redacted."]
    return "\n".join(lines).rstrip() + "\n"


def _chain_link(link: ChainLink, style: Style) -> list[str]:
    how = {"cause": "caused by", "context": "while handling", "group": "in the group"}.get(link.link, "")
    head = f"{how} {link.type}: {plain(link.message, lines=True)}".strip()
    lines = [style.paint(head, "red")]
    lines += [f"  note: {plain(note)}" for note in link.notes]
    for frame in link.frames:
        lines += _frame(frame, style)
    if link.frames_cut:
        lines.append(f"  … {link.frames_cut} frames were cut")
    return lines


def _frame(frame: FrameView, style: Style) -> list[str]:
    folded = f" ({frame.folded} more of the same)" if frame.folded else ""
    where = f"  {plain(style.place(frame.file, frame.line))} in {plain(frame.qualname or frame.function)}{folded}"
    lines = [where if frame.in_app else style.paint(where, "dim")]
    if frame.code:
        lines.append(f"    {style.paint('> ' + plain(frame.code.strip()), 'cyan')}")
    if frame.in_app or frame.locals:
        lines += _values(frame.locals, "      ")
    if frame.locals_cut:
        lines.append(f"      … {frame.locals_cut} more")
    return lines


def _values(values: Iterable[LocalValue], margin: str) -> list[str]:
    lines = []
    for value in values:
        text = "(redacted)" if value.redacted else plain(value.value)
        cut = f" … {value.cut} cut" if value.cut else ""
        name = f"{plain(value.name)} = " if value.name else ""
        lines.append(f"{margin}{name}{shortened(text, 160)}{cut}")
    return lines


def shell(found: ShellView, style: Style) -> str:
    """A transcript."""
    lines = [f"Shell {found.id} ({found.mode}) on failure {found.failure}, {style.at(found.started_at)}, "
             f"by {plain(', '.join(found.users)) or 'nobody'}", ""]  # fmt: skip
    for line in found.lines:
        lead = f"{plain(line.user) or 'somebody'}> " if line.kind in {"input", "remark"} else "  "
        lines += [f"{lead}{plain(part, lines=True)}" for part in line.text.splitlines() or [""]]
    return "\n".join(lines) + "\n"


class Examined(Protocol):
    """What :func:`examination` needs of a finding (:class:`celery_trace.cli.doctor.Finding`)."""

    @property
    def level(self) -> str:
        """``ok``, ``warn`` or ``fail``."""

    @property
    def check(self) -> str:
        """What was looked at."""

    @property
    def found(self) -> str:
        """How it is."""

    @property
    def advice(self) -> str:
        """What to do about it."""


def examination(findings: Sequence[Examined], style: Style) -> str:
    """What the doctor found, one line each, and below it what to do."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        level = style.paint(f"{finding.level:<4}", colours.get(finding.level, ""))
        lines.append(f"{level}  {finding.check:<{width}}  {plain(finding.found)}")
        if finding.advice:
            lines.append(f"{'':4}  {'':{width}}  → {plain(finding.advice)}")
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines += ["", f"{len(findings)} checks: {failed} failed, {warned} with a warning."]
    return "\n".join(lines) + "\n"


# --- the Top 10 differences -------------------------------------------------------------------------------


def top_differences(top: Sequence[Site], label: str, style: Style, *, kept_bytes: int | None = None) -> str:
    """
    The "Top 10 differences" of a traced run: the sites that gained most live bytes over it.

    Args:
        top: Greatest first; ten of them are shown.
        kept_bytes: The run's whole difference, where it was counted.
    """
    total = f" (kept {size(kept_bytes)} in all)" if kept_bytes is not None else ""
    lines = [f"[ Top 10 differences ] {plain(label)}{total}"]
    for site in top[:10]:
        gained = f"+{size(site.bytes)}" if site.bytes >= 0 else size(site.bytes)
        each = f", {size(site.bytes / site.blocks)} each" if site.blocks > 0 else ""
        lines.append(f"  {gained:>11} in {site.blocks:+d} blocks{each}  {plain(style.place(site.file, site.line))}")
        if site.code:
            lines.append(f"              {plain(site.code.strip())}")
    if not top:
        lines.append("  nothing stayed")
    return "\n".join(lines) + "\n"
