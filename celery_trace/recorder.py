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
import time
from collections.abc import Callable
from types import CodeType
from typing import Any, Final, Protocol

from msgspec import Struct

from celery_trace import guard, private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.evidence import without_secrets
from celery_trace.model import (
    AnyRecord,
    Failure,
    Histogram,
    Kind,
    ProcessRecord,
    Role,
    Run,
    Sample,
    Stats,
    Window,
    new_id,
)
from celery_trace.probes.blackbox import BlackBox, label
from celery_trace.probes.memory import Begun, MemoryProbe, available_counters
from celery_trace.probes.overlap import LOOK_S
from celery_trace.probes.process import read_memory
from celery_trace.probes.profile import NextRunProfile, ProfiledRun
from celery_trace.quiet import QuietRuns, QuietTask
from celery_trace.redaction import Redactor
from celery_trace.rollups import Totals
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.ticker import Ticker

#: How often the running totals are written, seconds.
FLUSH_S: Final = 2.0
#: How long a failure that repeats waits to be written at most, seconds.
WAIT_S: Final = 0.25
#: How often the process accounts for what it wrote, dropped and cost, seconds.
ACCOUNT_S: Final = 10.0
#: How often the process's memory is looked at, seconds.
SAMPLE_S: Final = 10.0
#: A process whose memory stands still writes a sample only this often, seconds.
SAMPLE_IDLE_S: Final = 300.0
#: How often the dearer counters of a sample (USS, handles) are read, seconds.
SAMPLE_FULL_S: Final = 60.0
#: Change of RSS that makes a sample worth writing.
SAMPLE_CHANGE: Final = 0.01
#: How often the stack of what runs is put in the black box, seconds.
BLACK_BOX_S: Final = 0.1
#: A black box that could not be made is tried again after so long, seconds.
BOX_AGAIN_S: Final = 10.0
#: One run of each name is kept by itself about this often, seconds, so that a scatter plot has points.
SCATTER_S: Final = 10.0


#: Roles whose processes never run two at once.
_ALONE: Final = frozenset({Role.CHILD, Role.SOLO})

#: Roles of the processes that a worker runs tasks in. Elsewhere, how a crash is handled is not for us to change.
_OF_A_WORKER: Final = frozenset({Role.CHILD, Role.SOLO, Role.THREADS, Role.GREEN})

#: Asking an enumeration for its member costs more than all the rest of a look-up by it.
_TASK: Final = Kind.TASK


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


class RunToken(Struct):
    """
    A run in progress, from :meth:`Recorder.run_started` to :meth:`Recorder.run_ended`.

    A structure and no class of ours with a method to fill it: one is made around every run.
    """

    totals: Totals
    started_at_s: float
    task_id: str
    retries: int
    queue: str
    root_id: str
    started_s: float = 0.0
    probe: Begun | None = None
    profiled: ProfiledRun | None = None
    #: Where the run came from, and what reads queue and root id out of that, for the few runs kept by themselves.
    origin: Any = None
    describe: Callable[[Any], tuple[str, str]] | None = None


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
        probe: MemoryProbe | None,
        box: BlackBox | None,
        ticker: Ticker,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.redactor = Redactor(settings.redact)
        self.process = process
        self.spool = spool
        self.probe = probe
        self.box = box
        self.ticker = ticker
        self.clock = clock
        self.keeper: LiveKeeper | None = None
        self.profile: NextRunProfile | None = None
        #: Where runs that nothing is to be seen of pass by this recorder.
        self.quiet: QuietRuns | None = None
        self._surfaced: Callable[[RunToken], None] | None = None
        self.pid = process.pid
        self._ordinary_runs = 0
        self.extra_counters: list[Callable[[], dict[str, int]]] = []
        self._beginnings = guard.Beginnings()
        #: Tells the code of a task's own function, for what grows where runs overlap.
        self.code_of: Callable[[Kind, str], list[CodeType]] | None = None
        #: Writes the failures that wait to be written.
        self.write_waiting: Callable[[], None] | None = None
        self._totals: dict[str | tuple[str, str], Totals] = {}  # tasks by name, others by kind too
        # Re-entrant: the collector of garbage may run a finalizer that is itself a traced block.
        self._lock = threading.RLock()
        self._seq = 0
        self._running = ""
        self._last_rss_bytes = 0
        self._last_sample_s = self._last_full_s = -SAMPLE_IDLE_S
        self._last_stats: dict[str, int] = {}
        self._box_due_s = 0.0
        self._started_s = clock.monotonic_s()
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
            counters=available_counters() if settings.memory in {"auto", "always"} else [],
            mode=settings.memory,
            release=settings.release[:100],
        )
        spool = SpoolWriter(settings.spool_folder, process, cap_bytes=settings.spool_bytes, clock=clock)
        try:
            private_files.make_part(settings.spool_folder)
        except OSError as error:
            spool.refused(error)
        runs_here = role is not Role.MAIN
        recorder = cls(
            settings,
            process,
            spool,
            probe=None,
            box=None,
            ticker=Ticker(clock),
            clock=clock,
        )
        # A full disk, or a platform on which measuring fails: what else can be recorded is.
        if runs_here and settings.black_box:
            recorder.ticker.every(BLACK_BOX_S, recorder.look_at_what_runs, "black box")
            recorder.open_box()
        if runs_here and settings.memory in {"auto", "always"}:
            recorder.begin("memory probe", recorder._begin_probe)
        recorder.ticker.every(FLUSH_S, recorder.flush, "flush")
        recorder.ticker.every(ACCOUNT_S, recorder.account, "account")
        if settings.memory != "off":
            recorder.ticker.every(SAMPLE_S, recorder.sample, "sample")
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

    def _begin_probe(self) -> None:
        probe = MemoryProbe(self.settings, self.process, self.write, self.clock, settled=self.settled)
        if self.write_waiting is not None:
            probe.tidy = self.write_waiting
        if self.code_of is not None:
            probe.overlap.code_of = self.code_of
        if self.process.role not in _ALONE:
            self.ticker.every(LOOK_S, probe.overlap.look, "overlap")
        self.probe = probe
        if self.quiet is not None:
            self.quiet.measure(probe)

    # --- what is recorded ------------------------------------------------------------------------------

    def write(self, record: AnyRecord) -> None:
        """Append one record to the spool. What doesn't fit is counted by the spool."""
        if isinstance(record, Window | Run):
            record = without_secrets(record, self.redactor)
        self.spool.append(record)

    def run_started(
        self, kind: Kind, name: str, *, task_id: str = "", retries: int = 0, queue: str = "", root_id: str = ""
    ) -> RunToken:
        """Note that a run begins. Hot path: a few microseconds."""
        if self.quiet is not None:
            self.quiet.calm = False  # until this run has ended
            if self.quiet.running is not None:
                self.surface()
        now_s = self.clock.now_s()
        totals = self._totals.get(name if kind is _TASK else (kind.value, name)) or self._new_totals(kind, name, now_s)
        token = RunToken(totals, now_s, task_id, retries, queue, root_id)
        self._running = name
        if self.box is not None:
            self.box.run_started(totals.label, task_id, retries, now_s)
        if self.profile is not None and name in self.profile.armed:
            # Not measured otherwise: what memray itself allocates would be counted as the run's.
            token.profiled = self.profile.started(name, task_id)
        if self.probe is not None and token.profiled is None:
            token.probe = self.probe.before(kind, name)
        token.started_s = time.perf_counter()
        return token

    def run_ended(self, token: RunToken, state: str = "", *, failed: bool = False) -> None:
        """
        Note that a run ended, and add it up.

        Args:
            token: What :meth:`run_started` gave.
            state: Celery's word for the end, or the HTTP status.
            failed: Whether it counts as a failure.
        """
        duration_s = time.perf_counter() - token.started_s
        if token.profiled is not None and self.profile is not None:
            self.profile.ended(token.profiled)
        measured = None
        if self.probe is not None and token.probe:
            measured = self.probe.after(token.probe, failed=failed or state == "RETRY")
        if self.box is not None:
            self.box.run_ended()
        self._running = ""
        why = ""
        bucket = Histogram.bucket(duration_s)
        totals = token.totals
        with self._lock:
            self._ordinary_runs += 1
            if token.started_at_s >= totals.ends_at_s:
                if self.quiet is not None:
                    self.quiet.add_up()
                if totals.dirty:
                    self._write_rollup(totals)
                totals.begin(token.started_at_s)
            totals.runs += 1
            totals.durations[bucket] += 1
            totals.duration_s += duration_s
            if duration_s > totals.duration_max_s:
                totals.duration_max_s = duration_s
            if failed:
                totals.failed += 1
            elif state == "RETRY":
                totals.retried += 1
            if measured is not None and measured.kept_blocks is not None:
                totals.concurrent = totals.concurrent or measured.concurrent > 1
            totals.dirty = True
            if measured is not None and measured.top:
                why = "traced"
            elif bucket >= totals.slow_bucket:
                why = "outlier"
            elif token.started_s >= totals.scatter_due_s:
                why = "sampled"
            if why:
                totals.scatter_due_s = token.started_s + SCATTER_S
                totals.learn_what_is_slow()
        if why:
            if token.describe is not None:
                token.queue, token.root_id = token.describe(token.origin)
            self.write(
                Run(
                    id=new_id(),
                    process=self.process.uid,
                    kind=totals.kind,
                    name=totals.name,
                    task_id=token.task_id,
                    retries=token.retries,
                    queue=token.queue,
                    root_id=token.root_id,
                    started_at_s=token.started_at_s,
                    duration_s=duration_s,
                    state=state,
                    why=why,
                    kept_blocks=measured.kept_blocks if measured else None,
                    kept_bytes=measured.kept_bytes if measured else None,
                    top=measured.top if measured else [],
                    concurrent=measured.concurrent if measured else 1,
                )
            )
        if self.quiet is not None:
            self.quiet.ended(totals, self.clock.now_s(), calm=self.profile is None or not self.profile.armed)

    def quiet_task(self, name: str, surfaced: Callable[[RunToken], None]) -> QuietTask:
        """
        A task whose runs may be quiet, in a process that runs one task after the other in the thread that asks.

        Args:
            name: The task's.
            surfaced: Takes the token of a run that was quiet at its begin and is an ordinary one from now on.
        """
        if self.quiet is None:
            self.quiet = QuietRuns(self._lock, self.box, self.probe)
        self._surfaced = surfaced
        return self.quiet.task(name)

    def surface(self) -> None:
        """If the run in progress is a quiet one of this thread, go on as if :meth:`run_started` had been told of it."""
        task = self.quiet.surface() if self.quiet is not None else None
        if task is None or task.totals is None or self._surfaced is None:
            return
        request, task.request = task.request, None
        started_at_s = self.clock.now_s() - (time.perf_counter() - task.started_s)
        token = RunToken(task.totals, started_at_s, task.task_id, task.retries, "", "", task.started_s, origin=request)
        if self.probe is not None:
            state = self.probe.state_of(_TASK, task.name)
            token.probe = self.probe.joined(state) if state is not None else None
        self._running = task.name
        self._surfaced(token)

    def settled(self, kind: Kind, name: str, kept_blocks: int, kept_bytes: int) -> None:
        """Add what a run kept, as known when the next one begins and nothing of it is in flight any more."""
        with self._lock:
            totals = self._totals.get(name if kind is _TASK else (kind.value, name))
            if totals is not None:
                totals.gated += 1
                totals.kept_blocks += kept_blocks
                totals.kept_bytes += kept_bytes
                totals.dirty = True

    def let_wait(self, write_waiting: Callable[[], None]) -> None:
        """Have ``write_waiting`` called, which writes what waits to be written, soon and whenever that must be done."""
        self.write_waiting = write_waiting
        if self.probe is not None:
            self.probe.tidy = write_waiting
        self.ticker.every(WAIT_S, write_waiting, "waiting failures")

    def measure(self, name: str, mode: str, seconds: float) -> None:
        """Measure the runs of one name in another mode for a while, whatever the process's mode is."""
        if self.probe is None:
            if mode in {"off", "rss"} or self.process.role is Role.MAIN:
                return
            self._begin_probe()
        assert self.probe is not None
        self.probe.set_mode(name, mode, self.clock.monotonic_s() + seconds)
        if self.quiet is not None:
            self.quiet.measure(self.probe)

    def profile_next(self, name: str, claim: Callable[[], bool], seconds: float) -> None:
        """Profile the next run of one name with memray, if ``claim()`` says then that this process is the one."""
        if self.profile is None:
            if self.process.role is Role.MAIN:
                return
            self.profile = NextRunProfile(self.settings.folder, self.process, self.clock)
            self.extra_counters.append(lambda: dict(self.profile.counters) if self.profile else {})
        self.profile.arm(name, claim, seconds)
        if self.quiet is not None:
            self.quiet.calm = False

    def keep(self, failure: Failure, error: BaseException) -> None:
        """Hand a failure's live objects to the keeper, where there is one."""
        if self.keeper is not None:
            self.keeper.keep(failure, error)

    def _new_totals(self, kind: Kind, name: str, at_s: float) -> Totals:
        with self._lock:
            key = name if kind is _TASK else (kind.value, name)
            return self._totals.setdefault(key, Totals(kind, name, at_s, label(kind, name)))

    # --- every so often --------------------------------------------------------------------------------

    def open_box(self) -> None:
        """Make the black box; where that fails, as on a full disk, it is tried again after :data:`BOX_AGAIN_S`."""
        self._box_due_s = self.clock.monotonic_s() + BOX_AGAIN_S
        if self.spool.trouble is not None:
            return  # it has been said, and would fail for the same reason
        with guard.Guard("black box"):
            try:
                box = BlackBox(self.settings.spool_folder / f"{self.process.uid}.box", self.process, self.clock)
            except OSError as error:
                guard.own_errors["black box"] += 1
                self.spool.refused(error)
                return
            self.box = box
            if self.process.role in _OF_A_WORKER:
                with guard.Guard("crash handler"):
                    box.catch_crashes()
            if self.quiet is not None:
                self.quiet.open_box(box)

    def look_at_what_runs(self) -> None:
        """Put the stack of what runs in the black box."""
        if self.box is not None:
            self.box.sample()
        elif self.clock.monotonic_s() >= self._box_due_s and not self.closed:
            self.open_box()

    def flush(self) -> None:
        """Write what waits to be written, and the rollups that changed."""
        if self.write_waiting is not None:
            self.write_waiting()
        self.spool.settle()
        with self._lock:
            if self.quiet is not None:
                self.quiet.add_up()
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
        memory = read_memory(full=full)
        moved = abs(memory.rss_bytes - self._last_rss_bytes) > self._last_rss_bytes * SAMPLE_CHANGE
        if not moved and now_s - self._last_sample_s < SAMPLE_IDLE_S:
            return
        self._last_rss_bytes = memory.rss_bytes
        self._last_sample_s = now_s
        if full:
            self._last_full_s = now_s
        running = self._running
        with self._lock:
            if self.quiet is not None:
                self.quiet.add_up()
                running = running or self.quiet.running_name
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
    def runs(self) -> int:
        """How many runs have ended here, those left out that are still to be added up."""
        return self._ordinary_runs + (self.quiet.count if self.quiet is not None else 0)

    @property
    def overhead_s(self) -> float:
        """Seconds that measuring took in this process so far."""
        return self.probe.budget.spent_s if self.probe is not None else 0.0

    @property
    def overhead_ratio(self) -> float:
        """Measuring's share of the process's time."""
        lived_s = self.clock.monotonic_s() - self._started_s
        return self.overhead_s / lived_s if lived_s > 0 else 0.0

    def _write_rollup(self, totals: Totals) -> None:
        self._seq += 1
        # Before the read: a run that ends now marks the totals dirty again and is in the next rollup.
        totals.dirty = False
        self.write(totals.rollup(self.process.uid, self._seq))

    def _counters(self) -> dict[str, int]:
        written = self.spool.account()
        counters = {key: count for key, count in written.items() if not key.endswith((":stats", ":sample"))}
        counters.update({f"own_error:{place}": count for place, count in guard.own_errors.items()})
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
        if self.quiet is not None:
            self.quiet.close()
        if self.keeper is not None:
            with guard.Guard("live keeper: close"):
                self.keeper.close(how)
        if self.profile is not None:
            self.profile.close()
        if self.probe is not None:
            with guard.Guard("memory probe: close"):
                self.probe.close()
        with guard.Guard("recorder: last flush"):
            self.spool.settle(at_once=True)
            self.flush()
            self.spool.prepare_end()  # from here on it is known what is lost
            self.account()
        if self.box is not None:
            self.box.close()
        self.spool.close(how)

    def abandon(self) -> None:
        """In a forked child: forget the parent's recorder without a word; its files are the parent's."""
        self.closed = True
        self.write_waiting = None
        if self.quiet is not None:
            self.quiet.forget()
        if self.probe is not None:
            self.probe.forget()
        self.box = None
        self.probe = None
        self.profile = None
        self.keeper = None


# --- this process's recorder --------------------------------------------------------------------------

_current: Recorder | None = None
_making = threading.RLock()


def current() -> Recorder | None:
    """This process's recorder, or None. Never a parent's."""
    return _current


def ensure(settings: Settings, role: Role, *, worker: str = "", parent_uid: str = "", uid: str = "") -> Recorder:
    """This process's recorder; made now where there is none, as after a fork. ``uid`` names a new one."""
    global _current  # noqa: PLW0603 - one recorder a process is what this module is for
    recorder = _current
    if recorder is None:
        with _making:
            if _current is None:
                _current = Recorder.start(settings, role=role, worker=worker, parent_uid=parent_uid, uid=uid)
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
