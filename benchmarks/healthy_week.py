"""
Whether a healthy task is ever reported as leaking: 200 shapes of tasks, a week of their runs, judged at each look.

Simulated: runs are more frequent by day than by night, each shape retains and releases memory in its own way, samples
are drawn as by the sampler, and history and verdict are those of a process. The holder is found at once, and has a
bound only where real code has one that we recognize. A task that grows for more than ``trace_memory_recheck_runs`` runs
before it first releases anything looks like a leak until then, and is not among these shapes.

    python benchmarks/healthy_week.py [--days 7] [--shapes 200] [--json]
"""

from __future__ import annotations

import heapq
import itertools
import math
import multiprocessing
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import command
from celery_trace.heap.picks import Pick
from celery_trace.heap.survivors import HeapHistory
from celery_trace.heap.verdict import judge
from celery_trace.model import Holder, Verdict

#: Simulated seconds between two looks.
LOOK_S = 60.0
DAY_S = 86_400.0
#: Picks of a shape beyond which they are thinned out.
MOST_PICKS = 200
PLACE = ("/srv/shop/tasks.py", 7)
FOUND = Holder(path=["shop.tasks (module)", "_kept: dict[40]"], searched=True)

#: For a pick allocated in a run (from 1) at a time (seconds): the run and the time by which it is released.
Life = Callable[[int, float], tuple[float, float]]
_NEVER = math.inf


class TaskShape:
    """A task that keeps memory for a while."""

    def __init__(self, name: str, life: Life, holder: Holder = FOUND) -> None:
        self.name = name
        self.life = life
        self.holder = holder


def _transient(chooser: random.Random) -> TaskShape:
    mean = chooser.uniform(1, 30)
    return TaskShape(f"garbage for {mean:.0f} runs", lambda run, _: (run + chooser.expovariate(1 / mean), _NEVER))


def _ring(chooser: random.Random) -> TaskShape:
    length = round(math.exp(chooser.uniform(1, math.log(100))))
    return TaskShape(f"a ring of {length}", lambda run, _: (run + length, _NEVER))


def _sawtooth(chooser: random.Random) -> TaskShape:
    period = round(math.exp(chooser.uniform(math.log(5), math.log(100))))
    return TaskShape(f"a buffer of {period}", lambda run, _: ((run // period + 1) * period, _NEVER))


def _random_eviction(chooser: random.Random) -> TaskShape:
    size = round(math.exp(chooser.uniform(1, math.log(60))))
    return TaskShape(f"random eviction from {size}", lambda run, _: (run + chooser.expovariate(1 / size), _NEVER))


def _few_keys(chooser: random.Random) -> TaskShape:
    keys = chooser.randrange(2, 40)
    return TaskShape(
        f"a table of {keys} keys",
        lambda run, _: (_NEVER if chooser.random() < math.exp(-run / keys) else run, _NEVER),
    )


def _latest(_: random.Random) -> TaskShape:
    return TaskShape("the latest value", lambda run, _: (run + 1, _NEVER))


def _warm_up(chooser: random.Random) -> TaskShape:
    runs = chooser.randrange(1, 60)
    return TaskShape(f"{runs} runs of warming up", lambda run, _: (_NEVER if run <= runs else run, _NEVER))


def _bounded(chooser: random.Random) -> TaskShape:
    size = round(math.exp(chooser.uniform(math.log(50), math.log(50_000))))
    holder = Holder(path=FOUND.path, bound=f"lru_cache (?/{size})", searched=True)
    return TaskShape(f"a cache that says that it holds {size}", lambda run, _: (run + size, _NEVER), holder)


def _by_time(chooser: random.Random) -> TaskShape:
    for_s = chooser.uniform(5, 60)
    return TaskShape(f"kept for {for_s:.0f} s", lambda _, at_s: (_NEVER, at_s + for_s))


_KINDS = [_transient, _ring, _sawtooth, _random_eviction, _few_keys, _latest, _warm_up, _bounded, _by_time]


def week(number: int, days: float) -> tuple[str, str, str]:
    """One shape for a number of days: its name, its worst verdict, and why."""
    chooser = random.Random(number)
    shape = _KINDS[number % len(_KINDS)](chooser)
    by_day = 1.5 if shape.name.startswith("kept for") else math.exp(chooser.uniform(math.log(0.02), math.log(20)))
    picks_per_run = math.exp(chooser.uniform(math.log(0.05), math.log(2)))
    history = HeapHistory(lambda _: PLACE)
    history.begin({1: 0})
    serials = itertools.count(1)
    alive: list[tuple[float, float, Pick]] = []  # released by run and by time
    runs, halvings, worst = 0.0, 0, (Verdict.STEADY, "")
    for look in range(1, int(days * DAY_S / LOOK_S) + 1):
        now_s = look * LOOK_S
        rate = by_day * (0.55 + 0.45 * math.sin(2 * math.pi * now_s / DAY_S))
        before, runs = runs, runs + rate * LOOK_S
        for _ in range(_poisson(chooser, (runs - before) * picks_per_run / 2**halvings)):
            at = chooser.random()
            run, at_s = int(before + at * (runs - before)) + 1, now_s - (1 - at) * LOOK_S
            until_run, until_s = shape.life(run, at_s)
            if until_run > runs and until_s > now_s:
                pick = Pick(next(serials), 16, 1000, 4096.0 * 2**halvings, at_s, 1, run, look // 200, 0)
                heapq.heappush(alive, (until_run, until_s, pick))
        alive = [one for one in alive if one[0] > runs and one[1] > now_s]
        if len(alive) > MOST_PICKS:
            halvings += 1
            alive = [
                (run, at_s, pick._replace(weight=2 * pick.weight))
                for run, at_s, pick in alive
                if chooser.random() < 0.5
            ]
        history.look([pick for _, _, pick in alive], {1: int(runs)}, look // 200)
        for evidence in history.evidence().values():
            found = judge(evidence, shape.holder)
            if found.verdict is Verdict.LEAKING:
                return shape.name, "leaking", f"after {runs:.0f} runs: {found.why}, {evidence}"
            if found.verdict is Verdict.GROWING and worst[0] is Verdict.STEADY and not shape.holder.bound:
                worst = found.verdict, f"after {runs:.0f} runs: {found.why}"
    return shape.name, str(worst[0]), worst[1]


def _poisson(chooser: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chooser.gauss(mean, math.sqrt(mean))))
    count, product, limit = 0, chooser.random(), math.exp(-mean)
    while product > limit:
        count += 1
        product *= chooser.random()
    return count


def measure(*, days: float = 7.0, shapes: int = 200) -> dict[str, Any]:
    """How many shapes were ever reported as leaking, and how many as growing for a while."""
    with multiprocessing.Pool(2) as pool:
        found = pool.starmap(week, [(number, days) for number in range(shapes)])
    accused = [f"{name}: {why}" for name, verdict, why in found if verdict == "leaking"]
    growing = [f"{name}: {why}" for name, verdict, why in found if verdict == "growing"]
    return {"days": days, "shapes": shapes, "accused": accused, "growing_for_a_while": growing}


def held(figures: dict[str, Any]) -> bool:
    """Whether no healthy shape was ever reported as leaking."""
    return not figures["accused"]


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, days=7.0, shapes=200))
