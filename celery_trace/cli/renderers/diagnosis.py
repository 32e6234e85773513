"""A diagnosis of a task or of the system, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import wrapped
from celery_trace.model.diagnosis import Concern, Diagnosis
from celery_trace.text.escape import escaped

_COLOURS = {"critical": "red", "warning": "yellow"}


def diagnosis(found: Diagnosis, style: Style) -> str:
    """What is known about one task, how, and what can't be known."""
    return "\n".join(_lines(found, style)) + "\n"


def _lines(found: Diagnosis, style: Style) -> Iterator[str]:
    yield style.paint(f"Task {escaped(found.task_id)}: {escaped(found.summary)}", "bold")
    yield ""
    yield "Known"
    for fact in found.known:
        when = f"{style.ago(fact.at)}: " if fact.at is not None else ""
        yield wrapped(f"{when}{escaped(fact.what)}", style, begin="  ", indent="  ")
        yield style.paint(wrapped(f"from: {escaped(fact.how)}", style, begin="    ", indent="    "), "dim")
    if not found.known:
        yield "  nothing"
    yield ""
    yield "Unknown"
    for gap in found.unknown:
        yield wrapped(escaped(gap.why), style, begin="  ", indent="  ")
    if not found.unknown:
        yield "  nothing"


def concerns(found: Sequence[Concern], style: Style) -> str:
    """What needs attention, the most urgent first."""
    if not found:
        return "Nothing needs attention.\n"
    lines: list[str] = []
    for number, concern in enumerate(found, start=1):
        text = wrapped(f"{concern.severity}  {escaped(concern.what)}", style, begin=f"{number}. ", indent="   ")
        lines.append(
            text.replace(concern.severity, style.paint(concern.severity, _COLOURS.get(concern.severity, "")), 1)
        )
        lines.append(style.paint(wrapped(f"from: {escaped(concern.how)}", style, begin="   ", indent="   "), "dim"))
        if concern.next:
            lines.append(f"   → {escaped(style.hint(concern.next))}")
    return "\n".join(lines) + "\n"
