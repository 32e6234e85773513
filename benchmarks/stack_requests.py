"""
How long it takes to read the stack of a running task with its local variables: over Redis, and on the task's own host.

One child waits for a lock; its stack is requested again and again, as the Running page does.

    python benchmarks/stack_requests.py [--requests 100] [--json]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, quantile
from celery_trace.failures.views import frames
from celery_trace.model import RunningView
from celery_trace.queries import Queries
from celery_trace.running import client
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from tests.support.waiting import wait_until

PROJECT = """
import threading

@app.task(name="waits")
def waits():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""
#: Longest wait at the 95th percentile, seconds.
GOAL_S = 0.5


def measure(*, requests: int = 100) -> dict[str, Any]:
    """
    Request the stack many times, each way.

    Returns:
        By way: p50, p95 and the longest wait, seconds.
    """
    with Rig(PROJECT, settings={"collector": "1"}) as rig:
        rig.app.send_task("waits", ignore_result=True)
        settings = Settings(dir=str(rig.folder / "trace"))
        run = wait_until(lambda: _running(settings), "the task is seen running", timeout_s=60, explain=rig.worker.tail)
        reader = client.StackReader(settings, rig.app.connection_for_write, "terminal")
        seen = {"same_host": _waits(reader, run, requests)}
        client.is_here = lambda *_: False  # as on another host
        seen["redis"] = _waits(reader, run, requests)
        for process in rig.worker.family():  # a warm shutdown would wait for the task
            process.kill()
    return seen


def _running(settings: Settings) -> RunningView | None:
    try:
        store = open_store(settings, create=False)
    except StoreUnavailable:
        return None
    try:
        return next((run for run in Queries(store).running().rows if run.address and run.stack), None)
    finally:
        store.close()


def _waits(reader: client.StackReader, run: RunningView, requests: int) -> dict[str, float]:
    took = []
    for _ in range(requests):
        began_s = time.perf_counter()
        stack = reader.read(run, user="benchmark")
        took.append(time.perf_counter() - began_s)
        assert stack.capture is not None
        assert any(local.name == "lock" for frame in frames(stack.capture) for local in frame.locals)
        time.sleep(0.02)
    return {"p50_s": quantile(took, 0.5), "p95_s": quantile(took, 0.95), "longest_s": max(took)}


def held(figures: dict[str, Any]) -> bool:
    """Whether both ways are within the goal."""
    return all(waits["p95_s"] <= GOAL_S for waits in figures.values())


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, requests=100))
