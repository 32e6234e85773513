"""Transcripts of shell sessions."""

from __future__ import annotations

from celery_trace.cli.renderers.style import Style
from celery_trace.model import ShellView
from celery_trace.text.escape import escaped, escaped_lines
from celery_trace.text.format import moment


def shell(found: ShellView, style: Style) -> str:  # noqa: ARG001 - as all of them
    """A transcript."""
    users = escaped(", ".join(found.users)) or "an unknown user"
    head = f"Shell {found.id} ({found.mode}) on failure {found.failure}, {moment(found.started_at)}, by {users}"
    lines = [head, ""]
    for line in found.lines:
        lead = f"{escaped(line.user) or 'unknown'}> " if line.kind in {"input", "remark"} else "  "
        lines += [f"{lead}{escaped_lines(part)}" for part in line.text.splitlines() or [""]]
    return "\n".join(lines) + "\n"
