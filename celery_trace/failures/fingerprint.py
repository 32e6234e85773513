"""The fingerprint of a failure: what was raised, in which of the user's functions."""

from __future__ import annotations

from celery_trace.model import Capture, ExceptionInfo, Frame, Outcome, stable_id

#: A killed run has not raised anything, and its position is chance, so its frames are not part of the fingerprint.
_KILLED = frozenset((Outcome.TIME_LIMIT, Outcome.REVOKED, Outcome.LOST))


def fingerprint(
    kind: str,
    name: str,
    capture: Capture | None,
    exception: ExceptionInfo | None,
    outcome: Outcome = Outcome.FAILED,
) -> str:
    """
    The group that a failure belongs to.

    Line numbers and messages are left out, so an edit elsewhere in the file or another id in the message does not make
    a new group. The text of the innermost line is included.

    Args:
        kind: Task, request or block.
        name: What ran.
        capture: Its frames; if none is the user's, all frames count.
        exception: What was raised.
        outcome: Killed runs are grouped by it and their name alone.
    """
    what = f"{exception.module}.{exception.type}" if exception is not None else ""
    if outcome in _KILLED:
        return stable_id("group", kind, name, outcome, what)
    parts: list[str] = []
    if capture is not None and capture.exceptions:
        frames = capture.exceptions[0].frames
        own = [frame for frame in frames if frame.in_app] or frames
        if own:
            parts.append(own[0].code)
        parts += _calls(own)
    return stable_id("group", kind, name, what, *parts)


def _calls(frames: list[Frame]) -> list[str]:
    """The functions, innermost first; recursion counts once, whatever its depth."""
    calls: list[str] = []
    for frame in frames:
        call = f"{frame.module}:{frame.qualname or frame.function}"
        if call not in calls:
            calls.append(call)
    return calls
