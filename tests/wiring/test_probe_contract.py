"""
What every probe keeps: its cost is counted, a fork ends it in the child, it leaves nothing behind, and its errors never
reach the task.

A new probe gets a ``Case`` in ``CASES``.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from celery_trace.clock import FakeClock
from celery_trace.collector.status import STATUS_FILE, Status, write_status
from celery_trace.guard import own_errors
from celery_trace.model import Kind, Role, Rollup, Run, Sample
from celery_trace.process import blackbox
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.probes import PROBES
from celery_trace.runtime.probes.heap_probe import HeapProbe
from celery_trace.runtime.probes.log_probe import LogProbe
from celery_trace.runtime.probes.memory_probe import MemoryProbe
from celery_trace.runtime.probes.probe import Probe
from celery_trace.runtime.probes.profile_probe import ProfileProbe
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.runtime.probes.trace_probe import TraceProbe
from celery_trace.runtime.probes.tracer_probe import TracerProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.runtime.ticker import Ticker
from celery_trace.settings import Settings
from tests.support.spooled import written

HOOKS = ["start", "before_run", "after_run", "new_name", "every", "measure", "counters", "close"]


class Case(NamedTuple):
    """How a probe is switched on, and how one sees what it has measured."""

    #: Whether it has measured the run that :class:`Process` has made.
    measured: Callable[[Process], bool]
    #: The setting ``trace_memory``.
    memory: str = "off"
    #: The setting ``trace_black_box``.
    black_box: bool = False
    #: What else switches it on, such as an order.
    order: Callable[[Recorder], object] = lambda recorder: None


class Process:
    """A process with one probe."""

    def __init__(self, kind: type[Probe], folder: Path) -> None:
        self.case = CASES[kind]
        self.clock = FakeClock(1_700_000_100.0)
        self.settings = Settings(dir=str(folder), memory=self.case.memory, black_box=self.case.black_box)
        self.recorder = recorders._current = Recorder.start(self.settings, role=Role.CHILD, clock=self.clock)
        (self.probe,) = self.recorder.probes
        self.case.order(self.recorder)

    def run(self, work: Callable[[], object] = lambda: None) -> None:
        """A run of a task, during which the ticker makes its calls."""
        token = self.recorder.run_started(Kind.TASK, "shop.pay", "id-1")
        self.beat()
        work()
        self.recorder.run_ended(token, "SUCCESS")
        self.beat()

    def beat(self) -> None:
        """The ticker's calls of the next ten seconds, on a thread as in a worker."""
        self.clock.advance(10)
        thread = threading.Thread(target=self.recorder.ticker.beat)
        thread.start()
        thread.join()

    def records(self, kind: type) -> list[Any]:
        self.recorder.flush()
        of_kind = [record for record in written(self.settings.spool_folder) if isinstance(record, kind)]
        return [record for record in of_kind if record.process == self.recorder.process.uid]


def _sampled_a_stack(process: Process) -> bool:
    (path,) = process.settings.spool_folder.glob("*.box")
    seen: list[blackbox.BoxReading | None] = []
    process.recorder.probe(StackProbe).call_every(0.1)
    process.run(lambda: seen.append(blackbox.read(path)))
    return seen[0] is not None and seen[0].sample is not None and bool(seen[0].sample.stack)


def _sampled_the_heap(process: Process) -> bool:
    heap = process.recorder.probe(HeapProbe).heap
    return heap is not None and heap._sampler.runs(heap.tag(Kind.TASK, "shop.pay")) > 0


def _order_a_profile(recorder: Recorder) -> None:
    pytest.importorskip("memray", reason="memray is not installed")
    recorder.probe(ProfileProbe).arm("shop.pay", lambda: True, 600)


def _find_the_run(recorder: Recorder) -> None:
    recorder.probe(LogProbe).logs.find.append(lambda: ("id-1", 0))


def _kept_a_log_record(process: Process) -> bool:
    process.run(lambda: logging.getLogger("shop").critical("paid"))
    logs = process.recorder.probe(LogProbe).logs
    return bool(logs.of("id-1", 0).lines)


def _a_collector_that_needs_the_right(recorder: Recorder) -> None:
    probe = recorder.probe(TracerProbe)
    write_status(recorder.settings.folder / STATUS_FILE, Status(pid=4711, started_at_s=0.0, transport="direct"))
    probe.needs_grant = lambda: True
    probe.grant = GRANTED.append
    recorder.begin(probe.name, probe.start)


#: The processes that were allowed to read this one.
GRANTED: list[int] = []

CASES: dict[type[Probe], Case] = {
    StackProbe: Case(_sampled_a_stack, black_box=True),
    HeapProbe: Case(_sampled_the_heap, memory="auto"),
    LogProbe: Case(_kept_a_log_record, order=_find_the_run),
    MemoryProbe: Case(lambda process: bool(process.records(Sample)), memory="rss"),
    ProfileProbe: Case(lambda process: process.probe.counters()["profile:taken"] == 1, order=_order_a_profile),
    TraceProbe: Case(
        lambda process: [run.why for run in process.records(Run)] == ["traced"],
        order=lambda recorder: recorder.measure("shop.pay", "always", 600),
    ),
    TracerProbe: Case(lambda process: GRANTED[-1:] == [4711], black_box=True, order=_a_collector_that_needs_the_right),
}


@pytest.fixture(params=PROBES, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    """Each probe, alone in :data:`PROBES`."""
    kind: type[Probe] = request.param
    assert kind in CASES, f"give {kind.__name__} a Case in CASES, with what shows that it measures"
    monkeypatch.setattr(recorders, "PROBES", (kind,))
    monkeypatch.setattr(Ticker, "start", lambda self: None)  # its beats are the test's
    return kind


@pytest.fixture
def process(kind: type[Probe], tmp_path: Path) -> Iterator[Process]:
    recorders.close()
    yield Process(kind, tmp_path / "trace")
    recorders.close()


def handles() -> set[str]:
    """Open files, the way the kernel lists them."""
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def in_a_child(work: Callable[[], object]) -> None:
    """Fork, call that in the child, and fail where it fails."""
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_probe_measures_alone(process: Process) -> None:
    process.run()
    assert process.case.measured(process)
    assert not own_errors


def test_the_cost_of_a_probe_is_counted(process: Process) -> None:
    process.run()
    assert process.case.measured(process)
    assert process.probe.overhead_s > 0
    assert process.recorder.overhead_s == process.probe.overhead_s


def test_a_probe_that_is_switched_off_costs_a_run_nothing(kind: type[Probe], tmp_path: Path) -> None:
    settings = Settings(dir=str(tmp_path / "trace"), memory="off", black_box=False)
    recorder = Recorder.start(settings, role=Role.CHILD, clock=FakeClock())
    try:
        token = recorder.run_started(Kind.TASK, "shop.pay", "id-1")
        assert token.observed is None
        recorder.run_ended(token, "SUCCESS")
        assert recorder.overhead_s == 0
        assert recorder.open_runs.enter is recorder.open_runs.leave is None
    finally:
        recorder.close()


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_of_a_probe_does_not_reach_the_task(
    kind: type[Probe], hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, close = [], kind.close

    def fail(*_: Any, **__: Any) -> None:
        called.append(hook)
        raise RuntimeError("a fault of the probe")

    monkeypatch.setattr(kind, hook, fail)
    if hook in {"before_run", "after_run"}:
        monkeypatch.setattr(kind, "wants_runs", property(lambda self: True))
    if hook == "after_run":
        monkeypatch.setattr(kind, "before_run", lambda self, token: token)
    process = Process(kind, tmp_path / "trace")
    process.probe.call_every(1.0)
    process.recorder.measure("shop.pay", "rss", 60)
    process.run()
    process.recorder.account()
    assert [rollup.runs for rollup in process.records(Rollup)] == [1]
    recorders.close()
    close(process.probe)
    assert called
    assert own_errors
    own_errors.clear()


def test_a_time_limit_inside_a_hook_is_the_tasks(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    class SoftTimeLimitExceeded(Exception):
        """As billiard names it."""

    def strike(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(type(process.probe), "wants_runs", property(lambda self: True))
    monkeypatch.setattr(process.probe, "before_run", strike)
    process.recorder.offer_runs()
    with pytest.raises(SoftTimeLimitExceeded):
        process.recorder.run_started(Kind.TASK, "shop.pay", "id-1")
    assert not own_errors
    assert process.recorder.open_runs.count == 0, "the run has ended"


def test_a_fork_in_a_run_ends_the_probe_in_the_child_and_not_in_the_parent(process: Process, tmp_path: Path) -> None:
    parent, files = process.recorder, set((tmp_path / "trace").rglob("*"))

    def child() -> None:
        assert recorders.current() is None
        assert parent.closed
        assert not parent._run_probes
        assert parent.open_runs.enter is parent.open_runs.leave is None
        assert not tracemalloc.is_tracing()
        # A task that was forked inside may come to its end here.
        parent.run_ended(token, "SUCCESS")
        assert set((tmp_path / "trace").rglob("*")) == files
        own = Process(type(process.probe), tmp_path / "trace")
        own.run()
        assert own.recorder is not parent
        recorders.close()
        assert not own_errors

    token = process.recorder.run_started(Kind.TASK, "shop.pay", "id-1")
    files = set((tmp_path / "trace").rglob("*"))
    in_a_child(child)
    assert files <= set((tmp_path / "trace").rglob("*"))
    process.beat()
    process.recorder.run_ended(token, "SUCCESS")
    process.beat()
    assert process.case.measured(process)
    assert not own_errors


@pytest.mark.parametrize("ends", ["between runs", "in a run"])
def test_a_probe_leaves_no_state_behind(kind: type[Probe], ends: str, tmp_path: Path) -> None:
    Process(kind, tmp_path / "trace").run()
    recorders.close()  # what is open once in each process, such as /proc/self/statm, is open now
    before, callbacks, thread_count = handles(), list(gc.callbacks), threading.active_count()
    call_handlers = logging.Logger.callHandlers
    process = Process(kind, tmp_path / "trace")
    process.run()
    token = process.recorder.run_started(Kind.TASK, "shop.pay", "id-2") if ends == "in a run" else None
    recorders.close()
    if token is not None:
        process.recorder.run_ended(token, "SUCCESS")
    assert handles() - before == set()
    assert gc.callbacks == callbacks
    assert threading.active_count() == thread_count
    assert not tracemalloc.is_tracing()
    assert logging.Logger.callHandlers is call_handlers
    assert [path.name for path in (tmp_path / "trace").rglob("*") if path.suffix in {".box", ".lock"}] == []
    assert not own_errors
