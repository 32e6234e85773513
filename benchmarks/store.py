"""
The speed of writing records to a store, and of reading pages from a large one.

    python benchmarks/store.py write [--store URL] [--records N]
    python benchmarks/store.py pages [--store URL] [--rows 10000,1000000,10000000] [--repeat 40] [--keep | --ready]

Without ``--store`` it is SQLite in a temporary folder. A named database must be empty; the tables are dropped again.
Prints a table; ``--json FILE`` writes the figures too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.clock import SystemClock
from celery_trace.collector import Collector
from celery_trace.model import (
    Capture,
    CapturedException,
    ExceptionInfo,
    Failure,
    Frame,
    Histogram,
    Kind,
    Node,
    Outcome,
    ProcessRecord,
    Rollup,
    Run,
    Variable,
    failure_id,
    new_id,
)
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.stores import Store, open_store, rows, schema, tables
from celery_trace.transports.direct import DirectTransport

if __package__:
    from benchmarks.large_store import GROUPS, NAMES, STEP_S, WORKERS, fill_store
else:
    from large_store import GROUPS, NAMES, STEP_S, WORKERS, fill_store  # type: ignore[import-not-found,no-redef]


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# --- from spool to store -----------------------------------------------------------------------------------


def a_failure(number: int, process: str, now_s: float) -> Failure:
    """A failure with 12 frames of 10 locals."""
    heap = [Node("str", "plain", f"value {n} of some length") for n in range(120)]
    frames = [
        Frame(
            file=f"/srv/shop/module{n}.py",
            line=10 + n,
            function=f"step{n}",
            code="    return next_step(order, amount)",
            context_start=5 + n,
            context=["    amount = order.total", "    return next_step(order, amount)", ""] * 3,
            locals=[Variable(f"name{m}", n * 10 + m) for m in range(10)],
        )
        for n in range(12)
    ]
    raised = CapturedException(type="ValueError", module="builtins", message="no such card", frames=frames)
    return Failure(
        id=failure_id(f"task{number}", 0),
        process=process,
        kind=Kind.TASK,
        name=f"app.tasks.t{number % NAMES}",
        task_id=f"task{number}",
        outcome=Outcome.FAILED,
        exception=ExceptionInfo("ValueError", "builtins", "no such card"),
        fingerprint=f"g{number % GROUPS}",
        worker=f"w{number % WORKERS}",
        at_s=now_s,
        capture=Capture(exceptions=[raised], heap=heap),
    )


def fill_spool(folder: Path, records: int) -> dict[str, float]:
    """Write records of the usual mixture; returns microseconds per append."""
    clock = SystemClock()
    process = ProcessRecord(uid=new_id(), host="bench", pid=os.getpid(), started_at_s=time.time(), worker="w1")
    writer = SpoolWriter(folder, process, cap_bytes=8 << 30, clock=clock)
    took: list[float] = []
    for number in range(records):
        now_s = time.time()
        record: Any
        if number % 50 == 0:
            record = a_failure(number, process.uid, now_s)
        elif number % 2:
            record = Run(
                id=new_id(), process=process.uid, kind=Kind.TASK, name=f"app.tasks.t{number % NAMES}",
                task_id=f"task{number}", started_at_s=now_s, duration_s=0.01, state="SUCCESS",
            )  # fmt: skip
        else:
            record = Rollup(
                process=process.uid, kind=Kind.TASK, name=f"app.tasks.t{number % NAMES}",
                bucket_s=int(now_s) // 300 * 300 - 300 * (number % 2000), seq=number, runs=number,
                durations=Histogram([0] * 20 + [number]),
            )  # fmt: skip
        start = time.perf_counter()
        writer.append(record)
        took.append((time.perf_counter() - start) * 1e6)
    writer.close("exit")
    return {"append_p50_us": percentile(took, 0.5), "append_p99_us": percentile(took, 0.99), "append_max_us": max(took)}


def measure_writing(settings: Settings, records: int) -> dict[str, float]:
    """Fill the spool, then let one collector empty it."""
    figures = fill_spool(settings.spool_folder, records)
    open_store(settings).close()
    collector = Collector(settings.spool_folder, DirectTransport(lambda: open_store(settings)), SystemClock())
    start, cpu_s = time.perf_counter(), time.process_time()
    handed_on = collector.round()
    took_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
    collector.close()
    # On a busy machine the second figure is more reliable: the collector's CPU time per record.
    return figures | {
        "records": handed_on,
        "records_per_s": handed_on / took_s,
        "cpu_us_per_record": cpu_s / handed_on * 1e6,
    }


# --- pages of a large store ----------------------------------------------------------------------------------


def pages(queries: Queries, failures: int, runs: int, pick: random.Random) -> dict[str, Callable[[], Any]]:
    """The queries of the pages, with other values in each call."""
    middle = queries.failures(until_s=time.time() - failures * STEP_S / 2).next

    def name() -> str:
        return f"app.tasks.t{pick.randrange(NAMES)}"

    def worker() -> str:
        return f"w{pick.randrange(WORKERS)}"

    def number() -> int:
        return pick.randrange(1, failures)

    return {
        "failures: newest": lambda: queries.failures(),
        "failures: a page in the middle": lambda: queries.failures(cursor=middle),
        "failures: of a name": lambda: queries.failures(name=name()),
        "failures: rare outcome": lambda: queries.failures(outcome="lost"),
        "failures: name and outcome": lambda: queries.failures(name=name(), outcome="lost"),
        "failures: of a worker": lambda: queries.failures(worker=worker()),
        "failures: worker and name": lambda: queries.failures(worker=worker(), name=name()),
        "failures: of a group": lambda: queries.failures(fingerprint=f"g{pick.randrange(GROUPS)}"),
        "failures: search text": lambda: queries.failures(search=f"card {pick.randrange(GROUPS)}"),
        "failures: search, no match": lambda: queries.failures(search="zebra"),
        "failures: search task id": lambda: queries.failures(search=f"task{number()}"),
        "failures: search a value": lambda: queries.failures(search=f"order_id={number()}"),
        "failures: a name, search no match": lambda: queries.failures(name=name(), search="zebra"),
        "failures: live": lambda: queries.failures(live=True),
        "one failure": lambda: queries.failure_record(f"f{number()}"),
        "groups": lambda: queries.groups(),
        "groups: new": lambda: queries.groups(state="new"),
        "groups: search, no match": lambda: queries.groups(search="zebra"),
        "runs: newest": lambda: queries.runs(),
        "runs: of a name": lambda: queries.runs(name=name()),
        "runs: outliers": lambda: queries.runs(why="outlier"),
        "runs: of a task": lambda: queries.runs(task_id=f"task{pick.randrange(1, runs)}"),
        "leaks": lambda: queries.leaks(),
        "workers": lambda: queries.workers(),
        "names": lambda: queries.names(),
        "rollups: a day of a name": lambda: queries.rollups(name=name(), since_s=time.time() - 86400),
        "rollups: a week of a name": lambda: queries.rollups(name=name(), since_s=time.time() - 7 * 86400),
        "kept by name: a day": lambda: queries.kept_by_name(since_s=time.time() - 86400),
        "kept by name: a week": lambda: queries.kept_by_name(since_s=time.time() - 7 * 86400),
        "kept by name: all": lambda: queries.kept_by_name(),
        "samples: an hour of a worker": lambda: queries.samples(worker=worker(), since_s=time.time() - 3600),
        "samples: a week of a worker": lambda: queries.samples(worker=worker(), since_s=time.time() - 7 * 86400),
        "rollups: an hour of all": lambda: queries.rollups(since_s=time.time() - 3600),
        "stats": lambda: queries.stats(),
        "change token": lambda: queries.change_token(),
    }


def server_programs(dialect: str) -> list[psutil.Process]:
    """The database server's processes; none for SQLite, or for a server elsewhere."""
    name = {"postgresql": "postgres", "mysql": "mariadbd", "mariadb": "mariadbd"}.get(dialect)
    return [process for process in psutil.process_iter(["name"]) if name and process.info["name"] == name]


def processor_s(server: list[psutil.Process]) -> float:
    """CPU time of this process and of a server's, seconds; Linux has it in nanoseconds."""
    total_s = time.process_time()
    for process in server:
        with contextlib.suppress(OSError):
            threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
            total_s += sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return total_s


def measure_pages(
    settings: Settings, many: int, repeat: int, *, ready: bool = False, keep: bool = False
) -> dict[str, dict[str, float]]:
    """
    p50 and p95 of each page's query, milliseconds.

    And of its CPU time, here and in a database server on this machine, which other programs don't lengthen.
    """
    # The CPU time of a query's parallel workers would not be counted.
    os.environ.setdefault("PGOPTIONS", "-c max_parallel_workers_per_gather=0")
    store = open_store(settings)
    try:
        if not ready:
            start = time.perf_counter()
            small = replace(a_failure(1, "p1", time.time()), capture=None)
            fill_store(store, many, rows.failure_row(small)["payload"])
            print(f"  {many:,} rows made in {time.perf_counter() - start:.0f} s", flush=True)
        figures = {}
        server = server_programs(store.engine.dialect.name)
        for what, ask in pages(Queries(store), many // 2, many - many // 2, random.Random(1)).items():
            took, busy = [], []
            for _ in range(repeat):
                begun, begun_cpu = time.perf_counter(), processor_s(server)
                ask()
                took.append((time.perf_counter() - begun) * 1000)
                busy.append((processor_s(server) - begun_cpu) * 1000)
            figures[what] = one = {
                "p50_ms": percentile(took, 0.5),
                "p95_ms": percentile(took, 0.95),
                "cpu_p50_ms": percentile(busy, 0.5),
                "cpu_p95_ms": percentile(busy, 0.95),
            }
            print(
                f"  {what:34} p50 {one['p50_ms']:8.2f} ms   p95 {one['p95_ms']:8.2f} ms"
                f"   processor p95 {one['cpu_p95_ms']:8.2f} ms",
                flush=True,
            )
        return figures
    finally:
        if not keep:
            clear(store)
        store.close()


def clear(store: Store) -> None:
    """Drop the created tables."""
    with store.engine.connect().execution_options(writing=True) as connection, connection.begin():
        tables.metadata.drop_all(connection)
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {schema.VERSION_TABLE}"))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "pages"))
    parser.add_argument("--store", default="")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rows", default="10000,1000000")
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--keep", action="store_true", help="leave the rows in the named database")
    parser.add_argument("--ready", action="store_true", help="use the rows of an earlier run with --keep")
    parser.add_argument("--folder", default=None, help="where to create the temporary folder")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    for many in [arguments.records] if arguments.what == "write" else map(int, arguments.rows.split(",")):
        with tempfile.TemporaryDirectory(prefix="trace-bench-", dir=arguments.folder) as folder:
            settings = Settings(dir=folder, store=arguments.store)
            kind = (arguments.store or "sqlite").partition(":")[0]
            print(f"{arguments.what}, {kind}, {many:,}", flush=True)
            if arguments.what == "write":
                measured: Any = measure_writing(settings, many)
                for name, value in measured.items():
                    print(f"  {name:20} {value:12,.1f}")
                if arguments.store:
                    store = open_store(settings)
                    clear(store)
                    store.close()
            else:
                measured = measure_pages(
                    settings, many, arguments.repeat, ready=arguments.ready, keep=arguments.keep or arguments.ready
                )
            figures[f"{arguments.what}:{kind}:{many}"] = measured
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
