"""How a container has filled, by the order of its entries."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest

from celery_trace.heap.entry_order import births_by_object, entry_growth, evicts, growth_by
from celery_trace.heap.verdict import judge, slows
from celery_trace.model import EntryGrowth, Evidence, Holder, Verdict

PATH = ["shop.tasks (module)", "_kept: dict[40]", "bytes × 40"]


def filled(container: Any, key_of: Callable[[int], Any], runs: int, *, every: int = 3) -> tuple[Any, dict[int, int]]:
    """A container with the entries of some runs, and the runs of every third that was new, by address."""
    births = {}
    for run in range(1, runs + 1):
        key, value = key_of(run), b"%08d" % run
        if isinstance(container, list | deque):
            container.append(value)
        elif key in container:
            continue
        else:
            container[key] = value
        if run % every == 0:
            births[id(value)] = run
    return container, births


def of_some_keys(chooser: random.Random, keys: int) -> Callable[[int], int]:
    return lambda _: chooser.randrange(keys)


def in_some_runs(chooser: random.Random, share: float) -> Callable[[int], int]:
    return lambda run: run if chooser.random() < share else 0


@pytest.mark.parametrize("container", [[], deque(), {}, OrderedDict()], ids=["list", "deque", "dict", "OrderedDict"])
def test_what_each_run_adds_to_is_counted_exactly(container: Any) -> None:
    growth = entry_growth(*filled(container, lambda run: run, 301))
    assert growth == EntryGrowth(early=148, late=149, runs=297)
    assert not slows(growth)


def test_entries_are_known_by_what_they_consist_of() -> None:
    entries = [{"number": run, "text": f"text {run}"} for run in range(100)]
    births = {id(entry["text"]): run for run, entry in enumerate(entries) if run % 4 == 0}
    growth = entry_growth(entries, births)
    assert growth == EntryGrowth(early=48, late=48, runs=96)


def test_an_object_begins_in_its_block_after_none_to_two_headers() -> None:
    assert births_by_object({4096: 7}) == {4096: 7, 4112: 7, 4128: 7}


@pytest.mark.parametrize("keys", [100, 200, 400])
def test_a_table_that_fills_with_keys_slows_down(keys: int) -> None:
    slow = 0
    for seed in range(50):
        growth = entry_growth(*filled({}, of_some_keys(random.Random(seed), keys), 160))
        assert growth is not None
        slow += slows(growth)
    assert slow >= 46


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.2])
def test_a_leak_in_some_runs_does_not(share: float) -> None:
    slow = 0
    for seed in range(100):
        growth = entry_growth(*filled({}, in_some_runs(random.Random(seed), share), 300, every=1))
        assert growth is not None
        slow += slows(growth)
    assert slow <= 30


def test_without_an_order_or_with_few_points_nothing_is_known() -> None:
    assert growth_by([(run, run) for run in (1, 90)]) is None
    assert growth_by([(run, run) for run in range(1, 30)]) is None
    assert growth_by([(run * 37 % 101, run) for run in range(1, 101)]) is None
    assert entry_growth({1, 2, 3}, {}) is None
    assert entry_growth(object(), {}) is None


def test_exact_entries_overrule_a_sample_that_declines_by_chance() -> None:
    declining = Evidence(400, 60, 40, 100_000.0, 100)
    steady = Holder(path=PATH, searched=True, entries=EntryGrowth(early=150, late=150, runs=300))
    slow = Holder(path=PATH, searched=True, entries=EntryGrowth(early=150, late=130, runs=300))
    assert judge(declining, Holder(path=PATH, searched=True)).verdict is Verdict.GROWING
    assert judge(declining, steady).verdict is Verdict.LEAKING
    assert judge(Evidence(400, 50, 50, 100_000.0, 100), slow).verdict is Verdict.GROWING
    assert judge(Evidence(400, 90, 40, 100_000.0, 130), steady).verdict is Verdict.GROWING


_pages: OrderedDict[int, bytes] = OrderedDict()


def keeps_two_hundred(number: int) -> None:
    _pages[number] = bytes(1_000)
    if len(_pages) > 200:
        _pages.popitem(last=False)


def keeps_all(number: int) -> None:
    _pages[number] = bytes(1_000)


def test_a_cache_that_evicts_by_popitem_is_recognized_in_the_code_that_fills_it() -> None:
    step = "_pages: OrderedDict[40]"
    assert evicts(step, [keeps_all.__code__, keeps_two_hundred.__code__])
    assert not evicts(step, [keeps_all.__code__])
    assert not evicts("_others: OrderedDict[40]", [keeps_two_hundred.__code__])
