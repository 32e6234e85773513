"""
The timeline of a workflow: its sources and its rows.

Times are in seconds since the epoch, by the clocks of the hosts that reported them.
"""

from __future__ import annotations

from msgspec import Struct


class TaskEvents(Struct, frozen=True, kw_only=True):
    """
    What Celery's events have reported about one task, of its latest try only. Any client of the broker can forge it.

    Attributes:
        state: Celery's state, such as ``STARTED``.
        sent_s: When a client published it; None unless ``task_send_sent_event`` is on.
        ended_s: When its state became a final one.
        at_s: The latest known time.
    """

    task_id: str
    name: str = ""
    state: str = ""
    root_id: str = ""
    parent_id: str = ""
    worker: str = ""
    queue: str = ""
    retries: int = 0
    sent_s: float | None = None
    received_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    at_s: float | None = None


class Span(Struct, frozen=True, kw_only=True):
    """
    A period of one try of a task.

    Attributes:
        kind: ``waiting`` or ``running``.
        starts_at: None if unknown.
        ends_at: None if it goes on, or if unknown; the outcome of the row says which.
    """

    kind: str
    retries: int = 0
    starts_at: float | None = None
    ends_at: float | None = None


class TimelineRow(Struct, frozen=True, kw_only=True):
    """
    One task or request of a workflow.

    Attributes:
        parent: The id of the row above it; empty for the first row.
        depth: Levels below the first row.
        outcome: ``waiting``, ``running``, ``succeeded``, ``unknown``, or an outcome of a failure.
        spans: Ordered by time; the latest of a task with many tries.
        spans_left_out: Earlier ones.
        waiting_s: Seconds from when its last try was sent (or received, if that is all that is known) to its start, so
            far if it waits; None if unknown.
        running_s: Seconds of all its tries, so far if it runs; None if unknown.
        rss_bytes: The process's memory, by samples of it during the latest run or up to ten seconds after it.
        kept_bytes: What it still held at its end.
        failure: The id of its latest failure.
        run: The id of its latest single run.
        remembered: Whether Flower has it in memory.
        unknown: What no source knows, as short phrases.
    """

    id: str
    kind: str = "task"
    name: str = ""
    parent: str = ""
    depth: int = 0
    outcome: str = "unknown"
    worker: str = ""
    queue: str = ""
    retries: int = 0
    spans: list[Span] = []
    spans_left_out: int = 0
    waiting_s: float | None = None
    running_s: float | None = None
    rss_bytes: int | None = None
    kept_bytes: int | None = None
    failure: str = ""
    run: str = ""
    remembered: bool = False
    unknown: list[str] = []


class ChordMember(Struct, frozen=True, kw_only=True):
    """A task that the body of a chord waits for."""

    id: str
    name: str = ""
    outcome: str = "unknown"


class WaitingChord(Struct, frozen=True, kw_only=True):
    """
    A chord with a body that has not been sent.

    Attributes:
        body: The name of the body's task; empty if unknown.
        unlock: The id of the ``celery.chord_unlock`` that looks whether the members have ended.
        members: The number of members that are known.
        missing: Those of them that have not succeeded.
        complete: Whether all members are known.
        blocked: Whether a member has failed, so that the body will not run.
    """

    unlock: str
    body: str = ""
    members: int = 0
    missing: list[ChordMember] = []
    complete: bool = False
    blocked: bool = False


class Timeline(Struct, frozen=True, kw_only=True):
    """
    ``GET /api/trace/workflows/ID``.

    Attributes:
        id: The id that was asked for.
        first: The id of the first row: the request, or the root task.
        begins_at, ends_at: The bounds of all spans; ``ends_at`` is now while something waits or runs.
        rows: Each below its parent.
        more: Rows that were left out.
        outcomes: The number of rows by outcome, including those left out.
        chords: Chords with a body that waits.
        incomplete: Whether the store has more records of this workflow than were read.
    """

    id: str
    first: str
    begins_at: float | None = None
    ends_at: float | None = None
    rows: list[TimelineRow] = []
    more: int = 0
    outcomes: dict[str, int] = {}
    chords: list[WaitingChord] = []
    incomplete: bool = False
