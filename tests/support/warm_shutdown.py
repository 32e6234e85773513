"""Stops a loaded worker again and again, and counts how often each message ran."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import redis
from celery import Celery

from tests.support.processes import WorkerProcess, trace_environment
from tests.support.waiting import wait_until

#: Messages that wait when a worker starts, and how many of them have run when the signal comes: the rest is the load.
WAITING, RUN = 600, 120
QUEUE = "celery"
CONCURRENCY = 4

PROJECT = """
import os
import time

from celery import Celery

app = Celery("stopped", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
LOG = os.open(os.environ["STOPPED_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


@app.task
def note(number):
    os.write(LOG, b"%d\\\\n" % number)
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
""".replace("\\\\", "\\")


class Counted(NamedTuple):
    """What became of the messages of one way: with the plugin, or without."""

    stops: int
    sent: int
    twice: list[int]
    lost: list[int]
    killed: int  # children that the pool gave up on before they said that they were up

    def __str__(self) -> str:
        return (
            f"{self.sent} messages, {self.stops} stops: {len(self.twice)} ran twice, {len(self.lost)} never, "
            f"{self.killed} children killed before they were up"
        )


def stop_again_and_again(
    folder: Path, broker_url: str, *, plugin: bool, stops: int, told: Callable[[str], None] = lambda _: None
) -> Counted:
    """
    Load a worker with short tasks, ask it to end (SIGTERM), start the next one; at last, run what is left.

    Args:
        folder: Of this way alone.
        broker_url: A Redis database of this way alone.
        plugin: Whether the workers have celery-trace.
        stops: How often.
        told: Takes a line of progress.
    """
    folder.mkdir(parents=True)
    (folder / "stopped.py").write_text(PROJECT)
    log = folder / "ran"
    environment = trace_environment(broker_url=broker_url, trace_dir=folder / "trace", switch=plugin)
    environment["STOPPED_LOG"] = str(log)
    sender = Celery("sender", broker=broker_url, set_as_current=False)
    sender.conf.task_ignore_result = True
    broker = redis.Redis.from_url(broker_url)
    output, sent = "", 0

    def ran() -> list[int]:
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def worker(number: int) -> WorkerProcess:
        started = WorkerProcess(
            "stopped", cwd=folder, work=folder, environment=environment, concurrency=CONCURRENCY, name=f"w{number}"
        )
        started.words += ["-l", "WARNING"]
        return started

    try:
        for number in range(stops):
            with sender.producer_pool.acquire(block=True) as producer:
                for _ in range(WAITING - broker.llen(QUEUE)):
                    sender.send_task("stopped.note", (sent,), producer=producer)
                    sent += 1
            before = len(ran())
            with worker(number) as loaded:
                wait_until(
                    lambda before=before: len(ran()) >= before + RUN, "the worker is loaded", timeout_s=120,
                    every_s=0.02, explain=loaded.tail,
                )  # fmt: skip
                loaded.send(signal.SIGTERM)
                loaded.wait(120)
            output += loaded.output
            loaded.log.unlink()
            told(f"{'with' if plugin else 'without'} the plugin: {number + 1} stops, {_twice(ran())} ran twice")
        with worker(stops) as last:
            wait_until(
                lambda: not broker.llen(QUEUE) and not broker.hlen("unacked") and len(set(ran())) >= sent,
                "the rest has run", timeout_s=300, every_s=0.2,
                explain=lambda: f"{len(set(ran()))} of {sent} have run. {last.tail()}",
            )  # fmt: skip
    finally:
        broker.close()
        sender.close()
    times = Counter(ran())
    return Counted(
        stops=stops,
        sent=sent,
        twice=sorted(number for number, count in times.items() if count > 1),
        lost=sorted(set(range(sent)) - set(times)),
        killed=output.count("Timed out waiting for UP"),
    )


def both_ways(
    folder: Path, broker_urls: tuple[str, str], *, stops: int, told: Callable[[str], None] = lambda _: None
) -> tuple[Counted, Counted]:
    """With the plugin and without, at once, so that both have the same load beside them."""
    with ThreadPoolExecutor(2) as both:
        ways = [
            both.submit(
                stop_again_and_again, folder / name, url, plugin=plugin, stops=stops, told=told,
            )
            for name, url, plugin in (("with", broker_urls[0], True), ("without", broker_urls[1], False))
        ]  # fmt: skip
        with_plugin, without = (way.result() for way in ways)
    return with_plugin, without


def _twice(numbers: list[int]) -> int:
    return sum(count > 1 for count in Counter(numbers).values())
