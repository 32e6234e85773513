"""Runs that hang in real workers are named with what they wait for, and slow ones that work are not."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil
import pytest
from celery import Celery

from celery_trace.alerting.engine import AlertEngine
from celery_trace.clock import SystemClock
from celery_trace.collector.rounds import RUNNING_S
from celery_trace.model import Histogram, Kind, Rollup, RunningView
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from tests.support.fixtures_worker import StartWorker
from tests.support.processes import WorkerProcess
from tests.support.records import Records
from tests.support.stuck_project import BY_DESIGN, HANGS, PROGRESSES, write_stuck_project

STUCK_S = 4.0
#: A slow task takes so long, seconds.
SLOW_S = 2.5 * STUCK_S
CHILDREN = 10
#: Beyond two rounds of the collector, seconds: the test looks every 0.2 s, on a machine that does other things too.
GRACE_S = 6.0

_HANGING = list(HANGS)
_ALIVE = list(PROGRESSES)


@pytest.fixture
def worker(start_worker: StartWorker, tmp_path: Path) -> WorkerProcess:
    project = write_stuck_project(tmp_path / "project")
    settings = {"memory": "off", "stuck_seconds": STUCK_S}
    worker: WorkerProcess = start_worker("stuck_tasks", project, settings=settings, concurrency=CHILDREN)
    return worker


def end_at_once(worker: WorkerProcess) -> None:
    """Kill the worker with all that it has started: its tasks never end."""
    family = worker.family()
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family[1:], timeout=10)


def start(broker_url: str, tasks: dict[str, list[float]]) -> dict[str, str]:
    """Send tasks. Their names, by id."""
    with Celery(broker=broker_url, set_as_current=False) as app:
        return {app.send_task(name, args).id: name for name, args in tasks.items()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("batch", [_HANGING[at : at + CHILDREN] for at in range(0, len(_HANGING), CHILDREN)])
def test_each_hang_is_named_within_two_rounds_of_the_threshold(
    worker: WorkerProcess, records: Records, own_broker_url: str, batch: list[str]
) -> None:
    names = start(own_broker_url, {f"hangs.{name}": [] for name in batch})
    first_seen: dict[str, float] = {}
    rows: dict[str, RunningView] = {}

    def all_stuck() -> bool:
        for row in records.queries.running().rows:
            if row.stuck and row.waiting_for:
                first_seen.setdefault(row.task_id, row.stalled_s)
                rows[row.task_id] = row
        return set(rows) >= set(names)

    try:
        records.wait(lambda _: all_stuck(), "all runs are stuck", timeout_s=60, explain=lambda: _missing(names, rows))
        said = {names[id].removeprefix("hangs."): rows[id].waiting_for for id in names}
        assert {name: words for name, words in said.items() if not re.fullmatch(HANGS[name], words)} == {}
        late = {names[id]: seen_s for id, seen_s in first_seen.items() if seen_s > STUCK_S + 2 * RUNNING_S + GRACE_S}
        assert late == {}
    finally:
        end_at_once(worker)


def _missing(names: dict[str, str], rows: dict[str, RunningView]) -> str:
    return f"not stuck: {[name for id, name in names.items() if id not in rows]}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("batch", [_ALIVE[:7], _ALIVE[7:14], _ALIVE[14:]])
def test_no_slow_run_that_makes_progress_is_called_stuck(
    worker: WorkerProcess, records: Records, own_broker_url: str, batch: list[str]
) -> None:
    names = start(own_broker_url, {f"slow.{name}": [SLOW_S] for name in batch})
    accused, longest = _watch(records, names)
    assert accused == {}
    assert set(longest) == set(names.values())
    assert min(longest.values()) > STUCK_S + 2 * RUNNING_S


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("pool", "names"), [("threads", ["event", "receives", "child"]), ("solo", ["receives"])])
def test_hangs_are_named_in_the_pools_without_children(
    start_worker: StartWorker, tmp_path: Path, records: Records, own_broker_url: str, pool: str, names: list[str]
) -> None:
    project = write_stuck_project(tmp_path / "project")
    settings = {"memory": "off", "stuck_seconds": STUCK_S}
    worker = start_worker("stuck_tasks", project, settings=settings, pool=pool, concurrency=len(names))
    tasks = start(own_broker_url, {f"hangs.{name}": [] for name in names})
    said: dict[str, str] = {}

    def all_said() -> bool:
        said.update({row.task_id: row.waiting_for for row in records.queries.running().rows if row.stuck})
        return set(said) == set(tasks)

    try:
        records.wait(lambda _: all_said(), "all runs are stuck", explain=lambda: str(said))
        wrong = {name: said[id] for id, name in tasks.items() if not re.fullmatch(HANGS[name[6:]], said[id])}
        assert wrong == {}
    finally:
        end_at_once(worker)


@pytest.mark.timeout(120)
def test_a_slow_run_is_not_called_stuck_if_its_task_has_always_been_slow(
    worker: WorkerProcess, records: Records, own_broker_url: str, trace_dir: Path
) -> None:
    _have_run(trace_dir, [f"slow.{name}" for name in BY_DESIGN], took_s=2 * SLOW_S)
    names = start(own_broker_url, {f"slow.{name}": [SLOW_S] for name in BY_DESIGN})
    accused, longest = _watch(records, names)
    assert accused == {}
    assert set(longest) == set(names.values())


@pytest.mark.timeout(120)
def test_a_stuck_run_fires_an_alert_that_is_resolved_when_the_run_ends(
    worker: WorkerProcess, records: Records, own_broker_url: str, trace_dir: Path
) -> None:
    [id] = start(own_broker_url, {"slow.sleeps_by_design": [SLOW_S]})
    store = open_store(Settings(dir=str(trace_dir)))
    try:
        engine = AlertEngine(store, records.queries, Settings(), SystemClock(), channels=())

        def states() -> list[str]:
            return [alert.state for alert in engine.evaluate() if alert.rule == "stuck" and id in alert.subject]

        records.wait(lambda _: states() == ["firing"], "the alert fires")
        [alert] = records.queries.alerts(state="firing").rows
        assert "slow.sleeps_by_design" in alert.text
        assert "in time.sleep, in sleeps_by_design at " in alert.text
        records.wait(lambda _: states() == ["resolved"], "the alert is resolved")
    finally:
        store.close()


@pytest.mark.timeout(120)
def test_a_main_process_that_is_blocked_and_a_pool_that_is_stuck_fire_alerts(
    start_worker: StartWorker, tmp_path: Path, records: Records, own_broker_url: str, trace_dir: Path
) -> None:
    project = write_stuck_project(tmp_path / "project")
    worker = start_worker("stuck_tasks", project, settings={"stuck_seconds": STUCK_S}, concurrency=2)
    start(own_broker_url, {"hangs.event": [], "hangs.sleeps": []})
    store = open_store(Settings(dir=str(trace_dir)))
    try:
        engine = AlertEngine(store, records.queries, Settings(), SystemClock(), channels=())

        def firing() -> dict[str, str]:
            return {alert.subject: alert.text for alert in engine.evaluate() if alert.state == "firing"}

        pool = f"pool of {worker.node}"
        texts = records.wait(lambda _: (found := firing()).get(pool) and found, "the pool's alert fires")
        assert texts[pool] == f"All children of {worker.node} are stuck (2). It runs no other task until a run ends."
        start(own_broker_url, {"blocks.the_main_process": []})
        main = f"main of {worker.node} (pid {worker.pid})"
        texts = records.wait(lambda _: (found := firing()).get(main) and found, "the main process's alert fires")
        assert re.search(r"waiting in recv from 127\.0\.0\.1:\d+\. It takes no messages\.$", texts[main])
    finally:
        end_at_once(worker)
        store.close()


def _have_run(trace_dir: Path, names: list[str], *, took_s: float) -> None:
    """Store that these tasks have run before."""
    durations = [0] * Histogram.BUCKETS
    durations[Histogram.bucket(took_s)] = 50
    bucket_s = int(time.time()) // Rollup.BUCKET_S * Rollup.BUCKET_S
    store = open_store(Settings(dir=str(trace_dir)))
    try:
        store.write(
            [
                Rollup(
                    process="before", kind=Kind.TASK, name=name, bucket_s=bucket_s, seq=1, runs=50,
                    duration_s=50 * took_s,
                    durations=Histogram(durations),
                )
                for name in names
            ]
        )  # fmt: skip
    finally:
        store.close()


def _watch(records: Records, names: dict[str, str]) -> tuple[dict[str, str], dict[str, float]]:
    """Watch runs until they have ended. Those that were called stuck, and for how long each ran."""
    accused: dict[str, str] = {}
    longest: dict[str, float] = {}

    def ended() -> bool:
        running = {row.task_id: row for row in records.queries.running().rows if row.task_id in names}
        for id, row in running.items():
            longest[names[id]] = row.elapsed_s
            if row.stuck:
                accused[names[id]] = f"{row.waiting_for} ({row.stalled_s:.1f} s)"
        return len(longest) == len(names) and not running

    records.wait(lambda _: ended(), "the slow runs have ended", timeout_s=90)
    return accused, longest
