"""
What the cases of the corpus really keep, by tracemalloc: ``python -m tests.support.corpus_proof``.

Prints JSON: of each leak the bytes that a run keeps at its marked lines, of each look-alike the most that it has kept
between run ``full_by`` and twice that, and in as many runs again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tracemalloc
from collections.abc import Iterable
from typing import Any

from tests.corpus import cases
from tests.corpus.app import app
from tests.corpus.cases import DECOYS, LEAKS, DecoyCase, LeakCase

#: Frames that lie between a line of the corpus and what a library allocates for it.
FRAMES = 12
#: Runs of a leak that are measured; fewer where a run keeps much.
RUNS, RUNS_OF_LARGE, LARGE_BYTES = 300, 30, 50_000
#: Looks at what a look-alike keeps, in each of the two times that are compared.
LOOKS = 10
FIRST_NUMBER = 10_000_000


def run(case: LeakCase | DecoyCase, number: int) -> None:
    """Run a task as a plain function."""
    task = app.tasks[case.task if isinstance(case, LeakCase) else case.name]
    with contextlib.suppress(*((ValueError, RuntimeError) if case.raises else ())):
        task.run(number)


def place_of(frames: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
    """The innermost line of the corpus; frames come innermost first."""
    corpus = str(cases.FOLDER)
    return next((frame for frame in frames if frame[0].startswith(corpus)), None)


def kept_by(case: LeakCase) -> float:
    """Bytes that a run keeps at the marked lines."""
    runs = RUNS_OF_LARGE if (case.kept_bytes or 0) > LARGE_BYTES else RUNS
    warm = case.begins_at + 100 * case.every if runs == RUNS else 10
    gc.freeze()  # so that collecting takes no time
    tracemalloc.start(FRAMES)
    for number in range(warm):
        run(case, FIRST_NUMBER + number)
    before = kept_at(case.lines)
    for number in range(warm, warm + runs):
        run(case, FIRST_NUMBER + number)
    after = kept_at(case.lines)
    tracemalloc.stop()
    return (after - before) / runs


def kept_at(lines: frozenset[tuple[str, int]]) -> int:
    """Bytes that are alive and were allocated at some lines."""
    gc.collect()
    # The raw traces: a snapshot's statistics would make an object of each frame first.
    traces: list[Any] = tracemalloc._get_traces()  # type: ignore[attr-defined]
    places: dict[Any, bool] = {}
    total = 0
    for _, size, frames, _ in traces:
        if frames not in places:
            places[frames] = place_of(frames) in lines
        total += size * places[frames]
    return total


def most_kept_by(case: DecoyCase) -> list[int]:
    """The most that was alive in the second and in the third part of its runs, bytes."""
    gc.freeze()
    tracemalloc.start(1)
    first = 0 if case.from_zero else FIRST_NUMBER
    most = [0, 0, 0]
    for number in range(3 * case.full_by):
        run(case, first + number)
        if number % max(1, case.full_by // LOOKS) == 0:
            gc.collect()
            part = number // case.full_by
            most[part] = max(most[part], tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return most[1:]


def main() -> None:
    """Measure all cases, or those that are named."""
    cases.load()
    names = sys.argv[1:]
    kept = {
        name: kept_by(case)
        for name, case in LEAKS.items()
        if case.kept_bytes is not None and (not names or name in names)
    }
    most = {name: most_kept_by(case) for name, case in DECOYS.items() if not names or name in names}
    print(json.dumps({"leaks": kept, "decoys": most}))


if __name__ == "__main__":
    main()
