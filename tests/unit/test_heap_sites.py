"""Which sites of a process get a row, and whose holders are searched for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from celery_trace.heap import sites
from celery_trace.heap.long_runs import LEAST_BYTES as LEAST_BYTES_OF_LONG_RUN
from celery_trace.heap.long_runs import is_of_long_run, task_of
from celery_trace.heap.picks import UNTAGGED, Pick
from celery_trace.heap.places import Places
from celery_trace.heap.retainers import Found
from celery_trace.heap.sites import (
    LARGE_BYTES,
    MOST_BLOCKS,
    MOST_SITES_AT_END,
    URGENT_RUNS,
    YOUNGEST_BLOCKS,
    SiteTable,
    blocks_of,
    urgent_tags,
)
from celery_trace.heap.survivors import Key
from celery_trace.model import Evidence, Holder, Verdict
from celery_trace.text.code_owner import CodeOwner

OWN = "/srv/shop/tasks.py"
LIBRARY = "/usr/lib/site-packages/kombu/message.py"
PAY: Key = (1, (OWN, 10))
LONG: Key = (1 + (1 << 16), (OWN, 10))
GROWS = Evidence(runs=100, early=48, late=48, bytes=100_000.0, picks=200)
STEADY = Evidence(runs=100, early=60, late=0, bytes=100_000.0, picks=200)
FEW = Evidence(runs=3, early=1, late=2, bytes=100_000.0, picks=9)
HELD = Found(Holder(path=["shop (module)", "_orders: dict[90]", "list × 90"], searched=True))


def table(*, runs_nothing: bool = False) -> SiteTable:
    return SiteTable(CodeOwner(("/srv/shop/",)), 120, runs_nothing=runs_nothing)


def pick(serial: int, run: int) -> Pick:
    return Pick(**dict.fromkeys(Pick._fields, 0) | {"serial": serial, "address": 16 * serial, "size": 8, "run": run})


def tags(evidence: dict[Key, Evidence], *, last: bool = False, runs_nothing: bool = False) -> set[int]:
    known = table(runs_nothing=runs_nothing)
    known.add(evidence, lambda _: (), last=last)
    return known.tags()


def test_what_grows_gets_a_row_and_what_is_steady_or_small_none() -> None:
    assert tags({PAY: GROWS}) == {1}
    assert tags({PAY: STEADY}) == set()
    assert tags({PAY: Evidence(runs=100, early=48, late=48, bytes=4_000.0, picks=99)}) == set()
    assert tags({PAY: Evidence(runs=10_000, early=48, late=48, bytes=100_000.0, picks=99)}) == set()


def test_too_few_runs_count_only_when_the_process_ends() -> None:
    assert tags({PAY: FEW}) == set()
    assert tags({PAY: FEW}, last=True) == {1}


def test_at_the_end_only_the_largest_sites_are_judged() -> None:
    evidence = {(number, (OWN, number)): GROWS for number in range(1, 40)}
    assert len(tags(evidence)) == 39
    assert len(tags(evidence, last=True)) == MOST_SITES_AT_END


def test_a_long_run_gets_a_row_from_a_larger_size_on() -> None:
    assert is_of_long_run(LONG[0])
    assert task_of(LONG[0]) == 1
    assert tags({LONG: GROWS}) == set()
    large = Evidence(runs=100, early=48, late=48, bytes=float(LEAST_BYTES_OF_LONG_RUN), picks=200)
    assert tags({LONG: large}) == {LONG[0]}


def test_only_a_process_without_tasks_reports_what_is_large_and_steady() -> None:
    large = {(UNTAGGED, (LIBRARY, 5)): Evidence(runs=100, early=60, late=0, bytes=float(LARGE_BYTES), picks=200)}
    assert tags(large) == set()
    assert tags(large, runs_nothing=True) == {UNTAGGED}


def test_outside_of_tasks_a_suspicion_is_not_reported() -> None:
    evidence = {PAY: GROWS, (UNTAGGED, (OWN, 7)): GROWS}
    known = table()
    known.add(evidence, lambda _: (), last=False)
    assert [(key, site.judgement.verdict) for key, site in known.judge(evidence)] == [(PAY, Verdict.SUSPECT)]


def test_lines_of_a_library_with_the_same_holder_are_reported_once() -> None:
    large = Evidence(runs=100, early=60, late=0, bytes=float(LARGE_BYTES), picks=200)
    larger = Evidence(runs=100, early=60, late=0, bytes=2.0 * LARGE_BYTES, picks=200)
    evidence = {(UNTAGGED, (LIBRARY, 5)): large, (UNTAGGED, (LIBRARY, 6)): larger, (UNTAGGED, (OWN, 7)): large}
    known = table(runs_nothing=True)
    known.add(evidence, lambda _: (), last=False)
    known.found(dict.fromkeys(evidence, HELD))
    assert [key[1] for key, _ in known.judge(evidence)] == [(LIBRARY, 6), (OWN, 7)]


def test_a_growing_site_is_searched_once_and_again_after_twice_the_runs() -> None:
    known, alive = table(), {PAY: [pick(1, 1), pick(2, 2)]}
    known.add({PAY: GROWS}, lambda _: (), last=False)
    assert list(known.judge({PAY: GROWS}))
    assert known.to_search({PAY: GROWS}, alive, last=False, waits=False) == {PAY: [(32, 8), (16, 8)]}
    assert known.to_search({PAY: GROWS}, alive, last=False, waits=False) == {}
    later = Evidence(runs=200, early=48, late=48, bytes=100_000.0, picks=200)
    assert known.to_search({PAY: later}, alive, last=False, waits=False).keys() == {PAY}


def test_after_an_expensive_search_only_an_urgent_site_is_searched() -> None:
    known, alive = table(), {PAY: [pick(1, 1)]}
    known.add({PAY: GROWS}, lambda _: (), last=False)
    assert list(known.judge({PAY: GROWS}))
    assert known.to_search({PAY: GROWS}, alive, last=False, waits=True) == {}
    urgent = Evidence(runs=100, early=48, late=48, bytes=100.0 * 2**20, picks=200)
    assert known.to_search({PAY: urgent}, alive, last=False, waits=True).keys() == {PAY}


def test_a_task_is_urgent_in_its_first_runs_if_they_seem_to_retain_megabytes() -> None:
    huge = Evidence(runs=4, early=2, late=2, bytes=4 * 7.6 * 2**20, picks=99)
    assert urgent_tags({PAY: GROWS, (2, (OWN, 11)): huge}) == {2}
    assert urgent_tags({(UNTAGGED, (OWN, 11)): huge, LONG: huge}) == set()
    released = Evidence(runs=4, early=2, late=2, bytes=4 * 7.6 * 2**20, picks=99, released=0.9)
    later = Evidence(runs=URGENT_RUNS, early=8, late=8, bytes=URGENT_RUNS * 7.6 * 2**20, picks=99)
    assert urgent_tags({PAY: released}) == urgent_tags({PAY: later}) == set()


def test_a_site_without_survivors_is_not_searched() -> None:
    known = table()
    known.add({PAY: GROWS}, lambda _: (), last=False)
    assert list(known.judge({PAY: GROWS}))
    assert known.to_search({PAY: GROWS}, {}, last=False, waits=False) == {}


@pytest.mark.parametrize("number", [0, 3, 24, 25, 26, 500])
def test_a_search_starts_from_the_youngest_blocks_and_some_of_all_ages(number: int) -> None:
    blocks = blocks_of(pick(serial, run) for serial, run in enumerate(range(number), 1))
    youngest = [(16 * serial, 8) for serial in range(number, max(0, number - YOUNGEST_BLOCKS), -1)]
    assert blocks[:YOUNGEST_BLOCKS] == youngest
    assert len(blocks) == len(set(blocks)) <= YOUNGEST_BLOCKS + MOST_BLOCKS
    assert len(blocks) >= min(number, MOST_BLOCKS // 2)


def test_a_search_starts_from_one_block_of_each_run() -> None:
    assert blocks_of([pick(1, 1), pick(2, 1), pick(3, 1), pick(4, 2)]) == [(64, 8), (48, 8)]


def test_a_stack_belongs_to_its_innermost_own_line_and_ours_to_nobody() -> None:
    read: list[int] = []
    stacks = {
        1: ((LIBRARY, 2, "loads"), (OWN, 5, "remember"), (OWN, 9, "pay")),
        2: ((LIBRARY, 3, "consume"),),
        3: ((str(sites.__file__), 3, "add"),),
        4: (),
    }

    def stack_of(number: int) -> tuple[tuple[str, int, str], ...]:
        read.append(number)
        return stacks[number]

    places = Places(stack_of, CodeOwner(("/srv/shop/",)))
    assert [places.of(number) for number in (1, 2, 3, 4, 1)] == [(OWN, 5), (LIBRARY, 3), None, None, (OWN, 5)]
    assert read == [1, 2, 3, 4]
    places.clear()
    stacks[1] = stacks[2]
    assert places.of(1) == (LIBRARY, 3)


def test_a_line_of_a_library_is_covered_by_an_own_line_of_the_same_task_and_holder() -> None:
    other_task = (2, (LIBRARY, 5))
    evidence = dict.fromkeys([PAY, (1, (LIBRARY, 5)), other_task], GROWS)
    known = table()
    known.add(evidence, lambda _: (), last=False)
    known.found(dict.fromkeys(evidence, HELD))
    assert {key for key, _ in known.judge(evidence)} == {PAY, other_task}


def test_small_objects_in_a_holder_that_another_task_fills_are_that_tasks() -> None:
    reused = Found(replace(HELD.holder, recycled=True))
    other, both = (2, (OWN, 20)), (3, (OWN, 30))
    for holders, expected in (
        ({PAY: HELD, other: reused}, {PAY: False, other: True}),
        ({PAY: reused, other: reused}, {PAY: False, other: False}),
        ({PAY: HELD, other: reused, both: HELD, (3, (OWN, 31)): reused}, {PAY: False, other: True, both: False}),
    ):
        evidence = dict.fromkeys(holders, GROWS)
        known = table()
        known.add(evidence, lambda _: (), last=False)
        known.found(holders)
        found = dict(known.judge(evidence))
        assert {key: found[key].holder.of_another_task for key in expected} == expected
        assert (found[other].judgement.verdict is Verdict.STEADY) is expected[other]
        if both in found:
            assert not found[3, (OWN, 31)].holder.of_another_task


def test_before_it_is_called_a_leak_an_old_holder_is_searched_again() -> None:
    known, alive = table(), {PAY: [pick(1, 1), pick(2, 2)]}
    known.add({PAY: GROWS}, lambda _: (), last=False)
    assert list(known.judge({PAY: GROWS}))
    known.to_search({PAY: GROWS}, alive, last=False, waits=False)
    known.found({PAY: HELD})
    later = Evidence(runs=180, early=80, late=80, bytes=100_000.0, picks=200)
    ((_, site),) = known.judge({PAY: later})
    assert (site.judgement.verdict, site.judgement.waits_for) == (Verdict.GROWING, "another search for its holder")
    assert known.to_search({PAY: later}, alive, last=False, waits=False).keys() == {PAY}
    known.found({PAY: HELD})
    ((_, site),) = known.judge({PAY: later})
    assert site.judgement.verdict is Verdict.LEAKING
    assert not site.holder.outdated


def test_a_search_during_which_the_block_was_replaced_does_not_forget_the_holder() -> None:
    text = Evidence(runs=100, early=10, late=10, bytes=100_000.0, picks=20, one_block=True)
    nowhere = Found(Holder(searched=True, why="no module, class or thread refers to it"))
    for evidence, path in ((text, HELD.holder.path), (GROWS, [])):
        known = table()
        known.add({PAY: evidence}, lambda _: (), last=False)
        assert list(known.judge({PAY: evidence}))
        known.found({PAY: HELD})
        known.found({PAY: nowhere})
        ((_, site),) = known.judge({PAY: evidence})
        assert site.holder.path == path
