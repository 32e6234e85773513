"""
One recorder a process: every record of the process passes here on its way to the spool.

Runs are added up in memory, in rollups of five minutes, and flushed by the ticker;
what stands for itself (a failure, a window, an outlier) is written at once.
"""

from __future__ import annotations

import atexit
import os
import platform
import socket
import threading
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Final, Protocol

from msgspec.structs import replace

from celery_trace import guard, private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.heap.differences import TracedRuns, top_differences
from celery_trace.heap.evidence import without_secrets
from celery_trace.heap.profile import NextRunProfile
from celery_trace.heap.watch import HeapWatch, watch_heap
from celery_trace.intervals import SAMPLE_CHANGE, SAMPLE_IDLE_S, SAMPLE_S
from celery_trace.model import (
    RUN_NOTHING,
    AnyRecord,
    Failure,
    HeapProfile,
    Kind,
    ProcessRecord,
    Role,
    Run,
    Sample,
    Stats,
    Window,
    new_id,
)
from celery_trace.process.blackbox import BlackBox, label
from celery_trace.process.counters import available
from celery_trace.process.limits import RoomProbe
from celery_trace.process.memory import read_memory
from celery_trace.process.open_runs import ADDED, NEXT_PERIOD, OUTLIER, SCATTERED, OpenRuns, Token
from celery_trace.redaction import Redactor
from celery_trace.runtime.rollups import Totals
from celery_trace.runtime.ticker import Entry, Ticker
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter

#: How often the running totals are written, seconds.
FLUSH_S: Final = 2.0
#: How often the process accounts for what it wrote, dropped and cost, seconds.
ACCOUNT_S: Final = 10.0
#: How often the dearer counters of a sample (USS, handles) are read, seconds.
SAMPLE_FULL_S: Final = 60.0
#: How often the stack of what runs is put in the black box, seconds.
BLACK_BOX_S: Final = 0.1
#: And as long as each run is over before the next look: a thread that wakes up so often costs more than short runs do.
BLACK_BOX_SHORT_S: Final = 0.3
#: How often an idle process does the same, seconds.
IDLE_S: Final = 30.0
#: A black box that could not be made is tried again after so long, seconds.
BOX_AGAIN_S: Final = 10.0
#: One run of each name is kept by itself about this often, seconds, so that a scatter plot has points.
SCATTER_S: Final = 10.0


#: The functions of a task or route, so that what is allocated below them is attributed to it.
CodeOf = Callable[[Kind, str], Iterable[CodeType]]


def _no_code(kind: Kind, name: str) -> Iterable[CodeType]:  # noqa: ARG001 - where functions are not known
    return ()


#: Roles of the processes that a worker runs tasks in. Elsewhere, how a crash is handled is not for us to change.
_OF_A_WORKER: Final = frozenset({Role.CHILD, Role.SOLO, Role.THREADS, Role.GREEN})

#: Asking an enumeration for its member costs more than all the rest of a look-up by it.
_TASK: Final = Kind.TASK
#: Why a run is written by itself.
_WHY: Final = {OUTLIER: "outlier", SCATTERED: "sampled"}
#: Roles whose runs change threads for greenlets, where a gevent or eventlet has replaced Python's threads.
_OF_GREENLETS: Final = frozenset({Role.GREEN, Role.WEB})


class LiveKeeper(Protocol):
    """What holds the objects of the last failures, where the live shell is on."""

    @property
    def kept_count(self) -> int:
        """How many failures are held."""

    def keep(self, failure: Failure, error: BaseException) -> None:
        """Hold on to what ``error`` reaches."""

    def drop(self, failure_id: str) -> bool:
        """Let one failure go; False if it is not kept."""

    def drop_all(self) -> int:
        """Let all go; how many there were."""

    def close(self, how: str) -> None:
        """Let all go and say so."""


class Recorder:
    """
    All that a process records.

    Methods may be called from any thread. None of them is guarded: whoever calls from
    somebody else's code (a signal, a middleware) wraps the call in a
    :class:`celery_trace.guard.Guard`.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        spool: SpoolWriter,
        ticker: Ticker,
        clock: Clock,
        *,
        code_of: CodeOf = _no_code,
    ) -> None:
        self.settings = settings
        self.redactor = Redactor(settings.redact)
        self.process = process
        self.spool = spool
        self.ticker = ticker
        self.clock = clock
        self.heap: HeapWatch | None = None
        self.box: BlackBox | None = None
        self.keeper: LiveKeeper | None = None
        self.profile: NextRunProfile | None = None
        #: The runs in progress.
        self.open_runs = OpenRuns()
        if type(clock) is not SystemClock:
            self.open_runs.now = clock.now_s
        if process.role in _OF_GREENLETS:
            self.open_runs.ident = threading.get_ident
        self.traced = TracedRuns(everything=settings.memory == "always", clock=clock)
        self.pid = process.pid
        self.runs = 0  # that have ended
        self.extra_counters: list[Callable[[], dict[str, int]]] = []
        self._beginnings = guard.Beginnings()
        self._code_of = code_of
        self._totals: dict[str | tuple[str, str], Totals] = {}  # tasks by name, others by kind too
        # Re-entrant: the garbage collector may run a finalizer that is itself a traced block.
        self._lock = threading.RLock()
        self._seq = 0
        self._flushed_runs = 0
        #: What Celery replaces this process at, where it does.
        self.child_limit_bytes: int | None = None
        # One process of a worker tells what all of them share.
        self._room = RoomProbe() if process.role is not Role.CHILD else None
        self._last_rss_bytes = self._last_used_bytes = 0
        self._last_sample_s = self._last_full_s = -SAMPLE_IDLE_S
        self._last_stats: dict[str, int] = {}
        self._box_due_s = 0.0
        self._box_look: Entry | None = None
        self._runs_at_look = 0
        self._started_s = clock.monotonic_s()
        self._ordered_until_s = 0.0
        self._overhead_before_s = 0.0  # of watches that were ordered for a while
        #: Whether it takes no more: the process ends, or was forked from the one it belongs to.
        self.closed = False

    # --- making one -----------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        settings: Settings,
        *,
        role: Role,
        worker: str = "",
        parent_uid: str = "",
        uid: str = "",
        clock: Clock | None = None,
        code_of: CodeOf = _no_code,
    ) -> Recorder:
        """
        Make this process's recorder, present the process, start the ticker.

        Nothing is written before the first record: a process that does nothing leaves no file.
        """
        clock = clock or SystemClock()
        process = ProcessRecord(
            uid=uid or new_id(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at_s=clock.now_s(),
            worker=worker,
            role=role,
            parent_uid=parent_uid,
            python=f"{platform.python_implementation()} {platform.python_version()}",
            counters=available() if settings.memory in {"auto", "always"} else [],
            mode=settings.memory,
            release=settings.release[:100],
        )
        spool = SpoolWriter(settings.spool_folder, process, cap_bytes=settings.spool_bytes, clock=clock)
        try:
            private_files.make_part(settings.spool_folder)
        except OSError as error:
            spool.note_failure(error)
        recorder = cls(settings, process, spool, Ticker(clock), clock, code_of=code_of)
        recorder.ticker.is_idle = recorder.is_idle
        # A full disk, or a platform on which measuring fails: what else can be recorded is.
        if role not in RUN_NOTHING and settings.black_box:
            look = recorder.look_at_what_runs
            recorder._box_look = recorder.ticker.every(BLACK_BOX_S, look, "black box", idle_s=BOX_AGAIN_S)
            recorder.open_box()
        if settings.memory in {"auto", "always"}:
            recorder.begin("heap watch", recorder.watch_heap)
        recorder.ticker.every(FLUSH_S, recorder.flush, "flush", idle_s=IDLE_S)
        recorder.ticker.every(ACCOUNT_S, recorder.account, "account", idle_s=IDLE_S)
        if settings.memory != "off":
            recorder.ticker.every(SAMPLE_S, recorder.sample, "sample", idle_s=IDLE_S)
        recorder.ticker.every(guard.AGAIN_S, recorder._beginnings.again, "what failed at its start")
        try:
            recorder.ticker.start()
        except RuntimeError:  # no further thread is allowed now
            recorder.close("exit")
            raise
        return recorder

    def begin(self, part: str, make: Callable[[], object]) -> bool:
        """
        Begin a part of the recording, now or, if that fails, again and again from the ticker until it succeeds.

        Args:
            part: What it is, for the log.
            make: Begins it; must leave nothing behind where it fails.

        Returns:
            Whether it has begun.
        """
        return self._beginnings.begin(part, make)

    # --- what is recorded ------------------------------------------------------------------------------

    def write(self, record: AnyRecord) -> None:
        """Append one record to the spool. What doesn't fit is counted by the spool."""
        if isinstance(record, Window | Run | HeapProfile):
            record = without_secrets(record, self.redactor)
        self.spool.append(record)

    def watch_heap(self) -> None:
        """
        Sample this process's heap from now on.

        Raises:
            Unavailable: That can't be done here.
        """
        self.heap = watch_heap(
            self.settings,
            self.process,
            self.write,
            self.clock,
            lambda: self.open_runs.most,
            emit_profile=self.write,
        )
        if self.heap is not None:
            self.open_runs.enter, self.open_runs.leave = self.heap.run, self.heap.restore
            for totals in self._totals.values():
                totals.tag = self.heap.tag(totals.kind, totals.name, self._code_of(totals.kind, totals.name))
            self.ticker.every(self.heap.look_s, self._look_at_heap, "heap", idle_s=IDLE_S)

    def _look_at_heap(self) -> None:
        if self.heap is None:
            return
        if self._ordered_until_s and self.clock.monotonic_s() > self._ordered_until_s:
            self._ordered_until_s = 0.0
            heap, self.heap = self.heap, None
            self.open_runs.enter = self.open_runs.leave = None
            heap.close()
            self._overhead_before_s += heap.duty.spent_s
            return
        self.heap.look()

    def run_started(self, kind: Kind, name: str, task_id: str = "", retries: int = 0) -> Token:
        """Note that a run begins. Hot path: a few microseconds."""
        totals = self._totals.get(name if kind is _TASK else (kind.value, name)) or self._new_totals(kind, name)
        if self.ticker.asleep:
            self.ticker.wake()
        token = self.open_runs.begin(totals, task_id, retries)
        if self.profile is not None and name in self.profile.armed:
            # Not traced as well: what memray itself allocates would be counted as the run's.
            token.profiled = self.profile.started(name, task_id)
        elif self.traced.wanted:
            token.tracing = self.traced.begin(name)
        return token

    def run_ended(self, token: Token, state: str = "", *, failed: bool = False) -> None:
        """
        Note that a run ended, and add it up.

        Args:
            token: What :meth:`run_started` gave.
            state: Celery's word for the end, or the HTTP status.
            failed: Whether it counts as a failure.
        """
        retried = state == "RETRY"
        said = self.open_runs.end(token, failed, retried)
        self.runs += 1
        if token.profiled is not None and self.profile is not None:
            self.profile.ended(token.profiled)
        if token.tracing is not None:
            with guard.Guard("top differences"):
                token.top = top_differences(token.tracing.end())
                token.totals.traced += 1
        while said == NEXT_PERIOD:
            self._next_period(token.totals, token.started_at_s)
            said = self.open_runs.add(token, failed, retried)
        if said != ADDED or token.top is not None:
            token.totals.scatter_due_s = token.started_s + SCATTER_S
            token.totals.learn_what_is_slow()
            self._write_run(token, state, "traced" if token.top is not None else _WHY[said])

    def _next_period(self, totals: Totals, at_s: float) -> None:
        with self._lock:
            if at_s < totals.ends_at_s:
                return  # another thread was first
            is_new, self._seq = totals.dirty, self._seq + 1
            ended = totals.next_period(at_s, self.process.uid, self._seq)
            if is_new:
                self.write(ended)

    def _write_run(self, token: Token, state: str, why: str) -> None:
        queue, root_id = token.describe(token.origin) if token.describe is not None else ("", "")
        top = token.top or []
        self.write(
            Run(
                id=new_id(),
                process=self.process.uid,
                kind=token.totals.kind,
                name=token.totals.name,
                task_id=token.task_id,
                retries=token.retries,
                queue=queue,
                root_id=root_id,
                started_at_s=token.started_at_s,
                duration_s=token.duration_s,
                state=state,
                why=why,
                kept_blocks=sum(site.blocks for site in top) if token.top is not None else None,
                kept_bytes=sum(site.bytes for site in top) if token.top is not None else None,
                top=top,
                concurrent=token.shared,
            )
        )

    def measure(self, name: str, mode: str, seconds: float) -> None:
        """Measure the runs of one name in another mode for a while, whatever the process's mode is."""
        if self.process.role in RUN_NOTHING:
            return
        until_s = self.clock.monotonic_s() + seconds
        if mode == "always":
            self.traced.trace(name, until_s)
            return
        self.traced.leave(name)
        if mode == "auto" and (self.heap is None or self._ordered_until_s):
            self._ordered_until_s = max(until_s, self._ordered_until_s)
            if self.heap is None:
                self.begin("heap watch", self.watch_heap)

    def profile_next(self, name: str, claim: Callable[[], bool], seconds: float) -> None:
        """Profile the next run of one name with memray, if ``claim()`` says then that this process is the one."""
        if self.profile is None:
            if self.process.role in RUN_NOTHING:
                return
            self.profile = NextRunProfile(self.settings.folder, self.process, self.clock)
            self.extra_counters.append(lambda: dict(self.profile.counters) if self.profile else {})
        self.profile.arm(name, claim, seconds)

    def keep(self, failure: Failure, error: BaseException) -> None:
        """Hand a failure's live objects to the keeper, where there is one."""
        if self.keeper is not None:
            self.keeper.keep(failure, error)

    def _new_totals(self, kind: Kind, name: str) -> Totals:
        with self._lock:
            key = name if kind is _TASK else (kind.value, name)
            totals = self._totals.setdefault(key, Totals(kind, name, self.clock.now_s(), label(kind, name)))
            if self.heap is not None:
                totals.tag = self.heap.tag(kind, name, self._code_of(kind, name))
            return totals

    # --- every so often --------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether nothing runs, nothing has run since the last flush, and no search goes on."""
        return (
            not self.open_runs.count
            and self.runs == self._flushed_runs
            and self._counters() == self._last_stats
            and (self.heap is None or not self.heap.is_searching)
        )

    def open_box(self) -> None:
        """Make the black box; where that fails, as on a full disk, it is tried again after :data:`BOX_AGAIN_S`."""
        self._box_due_s = self.clock.monotonic_s() + BOX_AGAIN_S
        if self.spool.write_error is not None:
            return  # it has been said, and would fail for the same reason
        with guard.Guard("black box"):
            path = self.settings.spool_folder / f"{self.process.uid}.box"
            try:
                box = BlackBox(path, self.process, self.clock, self.open_runs)
            except OSError as error:
                guard.own_errors["black box"] += 1
                self.spool.note_failure(error)
                return
            self.box = box
            if self.process.role in _OF_A_WORKER:
                with guard.Guard("crash handler"):
                    box.catch_crashes()

    def look_at_what_runs(self) -> None:
        """Put the stack of what runs in the black box."""
        if self._box_look is not None:
            lasts = self.runs == self._runs_at_look and self.open_runs.count > 0
            self._box_look.every_s = BLACK_BOX_S if lasts else BLACK_BOX_SHORT_S
            self._runs_at_look = self.runs
        if self.box is not None:
            self.box.sample()
        elif self.clock.monotonic_s() >= self._box_due_s and not self.closed:
            self.open_box()

    def flush(self) -> None:
        """Write the rollups that changed."""
        self._flushed_runs = self.runs
        self.spool.retry_pending()
        with self._lock:
            changed = [totals for totals in self._totals.values() if totals.dirty]
            for totals in changed:
                self._write_rollup(totals)

    def account(self) -> None:
        """Write the process's account of itself, where it changed."""
        counters = self._counters()
        if counters != self._last_stats:
            self._last_stats = counters
            self._seq += 1
            self.write(
                Stats(
                    process=self.process.uid,
                    seq=self._seq,
                    at_s=self.clock.now_s(),
                    counters=counters,
                    overhead_s=self.overhead_s,
                    process_s=self.clock.monotonic_s() - self._started_s,
                )
            )

    def sample(self) -> None:
        """Look at the process's memory, and write a point of its series where it moved."""
        now_s = self.clock.monotonic_s()
        full = now_s - self._last_full_s >= SAMPLE_FULL_S
        room = self._room.read() if self._room is not None else None
        memory = replace(read_memory(full=full), room=room, child_limit_bytes=self.child_limit_bytes)
        used_bytes = room.used_bytes if room is not None and room.of == "container" else 0
        moved = (
            abs(memory.rss_bytes - self._last_rss_bytes) > self._last_rss_bytes * SAMPLE_CHANGE
            or abs(used_bytes - self._last_used_bytes) > self._last_used_bytes * SAMPLE_CHANGE
        )
        if not moved and now_s - self._last_sample_s < SAMPLE_IDLE_S:
            return
        self._last_rss_bytes, self._last_used_bytes = memory.rss_bytes, used_bytes
        self._last_sample_s = now_s
        if full:
            self._last_full_s = now_s
        latest = self.open_runs.latest
        running = latest.name if latest is not None else ""
        with self._lock:
            for totals in self._totals.values():
                if totals.dirty or totals.name == running:
                    totals.rss_max_bytes = max(totals.rss_max_bytes, memory.rss_bytes)
        self.write(
            Sample(
                process=self.process.uid,
                at_s=self.clock.now_s(),
                memory=memory,
                runs=self.runs,
                name=running,
                kept_failures=self.keeper.kept_count if self.keeper is not None else 0,
                overhead_ratio=self.overhead_ratio,
            )
        )

    @property
    def overhead_s(self) -> float:
        """Seconds that measuring took in this process so far."""
        return self._overhead_before_s + (self.heap.duty.spent_s if self.heap is not None else 0.0)

    @property
    def overhead_ratio(self) -> float:
        """Measuring's share of the process's time."""
        lived_s = self.clock.monotonic_s() - self._started_s
        return self.overhead_s / lived_s if lived_s > 0 else 0.0

    def _write_rollup(self, totals: Totals) -> None:
        self._seq += 1
        self.write(totals.rollup(self.process.uid, self._seq))

    def _counters(self) -> dict[str, int]:
        written = self.spool.account()
        counters = {key: count for key, count in written.items() if not key.endswith((":stats", ":sample"))}
        counters.update({f"own_error:{place}": count for place, count in guard.own_errors.items()})
        if self.heap is not None:
            counters.update(self.heap.conditions())
        for extra in self.extra_counters:
            counters.update(extra())
        return counters

    # --- the end ---------------------------------------------------------------------------------------

    def close(self, how: str = "exit") -> None:
        """Flush, let the kept failures go, and say goodbye. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self.ticker.stop()
        if self.keeper is not None:
            with guard.Guard("live keeper: close"):
                self.keeper.close(how)
        if self.profile is not None:
            self.profile.close()
        if self.heap is not None:
            with guard.Guard("heap watch: close"):
                self.heap.close()
        with guard.Guard("recorder: last flush"):
            self.spool.retry_pending(at_once=True)
            self.flush()
            self.spool.prepare_end()  # from here on it is known what is lost
            self.account()
        if self.box is not None:
            self.box.close()
        self.spool.close(how)

    def abandon(self) -> None:
        """In a forked child: forget the parent's recorder without a word; its files are the parent's."""
        self.closed = True
        self.box = None
        self.open_runs.enter = self.open_runs.leave = None
        self.heap = None
        self.profile = None
        self.keeper = None


# --- this process's recorder --------------------------------------------------------------------------

_current: Recorder | None = None
_making = threading.RLock()


def current() -> Recorder | None:
    """This process's recorder, or None. Never a parent's."""
    return _current


def ensure(
    settings: Settings,
    role: Role,
    *,
    worker: str = "",
    parent_uid: str = "",
    uid: str = "",
    code_of: CodeOf = _no_code,
) -> Recorder:
    """This process's recorder; made now where there is none, as after a fork. ``uid`` names a new one."""
    global _current  # noqa: PLW0603 - one recorder a process is what this module is for
    recorder = _current
    if recorder is None:
        with _making:
            if _current is None:
                _current = Recorder.start(
                    settings, role=role, worker=worker, parent_uid=parent_uid, uid=uid, code_of=code_of
                )
                atexit.unregister(close)
                atexit.register(close)
            recorder = _current
    return recorder


def close(how: str = "exit") -> None:
    """Close this process's recorder, if it has one; the next :func:`ensure` makes a new one."""
    global _current
    recorder, _current = _current, None
    if recorder is not None:
        recorder.close(how)


def _forget_after_fork() -> None:
    """In the child of a fork, the parent's recorder is only a memory."""
    global _current, _making  # noqa: PLW0603
    recorder, _current = _current, None
    _making = threading.RLock()
    if recorder is not None:
        recorder.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
