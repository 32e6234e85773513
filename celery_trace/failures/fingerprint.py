"""What makes two failures the same problem: what was raised, in which of the user's functions."""

from __future__ import annotations

from celery_trace.model import Capture, ExceptionInfo, Frame, Outcome, stable_id

#: A killed run has no raise of its own; where it stood is chance, so its frames do not tell problems apart.
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

    Line numbers and messages are left out, so an edit elsewhere in the file or another id in the message
    does not make a new group; the innermost line's own text is in.

    Args:
        kind: Task, request or block.
        name: What ran.
        capture: Its frames; without any of the user's own, all frames count.
        exception: What was raised.
        outcome: A run that was killed groups by that and by its name alone.
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
    """The functions, innermost first; recursion counts once, however deep it went."""
    calls: list[str] = []
    for frame in frames:
        call = f"{frame.module}:{frame.qualname or frame.function}"
        if call not in calls:
            calls.append(call)
    return calls
