"""One block that grows, from looks at a made-up heap."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from celery_trace.heap.growing_blocks import MOST_STEPS, GrowingBlock
from celery_trace.heap.picks import Pick
from celery_trace.heap.survivors import HeapHistory
from celery_trace.heap.verdict import judge
from celery_trace.model import Evidence, Holder, Verdict

PLACE = ("/srv/shop/tasks.py", 7)
FOUND = Holder(path=["shop.tasks (module)", "_log: str"], searched=True)


class Heap:
    """A heap in which one line of task 1 has the blocks that a test gives for each look."""

    def __init__(self) -> None:
        self.history = HeapHistory(lambda _: PLACE)
        self.history.begin({1: 0})
        self.run = 0
        self._serials = itertools.count(1)

    def look(self, *sizes: float, runs: int = 20, resized: bool = False) -> None:
        """So many runs later there are blocks of these sizes, all allocated in the latest run."""
        self.run += runs
        picks = [
            Pick(next(self._serials), 4096 * number, int(size), size, 0.0, 1, self.run, 0, 5, int(resized))
            for number, size in enumerate(sizes)
        ]
        self.history.look(picks, {1: self.run}, 0)

    @property
    def evidence(self) -> Evidence:
        return self.history.evidence().get((1, PLACE), Evidence())


def test_a_text_that_each_run_replaces_by_a_longer_one_is_a_leak_at_its_rate() -> None:
    heap = Heap()
    for number in range(1, 21):
        heap.look(20_000.0 * number)
    found = heap.evidence
    assert found.one_block
    assert found.bytes_per_run == pytest.approx(1000.0)
    assert judge(found, FOUND).verdict is Verdict.LEAKING
    assert [pick.size for pick in heap.history.alive[1, PLACE]] == [400_000]


@pytest.mark.parametrize(
    "size_at",
    [
        lambda _: 50_000.0,
        lambda look: 50_000.0 + 7_000.0 * (look * 7 % 5),
        lambda look: 10_000.0 * (look % 8 + 1),
        lambda look: 20_000.0 * min(look, 5),
    ],
    ids=["a value that is replaced", "values of several sizes", "a buffer that is emptied", "a table that is full"],
)
def test_a_block_that_does_not_grow_on_is_no_leak(size_at: Callable[[int], float]) -> None:
    heap = Heap()
    for look in range(1, 61):
        heap.look(size_at(look))
        assert judge(heap.evidence, FOUND).verdict is not Verdict.LEAKING
    assert judge(heap.evidence, FOUND).verdict in (Verdict.STEADY, Verdict.SUSPECT, Verdict.TOO_FEW_RUNS)


def test_growth_goes_on_over_stretches_of_sampling() -> None:
    heap = Heap()
    for number in range(1, 11):
        heap.look(20_000.0 * number)
    heap.history.begin({1: heap.run})
    heap.look()  # not allocated again yet
    for number in range(11, 21):
        heap.look(20_000.0 * number)
    assert heap.evidence.bytes == pytest.approx(380_000.0)
    assert heap.evidence.released == 0.0


def test_what_is_freed_for_good_has_not_grown() -> None:
    heap = Heap()
    for number in range(1, 11):
        heap.look(20_000.0 * number)
    heap.look()
    assert heap.evidence.bytes == 0.0


def test_parts_of_a_resized_block_are_one_block() -> None:
    heap = Heap()
    for number in range(1, 13):
        heap.run += 20
        picks = [Pick(part, 4096, 15_000, 16_000.0, 0.0, 1, heap.run, 0, 5, 1) for part in range(number)]
        heap.history.look(picks, {1: heap.run}, 0)
    assert heap.evidence.bytes == pytest.approx(11 * 16_000.0)
    assert heap.evidence.events == 11


def test_a_container_that_grows_with_what_it_holds_is_judged_by_that() -> None:
    heap = Heap()
    serials = itertools.count(1)
    entries: list[Pick] = []
    for _ in range(20):
        for _ in range(20):
            heap.run += 1
            entries.append(Pick(next(serials), 16 * heap.run, 1000, 4096.0, 0.0, 1, heap.run, 0, 5))
        size = 8 * len(entries) + 20_000
        table = Pick(next(serials), 1 << 40, size, float(size), 0.0, 1, heap.run, 0, 5, 1)
        heap.history.look([*entries, table], {1: heap.run}, 0)
    assert not heap.evidence.one_block
    assert heap.evidence.events > 300


def test_a_long_history_keeps_few_steps() -> None:
    block = GrowingBlock(0, 20_000.0)
    for look in range(1, 1_000):
        block.look(look, 20_000.0 + 2_000.0 * look)
    found = block.evidence()
    assert found.events <= MOST_STEPS
    assert found.bytes == pytest.approx(2_000.0 * 999, rel=0.01)
    assert abs(found.early - found.late) <= 0.2 * found.events
