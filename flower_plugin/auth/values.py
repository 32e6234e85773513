"""Records for users without the role ``locals``: no local variables, arguments, requests and messages."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from celery_trace.heap.evidence import without_keys
from celery_trace.model import AlertView, FailureDetail, FailureGroup, FailureSummary, Leak, ShellView
from celery_trace.model.triage import GroupDetail
from flower_plugin.auth.roles import User, UserRole

FailureRow = TypeVar("FailureRow", FailureSummary, FailureGroup, GroupDetail)

#: Replaces exception messages, as they often contain values.
HIDDEN = "(hidden: needs the role locals)"


def without_values(failure: FailureDetail) -> FailureDetail:
    """A failure with frames and lines, without values."""
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
        logs=None,
        task=failure.task and replace(failure.task, headers={}),
    )


def without_message(row: FailureRow) -> FailureRow:
    """A row of a list without its message."""
    return row if row.exception is None else replace(row, exception=replace(row.exception, message=HIDDEN))


def without_comments(group: GroupDetail) -> GroupDetail:
    """A group without its message and its comments, which may quote values."""
    return replace(without_message(group), comments=())


def without_data(leak: Leak) -> Leak:
    """A leak without dictionary keys in its holder path, as they are user data."""
    return replace(leak, retained_by=without_keys(leak.retained_by))


def may_read(user: User, shell: ShellView) -> bool:
    """
    Whether a user may read the transcript of a shell.

    A recreated shell shows the redacted capture. A live shell shows the objects themselves, including secrets, so its
    transcript needs the same role as the shell.
    """
    return user.may(UserRole.LIVE if shell.mode == "live" else UserRole.LOCALS)


def without_text(alert: AlertView) -> AlertView:
    """An alert without its text if that may contain the message of a failure."""
    if not alert.link.startswith("failures/"):
        return alert
    return replace(alert, text=f"{alert.subject} {HIDDEN}")
