"""
A leak in children that are replaced after ten runs (``--max-tasks-per-child=10``): is it named over all of them?

    python benchmarks/recycled_children.py [--most-runs 1500] [--per-s 30] [--json]
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, until_named

PROJECT = """
kept = []


@timed
def leaking(number):
    time.sleep(0.01)
    kept.append(bytearray(20_000))  # LEAK
"""
KEPT_BYTES = 20_057


def measure(*, most_runs: int = 1500, per_s: float = 30.0) -> dict[str, Any]:
    """
    A leak of 20 KB a run in two children.

    Args:
        most_runs: Run limit over all children.
        per_s: Tasks a second.
    """
    with Rig(PROJECT, concurrency=2, options=["--max-tasks-per-child=10"]) as rig:
        return until_named(rig, functools.partial(rig.run, "leaking", 30, per_s), most_runs=most_runs, after_s=10.0)


def held(figures: dict[str, Any]) -> bool:
    """Whether line, rate and holder were named, and nothing else."""
    if figures["leaking"] is None or figures["strangers"]:
        return False
    row = figures["row"]
    return row["holder"].endswith("kept") and abs(row["kept_bytes_per_run"] / KEPT_BYTES - 1) <= 0.15


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, most_runs=1500, per_s=30.0))
