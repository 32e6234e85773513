"""
Views for readers: the structs of the JSON API, of the pages and of the commands.

Times are plain here (``at``, ``first_seen``), in seconds since the epoch.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct, field

from celery_trace.model.capture import ExceptionInfo, Line, Node, RequestContext, TaskContext
from celery_trace.model.logs import LogTail
from celery_trace.model.records import Kill, LastSample, MemoryState, Outcome, Role, TypeCount, Verdict


class Leak(Struct, frozen=True, kw_only=True):
    """A row of the leak table, as in ``GET /api/trace/leaks``."""

    id: str
    kind: str
    name: str
    verdict: Verdict
    native: bool
    file: str
    line: int
    function: str
    code: str
    kept_bytes_per_run: int
    kept_blocks_per_run: float
    kept_bytes_total: int
    runs: int
    processes: int
    traceback: list[Line] = []
    types: list[TypeCount] = []
    retained_by: list[str] = []
    first_seen: float
    last_seen: float
    samples: list[tuple[float, int]] = []
    role: str = ""  # of the process: "child", "main", "web" …
    confidence: float = 0.0  # 0 to 1, that it grows
    why: str = ""  # the reason of the verdict
    waits_for: str = ""  # what is needed for a decision; "" once decided
    began_with: str = ""  # the first release that showed it; "" if it may be older
    began_at: float | None = None  # when that release first showed it
    # beyond the contract
    resource: str = ""  # for native rows: "malloc", "mmap", "fds", "threads", "children"
    bounded: str = ""
    note: str = ""
    concurrent: bool = False


class LocalValue(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A local as text; ``ref`` opens it as a tree in ``heap``."""

    name: str
    type: str
    value: str
    cut: int
    redacted: bool
    ref: int = -1


class FrameView(Struct, frozen=True, kw_only=True):
    """A frame for pages and scripts."""

    file: str
    line: int
    function: str
    code: str
    context: list[tuple[int, str]]
    in_app: bool
    locals: list[LocalValue]
    qualname: str = ""
    module: str = ""
    columns: tuple[int, int, int] | None = None
    locals_cut: int = 0
    folded: int = 0
    stale: bool = False
    note: str = ""


class ChainLink(Struct, frozen=True, kw_only=True):
    """One exception of a failure's chain with its own frames; the first is what was raised."""

    type: str
    module: str
    message: str
    link: str
    parent: int
    frames: list[FrameView]
    frames_cut: int = 0
    notes: list[str] = []
    attributes: list[LocalValue] = []


class FailureSummary(Struct, frozen=True, kw_only=True):
    """A row of ``GET /api/trace/failures``. ``count`` is how many share the fingerprint."""

    id: str
    kind: str
    name: str
    task_id: str
    retries: int
    outcome: Outcome
    exception: ExceptionInfo | None
    fingerprint: str
    count: int
    worker: str
    pid: int
    hostname: str
    at: float
    live: bool
    # beyond the contract: its position in the workflow
    root_id: str = ""
    parent_id: str = ""
    group_id: str = ""
    kills: int = 0  # processes that it killed; for the outcomes "lost" and "time_limit"


class FailureDetail(FailureSummary, frozen=True, kw_only=True):
    """``GET /api/trace/failures/ID``."""

    frames: list[FrameView]
    chain: list[ChainLink]
    args: list[LocalValue]
    kwargs: list[LocalValue]
    request: RequestContext | None
    memory: MemoryState | None
    # beyond the contract
    process: str = ""
    task: TaskContext | None = None
    last_sample: LastSample | None = None
    traceback_text: str = ""
    duration_s: float | None = None
    witness: str = ""
    note: str = ""
    returned: str = ""
    killed: list[Kill] = []  # oldest first
    logs: LogTail | None = None
    heap: list[Node] = []
    cut_values: int = 0
    redacted_values: int = 0
    live_until: float | None = None
    first_seen: float | None = None
    last_seen: float | None = None


class FailureGroup(Struct, frozen=True, kw_only=True):
    """Failures that share a fingerprint. ``trend`` counts them per equal slice of time, oldest first."""

    fingerprint: str
    kind: str
    name: str
    exception: ExceptionInfo | None
    outcome: Outcome
    count: int
    first_seen: float
    last_seen: float
    latest_id: str
    state: str = "new"  # "new", "ongoing", "resolved", "regressed", "ignored"
    trend: list[tuple[float, int]] = []
    # beyond the contract
    assigned_to: str = ""
    ignored_until: float | None = None


class ProcessView(Struct, frozen=True, kw_only=True):
    """One traced process with its latest memory; of that, USS and PSS may be a minute older."""

    uid: str
    pid: int
    role: Role
    started_at: float
    ended_at: float | None
    ended_how: str
    memory: MemoryState | None
    at: float | None
    running: str = ""
    runs: int = 0
    kept_failures: int = 0
    overhead_ratio: float = 0.0
    mode: str = ""
    counters: list[str] = []


class WorkerView(Struct, frozen=True, kw_only=True):
    """
    A worker (or a web host) and its processes.

    ``rss_bytes`` is summed over the running ones with known memory, which are ``rss_processes``; it counts pages that
    processes share several times, ``pss_bytes`` once. That is None if it is unknown for one of them. ``state`` is
    ``alive``, ``stopped`` (its main process exited normally), ``killed``, or ``silent``: nothing is known of its end.
    """

    name: str
    host: str
    role: str
    alive: bool
    rss_bytes: int
    last_seen: float
    overhead_ratio: float
    processes: list[ProcessView]
    # beyond the contract
    rss_processes: int = 0
    pss_bytes: int | None = None
    state: str = "silent"


class GrowthShare(Struct, frozen=True):
    """The part of a growth that the runs of one name explain: their leaks' rates times the runs of that time."""

    kind: str
    name: str
    bytes: int
    share: float  # 0 to 1


class Forecast(Struct, frozen=True, kw_only=True):
    """
    A process, or its container or machine, grows and will reach its limit.

    ``seconds`` are counted from ``at``; ``earliest_s`` and ``latest_s`` are a 90 % interval.
    """

    worker: str
    process: str
    pid: int
    limit: str  # "child" (worker_max_memory_per_child), "container" or "machine"
    limit_bytes: int
    used_bytes: int
    bytes_per_hour: int
    at: float
    seconds: float
    earliest_s: float
    latest_s: float
    shares: list[GrowthShare] = []  # greatest first


class AlertView(Struct, frozen=True, kw_only=True):
    """An alert as ``GET /api/trace/alerts`` shows it; states are Prometheus' with ``pending`` before ``firing``."""

    id: str
    rule: str
    subject: str
    state: str  # "pending", "firing", "resolved"
    severity: str
    text: str
    value: float
    threshold: float
    since: float
    fired_at: float | None
    resolved_at: float | None
    acknowledged_by: str = ""
    acknowledged_at: float | None = None
    silenced_until: float | None = None
    link: str = ""  # path on the monitor, such as "leaks/ID"
    count: int = 1  # how often it fired


class Delivery(Struct, frozen=True, kw_only=True):
    """One attempt to deliver an alert. ``channel`` is shown without its secrets."""

    id: str
    alert: str
    channel: str
    at: float
    ok: bool
    error: str = ""
    attempt: int = 1


class ShellLine(Struct, frozen=True, kw_only=True):
    """A line of a transcript. ``kind`` is ``input``, ``output``, ``error``, ``remark`` or ``event``."""

    seq: int
    at: float
    user: str
    kind: str
    text: str


class ShellView(Struct, frozen=True, kw_only=True):
    """A shell session on a failure, with its transcript if requested."""

    id: str
    failure: str
    mode: str  # "live" or "recreated"
    started_at: float
    ended_at: float | None
    users: list[str]
    lines: list[ShellLine] = []


class LostStore(Struct, frozen=True, kw_only=True):
    """
    A store that was at this address before.

    ``why`` is ``deleted``, ``replaced`` or ``damaged``; ``records`` are those that it held, None if unknown;
    ``set_aside`` is where a damaged file was moved to.
    """

    at: float
    why: str
    records: int | None = None
    set_aside: str = ""


class StoreSize(Struct, frozen=True, kw_only=True):
    """
    The size of the store, in bytes, and its forecast.

    ``free_bytes`` of an SQLite file are used for new rows first; it can return them to the disk if ``gives_back``
    is set. ``bound_at`` is when failures reach ``most_failures`` or ``most_failure_bytes`` (0: no bound) at the pace
    of the last three days; then older ones are removed. Unknown values are None.
    """

    bytes: int
    free_bytes: int
    gives_back: bool
    failures: int
    failure_bytes: int
    most_failures: int
    most_failure_bytes: int
    bytes_per_day: int | None = None
    failures_per_day: int | None = None
    failure_bytes_per_day: int | None = None
    bound_at: float | None = None


class StatsView(Struct, frozen=True, kw_only=True):
    """``GET /api/trace/stats``: records kept and lost, and what measuring costs."""

    records: dict[str, int]  # by kind, in the store
    written: dict[str, int]  # by kind, by processes
    dropped: dict[str, int]
    cut: dict[str, int]
    own_errors: dict[str, int]
    live: dict[str, int]  # commands executed and refused
    overhead_ratio: float
    spool_bytes: int
    spool_records: int
    corrupt_lines: int
    store: str = ""  # URL without password
    schema: str = ""
    collector: dict[str, object] = {}
    lost_stores: list[LostStore] = []  # the latest first
    size: StoreSize | None = None


Row = TypeVar("Row")


class Page(Struct, Generic[Row], frozen=True):
    """One page of a list, and the cursor of the next. Serialised as ``{"<noun>": rows, "next": cursor}``."""

    noun: str
    rows: list[Row]
    next: str | None = None
    total: int | None = field(default=None)

    def as_json(self) -> dict[str, object]:
        """The contract's shape of a list."""
        return {self.noun: self.rows, "next": self.next}
