"""
A leak of a megabyte in one run of 200 and in one of 1,000: is it named, and after how many runs that leaked?

    python benchmarks/one_in_a_thousand.py [--every 200,1000] [--events 30] [--json]
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, until_named

PROJECT = """
failed = []


@timed
def parse(number):
    data = bytes(5000)
    if number % {every} == {every} - 1:  # an odd input
        failed.append(bytearray(1_000_000))  # LEAK
    return len(data)
"""


def measure(*, every: tuple[int, ...] = (200, 1000), events: int = 30) -> dict[str, Any]:
    """
    Each in a separate worker, as fast as it runs.

    Args:
        every: One of this many runs leaks.
        events: Most leaking runs.
    """
    figures = {}
    for one in every:
        with Rig(PROJECT.format(every=one)) as rig:
            figures[str(one)] = until_named(
                rig, functools.partial(rig.run, "parse", one), most_runs=events * one, after_s=15.0
            )
    return figures


def held(figures: dict[str, Any]) -> bool:
    """Whether line, rate and holder were named, and nothing else."""
    return all(
        one["leaking"] is not None
        and one["row"]["holder"].endswith("failed")
        and abs(one["row"]["kept_bytes_per_run"] * int(every) / 1_000_057 - 1) <= 0.3
        and not one["strangers"]
        for every, one in figures.items()
    )


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, every=(200, 1000), events=30))
