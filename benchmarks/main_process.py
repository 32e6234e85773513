"""
A leak in the worker's main process: a receiver of ``task_received`` keeps messages. Is its line named, and when?

    python benchmarks/main_process.py [--most-s 900] [--per-s 20] [--json]
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import Rig, command, until_named

PROJECT = """
from celery.signals import task_received

seen = []


@task_received.connect
def note(request=None, **_):
    seen.append({"body": request.id * 100})  # LEAK


@timed
def work(number):
    return sum(range(100))
"""


def measure(*, most_s: float = 900.0, per_s: float = 20.0) -> dict[str, Any]:
    """
    About four kilobytes for each message.

    Args:
        most_s: Time limit. Code without a task is judged by periods of some seconds.
        per_s: Messages a second.
    """
    with Rig(PROJECT) as rig:
        for_a_second = functools.partial(rig.run, "work", int(per_s), per_s)
        return until_named(rig, for_a_second, most_runs=int(most_s * per_s), after_s=10.0)


def held(figures: dict[str, Any]) -> bool:
    """Whether line and holder were named, and nothing else."""
    return figures["leaking"] is not None and figures["row"]["holder"].endswith("seen") and not figures["strangers"]


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, most_s=900.0, per_s=20.0))
