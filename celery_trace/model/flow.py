"""
Messages on their way to a run: the records of queues, of what waits in them, and of a scheduler's entries.

A message's times are added up per queue, task and five minutes; there is no record of a single message, except for
those that are started twice.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct, field

from celery_trace.intervals import ROLLUP_S
from celery_trace.model.records import Histogram, Record, stable_id


class Flow(Record, frozen=True, kw_only=True, tag="flow"):
    """
    The messages of one task in one queue that one process has published or consumed in five minutes, so far.

    Cumulative within the bucket, like :class:`~celery_trace.model.records.Rollup`. Messages without a readable time of
    publishing, and redelivered ones, are counted but not in ``waits`` and ``transfers``.
    """

    process: str
    queue: str
    name: str
    bucket_s: int
    seq: int
    published: int = 0
    received: int = 0
    started: int = 0
    redelivered: int = 0  # of the started ones
    waits: Histogram = Histogram([])  # from published, or the ETA, to started
    transfers: Histogram = Histogram([])  # from published to received: in the broker
    reserved: Histogram = Histogram([])  # from received, or the ETA, to started: in the worker
    wait_max_s: float = 0.0
    eta_max_s: float = 0.0  # the longest time that a message was held for its ETA
    acks_late: bool = False

    BUCKET_S: ClassVar[int] = ROLLUP_S

    @property
    def key(self) -> str:
        return stable_id("flow", self.process, self.queue, self.name, self.bucket_s)


class Ahead(Struct, frozen=True, array_like=True):
    """A run that reserved messages wait for."""

    name: str
    task_id: str
    since_s: float


class Consuming(Record, frozen=True, kw_only=True, tag="consuming"):
    """
    A worker consumes a queue: its latest state.

    ``reserved`` messages have been received and wait for a free process; ``ahead`` are the runs in the way, the
    longest first. ``idle_because`` says why the worker takes no messages although it has a free process, in a clause;
    empty if it does, or has none.
    """

    process: str
    queue: str
    at_s: float
    worker: str = ""
    running: int = 0
    reserved: int = 0
    scheduled: int = 0  # held for their ETA
    reserved_since_s: float | None = None  # the oldest of the reserved
    ahead: list[Ahead] = field(default_factory=list)
    visibility_timeout_s: float | None = None
    gone: bool = False  # it no longer consumes the queue
    idle_because: str = ""
    idle_since_s: float | None = None

    @property
    def key(self) -> str:
        return stable_id("consuming", self.process, self.queue)


class QueueSample(Record, frozen=True, kw_only=True, tag="queue"):
    """A point in a queue's series, as the monitor read it from the broker; None where the broker can't say."""

    queue: str
    at_s: float
    depth: int | None = None
    consumers: int | None = None
    oldest_age_s: float | None = None
    running: int = 0
    reserved: int = 0

    @property
    def key(self) -> str:
        return stable_id("queue-sample", self.queue, int(self.at_s))


class MessageStart(Record, frozen=True, kw_only=True, tag="start"):
    """
    A run of a message that was, or may be, started more than once.

    Written for redelivered messages, for runs of the same id beside them in one worker, and for late-acknowledged runs
    that last so long that the broker may deliver their message again.
    """

    process: str
    worker: str
    queue: str
    name: str
    task_id: str
    retries: int = 0
    started_at_s: float
    ended_at_s: float | None = None
    succeeded: bool = False
    redelivered: bool = False

    @property
    def key(self) -> str:
        return stable_id("start", self.process, self.task_id, self.retries, f"{self.started_at_s:.3f}")


class Schedule(Record, frozen=True, kw_only=True, tag="schedule"):
    """An entry of a scheduler (beat), as one process of beat knows it. Counts are since that process started."""

    process: str
    entry: str
    task: str
    every: str  # in words, as Celery writes the schedule
    at_s: float
    due_at_s: float | None = None  # when it is due next
    interval_s: float = 0.0  # from one due time to the next
    published_at_s: float | None = None
    published: int = 0
    missed: int = 0  # due times that passed without a message
    failed: int = 0  # messages that could not be published
    late_max_s: float = 0.0
    gone: bool = False  # no longer in the schedule

    @property
    def key(self) -> str:
        return stable_id("schedule", self.process, self.entry)


# --- views


class QueueView(Struct, frozen=True, kw_only=True):
    """
    A queue, as in ``GET /api/trace/queues``.

    ``depth``, ``oldest_age_s`` and ``consumers`` are of now; the others of the chosen time. None is unknown.
    """

    name: str
    depth: int | None
    oldest_age_s: float | None
    wait_p50_s: float | None
    wait_p95_s: float | None
    published: int
    started: int
    consumers: int | None


class TaskFlow(Struct, frozen=True, kw_only=True):
    """A task's messages in one queue. Percentiles in seconds; None if no message had a readable time."""

    queue: str
    name: str
    published: int
    received: int
    started: int
    redelivered: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    transfer_p95_s: float | None
    reserved_p95_s: float | None
    wait_max_s: float
    eta_max_s: float = 0.0
    acks_late: bool = False


class ScheduleView(Struct, frozen=True, kw_only=True):
    """An entry of a schedule; ``processes`` are the living schedulers that published it in its last interval."""

    entry: str
    task: str
    every: str
    due_at: float | None
    interval_s: float
    published_at: float | None
    published: int
    missed: int
    failed: int
    processes: int


class RepeatedRun(Struct, frozen=True, kw_only=True):
    """A message that was started again while it ran, or after it had succeeded."""

    task_id: str
    name: str
    queue: str
    workers: list[str]
    starts: list[float]
    overlapping: bool

    @property
    def at(self) -> float:
        """When it was last started."""
        return self.starts[-1]


class RedeliveryRisk(Struct, frozen=True, kw_only=True):
    """How long messages of a task stay unacknowledged, against the time after which the broker delivers them again."""

    queue: str
    name: str
    held_s: float
    why: str  # "its longest ETA" or "its p99 duration with acks_late"
    visibility_timeout_s: float

    @property
    def share(self) -> float:
        """The share of the visibility timeout that is used."""
        return self.held_s / self.visibility_timeout_s
