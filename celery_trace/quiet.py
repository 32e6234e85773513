"""
Quiet runs: those that nothing is to be seen of, which are nearly all. Each is counted and told to the black box.

Between two tasks the processor forgets us, and a step of Python then costs several times what it costs in a loop: what
a run costs is how many steps it takes. Where one run follows the other, a quiet run takes few: its place in the black
box is written, and its duration noted in an array, which is added up every two seconds. A run that turns out to be more
than that *surfaces*, and goes on as if it had begun as an ordinary one. See ``docs/decisions/0017-quiet-runs.md``.
"""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager, suppress
from threading import get_ident
from time import perf_counter, time
from typing import Any, Final, NamedTuple

from celery_trace.capture.task_facts import retries_of
from celery_trace.guard import report, swallow
from celery_trace.model import Histogram, Kind
from celery_trace.probes.blackbox import RUN, VISIBLE, BlackBox
from celery_trace.probes.budget import Budget
from celery_trace.probes.memory import MemoryProbe
from celery_trace.rollups import Totals

#: Durations that are noted before they are added up; a power of two.
_NOTED: Final = 512
_LAST: Final = _NOTED - 1

#: Where nothing is measured, so many runs may be quiet before anybody asks again.
_ALL: Final = 1 << 60

_TASK: Final = Kind.TASK
_write_run = RUN.pack_into


class _Known(NamedTuple):
    """Stands for what the memory probe knows of a name, where there is no probe or it knows nothing yet."""

    quiet: bool


_NEVER_MEASURED: Final = _Known(quiet=True)
_UNKNOWN: Final = _Known(quiet=False)


class QuietRuns:
    """
    The quiet runs of one process; at most one is in progress.

    Args:
        lock: The recorder's, held while durations are added up.
        box: The process's black box, if it has one.
        probe: Says which runs nobody wants to see; None where none is measured.
    """

    def __init__(self, lock: AbstractContextManager[Any], box: BlackBox | None, probe: MemoryProbe | None) -> None:
        self.lock = lock
        #: The only thread that has quiet runs: the one that a pool process runs its tasks in.
        self.thread = get_ident()
        #: Whose run is in progress, if that is a quiet one.
        self.running: QuietTask | None = None
        #: Whether nothing is in hand that the next run could disturb; found out after each ordinary run.
        self.calm = False
        #: How many there have been, of those that are added up.
        self.count = 0
        self.box = box
        self._late_box: BlackBox | None = None
        self.memory: Any
        self.place: int
        self._leave_box()
        self._tasks: dict[str, QuietTask] = {}
        self._closed = False
        self.measure(probe)
        self._take_place()

    def measure(self, probe: MemoryProbe | None) -> None:
        """From here on ``probe`` says which runs nobody wants to see."""
        self.calm = False
        self.probe = probe
        if probe is not None:
            self.budget = probe.budget
            probe.passing = self
        else:
            self.budget = Budget(1.0)
            self.budget.countdown = _ALL

    def open_box(self, box: BlackBox) -> None:
        """Use a black box that was made late: from the end of the next ordinary run on, in the thread of the runs."""
        self._late_box = box
        self.calm = False

    def task(self, name: str) -> QuietTask:
        """The runs of the task of that name."""
        return self._tasks.setdefault(name, QuietTask(name, self))

    def ended(self, totals: Totals, now_s: float, *, calm: bool) -> None:
        """
        An ordinary run has ended: learn what became of its name, and whether the next may be quiet.

        Args:
            totals: Of the run's name.
            now_s: The time, seconds since the epoch.
            calm: Whether nobody but the memory probe wants to see a run.
        """
        if self._late_box is not None and get_ident() == self.thread and self.running is None and not self._closed:
            self.box, self._late_box = self._late_box, None
            self._take_place()
        self.calm = calm and not self._closed and (self.probe is None or self.probe.rests)
        task = self._tasks.get(totals.name)
        if task is not None and totals.kind is _TASK:
            task.learn(totals, now_s)

    def surface(self) -> QuietTask | None:
        """The run in progress, if it is a quiet one of this thread, is so no longer; whoever calls goes on with it."""
        if self.running is None or get_ident() != self.thread:
            return None
        task, self.running = self.running, None
        self.calm = False
        if self.box is not None and not self._closed:
            self.box.adopt(self.place)
            self._take_place()
        return task

    @property
    def running_name(self) -> str:
        """The name of the task that runs quietly now; empty if none does."""
        task = self.running
        return task.name if task is not None else ""

    def add_up(self) -> None:
        """Add what has been noted to the totals."""
        for task in list(self._tasks.values()):
            task.add_up()

    def close(self) -> None:
        """No further run is quiet. One that is in progress ends where nobody sees it."""
        self._closed = True
        self.calm = False
        self._leave_box()

    def forget(self) -> None:
        """In a forked child: as :meth:`close`; the run in progress, and what it is told to, are the parent's."""
        self.running = self.box = self._late_box = None
        self.close()

    def _leave_box(self) -> None:
        self.memory, self.place = bytearray(RUN.size + 1), 0

    def _take_place(self) -> None:
        if self.box is None:
            return
        taken = self.box.take_place()
        if taken is not None:
            self.memory, self.place = taken
        else:
            self.close()


class QuietTask:
    """The quiet runs of one task."""

    __slots__ = (
        "_added", "_due_s", "_label", "_most", "_noted", "_number", "_runs", "_slow_s", "_state", "name", "request",
        "retries", "started_s", "task_id", "totals",
    )  # fmt: skip

    def __init__(self, name: str, runs: QuietRuns) -> None:
        self.name = name
        self._runs = runs
        self.totals: Totals | None = None
        self._state: Any = _UNKNOWN
        self._label = b""
        self._noted = array("d")
        self._number = self._added = self._most = 0  # runs: noted so far, added up, noted when that must be done
        self._slow_s = self._due_s = 0.0
        # Of the run in progress:
        self.task_id = ""
        self.request: Any = None
        self.retries = 0
        self.started_s = 0.0

    def enters(self, task_id: str, request: Any) -> bool:
        """A run begins. Whether it may be quiet; if not, it is to be told of as any other."""
        runs = self._runs
        budget = runs.budget
        if (
            runs.running is None
            and runs.calm
            and self._number < self._most
            and budget.countdown > 1
            and self._state.quiet
            and get_ident() == runs.thread
        ):
            try:
                budget.countdown -= 1
                self.task_id = task_id
                self.request = request
                self.retries = retries = retries_of(request)
                memory, place = runs.memory, runs.place
                _write_run(
                    memory, place + 1, time(), runs.thread, retries, task_id.encode("utf-8", VISIBLE) + self._label
                )
                memory[place] = 1
                runs.running = self
                self.started_s = perf_counter()
            except Exception as error:
                runs.running = None
                with suppress(ValueError):
                    runs.memory[runs.place] = 0
                swallow("quiet run", error)
                runs.close()
                return False
            return True
        if self._number != self._added:
            self.add_up()
        return False

    def leaves(self) -> bool:
        """A run that entered has ended well. Whether it was quiet to its end; if not, it is an ordinary one."""
        duration_s = perf_counter() - self.started_s
        runs = self._runs
        if runs.running is self and duration_s < self._slow_s and self.started_s < self._due_s:
            number = self._number
            self._noted[number & _LAST] = duration_s
            self._number = number + 1
            runs.memory[runs.place] = 0
            runs.running = self.request = None
            return True
        return False

    def learn(self, totals: Totals, now_s: float) -> None:
        """Take over what an ordinary run has brought: from when on a run is slow, and when the next one is kept."""
        if self.totals is None:
            self.totals = totals
            self._label = totals.label
            self._noted = array("d", bytes(8 * _NOTED))
            self._most = _NOTED
        probe = self._runs.probe
        self._state = _NEVER_MEASURED if probe is None else probe.state_of(totals.kind, totals.name) or _UNKNOWN
        self._slow_s = Histogram.begins_s(totals.slow_bucket)
        self._due_s = min(totals.scatter_due_s, perf_counter() + totals.ends_at_s - now_s)

    def add_up(self) -> None:
        """Add the durations that have been noted to the totals."""
        try:
            with self._runs.lock:
                number, added, totals = self._number, self._added, self.totals
                count = number - added
                if not count or totals is None:
                    return
                noted, first, end = self._noted, added & _LAST, number & _LAST
                durations = noted[first:end] if first < end else noted[first:] + noted[:end]
                self._added = number
                self._most = number + _NOTED
                totals.add(durations)
                self._runs.count += count
                probe = self._runs.probe
                if probe is not None:
                    probe.passed(self._state, count)
        except Exception as error:
            report("quiet runs: adding up", error)
