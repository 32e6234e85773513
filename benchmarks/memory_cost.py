"""
What each tier of measuring costs a run, in one process, on heaps of 100 thousand and a million blocks.

Every heap has a process of its own. Runs that do nothing and runs that build objects go through the real probe; told is
the time of the probe's two calls. For an investigation a leaking run goes on until its verdict, and each stage's
dearest run is its pause. Beside it stand the naive pair of snapshots and psutil.

    python benchmarks/memory_cost.py [--heaps 100000,1000000] [--runs 3000] [--json]
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
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psutil

from celery_trace.clock import SystemClock
from celery_trace.model import Kind, ProcessRecord, Role, Window
from celery_trace.probes.lease import AloneLease
from celery_trace.probes.memory import MemoryProbe
from celery_trace.probes.process import read_memory
from celery_trace.settings import Settings

_heap: list[Any] = []
_leaked: list[Any] = []


def nothing() -> None:
    """A run that does nothing."""


def build() -> int:
    """A run that builds some 3,000 objects and drops them."""
    rows = [{"id": number, "name": f"row {number}", "tags": [number]} for number in range(700)]
    return len(sorted(rows, key=lambda row: row["name"]))


def leak() -> None:
    """A run that keeps some ten kilobytes in forty objects."""
    _leaked.append([{"number": number, "text": f"{number:0150d}"} for number in range(20)])


def probe_of(memory: str, windows: list[Window], folder: str) -> MemoryProbe:
    """A probe as a child of a worker has it, without a bound on what it may spend."""
    return MemoryProbe(
        Settings(memory=memory, memory_budget=1.0, dir=folder),
        ProcessRecord(uid="bench", host="bench", pid=os.getpid(), started_at_s=0.0, role=Role.CHILD),
        windows.append,
        SystemClock(),
        AloneLease(),
    )


def timed(probe: MemoryProbe, name: str, task: Callable[[], Any], runs: int) -> dict[str, float]:
    """Microseconds of the probe's calls around each run, and of the whole run."""
    around, whole = [], []
    for _ in range(runs):
        start_s = time.perf_counter()
        token = probe.before(Kind.TASK, name)
        begun_s = time.perf_counter()
        task()
        done_s = time.perf_counter()
        measured = probe.after(token)
        end_s = time.perf_counter()
        del token, measured
        around.append(begun_s - start_s + end_s - done_s)
        whole.append(end_s - start_s)
    return {"probe_us": statistics.median(around) * 1e6, "run_us": statistics.median(whole) * 1e6}


def bare_us(task: Callable[[], Any], runs: int) -> float:
    """The median run without anything."""
    took = []
    for _ in range(runs):
        start_s = time.perf_counter()
        task()
        took.append(time.perf_counter() - start_s)
    return statistics.median(took) * 1e6


def investigation(folder: str) -> dict[str, Any]:
    """A leak from its first run to its verdict: the probe's milliseconds by what it did, and in all."""
    windows: list[Window] = []
    probe = probe_of("auto", windows, folder)
    by_stage: dict[str, list[float]] = defaultdict(list)
    for _ in range(400):
        settles = probe._pending.stage if probe._pending is not None else None
        start_s = time.perf_counter()
        token = probe.before(Kind.TASK, "leak")
        begun_s = time.perf_counter()
        leak()
        done_s = time.perf_counter()
        measured = probe.after(token)
        took_ms = (begun_s - start_s + time.perf_counter() - done_s) * 1e3
        stage = settles or (token.stage if token is not None else None)
        by_stage[type(stage).__name__ if stage is not None else "gate"].append(took_ms)
        del token, measured, settles, stage
        if any(str(window.stage) == "verdict" for window in windows):
            break
    probe.close()
    return {
        "runs_to_verdict": sum(len(values) for values in by_stage.values()),
        "total_ms": sum(sum(values) for values in by_stage.values()),
        "longest_pause_ms": max(max(values) for values in by_stage.values()),
        "stages": {
            name: {"runs": len(values), "median_ms": statistics.median(values), "longest_ms": max(values)}
            for name, values in by_stage.items()
        },
        "windows": [str(window.stage) for window in windows],
    }


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
    """Let this process have a heap of so many live blocks."""
    number = 0
    while sys.getallocatedblocks() < blocks:
        _heap.append({"id": 10**6 + number, "name": f"customer {number}", "tags": [f"a{number}"]})
        number += 1


def one_heap(blocks: int, runs: int, *, naive: bool) -> dict[str, Any]:
    """All figures of one heap; for a process of its own."""
    if naive:
        tracemalloc.start()
        grow(blocks)
        return {"naive_us": naive_us(nothing, 2)}
    grow(blocks)
    figures: dict[str, Any] = {"blocks": sys.getallocatedblocks()}
    process = psutil.Process()
    figures["bare"] = {"noop": bare_us(nothing, runs), "build": bare_us(build, runs // 10)}
    figures["psutil_rss_us"] = bare_us(lambda: process.memory_info().rss, runs // 10)
    figures["psutil_uss_us"] = bare_us(lambda: process.memory_full_info().uss, 50)
    figures["sample_us"] = bare_us(lambda: read_memory(full=False), runs // 10)
    figures["full_sample_us"] = bare_us(lambda: read_memory(full=True), 50)
    with tempfile.TemporaryDirectory() as folder:
        for memory in ("auto", "rss", "always"):
            probe = probe_of(memory, [], folder)
            many = runs if memory != "always" else 60
            timed(probe, "warm", nothing, min(many, 300))
            figures[memory] = {
                "noop": timed(probe, "noop", nothing, many),
                "build": timed(probe, "build", build, max(many // 10, 30)),
            }
            probe.close()
        figures["investigation"] = investigation(folder)
    return figures


def measure(heaps: tuple[int, ...] = (100_000, 1_000_000), runs: int = 3000) -> dict[str, dict[str, Any]]:
    """By heap, each measured in processes of their own."""
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
    """Print the figures; 1 where a pause is longer than promised."""
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
    return 0 if all(found["investigation"]["longest_pause_ms"] <= 200 for found in figures.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
