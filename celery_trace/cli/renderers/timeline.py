"""The timeline of a workflow, as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from celery_trace.cli.renderers.style import OF_STATE, Style
from celery_trace.cli.renderers.tables import Cell, TableColumn, table
from celery_trace.model.timelines import Timeline, TimelineRow, WaitingChord
from celery_trace.text.escape import escaped
from celery_trace.text.format import NONE, duration, moment, plural, size
from celery_trace.timeline import Bar, bars

#: Columns of the drawing: a share of the terminal's width, within limits.
_SHARE: Final = 0.4
_LEAST, _MOST = 20, 80
_WIDTH_OF_A_FILE: Final = 120
#: What a bar is drawn with, by its kind.
_DRAWN: Final = {"waiting": "·", "running": "█", "retried": "▒", "failed": "▓"}
_MOST_MISSING: Final = 20


def timeline(found: Timeline, style: Style) -> str:
    """The rows with their bars, and the chords with a body that waits."""
    columns = max(_LEAST, min(_MOST, int((style.width or _WIDTH_OF_A_FILE) * _SHARE)))
    text = "".join(f"{line}\n" for line in _head(found, style))
    text += table(
        [
            TableColumn("TASK", elastic=True), TableColumn("OUTCOME"), TableColumn("WAITING", right=True),
            TableColumn("RUNNING", right=True), TableColumn("ATTEMPTS", right=True, spare=True),
            TableColumn("RSS", right=True, spare=True), TableColumn("TIMELINE"),
            TableColumn("WORKER", elastic=True, spare=True), TableColumn("ID", spare=True),
        ],
        (_row(found, row, columns, style) for row in found.rows),
        style,
    )  # fmt: skip
    text += "".join(f"{line}\n" for line in _foot(found, style))
    return text


def _row(found: Timeline, row: TimelineRow, columns: int, style: Style) -> Sequence[Cell]:
    colour = OF_STATE.get(row.outcome, "")
    name = f"{'  ' * min(row.depth, 10)}{escaped(row.name or row.id)}"
    return [
        (name, "bold" if not row.depth else ""), (escaped(row.outcome), colour), _lasted(row.waiting_s),
        _lasted(row.running_s), row.retries + 1, size(row.rss_bytes),
        (drawn(bars(found, row, style.now_s), columns), colour), row.worker or NONE, row.id,
    ]  # fmt: skip


def _lasted(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else NONE


def drawn(spans: Sequence[Bar], columns: int) -> str:
    """Bars as characters; each has one at least, and a later one is drawn over an earlier one."""
    line = [" "] * columns
    for bar in spans:
        left = max(0, min(columns - 1, int(bar.begins * columns)))
        right = max(left + 1, min(columns, round(bar.ends * columns)))
        line[left:right] = _DRAWN[bar.kind] * (right - left)
    return "".join(line).rstrip()


def _head(found: Timeline, style: Style) -> Iterator[str]:
    if found.begins_at is not None and found.ends_at is not None:
        yield f"From {moment(found.begins_at)}, for {duration(found.ends_at - found.begins_at)}"
    legend = "   ".join(f"{_DRAWN[kind]} {kind}" for kind in _DRAWN)
    yield style.paint(legend, "dim")
    yield ""


def _foot(found: Timeline, style: Style) -> Iterator[str]:
    for chord in found.chords:
        yield ""
        yield from _chord(chord, style)
    if found.more:
        yield f"{plural(found.more, 'task')} more."
    if found.incomplete:
        yield "The store has more records of this workflow than were read."
    unknown = sorted({phrase for row in found.rows for phrase in row.unknown})
    if unknown:
        yield ""
        yield style.paint(f"Not known of some rows: {escaped(', '.join(unknown))}.", "dim")


def _chord(chord: WaitingChord, style: Style) -> Iterator[str]:
    body = escaped(chord.body) or "The body of a chord"
    how = "will not run, as a member has not succeeded" if chord.blocked else "waits"
    yield style.paint(f"{body} {how}:", "red" if chord.blocked else "yellow")
    for member in chord.missing[:_MOST_MISSING]:
        yield f"  {escaped(member.name) or NONE} {member.outcome}, id {escaped(member.id)}"
    if len(chord.missing) > _MOST_MISSING:
        yield f"  and {plural(len(chord.missing) - _MOST_MISSING, 'other')}"
    if not chord.complete:
        yield "  There may be more members."
