"""What the collector finds of processes that were killed within a run: their black boxes, read and written down."""

import os
import signal
import subprocess
import sys

import pytest

from celery_trace.clock import SystemClock
from celery_trace.collector import Collector
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.model import Outcome
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from celery_trace.transports.direct import DirectTransport
from tests.support.processes import REPOSITORY

VICTIM = """
import sys, threading, time
from pathlib import Path
from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from celery_trace.spool import SpoolWriter
from tests.support.box_runs import BoxWithRuns
from tests.support.store_records import failure

folder, runs, told = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "told"
folder.mkdir(mode=0o700, parents=True, exist_ok=True)
process = ProcessRecord(uid="victim", host="h", pid=7, worker="w1@h", started_at_s=time.time(), role=Role.CHILD)
box = BoxWithRuns(folder / "victim.box", process, SystemClock())
ready = threading.Barrier(runs + 1)

def baking_bread(number):
    box.begin(f"bakery.bake{number}", f"t{number}", number)
    ready.wait()
    sleep(600, password="hunter2-literal")

def sleep(seconds, password):
    time.sleep(seconds)

for number in range(runs):
    threading.Thread(target=baking_bread, args=(number,), daemon=True).start()
ready.wait()
deadline = time.monotonic() + 30
while sum(frame.f_code.co_name == "sleep" for frame in sys._current_frames().values()) < runs:
    assert time.monotonic() < deadline
    time.sleep(0.01)
box.sample()
if told:
    SpoolWriter(folder, process, cap_bytes=2**24, clock=SystemClock()).append(
        failure("t0", process="victim", name="bakery.bake0", at_s=time.time())
    )
print("baking", flush=True)
time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "victim.py"
    path.write_text(VICTIM)
    return path


@pytest.fixture
def kill(settings, script):
    def kill(runs, told=False):
        words = [sys.executable, str(script), str(settings.spool_folder), str(runs), "told" if told else ""]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout.readline() == "baking\n"
            os.kill(victim.pid, signal.SIGKILL)

    return kill


@pytest.fixture
def collector(settings):
    collector = Collector(settings.spool_folder, DirectTransport(lambda: open_store(settings)), SystemClock())
    yield collector
    collector.close()


@pytest.fixture
def queries(settings):
    store = open_store(settings)
    yield Queries(store)
    store.close()


def test_a_run_that_was_killed_before_anything_was_written_is_lost_and_tells_its_stack(kill, collector, queries):
    kill(1)
    collector.round()
    (row,) = queries.failures().rows
    assert (row.task_id, row.name, row.outcome, row.worker) == ("t0", "bakery.bake0", Outcome.LOST, "w1@h")
    failure = queries.failure_record(row.id)
    assert failure.witness == "box"
    assert "baking_bread" in [line.function for line in failure.last_sample.stack]
    assert failure.last_sample.memory.rss_bytes > 1_000_000
    (worker,) = queries.workers(since_s=0).rows
    assert [view.ended_how for view in worker.processes] == ["killed"]


def test_a_killed_runs_lines_are_shown_without_their_secrets_where_the_file_is_still_what_ran(
    kill, script, collector, queries
):
    kill(1)
    collector.round()
    failure = queries.failure_record(queries.failures().rows[0].id)
    code = {line.function: line.code for line in failure.last_sample.stack}
    assert code["sleep"] == "time.sleep(seconds)"
    assert code["baking_bread"].startswith("sleep(600, password=")
    assert "hunter2" not in str(failure)


def test_a_killed_runs_lines_are_not_shown_from_a_file_that_was_changed_meanwhile(kill, script, collector, queries):
    kill(1)
    script.write_text("# another\n" * 60)
    collector.round()
    failure = queries.failure_record(queries.failures().rows[0].id)
    assert {line.code for line in failure.last_sample.stack if line.file == str(script)} == {""}


def test_each_of_several_runs_in_one_process_is_lost_and_has_a_stack_of_its_own(kill, collector, queries):
    kill(5)
    collector.round()
    rows = queries.failures().rows
    assert sorted((row.task_id, row.retries) for row in rows) == [(f"t{n}", n) for n in range(5)]
    stacks = [queries.failure_record(row.id).last_sample.stack for row in rows]
    assert all("baking_bread" in [line.function for line in stack] for stack in stacks)


def test_a_failure_that_was_told_before_the_kill_stays_what_it_was(kill, collector, queries):
    kill(2, told=True)
    collector.round()
    outcomes = {row.task_id: row.outcome for row in queries.failures().rows}
    assert outcomes == {"t0": Outcome.FAILED, "t1": Outcome.LOST}
    assert sum(group.count for group in queries.groups().rows) == 2


def test_an_adoption_that_the_store_interrupts_is_done_again_and_counts_once(kill, settings, queries):
    kill(3)

    class Forgetful(DirectTransport):
        """The store commits, and the collector is killed before it hears of it."""

        def send(self, records):
            super().send(records)
            raise KeyboardInterrupt

    collector = Collector(settings.spool_folder, Forgetful(lambda: open_store(settings)), SystemClock())
    with pytest.raises(KeyboardInterrupt):
        collector.round()
    collector.close()
    again = Collector(settings.spool_folder, DirectTransport(lambda: open_store(settings)), SystemClock())
    again.round()
    again.close()
    assert sorted(row.task_id for row in queries.failures().rows) == ["t0", "t1", "t2"]
    assert sum(group.count for group in queries.groups().rows) == 3
    assert sorted(path.name for path in settings.spool_folder.iterdir()) == ["collector"]


def test_a_killed_run_belongs_to_the_group_of_its_tasks_lost_runs(kill, collector, queries):
    kill(2)
    collector.round()
    expected = {name: fingerprint("task", name, None, None, Outcome.LOST) for name in ("bakery.bake0", "bakery.bake1")}
    assert {row.name: row.fingerprint for row in queries.failures().rows} == expected
    assert {group.name: group.fingerprint for group in queries.groups().rows} == expected
