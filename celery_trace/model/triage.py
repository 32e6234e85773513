"""What users decide about a group of failures, and what its page shows."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from celery_trace.model.views import FailureGroup, FailureSummary


class Comment(Struct, frozen=True, kw_only=True):
    """A user's comment on a group."""

    id: str
    fingerprint: str
    at: float
    user: str
    text: str


class Retried(Struct, frozen=True, kw_only=True):
    """A failed task that a user sent again from the monitor. ``id`` is the failure's."""

    id: str
    fingerprint: str
    at: float
    user: str
    task_id: str  # of the new message


class TagShare(Struct, frozen=True):
    """How many of the counted failures have this value; an empty value is not known."""

    value: str
    count: int
    share: float  # 0 to 1


class Tag(Struct, frozen=True):
    """One tag of the failures of a group, its values the most frequent first. ``more`` are failures with others."""

    name: str  # "worker", "queue", "release", "host", "route"
    values: list[TagShare]
    more: int = 0


class GroupDetail(FailureGroup, frozen=True, kw_only=True):
    """
    ``GET /api/trace/groups/FINGERPRINT``.

    Attributes:
        tagged: How many failures the tags count, the newest.
        first_release, last_release: Of the oldest and the newest stored failure with a known release; else empty.
        retried: How many of its failures were sent again from the monitor.
    """

    resolved_at: float | None = None
    resolved_by: str = ""
    ignored_by: str = ""
    tags: Sequence[Tag] = ()
    tagged: int = 0
    first_release: str = ""
    last_release: str = ""
    comments: Sequence[Comment] = ()  # oldest first
    retried: int = 0


class Neighbours(Struct, frozen=True, kw_only=True):
    """The failures of the same group before and after one."""

    previous: FailureSummary | None
    next: FailureSummary | None
