"""When the holders are searched for, and how long the next search waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_trace.heap import holder_search, retainers
from celery_trace.heap.holder_search import HolderSearch


@pytest.fixture
def ended() -> list[Any]:
    """What each search that has ended has found."""
    return []


@pytest.fixture
def search(ended: list[Any], monkeypatch: pytest.MonkeyPatch) -> HolderSearch:
    """A search of three passes of 10 ms of processor time each."""

    def passes(*_: Any, **__: Any) -> Iterator[Any]:
        for found in (None, None, {}):
            until_s = time.thread_time() + 0.01
            while time.thread_time() < until_s:
                pass
            yield found

    monkeypatch.setattr(retainers, "search", passes)
    sampler: Any = SimpleNamespace(
        referrers=None,
        holding_frames=None,
        sees_all=True,
        plain=lambda blocks: frozenset(),
        stats=lambda: {"collections": 0},
    )
    return HolderSearch(sampler, budget=0.001, on_found=ended.append)


def test_an_expensive_search_delays_the_next_one_until_it_is_paid_off(search: HolderSearch, ended: list[Any]) -> None:
    assert not search.waits
    search.begin({})
    search.quick_steps()
    assert not search.is_on
    assert ended == [{}]
    assert search.waits, "30 ms are 10 seconds' worth of three budgets of a thousandth"
    search.quick_steps()
    assert search.waits, "a look without a search leaves the wait as it is"


def test_a_look_takes_no_more_passes_than_are_quick(
    search: HolderSearch, ended: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_search, "QUICK_S", 0.005)
    search.begin({})
    search.quick_steps()
    assert search.is_on
    search.quick_steps()
    search.quick_steps()
    assert not search.is_on
    assert ended == [{}]
