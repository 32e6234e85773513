"""The contract of a probe: hooks that do nothing unless a probe overrides them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import ClassVar, Final, Protocol

from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.model import AnyRecord, Kind, ProcessRecord
from celery_trace.process.frames import RunPlaces
from celery_trace.process.open_runs import OpenRuns, Token
from celery_trace.runtime.rollups import RunTotals
from celery_trace.runtime.ticker import Ticker, Timer
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter

#: How often an idle process does what is done at intervals, seconds.
IDLE_S: Final = 30.0


class Host(Protocol):
    """What a probe uses of its process's recorder."""

    settings: Settings
    process: ProcessRecord
    clock: Clock
    spool: SpoolWriter
    ticker: Ticker
    open_runs: OpenRuns
    #: Set where runs share a thread.
    places: RunPlaces | None
    closed: bool

    @property
    def runs(self) -> int:
        """Runs that have ended."""

    @property
    def kept_failures(self) -> int:
        """How many failures are held for the live shell."""

    @property
    def overhead_ratio(self) -> float:
        """The probes' share of the process's time."""

    def write(self, record: AnyRecord) -> None:
        """Append a record to the spool."""

    def begin(self, part: str, make: Callable[[], object]) -> bool:
        """Call ``make`` now and, if it fails, again every ten seconds until it succeeds."""

    def totals(self) -> list[RunTotals]:
        """The totals of every name that has run."""

    def code_of(self, kind: Kind, name: str) -> Iterable[CodeType]:
        """The functions of a task or route."""

    def offer_runs(self) -> None:
        """Read :attr:`Probe.wants_runs` of all probes again."""


class Probe:
    """
    Measures one thing in a traced process. Each hook does nothing until it is overridden.

    The recorder calls every hook under a guard, so an error is logged and counted, and never reaches the task. It adds
    up the processor time of :meth:`before_run`, :meth:`after_run` and :meth:`every`.

    ``__init__`` only stores things: it runs in every traced process, whether the probe is wanted or not.
    """

    #: For the log and the counters of errors.
    name: ClassVar[str] = ""
    #: A run that this probe observes is not offered to the probes after it.
    exclusive: ClassVar[bool] = False
    #: Close it after the last records are written, not before.
    closes_last: ClassVar[bool] = False

    def __init__(self, host: Host) -> None:
        self.host = host
        self.guard = Guard(self.name)
        #: Processor seconds that the hooks have taken.
        self.spent_s = 0.0
        self.timer: Timer | None = None

    # --- hooks -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, if the settings want that. An error is reported, and the start repeated until it succeeds."""

    def before_run(self, token: Token) -> object:  # noqa: ARG002 - this one observes nothing
        """
        A run begins. Only called while :attr:`wants_runs` is true.

        Returns:
            What :meth:`after_run` gets; None if this run is not observed.
        """
        return None

    def after_run(self, token: Token, observed: object) -> None:
        """A run that was observed has ended. Setting ``token.why`` has the recorder write the run as a record."""

    def new_name(self, totals: RunTotals) -> None:
        """A task, route or block runs for the first time in this process."""

    def every(self) -> None:
        """Called on the ticker's thread at the interval that :meth:`call_every` has set."""

    def measure(self, name: str, mode: str, until_s: float) -> None:
        """Measure the runs of one name in another mode until a time of the monotonic clock."""

    def counters(self) -> Mapping[str, int]:
        """Counts for the process's statistics."""
        return {}

    def write_rest(self) -> None:
        """The process ends, perhaps in the middle of a run: write what is left."""

    def close(self) -> None:
        """The process ends: write what is left, unless :attr:`closes_last`; undo everything."""

    def after_fork(self) -> None:
        """In a forked child: stop touching what belongs to the parent. The child's recorder has its own probes."""

    # --- state: none of these may raise ------------------------------------------------------------------

    @property
    def wants_runs(self) -> bool:
        """Whether any run is to be observed now. After a change call :meth:`Host.offer_runs`."""
        return False

    @property
    def is_busy(self) -> bool:
        """Whether work is in progress that an idle process has to go on with."""
        return False

    @property
    def overhead_s(self) -> float:
        """Seconds that this probe has cost."""
        return self.spent_s

    # --- helpers ---------------------------------------------------------------------------------------

    def call_every(self, seconds: float, *, idle_s: float = IDLE_S) -> None:
        """Have :meth:`every` called at this interval, ``idle_s`` while the process is idle. May be called again."""
        if self.timer is None:
            self.timer = self.host.ticker.every(seconds, self._tick, self.name, idle_s=idle_s)
        self.timer.every_s = seconds

    def _tick(self) -> None:
        started_s = time.thread_time()
        try:
            self.every()
        finally:
            self.spent_s += time.thread_time() - started_s
