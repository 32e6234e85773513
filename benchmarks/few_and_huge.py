"""
Few runs that each leak 7.6 MB: after how many is the line reported, on an idle machine and on a busy one?

    python benchmarks/few_and_huge.py [--most-runs 40] [--every-s 2.0] [--json]
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, busy_machine, command, until_named

PROJECT = """
reports = []


@timed
def report(number):
    reports.append([{"id": row, "text": f"{row:0100d}"} for row in range(19_000)])  # LEAK
"""
GOAL_RUNS = 10


def measure(*, most_runs: int = 40, every_s: float = 2.0) -> dict[str, Any]:
    """
    Both machines, one after the other.

    Args:
        most_runs: Of each.
        every_s: Seconds from one run to the next.
    """
    figures = {}
    for name, load in (("quiet", contextlib.nullcontext), ("busy", busy_machine)):
        with load(), Rig(PROJECT) as rig:
            # The first of two does not wait.
            two = functools.partial(rig.run, "report", 2, 1 / every_s)
            figures[name] = until_named(rig, two, most_runs=most_runs, after_s=5.0)
    return figures


def held(figures: dict[str, Any]) -> bool:
    """Whether its line was named within ten runs on both, and later it was called a leak, with its holder."""
    return all(
        one["leaking"] is not None
        and one["line"]["runs"] <= GOAL_RUNS
        and one["row"]["holder"].endswith("reports")
        and not one["strangers"]
        for one in figures.values()
    )


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, most_runs=40, every_s=2.0))
