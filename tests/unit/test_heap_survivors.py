"""Survivors by line and age, from looks at a made-up heap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import pytest

from celery_trace.heap.picks import Pick
from celery_trace.heap.survivors import HeapHistory, together
from celery_trace.model import Evidence

PLACE = ("/srv/shop/tasks.py", 7)
LOOK_EVERY = 20


class Heap:
    """A heap in which each run of task 1 makes one pick of 1,000 bytes; a rule says which of them are alive."""

    def __init__(self, history: HeapHistory) -> None:
        self.history = history
        self.run = 0
        self.alive: deque[Pick] = deque()
        history.begin({1: 0})

    def runs(self, count: int, keep: Callable[[deque[Pick]], Iterable[Pick]]) -> None:
        for _ in range(count):
            self.run += 1
            self.alive.append(Pick(self.run, 4096 * self.run, 1000, 1000.0, float(self.run), 1, self.run, 0, 5))
            self.alive = deque(keep(self.alive))
            if not self.run % LOOK_EVERY:
                self.look()

    def look(self, collections: int = 0, *, thinned: bool = False) -> None:
        self.history.look(list(self.alive), {1: self.run}, collections, thinned=thinned)

    @property
    def evidence(self) -> Evidence:
        return self.history.evidence()[1, PLACE]


def heap() -> Heap:
    return Heap(HeapHistory(lambda stack: PLACE if stack == 5 else None))


def everything(alive: deque[Pick]) -> Iterable[Pick]:
    return alive


def the_last(count: int) -> Callable[[deque[Pick]], Iterable[Pick]]:
    return lambda alive: list(alive)[-count:]


def test_a_leak_has_survivors_of_all_times_at_its_rate() -> None:
    one = heap()
    one.runs(400, everything)
    found = one.evidence
    assert (found.early, found.late) == (198, 199)
    assert found.bytes_per_run == 1000.0
    assert found.released == 0.0


def test_what_may_be_in_flight_does_not_count() -> None:
    one = heap()
    one.runs(400, the_last(3))
    assert (1, PLACE) not in one.history.evidence()


def test_a_queue_has_only_young_survivors_and_releases_what_it_takes() -> None:
    one = heap()
    one.runs(600, the_last(60))
    assert one.evidence.released > 0.9


def test_a_cache_that_fills_has_only_old_survivors() -> None:
    one = heap()
    one.runs(600, lambda alive: list(alive)[:50])
    found = one.evidence
    assert found.late == 0
    assert found.early == 50


def test_a_full_collection_proves_what_was_born_before() -> None:
    one = heap()
    one.runs(100, everything)
    assert one.evidence.proved == 0
    one.look(collections=1)
    assert one.evidence.proved == 97


def test_thinning_the_sample_out_is_no_release() -> None:
    one = heap()
    one.runs(200, everything)
    one.alive = deque(pick._replace(weight=2000.0) for pick in list(one.alive)[::2])
    one.look(thinned=True)
    assert one.evidence.released == 0.0
    assert one.evidence.bytes_per_run == pytest.approx(1000.0, rel=0.01)


def test_thinning_one_site_out_is_no_release_of_it_and_hides_none_of_another() -> None:
    two = HeapHistory(lambda stack: (PLACE[0], stack))
    two.begin({1: 0})
    picks = [Pick(run, 4096 * run, 1000, 1000.0, float(run), 1, run, 0, 5 + run % 2) for run in range(1, 101)]
    two.look(picks, {1: 110}, 0)
    thinned = [pick._replace(weight=2000.0) for pick in picks if pick.stack == 5][::2]
    freed = [pick for pick in picks if pick.stack == 6][::2]
    two.look([*thinned, *freed], {1: 110}, 0)
    found = two.evidence()
    assert found[1, (PLACE[0], 5)].released == 0.0
    assert found[1, (PLACE[0], 6)].released == pytest.approx(0.5)


def test_stretches_of_sampling_add_up() -> None:
    one = heap()
    one.runs(100, everything)
    one.run += 500  # while nothing was sampled
    one.alive.clear()
    one.history.begin({1: one.run})
    one.runs(100, everything)
    found = one.evidence
    assert found.runs == 2 * 97
    assert found.bytes_per_run == 1000.0


def test_a_leak_that_begins_late_is_seen_from_then_on() -> None:
    one = heap()
    one.runs(400, lambda alive: [])
    one.runs(100, everything)
    assert one.evidence.early > 30
    assert one.evidence.late > 30


def test_what_is_not_to_be_judged_is_left_out() -> None:
    one = heap()
    one.alive = deque([Pick(1, 16, 8, 8.0, 0.0, 1, 1, 0, stack=6)])
    one.run = 50
    one.look()
    assert one.history.evidence() == {}


def test_processes_add_up_to_one_evidence() -> None:
    children = [Evidence(runs=7, early=3, late=3, bytes=6000.0, picks=6) for _ in range(20)]
    total = together(children)
    assert (total.runs, total.early, total.late, total.bytes_per_run) == (140, 60, 60, 120_000 / 140)
    assert together([]) == Evidence()


def test_a_container_that_grows_is_no_release_of_what_it_holds() -> None:
    one = heap()
    for run in range(1, 200):
        one.run = run
        one.alive.append(Pick(2 * run, 4096 * run, 100, 4096.0, float(run), 1, run, 0, 5))
        buffers = [pick for pick in one.alive if pick.resized]
        for pick in buffers[:-3]:
            one.alive.remove(pick)
        one.alive.append(Pick(2 * run + 1, 16, 800 * run, 4096.0, float(run), 1, run, 0, 5, resized=1))
        if not run % LOOK_EVERY:
            one.look()
    assert one.evidence.released == 0.0


def test_a_buffer_that_grows_and_is_emptied_is_released() -> None:
    one = heap()
    for run in range(1, 200):
        one.run = run
        one.alive.append(Pick(run, 16, 800 * run, 4096.0, float(run), 1, run, 0, 5, resized=1))
        if not run % 20:
            one.alive.clear()
        if not run % 7:
            one.look()
    assert one.evidence.released > 0.5
