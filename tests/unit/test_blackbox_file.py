"""The black box: what it says of a process that can't speak any more."""

import itertools
import os
import threading

import pytest

from celery_trace.clock import FakeClock
from celery_trace.model import ProcessRecord, Role
from celery_trace.process import blackbox
from celery_trace.process.open_runs import MOST_PLACES
from tests.support.box_runs import BoxWithRuns


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def process(clock):
    return ProcessRecord(uid="u1", host="h", pid=os.getpid(), started_at_s=clock.now_s(), worker="w@h", role=Role.CHILD)


@pytest.fixture
def box(tmp_path, process, clock):
    box = BoxWithRuns(tmp_path / "u1.box", process, clock)
    yield box
    box.close()


def test_a_box_tells_the_run_its_stack_and_the_age_of_the_sample(box, tmp_path, clock, process):
    box.begin("app.work", "id-1", 2)
    clock.advance(3)
    box.sample()
    clock.advance(0.1)
    reading = blackbox.read(tmp_path / "u1.box", noticed_at_s=clock.now_s())
    assert reading.process == process
    assert (reading.running.name, reading.running.task_id, reading.running.retries) == ("app.work", "id-1", 2)
    assert reading.sample.age_s == pytest.approx(0.1)
    assert reading.sample.memory.rss_bytes > 1_000_000
    functions = [line.function for line in reading.sample.stack]
    here = test_a_box_tells_the_run_its_stack_and_the_age_of_the_sample.__name__
    assert here in functions
    assert functions.index("BlackBox.sample") < functions.index(here), "innermost first"


def test_between_runs_nothing_is_running(box, tmp_path, clock):
    box.begin("app.work", "id-1")
    box.sample()
    box.end()
    reading = blackbox.read(tmp_path / "u1.box")
    assert reading.running is None
    assert reading.sample is None


def test_a_sample_of_an_earlier_run_is_not_told_of_the_next(box, tmp_path, clock):
    box.begin("app.work", "id-1")
    box.sample()
    box.end()
    clock.advance(1)
    box.begin("app.work", "id-2")
    reading = blackbox.read(tmp_path / "u1.box")
    assert reading.running.task_id == "id-2"
    assert reading.sample is None


def test_a_task_inside_a_task_does_not_hide_the_outer_one(box, tmp_path, clock):
    box.begin("outer", "id-1")
    box.begin("inner", "id-2")
    assert blackbox.read(tmp_path / "u1.box").running.name == "outer"
    box.end()
    assert blackbox.read(tmp_path / "u1.box").running.name == "outer"


def test_each_thread_has_its_own_run_and_stack(box, tmp_path, clock):
    started, stop = threading.Event(), threading.Event()

    def in_a_thread():
        box.begin("threaded", "id-2")
        started.set()
        stop.wait(30)
        box.end()

    box.begin("outer", "id-1")
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    try:
        assert started.wait(30)
        box.sample()
        reading = blackbox.read(tmp_path / "u1.box")
    finally:
        stop.set()
        thread.join()
    stacks = {run.name: [line.function for line in sample.stack] for run, sample in reading.runs}
    assert any(name.endswith("in_a_thread") for name in stacks["threaded"])
    assert not any(name.endswith("in_a_thread") for name in stacks["outer"])


def test_a_sample_cut_short_by_death_leaves_the_one_before(box, tmp_path, clock):
    box.begin("app.work", "id-1")
    box.sample()
    first_at_s = clock.now_s()
    before = (tmp_path / "u1.box").read_bytes()
    clock.advance(1)
    box.sample()
    after = (tmp_path / "u1.box").read_bytes()
    torn = bytearray(after)
    changed = next(at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    torn[changed + 20] ^= 0xFF
    (tmp_path / "torn.box").write_bytes(torn)
    assert blackbox.read(tmp_path / "u1.box").sample.at_s == clock.now_s()
    assert blackbox.read(tmp_path / "torn.box").sample.at_s == first_at_s


def test_a_run_whose_writing_was_cut_short_by_death_is_not_told_by_halves(box, tmp_path, clock):
    box.begin("first", "id-1")
    box.end()
    done = bytearray((tmp_path / "u1.box").read_bytes())
    box.begin("second", "id-2")
    after = (tmp_path / "u1.box").read_bytes()
    changed = [at for at, (old, new) in enumerate(zip(done, after, strict=True)) if old != new]
    for at in changed[1:]:  # all that the second run writes, but for the byte that says so: it is written last
        done[at] = after[at]
    (tmp_path / "torn.box").write_bytes(done)
    assert blackbox.read(tmp_path / "torn.box").runs == []


def test_words_of_any_length_and_kind_fit(box, tmp_path, clock):
    box.begin("naïve.работа" * 100, "id-\ud800" + "x" * 255)
    running = blackbox.read(tmp_path / "u1.box").running
    assert running.task_id == "id-\\ud800" + "x" * 255
    assert running.name.startswith("naïve.работа")


def test_more_runs_at_once_than_places_leave_the_others_told(box, tmp_path, clock):
    many = MOST_PLACES + 5
    threads = itertools.count(1_000)
    box.runs.ident = lambda: next(threads)
    for number in range(many):
        box.begin("app.work", f"id-{number}")
    assert len(blackbox.read(tmp_path / "u1.box").runs) == MOST_PLACES
    for _ in range(many):
        box.end()
    assert blackbox.read(tmp_path / "u1.box").runs == []
    box.begin("later", "id")
    assert blackbox.read(tmp_path / "u1.box").running.name == "later"


def test_a_closed_box_leaves_no_file(tmp_path, process, clock):
    box = BoxWithRuns(tmp_path / "u2.box", process, clock)
    box.begin("app.work", "id-1")
    box.close()
    box.close()
    box.end()
    box.sample()
    assert not (tmp_path / "u2.box").exists()
    assert blackbox.read(tmp_path / "u2.box") is None


def test_what_is_no_box_is_read_as_none(tmp_path):
    (tmp_path / "x.box").write_bytes(b"hello")
    (tmp_path / "y.box").write_bytes(b"\0" * 100_000)
    assert blackbox.read(tmp_path / "x.box") is None
    assert blackbox.read(tmp_path / "y.box") is None


def test_a_box_has_all_its_space_from_the_start(box, tmp_path):
    # A hole of the file that meets a full disk ends the process with SIGBUS, in the middle of a task.
    status = (tmp_path / "u1.box").stat()
    assert status.st_blocks * 512 >= status.st_size


def test_a_box_is_readable_by_its_owner_alone(box, tmp_path):
    assert (tmp_path / "u1.box").stat().st_mode & 0o777 == 0o600


def test_a_stack_of_any_depth_fits(box, tmp_path, clock):
    def deep(levels):
        if levels:
            deep(levels - 1)
        else:
            box.sample()

    box.begin("app.work", "id-1")
    deep(400)
    stack = blackbox.read(tmp_path / "u1.box").sample.stack
    assert 10 < len(stack) <= blackbox.MOST_FRAMES
