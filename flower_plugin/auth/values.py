"""What somebody sees who may not see values: failures without locals, arguments, requests and messages."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from celery_trace.heap.evidence import without_keys
from celery_trace.model import AlertView, FailureDetail, FailureGroup, FailureSummary, Leak, ShellView
from flower_plugin.auth.roles import Role, User

Row = TypeVar("Row", FailureSummary, FailureGroup)

#: Stands where a message was: exceptions like to quote a value.
HIDDEN = "(hidden: needs the role locals)"


def without_values(failure: FailureDetail) -> FailureDetail:
    """A failure with its frames and lines, and nothing that the user's code held."""
    frames = [replace(frame, locals=[]) for frame in failure.frames]
    chain = [
        replace(link, message=HIDDEN, notes=[], attributes=[], frames=[replace(f, locals=[]) for f in link.frames])
        for link in failure.chain
    ]
    return replace(
        failure,
        exception=failure.exception and replace(failure.exception, message=HIDDEN),
        frames=frames,
        chain=chain,
        args=[],
        kwargs=[],
        request=None,
        heap=[],
        traceback_text="",
        returned="",
        task=failure.task and replace(failure.task, headers={}),
    )


def without_message(row: Row) -> Row:
    """A row of a list without its message."""
    return row if row.exception is None else replace(row, exception=replace(row.exception, message=HIDDEN))


def without_data(leak: Leak) -> Leak:
    """A leak without the dictionary keys on the way to what it holds: they are the user's data."""
    return replace(leak, retained_by=without_keys(leak.retained_by))


def may_read(user: User, shell: ShellView) -> bool:
    """
    Whether somebody may read what was said in a shell.

    A recreated one shows what the capture held, redacted. A live one shows the objects themselves, secrets
    included, so it is for those who could have typed there.
    """
    return user.may(Role.LIVE if shell.mode == "live" else Role.LOCALS)


def without_words(alert: AlertView) -> AlertView:
    """An alert whose text may quote the message of a failure, without it."""
    if not alert.link.startswith("failures/"):
        return alert
    return replace(alert, text=f"{alert.subject} {HIDDEN}")
