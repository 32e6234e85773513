"""Runs by tag, over stretches of sampling and the pauses between them."""

from __future__ import annotations

from celery_trace.heap.picks import UNTAGGED, Pick
from celery_trace.heap.run_counts import PROCESS_RUN_S, RunCounts
from celery_trace.heap.tags import PROCESS, TagTable
from celery_trace.model import Kind


class Runs:
    """Two tasks whose runs are set by hand."""

    def __init__(self) -> None:
        tags = TagTable()
        self.pay, self.ship = tags.add(Kind.TASK, "pay"), tags.add(Kind.TASK, "ship")
        self.begun = {self.pay: 0, self.ship: 0}
        self.counts = RunCounts(self.begun.__getitem__, tags, began_s=100.0)

    def now(self, pay: int, ship: int = 0) -> dict[int, int]:
        self.begun.update({self.pay: pay, self.ship: ship})
        return self.counts.now(100.0)


def born_at(born_s: float, tag: int, run: int = 0) -> Pick:
    return Pick(**dict.fromkeys(Pick._fields, 0) | {"born_s": born_s, "tag": tag, "run": run})


def test_tags_begin_with_the_process_and_are_found_again() -> None:
    tags = TagTable()
    assert tags.find(Kind.TASK, "pay") is None
    tag = tags.add(Kind.TASK, "pay")
    assert tags.find(Kind.TASK, "pay") == tag
    assert tags.find(Kind.BLOCK, "pay") is None
    assert tags.name_of(tag) == (Kind.TASK, "pay")
    assert tags.name_of(UNTAGGED) == (Kind.PROCESS, PROCESS)
    assert list(tags.all_but_process()) == [tag]


def test_the_process_itself_runs_by_the_clock() -> None:
    counts = Runs().counts
    assert counts.now(100.0 + 7.5 * PROCESS_RUN_S)[UNTAGGED] == 7


def test_picks_outside_of_tasks_are_positioned_by_their_time_of_birth() -> None:
    picks = [born_at(100.0 + 3 * PROCESS_RUN_S, UNTAGGED), born_at(90.0, UNTAGGED), born_at(300.0, 1, run=5)]
    assert [pick.run for pick in Runs().counts.positioned(picks)] == [3, 0, 5]


def test_runs_in_a_pause_are_not_observed() -> None:
    runs = Runs()
    runs.counts.begin_stretch(runs.now(10))
    assert runs.counts.in_stretch(runs.pay, runs.now(16)) == 6
    assert runs.counts.unobserved(runs.pay, runs.now(16)) == 10
    runs.counts.end_stretch(runs.now(16))
    assert runs.counts.in_stretch(runs.pay, runs.now(20)) == 0
    assert (runs.counts.earlier(runs.pay), runs.counts.unobserved(runs.pay, runs.now(20))) == (6, 14)
    runs.counts.begin_stretch(runs.now(20))
    runs.counts.end_stretch(runs.now(25))
    assert runs.counts.earlier(runs.pay) == 11


def test_a_stretch_whose_sample_is_lost_is_not_observed() -> None:
    runs = Runs()
    runs.counts.begin_stretch(runs.now(0))
    runs.counts.begin_stretch(runs.now(50))
    assert (runs.counts.earlier(runs.pay), runs.counts.in_stretch(runs.pay, runs.now(52))) == (0, 2)


def test_runs_per_task_is_the_mean_of_the_tasks_that_ran() -> None:
    runs = Runs()
    assert runs.counts.per_task(runs.now(10)) == 0.0
    runs.counts.begin_stretch(runs.now(10))
    assert runs.counts.per_task(runs.now(30)) == 20.0
    assert runs.counts.per_task(runs.now(30, 40)) == 30.0
