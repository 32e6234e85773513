"""
The cost of a child's first seconds and of later ones: 250 tasks a second in two children, plugin on against off.

Each round starts a worker without and one with celery-trace. They get the same blocks of tasks in turns: their first
runs, as many unmeasured ones, and later ones. A task waits 2 ms and builds 2,000 integers, and never leaks. Reported:
the CPU time of both children and the longest runs.

    python benchmarks/paced.py [--rounds 12] [--runs 1500] [--per-s 250] [--json]
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.heap_cost import median_with_interval
from benchmarks.rig import Rig, command, cpu_s, quantile

PROJECT = """
@timed
def innocent(number):
    time.sleep(0.002)
    return len([number * number for number in range(2000)])
"""
#: Of each block, whether it is reported.
BLOCKS = ("first", "between", "later")
GOAL_RATIO, GOAL_LONGER_S = 1.03, 0.001


def block(rig: Rig, runs: int, per_s: float) -> dict[str, float]:
    """Paced runs: CPU seconds of the children, and quantiles of the runs' seconds."""
    children = rig.children()
    before_s, before = sum(map(cpu_s, children)), len(rig.run_times())
    rig.run("innocent", runs, per_s)
    took = [seconds for _, seconds, _ in rig.run_times()[before:]]
    return {"cpu_s": sum(map(cpu_s, children)) - before_s, "p99_s": quantile(took, 0.99), "longest_s": max(took)}


def measure(*, rounds: int = 12, runs: int = 1500, per_s: float = 250.0) -> dict[str, Any]:
    """
    Both workers in turns.

    Args:
        rounds: Pairs of workers.
        runs: Runs per block.
        per_s: Tasks a second.

    Returns:
        By block: the paired ratio of CPU time with its interval, and the runs' p99 and longest, off and on.
    """
    seen: dict[str, list[dict[bool, dict[str, float]]]] = {name: [] for name in BLOCKS}
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            rigs = {on: stack.enter_context(Rig(PROJECT, plugin=on, concurrency=2)) for on in (False, True)}
            order = sorted(rigs, reverse=bool(number % 2))
            for name in BLOCKS:
                seen[name].append({on: block(rigs[on], runs, per_s) for on in order})
    return {"rounds": rounds, "runs": runs, "per_s": per_s, **{name: sum_up(seen[name]) for name in BLOCKS}}


def sum_up(pairs: list[dict[bool, dict[str, float]]]) -> dict[str, Any]:
    """One block over all rounds."""
    ratio, low, high = median_with_interval([pair[True]["cpu_s"] / pair[False]["cpu_s"] for pair in pairs])
    longer, least, most = median_with_interval([pair[True]["longest_s"] - pair[False]["longest_s"] for pair in pairs])
    figures: dict[str, Any] = {
        "ratio": round(ratio, 4),
        "ratio_interval": [round(low, 4), round(high, 4)],
        "longest_longer_s": round(longer, 5),
        "longest_longer_interval_s": [round(least, 5), round(most, 5)],
    }
    for on, name in ((False, "off"), (True, "on")):
        figures[name] = {
            key: round(statistics.median(pair[on][key] for pair in pairs), 5) for key in ("cpu_s", "p99_s", "longest_s")
        } | {"longest_of_all_s": round(max(pair[on]["longest_s"] for pair in pairs), 5)}
    return figures


def held(figures: dict[str, Any]) -> bool:
    """Whether first and later seconds are within the goals, and no run is longer."""
    blocks = [figures[name] for name in ("first", "later")]
    return all(one["ratio"] <= GOAL_RATIO and one["longest_longer_s"] <= GOAL_LONGER_S for one in blocks)


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, rounds=12, runs=1500, per_s=250.0))
