"""What is kept by call stack: added up over stretches, bounded, and written when it has changed."""

from __future__ import annotations

from collections.abc import Iterable

from celery_trace.heap.picks import Pick, Stack
from celery_trace.heap.stacks import LEAST_BYTES, MOST_STACKS, KeptStacks
from celery_trace.text.code_owner import WRAPPERS, CodeOwner

OWN = "/srv/shop/tasks.py"
LIBRARY = "/usr/lib/site-packages/celery/app/trace.py"
WRAPPER = next(iter(WRAPPERS))
STACKS: dict[int, Stack] = {
    0: ((OWN, 10, "make"), (OWN, 4, "remember"), (LIBRARY, 1, "trace_task"), (WRAPPER, 5, "run"), (LIBRARY, 9, "pool")),
    1: ((LIBRARY, 2, "loads"), (OWN, 5, "remember"), (LIBRARY, 1, "trace_task")),
    2: ((LIBRARY, 3, "consume"),),
}


def pick(serial: int, weight: float, stack: int, tag: int = 1) -> Pick:
    known = {"serial": serial, "address": 16 * serial, "weight": weight, "tag": tag, "run": 1, "stack": stack}
    return Pick(**dict.fromkeys(Pick._fields, 0) | known)


def kept(stacks: dict[int, Stack] | None = None) -> KeptStacks:
    known = STACKS if stacks is None else stacks
    return KeptStacks(lambda number: known[number], CodeOwner(("/srv/shop/",)))


def see(watched: KeptStacks, *picks: Pick, replaced: Iterable[int] = ()) -> None:
    watched.look(picks, lambda one: one.stack in replaced)


def bytes_of(watched: KeptStacks, tag: int = 1) -> int:
    return dict(watched.changed({}))[tag].bytes


def test_a_stack_reaches_from_the_task_to_the_allocation() -> None:
    watched = kept()
    see(watched, pick(1, 9000, 0), pick(2, 6000, 1))
    table = dict(watched.changed({}))[1]
    names = [[table.frames[place].function for place in stack.frames] for stack in table.stacks]
    assert names == [["remember", "make"], ["remember", "loads"]]
    assert [stack.bytes for stack in table.stacks] == [9000, 6000]
    assert (table.bytes, table.other_bytes) == (15000, 0)


def test_where_no_frame_is_the_users_all_of_them_are_told() -> None:
    watched = kept()
    see(watched, pick(1, 9000, 2, tag=0))
    assert [line.function for line in dict(watched.changed({}))[0].frames] == ["consume"]


def test_what_stretches_have_shown_adds_up() -> None:
    watched = kept()
    see(watched, pick(1, 9000, 0))
    watched.end_stretch()
    see(watched, pick(2, 7000, 0))
    see(watched, pick(2, 8000, 0))  # a later look at the same stretch takes the place of the first
    assert bytes_of(watched) == 17000


def test_a_cache_that_replaces_its_values_does_not_grow_with_each_stretch() -> None:
    watched = kept()
    for _ in range(5):
        see(watched, pick(1, 9000, 0), replaced=(0,))
        watched.end_stretch()
    assert bytes_of(watched) == 9000


def test_the_smallest_stacks_are_summed_as_others() -> None:
    many = {number: ((OWN, number, "make"),) for number in range(MOST_STACKS + 30)}
    watched = kept(many)
    see(watched, *(pick(number + 1, 100.0 + number, number) for number in many))
    watched.end_stretch()
    table = dict(watched.changed({}))[1]
    assert len(table.stacks) == MOST_STACKS
    assert table.bytes == sum(100 + number for number in many)
    assert table.other_bytes == sum(100 + number for number in range(30))


def test_it_is_written_again_only_when_it_has_changed() -> None:
    watched = kept()
    see(watched, pick(1, LEAST_BYTES - 1, 0))
    assert dict(watched.changed({})) == {}
    see(watched, pick(1, 100_000, 0))
    assert bytes_of(watched) == 100_000
    see(watched, pick(1, 104_000, 0))
    assert dict(watched.changed({})) == {}
    see(watched, pick(1, 106_000, 0))
    assert bytes_of(watched) == 106_000
    see(watched, pick(1, 50_000, 0))
    assert bytes_of(watched) == 50_000


def test_runs_that_were_weighed_are_told_though_nothing_is_kept() -> None:
    watched = kept()
    assert [tag for tag, _ in watched.changed({3: {5: 10}})] == [3]
    assert dict(watched.changed({3: {5: 15}})) == {}
    assert [tag for tag, _ in watched.changed({3: {5: 16}})] == [3]
