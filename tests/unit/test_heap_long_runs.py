"""Runs that last are judged by themselves, with slices of time in place of runs."""

from __future__ import annotations

from celery_trace.heap.long_runs import LONG_S, SLICE_S, LongRuns, is_of_long_run, task_of
from celery_trace.heap.picks import UNTAGGED, Pick

TAG = 7


def pick(born_s: float, run: int, tag: int = TAG) -> Pick:
    return Pick(int(born_s * 10), 0, 1000, 1000.0, born_s, tag, run, 0, 0)


def test_a_run_in_flight_for_long_has_a_tag_of_its_own_and_slices_of_time() -> None:
    runs = LongRuns()
    young, old = pick(LONG_S + 5.0, run=10), pick(5.0, run=10)
    first, second = runs.look([old, young], {TAG: 10}, 3, now_s=LONG_S + 6.0)
    assert is_of_long_run(first.tag)
    assert task_of(first.tag) == TAG
    assert (first.run, second.run) == (1, int(LONG_S / SLICE_S))
    assert runs.slices(LONG_S + 6.0) == {first.tag: int((LONG_S + 1.0) / SLICE_S)}
    assert runs.lasted_s(first.tag, LONG_S + 6.0) == LONG_S + 1.0


def test_short_runs_what_ended_runs_keep_and_what_no_task_allocates_stay_as_they_are() -> None:
    picks = [pick(1.0, run=10), pick(1.0, run=2), pick(1.0, run=0, tag=UNTAGGED)]
    assert LongRuns().look(picks, {TAG: 10}, 3, now_s=LONG_S) == picks
    ended = [pick(1.0, run=2), pick(1.0, run=0, tag=UNTAGGED)]
    assert LongRuns().look(ended, {TAG: 10}, 3, now_s=900.0) == ended


def test_once_enough_runs_have_followed_a_long_run_is_a_run_as_any_other() -> None:
    runs = LongRuns()
    (long,) = runs.look([pick(0.0, run=1)], {TAG: 1}, 3, now_s=60.0)
    (now,) = runs.look([pick(0.0, run=1)], {TAG: 4}, 3, now_s=70.0)
    assert (now.tag, now.run) == (TAG, 1)
    assert runs.slices(70.0) == {}
    assert runs.lasted_s(long.tag, 70.0) == 0.0
