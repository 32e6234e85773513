"""
The cost of the heap sampler: CPU time with its hooks on against off, alternating in one process.

Each round runs a load both ways, in alternating order, so that other load on the machine affects both alike.
The figure is the median of the rounds' ratios, with the interval that contains it in 95 of 100 cases (order
statistics of the binomial distribution, no assumption on how ratios are distributed).

    python benchmarks/heap_cost.py [--rounds 60] [--mean 65536] [--way extension|tracemalloc] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

from celery_trace.heap.sampler import Sampler
from celery_trace.heap.traced import TracedSampler

#: The goal, and each load's runs in a round.
GOALS = {"objects_and_json": 1.04, "integers": 1.10, "texts": 1.06}
GOAL_RUN_NS = 60
_RUNS = {"objects_and_json": 6, "integers": 12, "texts": 20}


class Pair:
    """An object with two attributes."""

    def __init__(self, first: int, second: str) -> None:
        self.first = first
        self.second = second


def objects_and_json() -> int:
    """Build 3,000 dicts and objects, and dump them."""
    rows = [{"id": index, "name": f"n{index}", "tags": [index, index + 1, str(index)]} for index in range(3000)]
    pairs = [Pair(index, str(row["name"])) for index, row in enumerate(rows)]
    return len(json.dumps(rows)) + len(pairs)


def integers() -> int:
    """Integer arithmetic, and a small dict."""
    total = 0
    for index in range(30_000):
        total += index * index % 7
    counts = {str(index): index for index in range(500)}
    return total + sum(counts.values())


def texts() -> int:
    """Join texts and split them."""
    return len(",".join(str(index) + "x" for index in range(8000)).split(","))


LOADS: dict[str, Callable[[], int]] = {"objects_and_json": objects_and_json, "integers": integers, "texts": texts}


def timed_s(load: Callable[[], int], runs: int) -> float:
    """CPU seconds of a number of runs."""
    began_s = time.process_time()
    for _ in range(runs):
        load()
    return time.process_time() - began_s


def median_with_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the order statistics that contain the true one with a probability of at least 0.95."""
    ordered = sorted(values)
    count = len(ordered)
    rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return statistics.median(ordered), ordered[rank], ordered[count - 1 - rank]


def compare(sampler: Sampler | TracedSampler, name: str, rounds: int, mean_bytes: float) -> dict[str, float]:
    """On against off for one load, and the sampler's own estimate."""
    load, runs = LOADS[name], _RUNS[name]
    ratios, shares = [], []
    for number in range(rounds):
        times_s = {}
        for on in (False, True) if number % 2 else (True, False):
            if on:
                sampler.start(mean_bytes)
            else:
                sampler.stop()
            load()
            before = sampler.stats()
            times_s[on] = timed_s(load, runs)
            if on:
                after = sampler.stats()
                own_s = (after["calls"] - before["calls"]) * sampler.cost_s() + after["pick_s"] - before["pick_s"]
                shares.append(own_s / times_s[on])
        ratios.append(times_s[True] / times_s[False])
    sampler.stop()
    ratio, low, high = median_with_interval(ratios)
    return {
        "ratio": round(ratio, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "accounted": round(1 / (1 - min(0.999, statistics.median(shares))), 4),
    }


def run_ns(sampler: Sampler | TracedSampler, mean_bytes: float) -> float:
    """Nanoseconds for the begin and the end of a run: the fastest of ten batches."""
    sampler.start(mean_bytes)
    run, restore = sampler.run, sampler.restore
    batches = []
    for _ in range(10):
        began_s = time.process_time()
        for _ in range(20_000):
            restore(run(7))
        batches.append((time.process_time() - began_s) / 20_000)
    sampler.stop()
    return min(batches) * 1e9


def main() -> int:
    """Print the figures; 1 if one is significantly above its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--mean", type=float, default=65536, help="bytes a pick")
    parser.add_argument("--way", choices=["extension", "tracemalloc"], default="extension")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sampler = Sampler() if options.way == "extension" else TracedSampler()
    figures = {name: compare(sampler, name, options.rounds, options.mean) for name in LOADS}
    per_run_ns = round(run_ns(sampler, options.mean), 1)
    found = {
        "python": sys.version.split()[0],
        "way": options.way,
        "on_to_off": figures,
        "run_and_restore_ns": per_run_ns,
    }
    print(json.dumps(found, indent=None if options.json else 2))
    missed = [name for name, goal in GOALS.items() if figures[name]["low"] > goal]
    return 1 if options.way == "extension" and (missed or per_run_ns > GOAL_RUN_NS) else 0


if __name__ == "__main__":
    sys.exit(main())
