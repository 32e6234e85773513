"""Descriptors, threads and C memory over a process's readings."""

from __future__ import annotations

import mmap
import random
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from celery_trace.heap.native import (
    ENOUGH_READINGS,
    LevelGrowth,
    LevelReading,
    Levels,
    NativeWatch,
    describe,
    read_levels,
)
from tests.support.requirements import told_children

MIB = 2**20


def series(count: int, leaks: dict[int, int], *, fixed: dict[int, int] | None = None) -> list[LevelReading]:
    """Readings in which each run of a tag opens so many descriptors; tags run at rates of their own."""
    chooser = random.Random(1)
    runs = dict.fromkeys((1, 2, 3), 0)
    fds = 20
    readings = []
    for _ in range(count):
        readings.append(LevelReading(Levels(fds, 5, 50 * MIB), 0.0, dict(runs)))
        for tag in runs:
            ran = fixed[tag] if fixed else chooser.randrange(3, 20)
            runs[tag] += ran
            fds += leaks.get(tag, 0) * ran
    return readings


def found(readings: list[LevelReading]) -> list[LevelGrowth]:
    watch = NativeWatch()
    for reading in readings:
        watch.add(reading.levels, reading.heap_bytes, reading.runs)
    return watch.growth()


@pytest.mark.parametrize("count", [20, 400])
def test_growth_is_attributed_to_the_task_whose_runs_explain_it(count: int) -> None:
    (growth,) = found(series(count, {2: 1}))
    assert (growth.resource, growth.tag, growth.final) == ("fds", 2, True)
    assert growth.per_run == pytest.approx(1.0)
    assert describe(growth).startswith("1 file descriptors a run")


def test_a_task_that_has_run_a_few_times_is_not_blamed() -> None:
    readings = [LevelReading(Levels(20 + 3 * n, 5, 50 * MIB), 0.0, {1: n // 2, 2: n % 2}) for n in range(30)]
    assert [growth.tag for growth in found(readings)] == [0]


def test_tasks_that_run_in_turns_leave_it_to_the_process() -> None:
    (growth,) = found(series(20, {2: 1}, fixed={1: 5, 2: 5, 3: 5}))
    assert growth.tag == 0


def test_a_level_that_goes_up_and_down_is_no_growth() -> None:
    assert found([LevelReading(Levels(20 + 15 * (n % 4), 5, 50 * MIB), 0.0, {1: 3 * n}) for n in range(20)]) == []


@pytest.mark.parametrize("steps", [(5,), (5, 11), (2, 9, 12)])
def test_a_level_that_rises_in_steps_and_stays_is_no_growth(steps: tuple[int, ...]) -> None:
    """A pool of connections that is opened at the first need, and another one later."""
    readings = [
        LevelReading(Levels(20 + 20 * sum(n >= at for at in steps), 5, 50 * MIB), 0.0, {1: 3 * n}) for n in range(40)
    ]
    assert [number for number in range(6, 41) if found(readings[:number])] == []


def test_what_python_objects_account_for_is_not_told_as_c_memory() -> None:
    def readings(share: float) -> list[LevelReading]:
        return [LevelReading(Levels(9, 5, n * 4 * MIB), n * 4 * MIB * share, {1: 2 * n}) for n in range(20)]

    assert found(readings(0.95)) == []
    (growth,) = found(readings(0.1))
    assert (growth.resource, growth.per_run) == ("malloc", pytest.approx(1.8 * MIB))


def test_a_verdict_is_final_after_enough_readings() -> None:
    readings = series(ENOUGH_READINGS, {1: 2})
    assert [growth.final for growth in found(readings[:-1])] == [False]
    assert [growth.final for growth in found(readings)] == [True]


def test_the_stacks_of_threads_are_no_c_memory_and_a_mapping_is() -> None:
    before, until = read_levels(), threading.Event()
    threads = [threading.Thread(target=until.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    with_threads = read_levels()
    held = mmap.mmap(-1, 64 * MIB)
    with_mapping = read_levels()
    until.set()
    for thread in threads:
        thread.join()
    held.close()
    assert with_threads.threads - before.threads == 20
    assert with_threads.malloc - before.malloc < 20 * MIB, "each stack is eight"
    assert with_mapping.malloc - with_threads.malloc >= 64 * MIB


def test_a_child_process_counts_until_somebody_has_waited_for_it() -> None:
    told_children()
    before = read_levels().children
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(subprocess.Popen([sys.executable, "-c", ""]))
        assert read_levels().children - before == 3
    assert read_levels().children == before
