"""Quiet runs: nearly all runs of a pool process leave no more than their count; each that is more is seen whole."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_trace import trace_memory, tracers
from celery_trace.guard import own_errors
from celery_trace.model import Failure, Kind, Rollup, Run
from celery_trace.probes import blackbox, budget, memory
from celery_trace.probes.investigation import Step
from tests.support.fixtures_pool import Pool
from tests.support.waiting import wait_until


def test_each_run_is_counted_once_with_its_duration(pool: Pool) -> None:
    pool.runs("add", 1500)
    assert pool.quiet > 1400
    [totals] = pool.totals("add")
    assert (totals.runs, totals.failed, sum(totals.durations.counts)) == (1500, 0, 1500)
    assert 0 < totals.duration_s < 10
    assert totals.duration_s / 1500 <= totals.duration_max_s <= totals.duration_s
    assert pool.recorder.runs == 1500


def test_runs_that_are_added_up_while_others_go_on_are_all_there(pool: Pool) -> None:
    going_on = threading.Event()

    def add_up() -> None:
        while not going_on.is_set():
            pool.recorder.flush()

    adding = threading.Thread(target=add_up)
    adding.start()
    pool.runs("add", 3000)
    going_on.set()
    adding.join()
    assert [totals.runs for totals in pool.totals("add")] == [3000]


def test_a_quiet_run_that_fails_is_recorded_as_any_other(pool: Pool) -> None:
    def fail() -> None:
        order = {"id": 7}
        time.sleep(0.02)
        raise ValueError(f"no price for {order['id']}")

    pool.quietly(fail, task_id="broken")
    [failure] = pool.written(Failure)
    assert (failure.task_id, failure.retries, failure.name) == ("broken", 2, "work")
    assert failure.duration_s == pytest.approx(0.02, abs=0.5)
    assert failure.duration_s >= 0.02
    assert failure.capture is not None
    assert [value.name for value in failure.capture.exceptions[0].frames[0].locals] == ["order"]
    [totals] = pool.totals("work")
    assert (totals.runs, totals.failed) == (4, 1)
    before = pool.quiet
    pool.runs("add", 5)
    assert pool.quiet >= before + 3


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_passes_a_quiet_run_ends_it(pool: Pool, error: type[BaseException]) -> None:
    def leave() -> None:
        raise error

    with pytest.raises(error) as raised:
        pool.quietly(leave)
    assert not any("celery_trace" in entry.path.parts for entry in raised.traceback if hasattr(entry.path, "parts"))
    [totals] = pool.totals("work")
    assert (totals.runs, totals.failed) == (4, 1)
    assert blackbox.read(next(pool.recorder.settings.spool_folder.glob("*.box"))).runs == []


def test_a_message_that_is_delivered_again_counts_as_no_success(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.runs("add", 3)
    tracer = pool.app.tasks["add"].__trace__
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pool.plugin, "run_ends", lambda *told_of, **_: told.append(told_of))
    skipped = tracers.around(
        lambda *_: (None, None, None, None), pool.app.tasks["add"], pool.plugin, pool.plugin.quiet_task("add")
    )
    skipped("id", (), {}, {"id": "id"})
    assert [of[2] for of in told] == ["IGNORED"]
    assert tracer is not skipped


def test_a_run_inside_a_quiet_one_leaves_both_seen(pool: Pool) -> None:
    def outer() -> None:
        pool.app.tasks["add"].apply((1,)).get(disable_sync_subtasks=False)
        reading = blackbox.read(next(pool.recorder.settings.spool_folder.glob("*.box")))
        assert reading is not None
        assert [run.name for run, _ in reading.runs] == ["work"]

    assert pool.quietly(outer)[1] is None
    assert [totals.runs for totals in pool.totals("work")] == [4]
    assert [totals.runs for totals in pool.totals("add")] == [4]
    before = pool.quiet
    pool.runs("add", 5)
    assert pool.quiet >= before + 3


def test_the_black_box_tells_of_a_quiet_run(pool: Pool) -> None:
    def look() -> blackbox.BoxReading | None:
        assert pool.recorder.box is not None
        pool.recorder.box.sample()
        return blackbox.read(next(pool.recorder.settings.spool_folder.glob("*.box")))

    seen: list[blackbox.BoxReading | None] = []
    pool.quietly(lambda: seen.append(look()), task_id="watched")
    [reading] = seen
    assert reading is not None
    [(run, sample)] = reading.runs
    assert (run.kind, run.name, run.task_id, run.retries) == ("task", "work", "watched", 2)
    assert run.thread == threading.get_ident()
    assert run.started_at_s == pytest.approx(time.time(), abs=5)
    assert sample is not None
    assert any("look" in line.function for line in sample.stack)
    after = look()
    assert after is not None
    assert after.runs == []


@pytest.fixture
def closed_trace_dir(tmp_path: Path) -> Path:
    """A file where the trace_dir of :func:`pool` should be made."""
    path = tmp_path / "trace"
    path.write_bytes(b"")
    return path


def test_a_black_box_that_could_not_be_made_at_first_is_made_later_and_tells_of_quiet_runs(
    closed_trace_dir: Path, pool: Pool
) -> None:
    recorder = pool.recorder
    pool.runs("add", 20)
    assert recorder.box is None
    assert recorder.spool.trouble is not None
    closed_trace_dir.unlink()
    recorder.spool._try_again_s = 0.0  # as if the time had come
    recorder.flush()
    assert recorder.spool.trouble is None
    recorder._box_due_s = 0.0
    wait_until(lambda: recorder.box is not None, "the ticker makes the black box", timeout_s=10)
    seen: list[Any] = []
    pool.quietly(
        lambda: seen.append(blackbox.read(next(recorder.settings.spool_folder.glob("*.box")))), task_id="watched"
    )
    [reading] = seen
    assert [(run.name, run.task_id) for run, _ in reading.runs] == [("work", "watched")]
    pool.runs("add", 20)
    [totals] = pool.totals("add")
    assert totals.runs == 20 + 3 + 20


def test_a_quiet_run_that_takes_unusually_long_is_kept_by_itself(pool: Pool) -> None:
    pool.runs("work", 60)
    pool.recorder.flush()
    totals = pool.recorder._totals["work"]
    totals.scatter_due_s = 0.0  # the next one is kept by itself, and what is slow is learned with it
    pool.learn("work")
    pool.run("work")
    pool.quietly(lambda: time.sleep(0.05), task_id="slow")
    [slow] = [run for run in pool.written(Run) if run.task_id == "slow"]
    assert (slow.why, slow.queue, slow.root_id, slow.state) == ("outlier", "bakery", "root", "SUCCESS")
    assert slow.duration_s >= 0.05
    assert slow.started_at_s == pytest.approx(time.time(), abs=5)


def test_one_run_in_ten_seconds_is_kept_though_the_others_are_quiet(pool: Pool) -> None:
    pool.runs("work", 50)
    assert len([run for run in pool.written(Run) if run.name == "work"]) == 1
    pool.recorder._totals["work"].scatter_due_s = time.perf_counter()
    pool.runs("add", 1)
    pool.learn("work")
    pool.runs("work", 2)
    assert len([run for run in pool.written(Run) if run.name == "work"]) == 2


def test_runs_count_for_the_five_minutes_that_they_began_in(pool: Pool) -> None:
    pool.runs("work", 10)
    totals = pool.recorder._totals["work"]
    totals.ends_at_s = time.time() + 0.05
    pool.learn("work")
    pool.runs("work", 5)
    assert totals.bucket_s + Rollup.BUCKET_S > totals.ends_at_s
    time.sleep(0.1)
    seen: list[int] = []
    begin = totals.begin
    pool.recorder.flush()
    before = pool.totals("work")[-1].runs

    class Watched(type(totals)):
        __slots__ = ()

        def begin(self, at_s: float) -> None:
            seen.append(self.runs)
            begin(at_s)

    totals.__class__ = Watched
    pool.runs("work", 3)
    assert before == 15
    assert seen == [15]
    assert totals.runs + pool.quiet >= 3


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_an_order_to_measure_ends_the_quiet(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FIRST_RUNS", 5)
    pool.recorder.measure("add", "always", 60)
    pool.runs("add", 2)
    assert {run.why for run in pool.written(Run) if run.name == "add"} == {"traced"}
    before = pool.quiet
    pool.runs("work", 3)
    assert pool.quiet == before


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_where_runs_are_sampled_those_between_are_quiet_and_counted_by_the_probe(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_MOST_SKIPPED", 50)
    monkeypatch.setattr(memory.MemoryProbe, "_suspect", lambda *_: None)
    assert pool.recorder.probe is not None
    pool.recorder.probe.budget._share = 1e-9
    pool.runs("add", 1500)
    state = pool.recorder.probe.state_of(Kind.TASK, "add")
    assert state is not None
    assert pool.quiet > 800
    assert state.runs == 1500
    [totals] = pool.totals("add")
    assert totals.runs == 1500
    assert totals.gated < 700


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_runs_are_quiet_while_an_investigation_has_to_wait_for_its_budget(pool: Pool) -> None:
    class Waits:
        step, window = Step.LOCATE, None
        wants = progress = abandon = Mock(return_value=False)

    probe = pool.recorder.probe
    assert probe is not None
    pool.runs("add", 3)
    state: Any = probe.state_of(Kind.TASK, "add")
    state.investigation = Waits()
    for spent_s, quiet in ((1e6, True), (0.0, False), (1e6, True)):
        probe.budget.spent_s = spent_s
        probe.budget.countdown = 1  # this one is measured, and settled when the next one begins
        pool.runs("add", 2)
        assert state.quiet is quiet
    state.investigation = None


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_a_block_inside_a_quiet_run_is_measured(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_MOST_SKIPPED", 1000)
    monkeypatch.setattr(memory.MemoryProbe, "_suspect", lambda *_: None)
    assert pool.recorder.probe is not None
    pool.recorder.probe.budget._share = 1e-9
    kept: list[bytes] = []

    def block() -> None:
        with trace_memory("counting"):
            kept.append(bytes(100_000))

    pool.runs("work", 600)
    pool.runs("add", 600)
    pool.recorder.probe.budget.countdown = 500
    pool.quietly(block)
    assert [totals.runs for totals in pool.totals("counting")] == [1]
    assert [totals.runs for totals in pool.totals("work")] == [604]


def test_a_block_of_another_thread_leaves_the_quiet_run_alone_and_knows_of_it(pool: Pool) -> None:
    def beside() -> None:
        with trace_memory("beside"):
            pass

    def run() -> None:
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        assert pool.recorder.quiet is not None
        assert pool.recorder.quiet.running_name == "work"

    assert pool.quietly(run)[1] is None
    assert [totals.runs for totals in pool.totals("work")] == [4]
    assert [totals.runs for totals in pool.totals("beside")] == [1]


def test_a_process_that_a_task_forks_has_no_quiet_runs(pool: Pool) -> None:
    pool.runs("add", 5)
    child = os.fork()
    if child == 0:
        calm = pool.recorder.quiet is not None and pool.recorder.quiet.calm
        os._exit(1 if calm else 0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_process_forked_in_a_quiet_run_may_go_its_way_to_the_end_of_the_task(pool: Pool) -> None:
    ours = os.getpid()
    seen: list[blackbox.BoxReading | None] = []

    def fork() -> None:
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            seen.append(blackbox.read(next(pool.recorder.settings.spool_folder.glob("*.box"))))

    try:
        pool.quietly(fork)
    finally:
        if os.getpid() != ours:
            os._exit(0)
    [reading] = seen
    assert reading is not None
    assert [run.name for run, _ in reading.runs] == ["work"]
    assert [totals.runs for totals in pool.totals("work")] == [4]


def test_a_recorder_that_ends_in_a_quiet_run_leaves_the_run_alone(pool: Pool) -> None:
    def end() -> str:
        pool.recorder.close()
        return "done"

    own_errors.clear()
    assert pool.quietly(end)[0] == "done"
    assert not own_errors


def test_a_time_limit_that_meets_us_is_the_tasks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.runs("add", 5)
    raised: list[type[Exception]] = [SoftTimeLimitExceeded, ValueError]

    def struck(_: Any) -> int:
        raise raised.pop(0)

    monkeypatch.setattr("celery_trace.quiet.retries_of", struck)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.run("add", 1)
    assert pool.recorder.quiet is not None
    assert pool.recorder.quiet.calm
    assert pool.run("add", 1)[0] == 2
    assert own_errors["quiet run"] == 1
    own_errors.clear()
    raised.append(ValueError)
    monkeypatch.setattr("celery_trace.plugin.retries_of", struck)
    assert pool.run("add", 1)[0] == 2, sys.exc_info()
    assert own_errors["task_prerun"] == 1
    own_errors.clear()
