"""
A leak in a process that has loaded a million objects and gets a fifth of a core: is it named, and how long are pauses?

The worker loads the objects when it imports its tasks. Its children and its main process get 0.2 of a core together. A
pause is the CPU time that other threads took while a task ran; on a fifth of a core it lasts five times as long.

    python benchmarks/big_heap.py [--objects 1000000] [--share 0.2] [--most-runs 1500] [--json]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, share_of_a_core, until_named

PROJECT = """
CATALOGUE = {{number: [number, str(number)] for number in range({objects} // 2)}}
kept = []


@timed
def leaking(number):
    time.sleep(0.005)
    kept.append([number] * 2500)  # LEAK


@timed
def innocent(number):
    time.sleep(0.02)
    return sum(number for number in range(5000))
"""
GOAL_S = 0.2


def measure(*, objects: int = 1_000_000, share: float = 0.2, most_runs: int = 1500) -> dict[str, Any]:
    """
    A leak of 20 KB a run next to a task that doesn't leak.

    Args:
        objects: Loaded at import; a list and a text for each key.
        share: Of one core.
        most_runs: Of both tasks together.
    """
    figures: dict[str, Any] = {"objects": objects, "share": share}
    for name, on in (("off", False), ("on", True)):
        with Rig(PROJECT.format(objects=objects), plugin=on) as rig:

            def some(rig: Rig = rig) -> None:
                for _ in range(10):
                    rig.send("leaking", 1)
                    rig.send("innocent", 1)
                rig.wait()

            with share_of_a_core(rig.worker.family(), share) as way:
                if on:
                    figures["way"] = way
                    figures |= until_named(rig, some, most_runs=most_runs, after_s=30.0)
                else:
                    while rig.sent < min(300, most_runs):
                        some()
            runs = rig.run_times()
            figures[name] = {
                "longest_s": max(took for task, took, _ in runs if task == "innocent"),
                "longest_pause_cpu_s": max(others for _, _, others in runs),
            }
    return figures


def held(figures: dict[str, Any]) -> bool:
    """Whether the leak was named with its holder and no pause exceeded the goal."""
    if figures["leaking"] is None or not figures["row"]["holder"].endswith("kept") or figures["strangers"]:
        return False
    return figures["on"]["longest_pause_cpu_s"] / figures["share"] <= GOAL_S


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, objects=1_000_000, share=0.2, most_runs=1500))
