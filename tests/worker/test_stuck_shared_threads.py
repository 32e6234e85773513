"""Runs that share a thread: those that hang are named with what they wait for, and slow ones that work are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from celery import Celery

from celery_trace.model import Kind, Measure
from celery_trace.profiles import flames
from tests.support.fixtures_worker import StartWorker
from tests.support.processes import REPOSITORY, WorkerProcess
from tests.support.records import Records
from tests.worker.test_stuck_runs import STUCK_S, end_at_once

SOURCE = Path(__file__).parents[1] / "support" / "shared_threads_project.py"
AIO = "celery_aio_pool.pool:AsyncIOPool"
SLOW_S = 3 * STUCK_S

GREENLETS = {
    "hangs.sleeps": r"in time\.sleep",
    "hangs.receives": r"waiting in recv from 127\.0\.0\.1:\d+",
    "hangs.waits_for_a_lock": r"waiting for a lock at .*shared_threads_project\.py:\d+",
    "hangs.waits_for_an_item": r"waiting for an item in a queue|waiting in items\.get at .*\.py:\d+",
}


def start(start_worker: StartWorker, pool: str, concurrency: int = 12) -> WorkerProcess:
    extra = {"PYTHONPATH": str(REPOSITORY)}
    if ":" in pool:
        extra["CELERY_CUSTOM_WORKER_POOL"], pool = pool, "custom"
    worker: WorkerProcess = start_worker(
        "tests.support.shared_threads_project", REPOSITORY, pool=pool, concurrency=concurrency, extra=extra,
        settings={"memory": "off", "stuck_seconds": STUCK_S},
    )  # fmt: skip
    return worker


def send(broker_url: str, *names: str, args: tuple[float, ...] = ()) -> dict[str, str]:
    """Send tasks. Their names, by id."""
    with Celery(broker=broker_url, set_as_current=False) as app:
        return {app.send_task(name, args).id: name for name in names}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("pool", "hangs", "alive"),
    [
        ("gevent", GREENLETS, ("alive.polls", "alive.receives", "alive.computes")),
        ("eventlet", GREENLETS, ("alive.polls", "alive.receives", "alive.computes")),
    ],
)
def test_hangs_are_named_and_slow_runs_are_not(
    start_worker: StartWorker,
    records: Records,
    own_broker_url: str,
    pool: str,
    hangs: dict[str, str],
    alive: tuple[str, ...],
) -> None:
    worker = start(start_worker, pool)
    hanging = send(own_broker_url, *hangs)
    working = send(own_broker_url, *alive, args=(SLOW_S,))
    said: dict[str, str] = {}
    longest: dict[str, float] = {}

    def seen() -> bool:
        rows = {row.task_id: row for row in records.queries.running().rows}
        said.update({id: row.waiting_for for id, row in rows.items() if row.stuck and row.waiting_for})
        longest.update({working[id]: row.elapsed_s for id, row in rows.items() if id in working})
        return set(said) >= set(hanging) and set(longest) == set(alive) and not set(working) & set(rows)

    try:
        records.wait(lambda _: seen(), "all hang", timeout_s=60, explain=lambda: f"{said} {longest}")
        assert {hanging[id]: words for id, words in said.items() if not re.fullmatch(hangs[hanging[id]], words)} == {}
        assert min(longest.values()) > STUCK_S + 4
    finally:
        end_at_once(worker)


@pytest.mark.timeout(120)
def test_runs_behind_one_that_keeps_the_thread_name_it(
    start_worker: StartWorker, records: Records, own_broker_url: str
) -> None:
    worker = start(start_worker, "gevent")
    [waits] = send(own_broker_url, "alive.polls", args=(60.0,))
    records.wait(lambda _: waits in {row.task_id for row in records.queries.running().rows}, "it runs")
    [keeps] = send(own_broker_url, "keeps.the_thread", args=(60.0,))
    line = next(n for n, text in enumerate(SOURCE.read_text().splitlines(), 1) if "# KEEPS" in text)
    where = rf"tests/support/shared_threads_project\.py:{line}"
    said: dict[str, str] = {}

    def seen() -> bool:
        said.update({row.task_id: row.waiting_for for row in records.queries.running().rows if row.stuck})
        return "thread at" in said.get(waits, "") and bool(said.get(keeps))

    try:
        records.wait(lambda _: seen(), "both are stuck", timeout_s=40, explain=lambda: str(said))
        assert re.fullmatch(rf"sleeping in C code called at {where}", said[keeps])
        assert re.fullmatch(rf"waiting for its turn: keeps\.the_thread keeps the thread at {where}", said[waits])
    finally:
        end_at_once(worker)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("pool", "task", "function", "runs"),
    [("gevent", "alive.computes", "alive_computes", 3), (AIO, "alive.async_polls", "_polls", 1)],
)
def test_the_time_of_a_run_that_shares_its_thread_is_known_by_its_own_stack(
    start_worker: StartWorker, records: Records, own_broker_url: str, pool: str, task: str, function: str, runs: int
) -> None:
    seconds = 6.0
    worker = start(start_worker, pool)
    send(own_broker_url, *[task] * runs, args=(seconds,))
    records.wait(lambda _: records.runs_of(task) == runs, "all runs have ended")
    worker.stop()
    profiles = records.wait(lambda r: r.time_profiles(Kind.TASK, task), "there is a profile")
    wall = flames.together(profiles, Measure.WALL)
    assert wall.total / 1e6 == pytest.approx(runs * seconds, rel=0.2)
    of_own = sum(value for stack, value in wall.stacks.items() if function in {frame.function for frame in stack})
    assert of_own > 0.9 * wall.total
    cpu_s = flames.together(profiles, Measure.CPU).total / 1e6
    if task == "alive.computes":
        assert 0.2 * seconds < cpu_s < 1.2 * seconds  # one thread for all
    else:
        assert cpu_s < 0.2 * seconds
