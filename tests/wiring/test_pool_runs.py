"""Runs of a pool process: each is counted, the black box knows it, and what is unusual is kept."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_trace import trace_memory
from celery_trace.guard import own_errors
from celery_trace.model import Failure, Kind, Rollup, Run
from celery_trace.process import blackbox
from celery_trace.runtime import tracers
from celery_trace.runtime.probes.heap_probe import HeapProbe
from celery_trace.runtime.probes.stack_probe import StackProbe
from tests.support.fixtures_pool import Pool, inside_of_work
from tests.support.run_hooks import WAYS, hooks_of


@pytest.fixture(autouse=True, params=WAYS)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracers, "Hooks", hooks_of(request.param))


def box_of(pool: Pool) -> blackbox.BoxReading:
    """What the black box says now."""
    reading = blackbox.read(next(pool.recorder.settings.spool_folder.glob("*.box")))
    assert reading is not None
    return reading


def test_each_run_is_counted_once_with_its_duration(pool: Pool) -> None:
    pool.runs("add", 1500)
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


def test_a_run_that_fails_is_recorded_with_its_frames(pool: Pool) -> None:
    def fail() -> None:
        order = {"id": 7}
        time.sleep(0.02)
        raise ValueError(f"no price for {order['id']}")

    pool.inside(fail, task_id="broken")
    [failure] = pool.written(Failure)
    assert (failure.task_id, failure.retries, failure.name) == ("broken", 2, "work")
    assert failure.duration_s == pytest.approx(0.02, abs=0.5)
    assert failure.duration_s >= 0.02
    assert failure.capture is not None
    assert [value.name for value in failure.capture.exceptions[0].frames[0].locals] == ["order"]
    [totals] = pool.totals("work")
    assert (totals.runs, totals.failed) == (1, 1)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_passes_a_run_ends_it_and_shows_no_frame_of_ours(pool: Pool, error: type[BaseException]) -> None:
    def leave() -> None:
        raise error

    with pytest.raises(error) as raised:
        pool.inside(leave)
    assert not any("celery_trace" in Path(entry.path).parts for entry in raised.traceback)
    [totals] = pool.totals("work")
    assert (totals.runs, totals.failed) == (1, 1)
    assert box_of(pool).runs == []


def test_a_message_that_is_delivered_again_counts_as_no_success(pool: Pool) -> None:
    told: list[tuple[Any, ...]] = []
    hooks = tracers.Hooks(lambda *_: None, lambda *told_of, **_: told.append(told_of))
    skipped = hooks.observed(lambda *_: (None, None, None, None), pool.app.tasks["add"])
    skipped("id", (), {}, {"id": "id"})
    assert [of[2] for of in told] == ["IGNORED"]


def test_a_run_inside_a_run_leaves_both_seen(pool: Pool) -> None:
    seen = []

    def outer() -> None:
        pool.app.tasks["add"].apply((1,)).get(disable_sync_subtasks=False)
        seen.append([run.name for run, _ in box_of(pool).runs])

    assert pool.inside(outer)[1] is None
    assert seen == [["work"]], "the inner one has ended"
    assert [totals.runs for totals in pool.totals("work")] == [1]
    assert [totals.runs for totals in pool.totals("add")] == [1]


def test_the_black_box_tells_of_a_run_while_it_lasts(pool: Pool) -> None:
    def look() -> None:
        box = pool.recorder.probe(StackProbe).box
        assert box is not None
        box.sample()
        seen.append(box_of(pool))

    seen: list[blackbox.BoxReading] = []
    pool.inside(look, task_id="watched")
    [(run, sample)] = seen[0].runs
    assert (run.kind, run.name, run.task_id, run.retries) == ("task", "work", "watched", 2)
    assert run.thread == threading.get_ident()
    assert run.started_at_s == pytest.approx(time.time(), abs=5)
    assert sample is not None
    assert any("look" in line.function for line in sample.stack)
    assert box_of(pool).runs == []


def test_a_samples_frames_of_the_task_end_with_celerys_tracer(pool: Pool) -> None:
    def look() -> None:
        box = pool.recorder.probe(StackProbe).box
        assert box is not None
        [found] = box.sample()
        seen.append([function for _, _, function in found.frames[: found.inside]])

    seen: list[list[str]] = []
    pool.runs("work", 2)
    pool.inside(look)
    assert [functions[-1] for functions in seen] == ["build_tracer.<locals>.trace_task"]


def test_a_run_that_takes_unusually_long_is_kept_by_itself(pool: Pool) -> None:
    pool.runs("work", 60)
    totals = pool.recorder._totals["work"]
    totals.scatter_due_s = 0.0  # the next one is kept by itself, and what is slow is learned with it
    pool.run("work")
    pool.inside(lambda: time.sleep(0.05), task_id="slow")
    [slow] = [run for run in pool.written(Run) if run.task_id == "slow"]
    assert (slow.why, slow.queue, slow.root_id, slow.state) == ("outlier", "bakery", "root", "SUCCESS")
    assert slow.duration_s >= 0.05
    assert slow.started_at_s == pytest.approx(time.time(), abs=5)


def test_one_run_in_ten_seconds_is_kept_as_a_sample(pool: Pool) -> None:
    pool.runs("work", 50)
    kept = [run for run in pool.written(Run) if run.name == "work"]
    assert [run.why for run in kept if run.why != "outlier"] == ["sampled"]
    pool.recorder._totals["work"].scatter_due_s = time.perf_counter()
    pool.runs("work", 2)
    kept = [run for run in pool.written(Run) if run.name == "work"]
    assert [run.why for run in kept if run.why != "outlier"] == ["sampled", "sampled"]


def test_runs_count_for_the_five_minutes_that_they_began_in(pool: Pool) -> None:
    pool.runs("work", 10)
    totals = pool.recorder._totals["work"]
    first_s = totals.bucket_s
    totals.bucket_s -= Rollup.BUCKET_S  # as if five minutes had passed
    totals.ends_at_s -= Rollup.BUCKET_S
    pool.runs("work", 5)
    assert [(one.bucket_s - first_s, one.runs) for one in pool.totals("work")] == [(-Rollup.BUCKET_S, 10), (0, 5)]


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_an_order_to_measure_a_task_traces_its_runs_and_no_others(pool: Pool) -> None:
    pool.recorder.measure("add", "always", 60)
    pool.runs("add", 2)
    pool.runs("work", 2)
    assert {run.why for run in pool.written(Run) if run.name == "add"} == {"traced"}
    assert "traced" not in {run.why for run in pool.written(Run) if run.name == "work"}


@pytest.mark.parametrize("pool", ["rss"], indirect=True)
def test_what_an_ordered_watch_has_cost_stays_on_the_account(pool: Pool) -> None:
    pool.recorder.measure("add", "auto", 0)
    probe = pool.recorder.probe(HeapProbe)
    assert probe.heap is not None
    probe.heap.duty.spend(0.25)
    time.sleep(0.01)
    probe.every()
    assert probe.heap is None
    assert pool.recorder.overhead_s >= 0.25


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_the_heaps_sampler_is_told_which_task_runs(pool: Pool) -> None:
    heap = pool.recorder.probe(HeapProbe).heap
    assert heap is not None
    before = [heap._sampler.runs(heap.tag(Kind.TASK, name)) for name in ("add", "work")]
    pool.runs("add", 7)
    inside = []
    pool.inside(lambda: inside.append(heap.run(0)))
    assert inside == [heap.tag(Kind.TASK, "work")]
    after = [heap._sampler.runs(heap.tag(Kind.TASK, name)) for name in ("add", "work")]
    assert [one - other for one, other in zip(after, before, strict=True)] == [7, 1]
    assert heap.run(0) == 0, "none runs any more"


@pytest.mark.parametrize("pool", ["auto"], indirect=True)
def test_a_block_inside_a_run_is_measured(pool: Pool) -> None:
    kept: list[bytes] = []

    def block() -> None:
        with trace_memory("counting"):
            kept.append(bytes(100_000))

    pool.inside(block)
    assert [totals.runs for totals in pool.totals("counting")] == [1]
    assert [totals.runs for totals in pool.totals("work")] == [1]
    [run] = [run for run in pool.written(Run) if run.name == "counting"]
    assert run.kept_bytes == pytest.approx(100_000, rel=0.05)


def test_a_block_of_another_thread_leaves_the_run_alone(pool: Pool) -> None:
    def beside() -> None:
        with trace_memory("beside"):
            pass

    def run() -> None:
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()

    assert pool.inside(run)[1] is None
    assert [totals.runs for totals in pool.totals("work")] == [1]
    assert [totals.runs for totals in pool.totals("beside")] == [1]


def test_a_run_that_succeeds_needs_no_python_of_ours_once_its_task_has_run(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tracers.Hooks is tracers.PlainHooks:
        pytest.skip("without the extension module each run has a call")
    pool.runs("add", 3)  # the second one of a task is quick
    called: list[str] = []
    for name in ("run_started", "run_ended"):
        monkeypatch.setattr(pool.recorder, name, lambda *_, name=name, **__: called.append(name))
    assert pool.run("add", 4)[0] == 5
    assert (called, pool.plugin._traced.open_runs) == ([], {})  # type: ignore[union-attr]
    pool.recorder.ticker._turn(asleep=True)
    pool.run("add", 4)
    assert called == ["run_started"], "the ticker has to be woken"


@pytest.mark.parametrize("retries", [None, "2", 2.5, True])
def test_a_message_with_a_strange_number_of_retries_is_run_for_the_first_time(pool: Pool, retries: object) -> None:
    pool.runs("add", 2)
    seen = []
    pool.app.tasks["work"].__trace__("warm", (), {}, {"id": "warm", "retries": 0})
    inside_of_work["work"] = lambda: seen.extend(run.retries for run, _ in box_of(pool).runs)
    pool.app.tasks["work"].__trace__("id", (), {}, {"id": "id", "retries": retries})
    inside_of_work.clear()
    assert seen == [0]


def test_a_failure_of_a_message_that_is_delivered_again_is_a_new_one(pool: Pool) -> None:
    def fail() -> None:
        raise ValueError

    for _ in range(2):
        pool.inside(fail, task_id="again")
        pool.inside(lambda: None, task_id="other")
    assert [one.task_id for one in pool.written(Failure)] == ["again", "again"]
    assert [totals.failed for totals in pool.totals("work")] == [2]


def test_a_process_forked_in_a_run_may_go_its_way_to_the_end_of_the_task(pool: Pool) -> None:
    ours = os.getpid()
    seen = []

    def fork() -> None:
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            seen.append([run.name for run, _ in box_of(pool).runs])

    try:
        pool.inside(fork)
    finally:
        if os.getpid() != ours:
            os._exit(0)
    assert seen == [["work"]]
    assert [totals.runs for totals in pool.totals("work")] == [1]


def test_a_recorder_that_ends_in_a_run_leaves_the_run_alone(pool: Pool) -> None:
    def end() -> str:
        pool.recorder.close()
        return "done"

    own_errors.clear()
    assert pool.inside(end)[0] == "done"
    assert not own_errors


def test_a_time_limit_that_meets_us_is_the_tasks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised in whatever runs: what was begun of ours is not left half done, and the task fails with it."""
    pool.runs("add", 5)
    pool.recorder.open_runs.quick = False  # as while a probe wants the run; a quick one has no code to be interrupted
    raised: list[type[Exception]] = [SoftTimeLimitExceeded, ValueError]

    def struck(*_: Any, **__: Any) -> None:
        raise raised.pop(0)

    run_started = pool.recorder.run_started
    monkeypatch.setattr(
        pool.recorder, "run_started", lambda *args, **rest: (raised and struck()) or run_started(*args, **rest)
    )
    with pytest.raises(SoftTimeLimitExceeded):
        pool.run("add", 1)
    assert pool.run("add", 1)[0] == 2, "an error of our own is not"
    assert own_errors["task_prerun"] == 1
    own_errors.clear()
