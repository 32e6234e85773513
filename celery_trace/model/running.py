"""What runs now: what the collector of a host reads from the black boxes, and what readers are shown of it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from msgspec import Struct, field

from celery_trace.model.capture import Capture, Line
from celery_trace.model.records import Kind, Record, Role
from celery_trace.model.views import LocalValue

#: While a process lives, a snapshot is written at least this often, seconds, even if nothing has changed.
SNAPSHOT_AGAIN_S: Final = 20.0
#: An older snapshot with runs says nothing any more, seconds: its collector or its host is gone.
SNAPSHOT_VALID_S: Final = 4 * SNAPSHOT_AGAIN_S
#: A run may be stuck if it lasts this many times its task's 99th percentile.
STUCK_TIMES: Final = 3.0


class RunningRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A run in progress.

    ``sampled_at_s`` is when the stack was sampled; 0 if it has not been yet. ``unmoved_since_s`` is since when each
    sample showed the same functions and, but for the innermost one, the same lines. ``stalled_since_s`` is since when
    nothing has shown that it makes progress; 0 while it does, or has only just begun not to.
    """

    process: str  # its uid
    kind: Kind
    name: str
    task_id: str = ""
    retries: int = 0
    queue: str = ""
    worker: str = ""
    hostname: str = ""
    pid: int
    role: Role
    thread: int = 0  # or greenlet
    started_at_s: float
    rss_bytes: int = 0  # of its process
    stack: list[Line] = []  # innermost first
    sampled_at_s: float = 0.0
    unmoved_since_s: float = 0.0
    stalled_since_s: float = 0.0
    waiting_for: str = ""  # what it waits for, in words


class StalledProcess(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's main process, or beat, with a main thread that has not run since ``since_s``: it is blocked."""

    process: str  # its uid
    worker: str = ""
    hostname: str = ""
    pid: int
    role: Role
    since_s: float
    waiting_for: str = ""  # what it waits for, in words


class RunningSnapshot(Record, frozen=True, kw_only=True, tag="running"):
    """
    Everything that runs on one host below one ``trace_dir``. The latest replaces the earlier ones.

    ``ended`` counts the runs that have ended in each living process, by its uid; 0 for one without a black box.
    ``stuck_s`` is the host's setting ``trace_stuck_seconds``.
    """

    place: str  # the host and its trace_dir
    at_s: float
    address: str = ""  # the queue on which the collector takes requests for stacks; "" if it takes none
    runs: list[RunningRun] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    stuck_s: float = 30.0
    stalled: list[StalledProcess] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.place


class StackRequest(Struct, frozen=True, kw_only=True):
    """Asks a process for the stack of one of its runs. A run without a task id is found by its start and thread."""

    id: str
    process: str
    task_id: str = ""
    thread: int = 0
    started_at_s: float = 0.0


class RunStack(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The stack of a run, innermost first.

    ``by`` is ``process`` if the process captured it itself, with locals and arguments in ``capture``; ``outside`` if it
    was read from the memory of the process, which did not answer; ``signal`` if it was written by `faulthandler` while
    C code held the interpreter's lock; ``sample`` if it is the last sample of the black box. Empty if there is no
    stack: ``why`` has the reason.
    """

    request: str  # its id
    at_s: float
    by: str = ""
    stack: list[Line] = []
    capture: Capture | None = None
    why: str = ""  # why locals, or the stack, are missing


class StackLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a stack. ``locals`` is None unless they were requested and could be read."""

    file: str
    line: int
    function: str
    code: str
    locals: list[LocalValue] | None = None


class RunningView(Struct, frozen=True, kw_only=True):
    """A row of ``GET /api/trace/running``. ``p50_s`` and ``p99_s`` are None for a task that never ended."""

    task_id: str
    name: str
    worker: str
    hostname: str
    pid: int
    role: Role
    since: float
    elapsed_s: float
    p50_s: float | None
    p99_s: float | None
    retries: int
    queue: str
    rss_bytes: int
    stuck: bool
    waiting_for: str
    stack: list[StackLine]  # innermost first
    # beyond the contract
    kind: str
    process: str
    thread: int
    sampled_at: float | None
    stack_by: str = "sample"  # as RunStack.by
    stack_why: str = ""  # why locals, or the stack, are missing
    unmoved_s: float
    stalled_s: float  # for how long nothing has shown that it makes progress
    stuck_after_s: float  # from when on it is stuck, if it makes no progress
    at: float  # when its host was last read
    address: str  # the queue of its host's collector; "" if it takes no requests

    @property
    def key(self) -> str:
        """Its name within its process: its task id, or for a request or a block its thread."""
        return self.task_id or f"-{self.thread}"

    @property
    def path(self) -> str:
        """Its page on the monitor, below ``/trace/``."""
        return f"running/{self.process}/{quote(self.key, safe='')}"


def stuck_after_s(p99_s: float | None, stuck_s: float) -> float:
    """
    From when on a run is stuck if it makes no progress, seconds.

    Args:
        p99_s: The 99th percentile of its task, seconds; None if that never ended.
        stuck_s: The setting ``trace_stuck_seconds``.
    """
    return max(STUCK_TIMES * (p99_s or 0.0), stuck_s)


def is_stuck(elapsed_s: float, p99_s: float | None, stalled_s: float, stuck_s: float) -> bool:
    """
    Whether a run lasts far longer than most of its task, and makes no progress.

    Args:
        elapsed_s: For how long it has run, seconds.
        p99_s: As for :func:`stuck_after_s`.
        stalled_s: For how long nothing has shown that it makes progress, seconds.
        stuck_s: As for :func:`stuck_after_s`.
    """
    return elapsed_s > stuck_after_s(p99_s, stuck_s) and stalled_s >= stuck_s
