"""Failures: a list, and one with its exceptions, frames, source and locals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from celery_trace.cli.renderers.attempts import by_task
from celery_trace.cli.renderers.leaks import stack
from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, fact, shortened, state, table
from celery_trace.model import ChainLink, FailureDetail, FailureGroup, FailureSummary, FrameView, LocalValue
from celery_trace.model.timelines import Timeline
from celery_trace.text.escape import escaped, escaped_lines
from celery_trace.text.format import NONE, duration, moment, size, times

#: The last kills of a message that :func:`failure` lists.
_MOST_KILLS = 10
#: Width of a local's value, columns.
_MOST_VALUE = 160


def failures(rows: Iterable[FailureSummary], style: Style) -> str:
    """Failed runs, one line for each task."""
    return table(
        [
            TableColumn("AT", right=True), TableColumn("OUTCOME", spare=True), TableColumn("NAME", elastic=True),
            TableColumn("EXCEPTION", elastic=True), TableColumn("ATTEMPTS", elastic=True, spare=True),
            TableColumn("COUNT", right=True, spare=True), TableColumn("WORKER", elastic=True, spare=True),
            TableColumn("LIVE", spare=True), TableColumn("ID", whole=True),
        ],
        (
            [
                style.ago(failure.at), state(failure.outcome), f"{failure.kind} {failure.name}", _what(failure),
                tries or NONE, failure.count, f"{failure.worker or failure.hostname} ({failure.pid})",
                ("live", "green") if failure.live else "", failure.id,
            ]
            for failure, tries in by_task(rows)
        ),
        style,
        "No failures.",
    )  # fmt: skip


def groups(rows: Iterable[FailureGroup], style: Style) -> str:
    """Failures by group, one group per line with its latest failure."""
    return table(
        [
            TableColumn("LAST", right=True), TableColumn("COUNT", right=True), TableColumn("STATE", spare=True),
            TableColumn("OUTCOME"), TableColumn("NAME", elastic=True), TableColumn("EXCEPTION", elastic=True),
            TableColumn("FIRST", right=True, spare=True), TableColumn("LATEST ID", whole=True),
        ],
        (
            [
                style.ago(group.last_seen), f"{group.count:,}", group.state, state(group.outcome),
                f"{group.kind} {group.name}",
                f"{group.exception.type}: {group.exception.message}" if group.exception else NONE,
                style.ago(group.first_seen), group.latest_id,
            ]
            for group in rows
        ),
        style,
        "No failures.",
    )  # fmt: skip


def _what(failure: FailureSummary) -> str:
    words = [f"{failure.exception.type}: {failure.exception.message}"] if failure.exception else []
    if failure.kills > 1:
        words.insert(0, f"killed {times(failure.kills)}")
    return "; ".join(words) or NONE


def failure(found: FailureDetail, style: Style, workflow: Timeline | None = None) -> str:
    """One failure: its exceptions with frames, source and locals, its origin and its workflow."""
    lines = [
        *_head(found, style),
        *_origin(found),
        *_cost(found),
        *_repeats(found),
        *_workflow(found, workflow),
        *_arguments(found),
        *_exceptions(found, style),
        *_last_sample(found, style),
        *_log_records(found),
        *_rest(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head(found: FailureDetail, style: Style) -> Iterator[str]:
    what = f"{found.exception.type}: {found.exception.message}" if found.exception else str(found.outcome)
    yield style.paint(f"{found.kind} {escaped(found.name)}: {found.outcome}", "red")
    yield f"  {escaped_lines(what)}"
    yield ""
    yield fact("at", f"{moment(found.at)} ({style.ago(found.at)})")
    process = f", pid {found.pid}" if found.pid else ", not in a pool process"
    live = f"; still held there until {moment(found.live_until)}" if found.live and found.live_until else ""
    yield fact("worker", escaped(found.worker or found.hostname) + process + live)


def _origin(found: FailureDetail) -> Iterator[str]:
    if found.task_id:
        yield fact("task", f"{escaped(found.task_id)}, {found.retries} retries before")
    if found.task is not None and found.task.queue:
        yield fact("queue", escaped(found.task.queue))
    if found.request is not None:
        yield fact("request", f"{escaped(found.request.method)} {escaped(found.request.path)}")


def _cost(found: FailureDetail) -> Iterator[str]:
    if found.duration_s is not None:
        yield fact("duration", duration(found.duration_s))
    if found.memory is not None:
        yield fact("memory", f"{size(found.memory.rss_bytes)} resident")


def _repeats(found: FailureDetail) -> Iterator[str]:
    if found.count > 1:
        yield fact("group", f"{found.count} alike (fingerprint {found.fingerprint})")
    if len(found.killed) > 1:
        yield fact("killed", f"{times(len(found.killed))}, once at each delivery of the message")
        for kill in found.killed[-_MOST_KILLS:]:
            yield fact("", f"{moment(kill.at_s)} {escaped(kill.worker)}, pid {kill.pid}")
    if found.note:
        yield fact("note", escaped(found.note))
    if found.returned:
        yield fact("returned", escaped(found.returned))


def _workflow(found: FailureDetail, workflow: Timeline | None) -> Iterator[str]:
    """The tasks of the workflow, each below the one that sent it, so that callbacks are below their task."""
    if found.group_id:
        yield fact("member of", f"group {escaped(found.group_id)}")
    if workflow is None:
        return
    yield from ("", f"Workflow {escaped(workflow.first)}")
    for row in workflow.rows:
        mark = "→" if row.id == found.task_id else " "
        sent = "" if row.name else f" {escaped(row.id)}"
        yield f"{mark} {'  ' * min(row.depth, 20)}{escaped(row.name or 'unknown task')}{sent}: {row.outcome}"
    if workflow.more:
        yield f"  … {workflow.more} more"
    for chord in workflow.chords:
        waits = f"{len(chord.missing)} of {chord.members} members have not succeeded"
        never = ", so it will not run" if chord.blocked else ""
        yield f"  Chord: its body {escaped(chord.body or 'of unknown name')} waits; {waits}{never}"


def _arguments(found: FailureDetail) -> Iterator[str]:
    values = [*found.args, *found.kwargs]
    if values:
        yield from ("", "Arguments")
        yield from value_lines(values, "  ")


def _exceptions(found: FailureDetail, style: Style) -> Iterator[str]:
    for link in found.chain:
        yield ""
        yield from _chain_link(link, style)
    if not found.chain and found.frames:
        yield from ("", "Frames, innermost first")
        for frame in found.frames:
            yield from _frame(frame, style)


def _last_sample(found: FailureDetail, style: Style) -> Iterator[str]:
    sample = found.last_sample
    # If nothing else recorded a killed run, its frames are those of the black box and were shown already.
    shown = [(frame.file, frame.line) for frame in found.frames] if not found.chain else []
    if sample is None or [(line.file, line.line) for line in sample.stack] == shown:
        return
    yield ""
    if sample.crash:
        yield f"Where it crashed ({escaped(sample.crash)})"
    else:
        yield f"Last sample, {duration(sample.age_s)} before its end, innermost first"
    yield from stack(sample.stack, style)


def _log_records(found: FailureDetail) -> Iterator[str]:
    if found.logs is None:
        return
    earlier = f", {found.logs.left_out} earlier ones left out" if found.logs.left_out else ""
    yield from ("", f"Log records, the last {len(found.logs.lines)}{earlier}")
    for line in found.logs.lines:
        ago = duration(max(0.0, found.at - line.at_s))
        text = "\n    ".join(escaped_lines(line.text).splitlines() or [""])
        cut = f" … {line.cut} cut" if line.cut else ""
        yield f"  -{ago} {escaped(line.level)} {escaped(line.logger)}: {text}{cut}"


def _rest(found: FailureDetail) -> Iterator[str]:
    if found.traceback_text and not found.chain:
        yield from ("", escaped_lines(found.traceback_text.rstrip()))
    if found.cut_values or found.redacted_values:
        yield from ("", f"{found.cut_values} values were cut, {found.redacted_values} redacted.")


def _chain_link(link: ChainLink, style: Style) -> Iterator[str]:
    how = {"cause": "caused by", "context": "while handling", "group": "in the group"}.get(link.link, "")
    yield style.paint(f"{how} {escaped(link.type)}: {escaped_lines(link.message)}".strip(), "red")
    for note in link.notes:
        yield f"  note: {escaped(note)}"
    for frame in link.frames:
        yield from _frame(frame, style)
    if link.frames_cut:
        yield f"  … {link.frames_cut} frames were cut"


def _frame(frame: FrameView, style: Style) -> Iterator[str]:
    folded = f" ({frame.folded} more of the same)" if frame.folded else ""
    where = f"  {style.place(frame.file, frame.line)} in {escaped(frame.qualname or frame.function)}{folded}"
    yield where if frame.in_app else style.paint(where, "dim")
    if frame.code:
        yield f"    {style.paint('> ' + escaped(frame.code.strip()), 'cyan')}"
    yield from value_lines(frame.locals, "      ")
    if frame.locals_cut:
        yield f"      … {frame.locals_cut} more"


def value_lines(found: Iterable[LocalValue], margin: str) -> Iterator[str]:
    for value in found:
        text = "(redacted)" if value.redacted else escaped(value.value)
        cut = f" … {value.cut} cut" if value.cut else ""
        name = f"{escaped(value.name)} = " if value.name else ""
        yield f"{margin}{name}{shortened(text, _MOST_VALUE)}{cut}"
