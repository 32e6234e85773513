"""
One recorder per process: all of its records pass through it to the spool.

Runs are added up in memory, in rollups of five minutes, which the ticker flushes. Single records (a failure, a window,
an outlier) are written at once.
"""

from __future__ import annotations

import atexit
import os
import platform
import socket
import time
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Final, Protocol, TypeVar

from celery_trace import guard, os_threads, private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.heap.evidence import without_secrets
from celery_trace.model import (
    RUN_NOTHING,
    SHARE_THREADS,
    AnyRecord,
    Failure,
    HeapProfile,
    Kind,
    MemoryState,
    ProcessRecord,
    Role,
    Run,
    Stats,
    TimeProfile,
    Window,
    new_id,
)
from celery_trace.process.blackbox import label
from celery_trace.process.counters import available
from celery_trace.process.frames import shared_places
from celery_trace.process.memory import read_rss_bytes
from celery_trace.process.open_runs import ADDED, NEXT_PERIOD, OUTLIER, SCATTERED, OpenRuns, Token
from celery_trace.redaction import Redactor
from celery_trace.runtime.flow import MessageFlow
from celery_trace.runtime.messages import QuickMessages
from celery_trace.runtime.probes import PROBES
from celery_trace.runtime.probes.probe import IDLE_S, Probe
from celery_trace.runtime.rollups import RunTotals
from celery_trace.runtime.ticker import Ticker
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter

#: How often the running totals are written, seconds. With the collector's pause, readers see them two seconds late.
FLUSH_S: Final = 1.0
#: How often the process reports what it wrote, dropped and cost, seconds.
ACCOUNT_S: Final = 10.0
#: How often one run of each name is written as a record, for the scatter plot, seconds.
SCATTER_S: Final = 10.0


#: The functions of a task or route, so that what is allocated below them is attributed to it.
CodeOf = Callable[[Kind, str], Iterable[CodeType]]


def _no_code(kind: Kind, name: str) -> Iterable[CodeType]:  # noqa: ARG001 - the functions are not known
    return ()


P = TypeVar("P", bound=Probe)

#: Reading an enumeration's member costs more than the rest of a look-up by it.
_TASK: Final = Kind.TASK
#: Why a run is written as a record.
_WHY: Final = {OUTLIER: "outlier", SCATTERED: "sampled"}


class LiveKeeper(Protocol):
    """Holds the objects of the last failures for the live shell."""

    @property
    def kept_count(self) -> int:
        """How many failures are held."""

    def keep(self, failure: Failure, error: BaseException) -> None:
        """Keep everything that ``error`` refers to alive."""

    def drop(self, failure_id: str) -> bool:
        """Release one failure; False if it is not held."""

    def drop_all(self) -> int:
        """Release all; returns how many there were."""

    def close(self, how: str) -> None:
        """Release all and report it."""


class Recorder:
    """
    Everything that a process records.

    Methods may be called from any thread. They are not guarded: a caller in the user's code (a signal, a middleware)
    wraps the call in a :class:`celery_trace.guard.Guard`.
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
        self.keeper: LiveKeeper | None = None
        #: The messages that it publishes and consumes.
        self.flow = MessageFlow(process.uid, self.write, clock, ticker)
        self.quick_messages: QuickMessages | None = None
        #: The runs in progress.
        self.open_runs = OpenRuns()
        if type(clock) is not SystemClock:
            self.open_runs.now = clock.now_s
        #: Set where runs may share a thread: each greenlet or coroutine has a number.
        self.places = shared_places() if process.role in SHARE_THREADS else None
        if self.places is not None:
            self.open_runs.ident = self.places.ident
        self.pid = process.pid
        self.extra_counters: list[Callable[[], dict[str, int]]] = []
        self._beginnings = guard.Beginnings()
        self.code_of = code_of
        self._totals: dict[str | tuple[str, str], RunTotals] = {}  # tasks by name, others by kind too
        # Re-entrant: the garbage collector may run a finalizer that contains a traced block.
        self._lock = os_threads.rlock()
        self._seq = 0
        self._flushed_runs = 0
        self._last_stats: dict[str, int] = {}
        self._started_s = clock.monotonic_s()
        #: Whether nothing more is recorded: the process ends, or is a forked child.
        self.closed = False
        self.probes = tuple(kind(self) for kind in PROBES)
        self._run_probes: tuple[Probe, ...]  # those that want runs now
        self.offer_runs()

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
        Make this process's recorder and start its probes and its ticker.

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
        recorder.ticker.turns = recorder._choose_way
        # On a full disk, or where a probe fails, everything else is recorded.
        for probe in recorder.probes:
            recorder.begin(probe.name, probe.start)
        recorder.ticker.every(FLUSH_S, recorder.flush, "flush", idle_s=IDLE_S)
        recorder.ticker.every(ACCOUNT_S, recorder.account, "account", idle_s=IDLE_S)
        recorder.ticker.every(guard.AGAIN_S, recorder._beginnings.again, "retry of failed starts")
        try:
            recorder.ticker.start()
        except RuntimeError:  # no further thread is allowed now
            recorder.close("exit")
            raise
        return recorder

    def begin(self, part: str, make: Callable[[], object]) -> bool:
        """
        Start a part of the recording; if that fails, the ticker repeats it until it succeeds.

        Args:
            part: Its name, for the log.
            make: Starts it; must leave nothing behind if it fails.

        Returns:
            Whether it has started.
        """
        return self._beginnings.begin(part, make)

    # --- what is recorded ------------------------------------------------------------------------------

    def write(self, record: AnyRecord) -> None:
        """Append one record to the spool, which counts what doesn't fit."""
        if isinstance(record, Window | Run | HeapProfile | TimeProfile):
            record = without_secrets(record, self.redactor)
        self.spool.append(record)

    def run_started(self, kind: Kind, name: str, task_id: str = "", retries: int = 0) -> Token:
        """A run begins. Hot path: about a microsecond."""
        totals = self._totals.get(name if kind is _TASK else (kind.value, name)) or self._new_totals(kind, name)
        if self.ticker.asleep:
            self.ticker.wake()
        token = self.open_runs.begin(totals, task_id, retries)
        if self._run_probes:
            try:
                self._before_run(token)
            except BaseException:  # a time limit was reached here: the run ends before its task begins
                self.run_ended(token, failed=True)
                raise
        return token

    def run_ended(self, token: Token, state: str = "", *, failed: bool = False) -> None:
        """
        A run has ended: add it up.

        Args:
            token: From :meth:`run_started`.
            state: Celery's state, or the HTTP status.
            failed: Whether it counts as a failure.
        """
        retried = state == "RETRY"
        added = self.open_runs.end(token, failed, retried)
        if token.observed:
            self._after_run(token)
        if added != ADDED or token.why is not None:
            self.run_added(token, state, added, failed=failed, retried=retried)

    def run_added(self, token: Token, state: str, added: int, *, failed: bool = False, retried: bool = False) -> None:
        """
        A run has ended that is not only to be added up.

        Args:
            token: From :meth:`run_started`.
            state: Celery's state, or the HTTP status.
            added: What :meth:`OpenRuns.end` returned.
            failed: Whether it counts as a failure.
            retried: Whether it is retried.
        """
        while added == NEXT_PERIOD:
            self._next_period(token.totals, token.started_at_s)
            added = self.open_runs.add(token, failed, retried)
        if added != ADDED or token.why is not None:
            token.totals.scatter_due_s = token.started_s + SCATTER_S
            token.totals.learn_slow_bucket()
            self._write_run(token, state, token.why or _WHY[added])

    def _next_period(self, totals: RunTotals, at_s: float) -> None:
        with self._lock:
            if at_s < totals.ends_at_s:
                return  # another thread was first
            is_new, self._seq = totals.dirty, self._seq + 1
            ended = totals.next_period(at_s, self.process.uid, self._seq)
            if is_new:
                self.write(ended)

    def _write_run(self, token: Token, state: str, why: str) -> None:
        if os.getpid() != self.pid:
            return  # the child of a fork inside the run
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
                memory=MemoryState(rss_bytes=read_rss_bytes()),
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
        for probe in self.probes:
            with probe.guard:
                probe.measure(name, mode, until_s)

    # --- probes ----------------------------------------------------------------------------------------

    def probe(self, kind: type[P]) -> P:
        """This process's probe of a kind."""
        return next(probe for probe in self.probes if type(probe) is kind)

    def offer_runs(self) -> None:
        """Ask each probe whether it wants runs. The others cost a run nothing."""
        with self._lock:
            self._run_probes = tuple(probe for probe in self.probes if probe.wants_runs)
        self._choose_way()

    def _choose_way(self) -> None:
        """A run begins and ends quickly unless a probe wants it, or it has to wake the ticker."""
        self.open_runs.quick = not (self._run_probes or self.ticker.asleep or self.closed)
        if self.quick_messages is not None:
            self.quick_messages.on = not (self.ticker.asleep or self.closed)

    def handle_quickly(self, messages: QuickMessages | None) -> None:
        """Handle the usual messages that this process consumes in C, while that is possible."""
        if type(self.clock) is SystemClock:
            self.quick_messages = messages
            self._choose_way()

    def _before_run(self, token: Token) -> None:
        observed: list[tuple[Probe, object]] = []
        token.observed = observed
        for probe in self._run_probes:
            started_s = time.thread_time()
            with probe.guard:
                found = probe.before_run(token)
                if found is not None:
                    observed.append((probe, found))
            probe.spent_s += time.thread_time() - started_s
            if observed and probe.exclusive and observed[-1][0] is probe:
                break

    def _after_run(self, token: Token) -> None:
        for probe, found in reversed(token.observed):
            started_s = time.thread_time()
            with probe.guard:
                probe.after_run(token, found)
            probe.spent_s += time.thread_time() - started_s

    def keep(self, failure: Failure, error: BaseException) -> None:
        """Pass a failure's live objects to the keeper, if there is one."""
        if self.keeper is not None:
            self.keeper.keep(failure, error)

    def _new_totals(self, kind: Kind, name: str) -> RunTotals:
        with self._lock:
            key = name if kind is _TASK else (kind.value, name)
            totals = self._totals.setdefault(key, RunTotals(kind, name, self.clock.now_s(), label(kind, name)))
            for probe in self.probes:
                with probe.guard:
                    probe.new_name(totals)
            return totals

    def totals(self) -> list[RunTotals]:
        """The totals of every name that has run."""
        with self._lock:
            return list(self._totals.values())

    @property
    def runs(self) -> int:
        """Runs that have ended."""
        return self.open_runs.ended

    # --- at intervals ----------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether nothing runs, nothing has run since the last flush, and no probe is busy."""
        return (
            not self.open_runs.count
            and self.runs == self._flushed_runs
            and not self.flow.dirty
            and self._counters() == self._last_stats
            and not any(probe.is_busy for probe in self.probes)
        )

    def flush(self) -> None:
        """Write the rollups and the counts of messages that changed."""
        self._flushed_runs = self.runs
        self.spool.retry_pending()
        self.flow.flush()
        with self._lock:
            changed = [totals for totals in self._totals.values() if totals.dirty]
            for totals in changed:
                self._write_rollup(totals)

    def account(self) -> None:
        """Write the process's statistics, if they have changed."""
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

    @property
    def kept_failures(self) -> int:
        """How many failures are held for the live shell."""
        return self.keeper.kept_count if self.keeper is not None else 0

    @property
    def overhead_s(self) -> float:
        """Seconds that measuring has taken in this process."""
        return sum(probe.overhead_s for probe in self.probes)

    @property
    def overhead_ratio(self) -> float:
        """Measuring's share of the process's time."""
        lived_s = self.clock.monotonic_s() - self._started_s
        return self.overhead_s / lived_s if lived_s > 0 else 0.0

    def _write_rollup(self, totals: RunTotals) -> None:
        self._seq += 1
        self.write(totals.rollup(self.process.uid, self._seq))

    def _counters(self) -> dict[str, int]:
        written = self.spool.account()
        counters = {
            key: count for key, count in written.items() if not key.endswith((":stats", ":sample", ":consuming"))
        }
        counters.update({f"own_error:{place}": count for place, count in guard.own_errors.items()})
        counters.update(self.flow.counters)
        for probe in self.probes:
            with probe.guard:
                counters.update(probe.counters())
        for extra in self.extra_counters:
            counters.update(extra())
        return counters

    # --- the end ---------------------------------------------------------------------------------------

    def close(self, how: str = "exit") -> None:
        """Flush, release the held failures, and write that the process has ended. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._choose_way()
        self.ticker.stop()
        if self.keeper is not None:
            with guard.Guard("live keeper: close"):
                self.keeper.close(how)
        for probe in self.probes:
            with probe.guard:
                probe.write_rest()
        self._close_probes(last=False)
        with guard.Guard("recorder: last flush"):
            self.spool.retry_pending(at_once=True)
            self.flush()
            self.spool.prepare_end()  # from here on the losses are known
            self.account()
        self._close_probes(last=True)
        self.spool.close(how)

    def _close_probes(self, *, last: bool) -> None:
        for probe in self.probes:
            if probe.closes_last is last:
                with probe.guard:
                    probe.close()

    def abandon(self) -> None:
        """In a forked child: drop the parent's recorder without writing; the files are the parent's."""
        self.closed = True
        self._run_probes = ()
        self._choose_way()
        for probe in self.probes:
            with probe.guard:
                probe.after_fork()
        self.keeper = None


# --- this process's recorder --------------------------------------------------------------------------

_current: Recorder | None = None
_making = os_threads.rlock()


def current() -> Recorder | None:
    """This process's recorder, or None. Never the parent's."""
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
    """This process's recorder; if there is none, as after a fork, a new one with this ``uid``."""
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
    """Drop the parent's recorder in a forked child."""
    global _current, _making  # noqa: PLW0603
    recorder, _current = _current, None
    _making = os_threads.rlock()
    if recorder is not None:
        recorder.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
