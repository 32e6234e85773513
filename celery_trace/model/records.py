"""
The records of traced processes. Each goes through the spool and is upserted into the store by its ``key``.

Units are in the names: ``_s`` is seconds (``at_s`` since the epoch), ``_bytes`` bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar
from uuid import uuid4

from msgspec import Struct

from celery_trace.intervals import ROLLUP_S
from celery_trace.model.capture import (
    Capture,
    ExceptionInfo,
    Line,
    RequestContext,
    TaskContext,
)
from celery_trace.model.logs import LogTail

FORMAT_VERSION = 1


class Kind(StrEnum):
    """What was run."""

    TASK = "task"
    REQUEST = "request"
    BLOCK = "block"
    PROCESS = "process"  # no run: a process's own work, such as a worker's main process


class Role(StrEnum):
    """What a traced process does; decides what may be attributed to one run."""

    CHILD = "child"  # prefork: one run at a time
    MAIN = "main"  # the prefork worker's main process: runs no tasks
    BEAT = "beat"
    SOLO = "solo"
    THREADS = "threads"
    GREEN = "green"  # gevent, eventlet, an event loop
    WEB = "web"  # a Django process
    SCRIPT = "script"  # a block or an eager task outside any worker

    @classmethod
    def _missing_(cls, _value: object) -> Role:
        """Written by a newer version."""
        return cls.SCRIPT


#: Roles of the processes of a worker that run no tasks.
RUN_NOTHING = frozenset({Role.MAIN, Role.BEAT})
#: Roles whose runs may share a thread, as greenlets and coroutines do.
SHARE_THREADS = frozenset({Role.GREEN, Role.WEB})


class Outcome(StrEnum):
    """How a failed run ended."""

    FAILED = "failed"
    RETRIED = "retried"
    REJECTED = "rejected"
    TIME_LIMIT = "time_limit"
    REVOKED = "revoked"
    LOST = "lost"
    INTERNAL_ERROR = "internal_error"


class Verdict(StrEnum):
    """The verdict on a suspected leak."""

    LEAKING = "leaking"
    GROWING = "growing"
    SUSPECT = "suspect"
    STEADY = "steady"
    TOO_FEW_RUNS = "too_few_runs"


class Stage(StrEnum):
    """The stage of an investigation; the end of each stage writes one :class:`Window`."""

    SUSPECT = "suspect"
    CENSUS = "census"
    LOCATED = "located"
    VERDICT = "verdict"
    NATIVE = "native"
    TRACED = "traced"  # `always` mode, or a block with its Top 10 differences
    PROCESS = "process"  # a window of a process that runs several at once
    RUN = "run"  # what one run in progress holds
    SAMPLED = "sampled"  # survivors of the sampled heap; written since 0.2.0


def new_id() -> str:
    """A fresh random id: 16 hexadecimal digits."""
    return uuid4().hex[:16]


def stable_id(*parts: object) -> str:
    """The same 16 hexadecimal digits for the same parts, on every host."""
    text = "\x1f".join(map(str, parts))
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def failure_id(task_id: str, retries: int) -> str:
    """The id of a run's failure, the same for all witnesses: child, main process or both."""
    return stable_id("failure", task_id, retries)


def leak_id(kind: str, name: str, file: str, line: int, native: str | None) -> str:
    """The id of a row in the leak table: one site (or one native resource) of one task."""
    return stable_id("leak", kind, name, native or f"{file}:{line}")


class TypeCount(Struct, frozen=True):
    """
    Surviving objects of one type: how many a search found, and their share of the retained bytes with what only they
    refer to.
    """

    type: str
    count: int
    bytes: int


class Site(Struct, frozen=True, kw_only=True):
    """
    An allocation site: live blocks gained over the window's runs, by where they were allocated.

    ``traceback`` has the allocating line first and reaches outwards to the user's code.
    """

    file: str
    line: int
    function: str = ""
    code: str = ""
    bytes: int
    blocks: int
    traceback: list[Line] = []


class Evidence(Struct, frozen=True):
    """
    The evidence of the sampled heap on one site; an event is a run that retained something.

    If most memory of the site is in one block that grows, an event is a look at which it had grown.
    """

    runs: int = 0  # observed, without those in flight
    early: int = 0  # events in the first half of those runs
    late: int = 0
    bytes: float = 0.0  # alive, as the sample estimates
    picks: int = 0  # that the estimate is based on
    proved: int = 0  # events with survivors of a full garbage collection
    released: float = 0.0  # recent releases as a share of recent births: 0 for a leak, 1 for a full queue
    one_block: bool = False  # a text or buffer that grows

    @property
    def events(self) -> int:
        """Runs that retained something."""
        return self.early + self.late

    @property
    def bytes_per_run(self) -> float:
        """Bytes retained per observed run, on average."""
        return self.bytes / self.runs if self.runs else 0.0


class EntryGrowth(Struct, frozen=True):
    """How many entries a container has gained in both halves of some runs."""

    early: int
    late: int
    runs: int


class Holder(Struct, frozen=True, omit_defaults=True):
    """The result of the search for what holds survivors."""

    path: list[str] = []  # root first; empty if no root was reached
    bound: str = ""  # "lru_cache (300/500)"
    full: bool = False  # the bound is reached
    searched: bool = False  # whether a walk has ended
    why: str = ""  # why no root was reached
    outside: bool = False  # its holder is invisible to the garbage collector, so it is not garbage
    recycled: bool = False  # mostly small objects, which the interpreter reuses at other lines
    entries: EntryGrowth | None = None  # by the order of its entries
    outdated: bool = False  # found long ago, so that it is to be found again before its site is called a leak
    of_another_task: bool = False  # another task fills it, and the site's blocks are small objects that it reuses


class Room(Struct, frozen=True, omit_defaults=True):
    """The memory that a process shares with others: its container's if that has a limit, else the machine's."""

    used_bytes: int
    limit_bytes: int
    of: str = "container"  # or "machine"


class MemoryState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A process's memory at one moment; ``None`` where this platform has no such counter.

    ``uss_bytes`` is memory that only this process uses; ``pss_bytes`` also has its share of pages that several use, so
    the sum over processes counts each page once. Both are read at most once a minute, and None in between.
    """

    rss_bytes: int = 0
    uss_bytes: int | None = None
    pss_bytes: int | None = None
    allocated_blocks: int | None = None  # live pymalloc blocks, sys.getallocatedblocks()
    malloc_bytes: int | None = None  # live bytes of the C allocator, mallinfo2
    mmap_bytes: int | None = None
    fds: int | None = None
    threads: int | None = None
    #: The size at which Celery replaces this process after a run (``worker_max_memory_per_child``).
    child_limit_bytes: int | None = None
    room: Room | None = None


class LastSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The last sample in the black box of a killed process.

    If the process crashed (SIGSEGV and the like), ``crash`` is the error, and ``stack`` is that of the crash.
    """

    at_s: float
    age_s: float  # how long before the death was noticed
    stack: list[Line] = []  # innermost first
    memory: MemoryState | None = None
    crash: str = ""  # such as "Segmentation fault"


class Kill(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A process was killed while it ran a message. A message that is redelivered may kill many.

    ``pid`` and ``process`` identify it. ``process`` is the worker's main process, or the process itself if it had
    none: a host that restarts reuses pids, and the main process does not know its children's uids.
    """

    at_s: float
    pid: int
    process: str
    worker: str = ""  # the node's name, or the host's


class Histogram(Struct, frozen=True, array_like=True):
    """
    Durations in buckets of a power of two of a tenth of a millisecond.

    ``counts[i]`` holds runs that took up to ``0.0001 * 2**i`` seconds, the last one all longer ones.
    """

    counts: list[int]

    BUCKETS: ClassVar[int] = 28

    @staticmethod
    def bucket(duration_s: float) -> int:
        """The bucket of a duration (seconds)."""
        tenths_ms = int(duration_s * 10_000)
        return min(tenths_ms.bit_length(), Histogram.BUCKETS - 1)

    @staticmethod
    def together(added: Iterable[Histogram]) -> Histogram:
        """Histograms, added up."""
        counts = [0] * Histogram.BUCKETS
        for one in added:
            for bucket, runs in enumerate(one.counts[: Histogram.BUCKETS]):
                counts[bucket] += runs
        return Histogram(counts)

    def percentile_s(self, share: float) -> float | None:
        """
        An upper bound of a percentile of the durations; None if there are none.

        Args:
            share: The percentile, from 0 to 1.
        """
        total, seen = sum(self.counts), 0
        if not total:
            return None
        for bucket, runs in enumerate(self.counts):
            seen += runs
            if seen >= share * total:
                return 0.0001 * float(1 << bucket)
        return None

    @staticmethod
    def begins_s(bucket: int) -> float:
        """The shortest duration (seconds) of a bucket; infinite after the last one."""
        if bucket >= Histogram.BUCKETS:
            return math.inf
        return (1 << bucket >> 1) / 10_000


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="record"):
    """
    Something that a traced process writes and that must reach the store.

    Each has a ``key``: two records of one class with the same key are the same fact, and
    the later one completes the earlier.
    """


class ProcessRecord(Record, frozen=True, kw_only=True, tag="process"):
    """A traced process; the first record of each spool file."""

    uid: str
    host: str
    pid: int
    started_at_s: float
    worker: str = ""  # the Celery node name; empty outside a worker
    role: Role = Role.SCRIPT
    parent_uid: str = ""
    python: str = ""
    counters: list[str] = []  # the exact counters of this interpreter and libc
    mode: str = "auto"
    ended_at_s: float | None = None
    ended_how: str = ""  # "exit", "recycled", "killed", ...
    release: str = ""  # the deployed release, from ``trace_release``

    @property
    def key(self) -> str:
        return self.uid


class Rollup(Record, frozen=True, kw_only=True, tag="rollup"):
    """
    A process's runs of one name in one five-minute bucket, so far.

    Totals are cumulative within the bucket and ``seq`` rises, so a store keeps the
    one with the greatest ``seq`` and a repeated delivery changes nothing.
    """

    process: str
    kind: Kind
    name: str
    bucket_s: int
    seq: int
    runs: int
    failed: int = 0
    retried: int = 0
    duration_s: float = 0.0
    duration_max_s: float = 0.0
    durations: Histogram = Histogram([])
    gated: int = 0  # runs that the gate measured
    kept_blocks: int = 0  # summed over gated runs; may be negative
    kept_bytes: int = 0
    rss_max_bytes: int = 0
    concurrent: bool = False  # runs overlapped: the kept_* belong to the process, not to this name

    BUCKET_S: ClassVar[int] = ROLLUP_S

    @property
    def key(self) -> str:
        return stable_id("rollup", self.process, self.kind, self.name, self.bucket_s)


class Run(Record, frozen=True, kw_only=True, tag="run"):
    """A single run: an outlier, a sampled one, a traced one, or a failed one."""

    id: str
    process: str
    kind: Kind
    name: str
    task_id: str = ""
    retries: int = 0
    queue: str = ""
    root_id: str = ""
    started_at_s: float
    duration_s: float
    state: str = ""
    why: str = "sampled"  # "outlier", "sampled", "traced", "failed"
    kept_blocks: int | None = None
    kept_bytes: int | None = None
    memory: MemoryState | None = None
    top: list[Site] = []  # the Top 10 differences, if the run was traced
    concurrent: int = 1

    @property
    def key(self) -> str:
        return self.id


class Sample(Record, frozen=True, kw_only=True, tag="sample"):
    """A point in a process's memory series."""

    process: str
    at_s: float
    memory: MemoryState
    runs: int = 0  # runs so far in this process
    name: str = ""  # what was running
    kept_failures: int = 0
    overhead_ratio: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.process}:{self.at_s:.3f}"


class Window(Record, frozen=True, kw_only=True, tag="window"):
    """
    Evidence about one name in one process, gathered over a window of its runs.

    An investigation is the windows that share ``investigation``; the leak table is a
    function of windows alone (:func:`celery_trace.heap.leaks.leak_table`).
    """

    id: str
    investigation: str
    process: str
    kind: Kind
    name: str
    stage: Stage
    verdict: Verdict
    at_s: float
    runs: int  # runs that this window observed
    run_number: int  # runs of this name in this process when the window closed
    kept_blocks_per_run: float = 0.0
    kept_bytes_per_run: float = 0.0
    sites: list[Site] = []  # bytes and blocks are per run here, greatest first
    types: list[TypeCount] = []  # per window
    retained_by: list[str] = []  # root first
    bounded: str = ""  # "lru_cache (500/500)" if the holder has a bound
    native: str = ""  # "malloc", "mmap", "fds", "threads", "children" outside of Python's heap
    concurrent: int = 1
    by_site: bool = False  # attributed by the task's frame in the traceback, not by difference
    note: str = ""
    took_s: float = 0.0
    # of a sampled window, the latest of its process on one site:
    role: str = ""
    release: str = ""
    evidence: Evidence | None = None
    holder: Holder | None = None
    growth: list[tuple[float, int]] = []  # time and bytes retained, oldest first

    @property
    def key(self) -> str:
        return self.id


class HeapStack(Struct, frozen=True, array_like=True, gc=False):
    """What one call stack retains; ``frames`` are indexes into the profile's table, the outermost first."""

    frames: list[int]
    bytes: int


class HeapProfile(Record, frozen=True, kw_only=True, tag="heap"):
    """
    What the runs of one name retain in one process, by call stack, from the sampled heap.

    A process writes it when it has changed. The latest of each hour replaces the earlier ones.
    """

    process: str
    kind: Kind
    name: str
    at_s: float
    release: str = ""
    runs: int = 0  # observed, without those in flight
    bytes: int = 0  # alive, of all stacks
    other_bytes: int = 0  # of them, those of the small stacks that are not listed
    frames: list[Line] = []
    stacks: list[HeapStack] = []  # the largest first
    #: Runs by their peak; see :mod:`celery_trace.heap.needs` for the buckets.
    peaks: dict[int, int] = {}

    HOUR_S: ClassVar[int] = 3600

    @property
    def key(self) -> str:
        return stable_id("heap", self.process, self.kind, self.name, int(self.at_s) // self.HOUR_S)


class Failure(Record, frozen=True, kw_only=True, tag="failure"):
    """
    A failed run. Several witnesses may write one with the same ``id``; the store merges them
    with :func:`celery_trace.failures.merge.merge`.
    """

    id: str
    process: str
    kind: Kind
    name: str
    task_id: str = ""
    retries: int = 0
    outcome: Outcome
    witness: str = "child"  # "child", "main", "box", "web", "block"
    exception: ExceptionInfo | None = None
    traceback_text: str = ""  # if only text is available
    fingerprint: str = ""
    worker: str = ""
    pid: int = 0
    hostname: str = ""
    at_s: float
    duration_s: float | None = None
    capture: Capture | None = None
    task: TaskContext | None = None
    request: RequestContext | None = None
    memory: MemoryState | None = None
    last_sample: LastSample | None = None
    note: str = ""
    returned: str = ""  # the task's return value, if it had finished before the failure
    #: The processes that it killed, oldest first; at most the last 200.
    kills: list[Kill] = []
    logs: LogTail | None = None  # the run's last log records

    @property
    def key(self) -> str:
        return self.id

    @property
    def last_pid(self) -> int:
        """The process of its last run."""
        return self.kills[-1].pid if len(self.kills) > 1 else self.pid


class Kept(Record, frozen=True, kw_only=True, tag="kept"):
    """
    A process holds a failure's live objects, or no longer does.

    ``address`` is the queue of its live keeper.
    """

    process: str
    failure: str
    at_s: float
    until_s: float
    address: str
    bytes: int = 0
    gone: str = ""  # why it is no longer held: "evicted", "expired", "dropped", "shutdown", "recycled"

    @property
    def key(self) -> str:
        return f"{self.process}:{self.failure}"


class Stats(Record, frozen=True, kw_only=True, tag="stats"):
    """A process's statistics; cumulative, so the greatest ``seq`` wins."""

    process: str
    seq: int
    at_s: float
    counters: dict[str, int] = {}  # "written:failure", "dropped:rollup", "cut:values", "own_error:...", "live:refused"
    overhead_s: float = 0.0
    process_s: float = 0.0

    @property
    def key(self) -> str:
        return self.process


class AuditEntry(Record, frozen=True, kw_only=True, tag="audit"):
    """A command that a user sent to a process, executed or refused."""

    id: str
    at_s: float
    where: str  # "monitor", "terminal" or "worker"
    process: str = ""
    failure: str = ""
    session: str = ""
    user: str = ""
    command: str = ""
    verdict: str = "done"  # "done" or "refused: why"

    @property
    def key(self) -> str:
        return self.id


def kill_of(process: ProcessRecord, pid: int, at_s: float) -> Kill:
    """The end of ``pid``, which is ``process`` itself or a child of it."""
    worker = process.worker or process.host
    return Kill(at_s=at_s, pid=pid, process=process.parent_uid or process.uid, worker=worker)


def plain_text(text: str) -> str:
    """The same text as valid UTF-8: lone surrogates, which can't be encoded, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
