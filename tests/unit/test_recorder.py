"""The recorder: runs are added up, what stands for itself is written at once, nothing is lost at the end."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from celery_trace.clock import FakeClock
from celery_trace.guard import AGAIN_S, own_errors
from celery_trace.heap.watch import watch_heap
from celery_trace.model import Kind, Role, Rollup, Run, Sample, Stats
from celery_trace.process import blackbox
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.probes import memory_probe
from celery_trace.runtime.probes.heap_probe import HeapProbe
from celery_trace.runtime.probes.memory_probe import MemoryProbe
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.runtime.rollups import OUTLIER_RUNS
from celery_trace.runtime.ticker import Ticker
from celery_trace.settings import Settings
from tests.support.spooled import written

BUCKET_START_S = 1_700_000_100.0  # a multiple of 300


def of(kind: type, folder: Path) -> list:
    return [record for record in written(folder) if isinstance(record, kind)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(BUCKET_START_S)


@pytest.fixture
def recorder(tmp_path, clock):
    settings = Settings(dir=str(tmp_path / "trace"), memory="rss")
    recorder = Recorder.start(settings, role=Role.SCRIPT, clock=clock)
    yield recorder
    recorder.close()


def run(recorder: Recorder, name: str = "t", state: str = "SUCCESS", *, failed: bool = False) -> None:
    recorder.run_ended(recorder.run_started(Kind.TASK, name, task_id="id"), state, failed=failed)


def test_runs_are_added_up_and_written_when_flushed(recorder):
    for _ in range(3):
        run(recorder)
    run(recorder, "t", "FAILURE", failed=True)
    run(recorder, "t", "RETRY")
    folder = recorder.settings.spool_folder
    assert of(Rollup, folder) == []
    recorder.flush()
    (rollup,) = of(Rollup, folder)
    assert (rollup.runs, rollup.failed, rollup.retried, sum(rollup.durations.counts)) == (5, 1, 1, 5)
    assert rollup.bucket_s == int(BUCKET_START_S)


def test_a_flush_without_news_writes_nothing(recorder):
    run(recorder)
    recorder.flush()
    recorder.flush()
    assert len(of(Rollup, recorder.settings.spool_folder)) == 1


def test_a_later_rollup_of_the_same_bucket_replaces_the_earlier_one(recorder):
    run(recorder)
    recorder.flush()
    run(recorder)
    recorder.flush()
    first, second = of(Rollup, recorder.settings.spool_folder)
    assert first.key == second.key
    assert (first.runs, second.runs) == (1, 2)
    assert second.seq > first.seq


def test_a_new_bucket_begins_from_nothing_and_the_old_one_is_written_whole(recorder, clock):
    run(recorder)
    clock.advance(300)
    run(recorder)
    run(recorder)
    recorder.flush()
    old, new = of(Rollup, recorder.settings.spool_folder)
    assert (old.bucket_s, old.runs) == (int(BUCKET_START_S), 1)
    assert (new.bucket_s, new.runs) == (int(BUCKET_START_S) + 300, 2)


def test_one_run_of_many_is_kept_for_the_scatter_plot(recorder):
    for _ in range(20):
        run(recorder)
    (kept,) = of(Run, recorder.settings.spool_folder)
    assert kept.why == "sampled"
    assert kept.task_id == "id"


def test_a_run_that_takes_far_longer_than_usual_is_kept_as_an_outlier(recorder):
    now_s = [0.0]
    recorder.open_runs.monotonic = lambda: now_s[0]

    def timed_run(duration_s: float) -> None:
        token = recorder.run_started(Kind.TASK, "t")
        now_s[0] += duration_s
        recorder.run_ended(token, "SUCCESS")

    for _ in range(OUTLIER_RUNS):
        timed_run(0.01)
    now_s[0] += 60
    timed_run(0.01)  # a sampled run learns what is usual
    timed_run(1.0)
    assert [kept.why for kept in of(Run, recorder.settings.spool_folder)] == ["sampled", "sampled", "outlier"]


def test_queue_and_root_are_asked_for_only_where_a_run_is_kept(recorder):
    asked = []
    for _ in range(2):
        token = recorder.run_started(Kind.TASK, "t")
        token.origin = "a request"
        token.describe = lambda origin: asked.append(origin) or ("orders", "root")
        recorder.run_ended(token)
    (kept,) = of(Run, recorder.settings.spool_folder)
    assert asked == ["a request"]
    assert (kept.queue, kept.root_id) == ("orders", "root")


def test_a_black_box_that_cannot_be_made_costs_no_record(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    settings = Settings(dir=str(tmp_path / "trace"), memory="rss")
    recorder = Recorder.start(settings, role=Role.CHILD, clock=FakeClock(BUCKET_START_S))
    run(recorder)
    recorder.close()
    assert recorder.probe(StackProbe).box is None
    assert own_errors["black box"] == 1
    assert [kept.runs for kept in of(Rollup, recorder.settings.spool_folder)] == [1]
    assert list(tmp_path.rglob("*.box")) == []
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_black_box_that_failed_at_its_start_is_made_later(tmp_path, monkeypatch):
    room = []
    allocate = os.posix_fallocate

    def full(*given):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return allocate(*given)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(Ticker, "start", lambda self: None)  # its beats are the test's
    clock = FakeClock(BUCKET_START_S)
    recorder = Recorder.start(Settings(dir=str(tmp_path / "trace"), memory="rss"), role=Role.CHILD, clock=clock)
    try:
        assert recorder.probe(StackProbe).box is None
        for _ in range(3):
            clock.advance(AGAIN_S)
            recorder.ticker.beat()
        assert recorder.probe(StackProbe).box is None
        during = recorder.run_started(Kind.TASK, "t", task_id="during")
        room.append(True)
        clock.advance(AGAIN_S)
        recorder.ticker.beat()
        assert recorder.probe(StackProbe).box is not None
        recorder.run_ended(during, "SUCCESS")
        recorder.run_started(Kind.TASK, "t", task_id="after")
        (path,) = tmp_path.rglob("*.box")
        assert blackbox.read(path).running.task_id == "after"
        clock.advance(AGAIN_S)
        recorder.ticker.beat()
    finally:
        recorder.close()
    assert own_errors["black box"] == 4
    assert list(tmp_path.rglob("*.box")) == list(tmp_path.rglob("*.lock")) == []


def test_a_heap_watch_that_failed_at_its_start_begins_later(tmp_path, monkeypatch):
    tries = []

    def at_first_too_few(*given, **named):
        tries.append(None)
        if len(tries) < 3:
            raise RuntimeError("not now")
        return watch_heap(*given, **named)

    monkeypatch.setattr("celery_trace.runtime.probes.heap_probe.watch_heap", at_first_too_few)
    monkeypatch.setattr(Ticker, "start", lambda self: None)  # its beats are the test's
    clock = FakeClock(BUCKET_START_S)
    recorder = Recorder.start(Settings(dir=str(tmp_path / "trace")), role=Role.CHILD, clock=clock)
    try:
        early = recorder.run_started(Kind.TASK, "t", task_id="early")
        for _ in range(2):
            assert recorder.probe(HeapProbe).heap is None
            clock.advance(AGAIN_S)
            recorder.ticker.beat()
        assert recorder.probe(HeapProbe).heap is not None
        recorder.run_ended(early, "SUCCESS")
        token = recorder.run_started(Kind.TASK, "t", task_id="id")
        assert token.totals.tag > 0
        recorder.run_ended(token, "SUCCESS")
    finally:
        recorder.close()


def test_closing_writes_what_was_added_up_and_removes_the_black_box(recorder):
    run(recorder)
    assert list(recorder.settings.spool_folder.glob("*.box"))
    recorder.close()
    recorder.close()
    assert len(of(Rollup, recorder.settings.spool_folder)) == 1
    assert of(Stats, recorder.settings.spool_folder)
    assert not list(recorder.settings.spool_folder.glob("*.box"))


def test_a_process_that_records_nothing_leaves_no_spool_file(tmp_path):
    settings = Settings(dir=str(tmp_path / "trace"), memory="rss")
    Recorder.start(settings, role=Role.SCRIPT, clock=FakeClock()).close()
    assert not list(settings.spool_folder.iterdir())


def test_a_memory_sample_is_written_when_memory_moved_or_long_after(recorder, clock, monkeypatch):
    from celery_trace.model import MemoryState

    rss_bytes = [100_000_000]
    readings: list[bool] = []  # whether each was a full one

    def read(full: bool = False) -> MemoryState:
        readings.append(full)
        return MemoryState(rss_bytes=rss_bytes[0])

    monkeypatch.setattr(memory_probe, "read_rss_bytes", lambda: rss_bytes[0])
    monkeypatch.setattr(memory_probe, "read_memory", read)

    def samples() -> int:
        recorder.probe(MemoryProbe).every()
        return len(of(Sample, recorder.settings.spool_folder))

    assert samples() == 1
    clock.advance(10)
    assert samples() == 1
    rss_bytes[0] += 5_000_000
    assert samples() == 2
    for _ in range(29):
        clock.advance(10)
        assert samples() == 2
    assert readings == [True, False], "nothing is read while the memory is unchanged"
    clock.advance(10)
    assert samples() == 3
    assert readings == [True, False, True]


def test_runs_from_many_threads_are_all_counted(recorder):
    threads = [threading.Thread(target=lambda: [run(recorder) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.flush()
    assert of(Rollup, recorder.settings.spool_folder)[-1].runs == 1600


def test_files_are_for_their_owner_alone(recorder):
    run(recorder)
    recorder.flush()
    folder = recorder.settings.spool_folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_process_has_one_recorder_until_it_is_closed(tmp_path):
    settings = Settings(dir=str(tmp_path / "trace"), memory="rss")
    assert recorders.current() is None
    first = recorders.ensure(settings, Role.SCRIPT, uid="mine")
    try:
        assert recorders.ensure(settings, Role.SCRIPT) is first is recorders.current()
        assert first.process.uid == "mine"
    finally:
        recorders.close()
    assert recorders.current() is None
