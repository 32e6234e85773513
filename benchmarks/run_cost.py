"""
The cost of a no-op task in a pool process, from its message to its stored result: CPU time, with Celery's dispatch.

Each way has its own process, forked and started like a pool's; in it, runs through Celery's own tracer and runs of that
way alternate by the hundred. There is no broker and no other process, so this is the cost while the code is in the
CPU's caches; ``overhead.py`` has the cost in a worker whose processes alternate. Reported: the fastest 10 % of the
batches, as all other load on the machine adds to the rest.

    python benchmarks/run_cost.py [--rounds 300] [--heap 300000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Celery, signals

#: Every way, and its label in the table.
WAYS = {
    "receivers": "empty receivers of both signals",
    "signals": "celery-trace, `auto`, with both signals",
    "auto": "celery-trace, `auto`",
    "rss": "celery-trace, `rss`",
}
_BATCH = 100
_SIGNALS = (signals.task_prerun, signals.task_postrun)


def grow(blocks: int) -> list[Any]:
    """A heap of this many blocks."""
    heap: list[Any] = []
    while sys.getallocatedblocks() < blocks:
        heap.append({"id": len(heap) + 10**6, "name": f"customer {len(heap)}", "tags": [f"a{len(heap)}"]})
    return heap


def noop() -> None:
    """A task that does nothing."""


def project() -> Celery:
    """An app with a task that does nothing."""
    app = Celery("run_cost", broker="memory://", set_as_current=True)
    app.conf.task_ignore_result = True

    app.task(name="noop")(noop)
    app.finalize()
    return app


def make_tracers(app: Celery) -> None:
    """What a pool process does at its start, before the plugin's signal."""
    from celery.app.trace import build_tracer, setup_worker_optimizations

    setup_worker_optimizations(app, "bench@host")
    for name, task in app.tasks.items():
        task.__trace__ = build_tracer(name, task, app.loader, "bench@host", app=app)


def switch_on(app: Celery, way: str) -> None:
    """In the parent: the state when the pool forks."""
    if way == "receivers":
        for signal in _SIGNALS:
            signal.connect(lambda **_: None, weak=False)
        return
    from celery_trace.runtime.plugin import CeleryTrace

    CeleryTrace(app).on_worker_init(SimpleNamespace(app=app, hostname="bench@host", pool_cls="prefork", options={}))


def begin(app: Celery, way: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """In the child: Celery's own tracer, and that of the way."""
    make_tracers(app)
    task = app.tasks["noop"]
    bare = task.__trace__
    if way == "signals":
        from celery_trace.runtime import tracers

        tracers.install = lambda app, runs: None
    if way != "receivers":
        signals.worker_process_init.send(sender=None)
    return bare, task.__trace__


def compare(bare: Callable[..., Any], traced: Callable[..., Any], rounds: int) -> dict[str, float]:
    """CPU time of a run each way, microseconds."""
    task_id = "0f7d1a5c-1111-2222-3333-444455556666"
    message = {"id": task_id, "task": "noop", "retries": 0, "root_id": task_id, "lang": "py", "hostname": "bench@host"}
    message |= {"delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}}
    message |= {"args": (), "kwargs": {}, "is_eager": False, "timelimit": [None, None]}
    receivers_before = [list(signal.receivers) for signal in _SIGNALS]

    def batch(tracer: Callable[..., Any]) -> float:
        started_s = time.process_time()
        for _ in range(_BATCH):
            tracer(task_id, (), {}, message)
        return (time.process_time() - started_s) / _BATCH * 1e6

    times: dict[str, list[float]] = {"bare": [], "traced": []}
    for _ in range(rounds + 50):
        for signal in _SIGNALS:
            del signal.receivers[:]
        times["bare"].append(batch(bare))
        for signal, receivers in zip(_SIGNALS, receivers_before, strict=True):
            signal.receivers[:] = receivers
        times["traced"].append(batch(traced))
    cheapest = {name: sorted(found[50:])[: max(1, rounds // 10)] for name, found in times.items()}
    return {f"{name}_us": round(statistics.median(found), 2) for name, found in cheapest.items()}


def one_way(way: str, rounds: int, heap_blocks: int) -> dict[str, float]:
    """A way's figures, from a child that is forked for it."""
    with tempfile.TemporaryDirectory(prefix="trace-run-") as folder:
        os.environ.update(CELERY_TRACE_DIR=folder, CELERY_TRACE_COLLECTOR="0")
        os.environ["CELERY_TRACE_MEMORY"] = "rss" if way == "rss" else "auto"
        app = project()
        heap = grow(heap_blocks)
        switch_on(app, way)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(compare(*begin(app, way), rounds)).encode())
                signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as output:
            text = output.read()
        os.waitpid(child, 0)
        del heap
    if not text:
        raise RuntimeError(f"the child that ran {way!r} reported nothing")
    figures: dict[str, float] = json.loads(text)
    return {**figures, "over_bare_us": round(figures["traced_us"] - figures["bare_us"], 2)}


def main() -> int:
    """Print the figures; 1 if a run with the plugin exceeds the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--heap", type=int, default=300_000, help="live blocks")
    parser.add_argument("--alone", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(one_way(options.alone, options.rounds, options.heap)))
        return 0
    figures = {}
    for way in WAYS:
        words = [sys.executable, __file__, "--alone", way, "--rounds", str(options.rounds), "--heap", str(options.heap)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=300)
        figures[way] = json.loads(done.stdout)
    print(json.dumps(figures, indent=None if options.json else 2))
    return 0 if figures["auto"]["over_bare_us"] <= 20 else 1


if __name__ == "__main__":
    sys.exit(main())
