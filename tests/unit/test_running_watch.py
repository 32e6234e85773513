"""What the collector reads from the boxes of living processes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_trace import guard
from celery_trace.clock import FakeClock
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.model import SNAPSHOT_AGAIN_S, ProcessRecord, Role, RunningRun, RunningSnapshot
from celery_trace.redaction import Redactor
from celery_trace.running.stalls import Stalls
from celery_trace.running.watch import RunningWatch
from tests.support.box_runs import BoxWithRuns

UID = "p1"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_900_000_000.0)  # the tests' own files are older


@pytest.fixture
def box(tmp_path: Path, clock: FakeClock) -> Iterator[BoxWithRuns]:
    process = ProcessRecord(uid=UID, host="h1", pid=7, started_at_s=clock.now_s(), worker="w1@h1", role=Role.CHILD)
    box = BoxWithRuns(tmp_path / f"{UID}.box", process, clock)
    yield box
    box.close()


@pytest.fixture
def watch(tmp_path: Path, clock: FakeClock) -> RunningWatch:
    return RunningWatch(tmp_path, "h1:0", clock, SourceLines(Redactor()), Stalls())


def news(watch: RunningWatch) -> RunningSnapshot | None:
    """The next snapshot, delivered."""
    snapshot = watch.look([UID])
    if snapshot is not None:
        watch.sent(snapshot)
    return snapshot


def the_run(watch: RunningWatch) -> RunningRun:
    snapshot = news(watch)
    assert snapshot is not None
    [run] = snapshot.runs
    return run


def test_an_idle_host_shows_now_and_then_that_its_processes_live(
    watch: RunningWatch, box: BoxWithRuns, clock: FakeClock
) -> None:
    first = news(watch)
    assert first is not None
    assert (first.runs, first.ended) == ([], {UID: 0})
    for _ in range(5):
        clock.advance(SNAPSHOT_AGAIN_S - 1)
        assert news(watch) is None
        clock.advance(1)
        assert news(watch) is not None


def test_a_host_without_processes_sends_one_empty_snapshot_and_then_nothing(
    watch: RunningWatch, clock: FakeClock
) -> None:
    first = watch.look([])
    assert first is not None
    watch.sent(first)
    clock.advance(10 * SNAPSHOT_AGAIN_S)
    assert watch.look([]) is None


def test_a_run_is_shown_with_its_facts_its_stack_and_the_line(
    watch: RunningWatch, box: BoxWithRuns, clock: FakeClock
) -> None:
    box.begin("shop.pay", "id-1", 2, queue="orders")
    clock.advance(3)
    box.sample()
    clock.advance(1)
    run = the_run(watch)
    assert (run.name, run.task_id, run.retries, run.queue) == ("shop.pay", "id-1", 2, "orders")
    assert (run.process, run.worker, run.hostname, run.pid, run.role) == (UID, "w1@h1", "h1", 7, Role.CHILD)
    assert clock.now_s() - run.started_at_s == 4
    assert clock.now_s() - run.sampled_at_s == 1
    assert run.rss_bytes > 1_000_000
    own = next(line for line in run.stack if line.file == __file__)
    assert (own.function, own.code) == (
        "test_a_run_is_shown_with_its_facts_its_stack_and_the_line",
        "box.sample()",
    )
    box.end()
    ended = news(watch)
    assert ended is not None
    assert (ended.runs, ended.ended) == ([], {UID: 1})


def test_what_has_not_changed_is_sent_again_only_now_and_then(
    watch: RunningWatch, box: BoxWithRuns, clock: FakeClock
) -> None:
    box.begin("shop.pay")
    sent = 0
    for _ in range(100):
        box.sample()
        clock.advance(2)
        sent += news(watch) is not None
    assert 200 / SNAPSHOT_AGAIN_S <= sent <= 200 / SNAPSHOT_AGAIN_S + 2
    box.end()


def test_a_snapshot_that_was_not_delivered_is_made_again(
    watch: RunningWatch, box: BoxWithRuns, clock: FakeClock
) -> None:
    news(watch)
    box.begin("shop.pay")
    assert watch.look([UID]) is not None
    assert watch.look([UID]) is not None
    assert news(watch) is not None
    assert news(watch) is None
    box.end()


def test_a_stack_is_unmoved_while_only_its_innermost_line_changes(
    watch: RunningWatch, box: BoxWithRuns, clock: FakeClock
) -> None:
    over = [False]

    def spins() -> None:
        count = 0
        while not over[0]:  # a thread can be seen only where a loop begins again
            for _ in range(100_000):
                count += 1
            for _ in range(100_000):
                count -= 1

    def task() -> None:
        box.begin("shop.pay")
        spins()
        box.end()

    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    try:
        seen: dict[int, set[float]] = {}
        for _ in range(2000):
            box.sample()
            clock.advance(SNAPSHOT_AGAIN_S)
            run = the_run(watch)
            if run.stack and run.stack[0].function.endswith("spins"):
                seen.setdefault(run.stack[0].line, set()).add(run.unmoved_since_s)
            if len(seen) > 1:
                break
        assert len(seen) > 1
        assert len(set().union(*seen.values())) == 1
    finally:
        over[0] = True
        thread.join(10)


def test_a_stack_that_moves_is_new_from_then_on(watch: RunningWatch, box: BoxWithRuns, clock: FakeClock) -> None:
    box.begin("shop.pay")
    box.sample()
    assert the_run(watch).unmoved_since_s == clock.now_s()
    clock.advance(5)
    box.sample()  # from another line
    assert the_run(watch).unmoved_since_s == clock.now_s()
    box.end()


def test_a_run_without_a_new_sample_keeps_its_stack(watch: RunningWatch, box: BoxWithRuns, clock: FakeClock) -> None:
    """C code holds the interpreter's lock: the ticker can't sample."""
    box.begin("shop.pay")
    box.sample()
    before = the_run(watch)
    clock.advance(SNAPSHOT_AGAIN_S)
    after = the_run(watch)
    assert (after.stack, after.sampled_at_s) == (before.stack, before.sampled_at_s)
    assert (after.stalled_since_s, after.waiting_for) == (before.sampled_at_s, ""), "/proc has nothing about pid 7"
    box.end()


def test_a_process_that_is_gone_takes_its_runs_along(watch: RunningWatch, box: BoxWithRuns) -> None:
    box.begin("shop.pay")
    assert the_run(watch)
    gone = watch.look([])
    assert gone is not None
    assert (gone.runs, gone.ended) == ([], {})
    box.end()


def test_a_queue_that_can_not_be_read_costs_only_the_queue(
    watch: RunningWatch, box: BoxWithRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "own_errors", Counter())
    box.begin("shop.pay", queue=None)
    box.sample()
    run = the_run(watch)
    assert run.queue == ""
    assert run.stack
    assert guard.own_errors["queue of a run"] == 1
    box.end()
