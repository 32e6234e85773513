"""
The cost of idle children: the CPU time of sixteen of them and of the collector over two minutes.

A worker without celery-trace and one with it run at the same time without tasks.

    python benchmarks/idle.py [--children 16] [--seconds 120] [--json]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, cpu_s

#: Warm-up, seconds.
SETTLE_S = 15.0
GOAL_CHILD, GOAL_COLLECTOR = 0.0005, 0.002


def measure(*, children: int = 16, seconds: float = 120.0) -> dict[str, Any]:
    """
    Shares of a core that idle processes take.

    Args:
        children: Of each worker.
        seconds: The measured time.
    """
    project = "\n@timed\ndef nothing(number):\n    pass\n"
    with (
        Rig(project, plugin=False, concurrency=children) as bare,
        Rig(project, concurrency=children, settings={"collector": "1"}) as traced,
    ):
        time.sleep(SETTLE_S)
        processes = {
            "bare": bare.children(),
            "child": traced.children(),
            "collector": traced.collector(),
        }
        before_s = {name: [cpu_s(one) for one in some] for name, some in processes.items()}
        began_s = time.monotonic()
        time.sleep(seconds)
        lasted_s = time.monotonic() - began_s
        shares = {
            name: [(cpu_s(one) - before) / lasted_s for one, before in zip(some, before_s[name], strict=True)]
            for name, some in processes.items()
        }
    return {
        "children": children,
        "seconds": seconds,
        **{name: {"mean": statistics.mean(some), "most": max(some)} for name, some in shares.items()},
    }


def held(figures: dict[str, Any]) -> bool:
    """Whether children and collector are within the goals."""
    return figures["child"]["mean"] <= GOAL_CHILD and figures["collector"]["mean"] <= GOAL_COLLECTOR


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, children=16, seconds=120.0))
