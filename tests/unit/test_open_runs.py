"""The runs in progress: the extension module and what takes its place do the same."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.model import Histogram
from celery_trace.process import open_runs
from celery_trace.process.open_runs import (
    ADDED,
    COUNT,
    MOST_PLACES,
    NEXT_PERIOD,
    OUTLIER,
    PLACE,
    SCATTERED,
    PlainCounts,
    PlainOpenRuns,
)
from tests.support.requirements import lacking

WAYS = ["extension", "plain"]


def made_by(way: str) -> tuple[Any, Any]:
    """Runs and the counts of a task."""
    if way == "plain":
        return PlainOpenRuns(), PlainCounts(b"\0task\0shop.pay")
    if open_runs.OpenRuns is PlainOpenRuns:
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")
    return open_runs.OpenRuns(), open_runs.Counts(b"\0task\0shop.pay")


@pytest.fixture(params=WAYS)
def made(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    runs, counts = made_by(request.param)
    now_s = itertools.count(100.0, 0.5)
    runs.now, runs.monotonic = lambda: 1_000.0, lambda: next(now_s)
    counts.take(2_000.0)
    counts.scatter_due_s = math.inf
    return runs, counts


def place(buffer: bytearray, number: int = 0) -> tuple[Any, ...]:
    return PLACE.unpack_from(buffer, number * PLACE.size)


def test_a_run_is_noted_while_it_lasts_and_counted_at_its_end(made: tuple[Any, Any]) -> None:
    runs, counts = made
    buffer = bytearray(MOST_PLACES * PLACE.size)
    runs.write_to(buffer)
    token = runs.begin(counts, "id-1", 2)
    taken, at_s, thread, retries, text = place(buffer)
    assert (taken, at_s, thread, retries) == (1, 1_000.0, threading.get_ident(), 2)
    assert text.rstrip(b"\0") == b"id-1\0task\0shop.pay"
    assert (runs.count, runs.latest, runs.ended) == (1, counts, 0)
    assert runs.in_progress() == [(threading.get_ident(), token)]
    assert runs.end(token, True, False) == ADDED
    assert not place(buffer)[0]
    assert (runs.count, runs.latest, runs.in_progress(), runs.ended) == (0, None, [], 1)
    assert counts.dirty
    durations = [0] * Histogram.BUCKETS
    durations[Histogram.bucket(0.5)] = 1
    assert counts.read() == (1, 1, 0, 0.5, 0.5, durations)
    runs.write_to(None)


def test_the_number_of_ended_runs_is_written_before_the_places(made: tuple[Any, Any]) -> None:
    runs, counts = made
    runs.end(runs.begin(counts, "before the box", 0), False, False)
    buffer = bytearray(COUNT.size + MOST_PLACES * PLACE.size)
    runs.write_to(buffer, COUNT.size)
    assert COUNT.unpack_from(buffer) == (1,)
    runs.end(runs.begin(counts, "id", 0), False, False)
    assert COUNT.unpack_from(buffer) == (2,)
    runs.write_to(None)


def test_a_run_that_is_forgotten_in_the_buffer_is_released(made: tuple[Any, Any]) -> None:
    runs, counts = made
    runs.write_to(bytearray(MOST_PLACES * PLACE.size))
    token = runs.begin(counts, "id", 0)
    token.origin = request = type("Request", (), {})()
    released = weakref.ref(request)
    del token, request
    runs.write_to(None)
    gc.collect()
    assert released() is None
    assert runs.in_progress() == []


def test_what_a_task_has_to_say_is_said_once_more_at_the_end(made: tuple[Any, Any]) -> None:
    runs, counts = made
    said: list[object] = []
    runs.enter = lambda tag: said.append(("enter", tag)) or 7
    runs.leave = lambda before: said.append(("leave", before))
    counts.tag = 3
    outer, inner = runs.begin(counts, "id", 0), runs.begin(counts, "id", 0)
    runs.end(inner, False, False)
    runs.end(outer, False, False)
    assert said == [("enter", 3), ("enter", 3), ("leave", 7), ("leave", 0)]


def test_after_coroutines_that_overlap_the_thread_is_in_no_run(made: tuple[Any, Any]) -> None:
    runs, counts = made
    tag = 0

    def enter(new: int) -> int:
        nonlocal tag
        before, tag = tag, new
        return before

    def leave(before: int) -> None:
        nonlocal tag
        tag = before

    runs.enter, runs.leave, counts.tag = enter, leave, 3
    first, second = runs.begin(counts, "first", 0), runs.begin(counts, "second", 0)
    runs.end(first, False, False)
    runs.end(second, False, False)
    assert tag == 0


def test_a_run_after_the_period_is_counted_once_a_new_one_has_begun(made: tuple[Any, Any]) -> None:
    runs, counts = made
    counts.take(900.0)
    token = runs.begin(counts, "id", 0)
    assert runs.end(token, False, True) == NEXT_PERIOD
    assert counts.take(1_200.0)[0] == 0
    assert runs.add(token, False, True) == ADDED
    assert counts.take(1_500.0)[:3] == (1, 0, 1)
    assert (counts.read()[0], counts.dirty, counts.ends_at_s) == (0, False, 1_500.0)


def test_what_is_slow_or_due_is_to_be_written_by_itself(made: tuple[Any, Any]) -> None:
    runs, counts = made
    counts.scatter_due_s = 0.0
    assert runs.end(runs.begin(counts, "id", 0), False, False) == SCATTERED
    counts.slow_bucket = Histogram.bucket(0.5)
    assert runs.end(runs.begin(counts, "id", 0), False, False) == OUTLIER


def test_a_run_is_missed_if_it_ends_while_a_sample_is_overdue(made: tuple[Any, Any]) -> None:
    runs, counts = made
    runs.write_to(bytearray(MOST_PLACES * PLACE.size))
    for due_s, is_missed in ((99.9, False), (101.2, True), (102.6, False), (math.inf, False)):
        runs.due_s = due_s  # runs last from 100.0 to 100.5, from 101.0 to 101.5 and so on
        token = runs.begin(counts, "id", 0)
        runs.end(token, False, False)
        assert runs.take_missed() == ([(threading.get_ident(), token)] if is_missed else [])
    for due_s in range(200, 200 + MOST_PLACES + 3):
        now_s = itertools.count(due_s - 0.1, 0.5)
        runs.due_s, runs.monotonic = due_s, now_s.__next__
        runs.end(runs.begin(counts, "id", 0), False, False)
    assert len(runs.take_missed()) == MOST_PLACES
    runs.write_to(None)


def test_a_run_inside_of_another_has_no_place_and_more_than_fit_have_none(made: tuple[Any, Any]) -> None:
    runs, counts = made
    buffer = bytearray(MOST_PLACES * PLACE.size)
    runs.write_to(buffer)
    outer, inner = runs.begin(counts, "outer", 0), runs.begin(counts, "inner", 0)
    assert inner.shared == 2
    assert not place(buffer, 1)[0]
    runs.end(inner, False, False)
    assert place(buffer)[0]
    runs.end(outer, False, False)
    threads = itertools.count(1)
    runs.ident = lambda: next(threads)
    tokens = [runs.begin(counts, f"id-{number}", 0) for number in range(MOST_PLACES + 3)]
    assert [thread for thread, _ in runs.in_progress()] == list(range(1, MOST_PLACES + 1))
    assert runs.most == MOST_PLACES + 3
    for token in tokens:
        runs.end(token, False, False)
    assert not any(place(buffer, number)[0] for number in range(MOST_PLACES))
    runs.write_to(None)


def test_a_run_of_other_runs_takes_no_place_of_these(made: tuple[Any, Any]) -> None:
    runs, counts = made
    others = type(runs)()
    buffer = bytearray(MOST_PLACES * PLACE.size)
    runs.write_to(buffer)
    here, elsewhere = runs.begin(counts, "here", 0), others.begin(counts, "elsewhere", 0)
    runs.end(elsewhere, False, False)
    assert (runs.count, bool(place(buffer)[0])) == (1, True)
    runs.end(here, False, False)
    runs.write_to(None)


def test_a_buffer_without_room_is_refused(made: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="too small"):
        made[0].write_to(bytearray(PLACE.size))


@given(task_id=st.text(max_size=600), retries=st.integers(-(2**31), 2**31 - 1), name=st.text(max_size=600))
def test_any_words_are_noted_alike(task_id: str, retries: int, name: str) -> None:
    noted = []
    for way in WAYS:
        runs, _ = made_by(way)
        runs.now = lambda: 1.0
        counts = (PlainCounts if way == "plain" else open_runs.Counts)(name.encode("utf-8", "replace"))
        buffer = bytearray(MOST_PLACES * PLACE.size)
        runs.write_to(buffer)
        runs.begin(counts, task_id, retries)
        noted.append(bytes(buffer))
        runs.write_to(None)
    assert noted[0] == noted[1]


@given(duration_s=st.floats(0.0, 1e12))
def test_durations_fall_into_the_same_buckets(duration_s: float) -> None:
    found = []
    for way in WAYS:
        runs, counts = made_by(way)
        times = iter([0.0, duration_s])
        runs.monotonic = lambda times=times: next(times)
        counts.take(math.inf)
        runs.end(runs.begin(counts, "id", 0), False, False)
        found.append(counts.read())
    assert found[0] == found[1]
