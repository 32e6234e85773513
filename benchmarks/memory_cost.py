"""
The cost of measuring a run, in one process, on heaps of 100 thousand and a million blocks; and its pauses.

Every heap has its own process. Runs that do nothing and runs that build objects alternate with and without the sampled
heap, by CPU time. Then a leak runs until its holder is known: the steps on the ticker's thread are the pauses that a
task can see. For comparison: single traced runs, the naive pair of snapshots, and psutil.

    python benchmarks/memory_cost.py [--heaps 100000,1000000] [--runs 3000] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import psutil

from celery_trace.clock import SystemClock
from celery_trace.heap.differences import TracedRun, top_differences
from celery_trace.heap.watch import HeapWatch, watch_heap
from celery_trace.model import Kind, ProcessRecord, Role, Window
from celery_trace.process.memory import read_memory
from celery_trace.settings import Settings

_heap: list[Any] = []
_leaked: list[Any] = []
#: Runs of a batch, which is timed as a whole.
_BATCH = 20


def nothing() -> None:
    """A run that does nothing."""


def build() -> int:
    """A run that builds some 3,000 objects and drops them."""
    rows = [{"id": number, "name": f"row {number}", "tags": [number]} for number in range(700)]
    return len(sorted(rows, key=lambda row: row["name"]))


def leak() -> None:
    """A run that leaks about ten kilobytes in forty objects."""
    _leaked.append([{"number": number, "text": f"{number:0150d}"} for number in range(20)])


def watch_of(windows: list[Window]) -> HeapWatch:
    """The heap watch of a worker's child, without a limit on its overhead."""
    process = ProcessRecord(uid="bench", host="bench", pid=os.getpid(), started_at_s=0.0, role=Role.CHILD)
    watch = watch_heap(Settings(memory_budget=1.0), process, windows.append, SystemClock())
    if watch is None:
        raise RuntimeError("another watch of this process is open")
    return watch


def bare_us(task: Callable[[], Any], runs: int) -> float:
    """The median bare run, microseconds."""
    took = []
    for _ in range(runs):
        start_s = time.perf_counter()
        task()
        took.append(time.perf_counter() - start_s)
    return statistics.median(took) * 1e6


def batch_us(task: Callable[[], Any], watch: HeapWatch | None, tag: int) -> float:
    """CPU time of a run, microseconds."""
    started_s = time.process_time()
    for _ in range(_BATCH):
        before = watch.run(tag) if watch is not None else 0
        task()
        if watch is not None:
            watch.restore(before)
    return (time.process_time() - started_s) / _BATCH * 1e6


def compare(task: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Alternate batches with and without the sampled heap: medians, and that of the paired ratios with its error."""
    bare, sampled = [], []
    for number in range(rounds):
        for on in (False, True) if number % 2 else (True, False):
            if not on:
                bare.append(batch_us(task, None, 0))
                continue
            watch = watch_of([])
            try:
                sampled.append(batch_us(task, watch, watch.tag(Kind.TASK, task.__name__)))
            finally:
                watch.close()
    ratios = [one / other for one, other in zip(sampled, bare, strict=True) if other > 0]
    return {
        "bare_us": statistics.median(bare),
        "sampled_us": statistics.median(sampled),
        "ratio": statistics.median(ratios),
        "ratio_error": 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios)),
    }


def search() -> dict[str, Any]:
    """A leak until its holder is known: the milliseconds of each step on the ticker's thread."""
    windows: list[Window] = []
    watch = watch_of(windows)
    tag = watch.tag(Kind.TASK, "leak")
    for _ in range(150):
        before = watch.run(tag)
        leak()
        watch.restore(before)
    took_ms = []
    until_s = time.monotonic() + 60
    while not any(window.retained_by for window in windows) and time.monotonic() < until_s:
        start_s = time.thread_time()
        watch.look()
        spent_ms = (time.thread_time() - start_s) * 1e3
        if spent_ms > 0.1:
            took_ms.append(spent_ms)
        else:
            time.sleep(0.05)  # nothing was due
    watch.close()
    found = next((window.retained_by for window in windows if window.retained_by), [])
    return {
        "steps": len(took_ms),
        "total_ms": sum(took_ms),
        "longest_pause_ms": max(took_ms, default=0.0),
        "holder": found,
    }


def traced_us(task: Callable[[], Any], runs: int) -> float:
    """The median of single traced runs with their Top 10, microseconds."""

    def once() -> None:
        run = TracedRun()
        run.begin()
        task()
        top_differences(run.end())

    return bare_us(once, runs)


def naive_us(task: Callable[[], Any], rounds: int) -> float:
    """The pair of snapshots with ``compare_to``, tracing since before the heap was built."""
    took = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        before = tracemalloc.take_snapshot()
        task()
        tracemalloc.take_snapshot().compare_to(before, "lineno")[:10]
        took.append(time.perf_counter() - start_s)
    return statistics.median(took) * 1e6


def grow(blocks: int) -> None:
    """Give this process a heap of this many live blocks."""
    number = 0
    while sys.getallocatedblocks() < blocks:
        _heap.append({"id": 10**6 + number, "name": f"customer {number}", "tags": [f"a{number}"]})
        number += 1


def one_heap(blocks: int, runs: int, *, naive: bool) -> dict[str, Any]:
    """All figures of one heap; to be run in a separate process."""
    if naive:
        tracemalloc.start()
        grow(blocks)
        return {"naive_us": naive_us(nothing, 2)}
    grow(blocks)
    process = psutil.Process()
    return {
        "blocks": sys.getallocatedblocks(),
        "psutil_rss_us": bare_us(lambda: process.memory_info().rss, runs // 10),
        "psutil_uss_us": bare_us(lambda: process.memory_full_info().uss, 50),
        "sample_us": bare_us(lambda: read_memory(full=False), runs // 10),
        "full_sample_us": bare_us(lambda: read_memory(full=True), 50),
        "noop": compare(nothing, max(50, runs // 10)),
        "build": compare(build, max(30, runs // 20)),
        "traced": {"noop_us": traced_us(nothing, 60), "build_us": traced_us(build, 30)},
        "search": search(),
    }


def measure(heaps: tuple[int, ...] = (100_000, 1_000_000), runs: int = 3000) -> dict[str, dict[str, Any]]:
    """The figures by heap, each measured in separate processes."""
    figures = {}
    for blocks in heaps:
        found: dict[str, Any] = {}
        for words in (["--alone", str(blocks)], ["--alone", str(blocks), "--naive"]):
            done = subprocess.run(
                [sys.executable, __file__, *words, "--runs", str(runs)], stdout=subprocess.PIPE, check=True, timeout=300
            )
            found.update(json.loads(done.stdout))
        figures[str(blocks)] = found
    return figures


def main() -> int:
    """Print the figures; 1 if a pause exceeds the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--heaps", default="100000,1000000", help="live blocks")
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--alone", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(one_heap(options.alone, options.runs, naive=options.naive)))
        return 0
    figures = measure(tuple(int(word) for word in options.heaps.split(",")), options.runs)
    print(json.dumps(figures, indent=None if options.json else 2))
    return 0 if all(found["search"]["longest_pause_ms"] <= 200 for found in figures.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
