"""The monitor's heap is set aside from the collector of garbage, and garbage in it is found all the same."""

import gc
import weakref

import pytest

from celery_trace.clock import FakeClock
from flower_plugin.garbage import COLLECT_EVERY_S, FULL_EVERY_S, GarbageCollection


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def collection(clock):
    collection = GarbageCollection(clock)
    yield collection
    collection.close()


def test_what_is_alive_is_set_aside_and_put_back_at_the_end(collection):
    kept = [Cycle() for _ in range(1_000)]
    collection.collect()
    assert gc.get_freeze_count() > len(kept)
    assert len(gc.get_objects()) < len(kept)
    collection.close()
    assert gc.get_freeze_count() == 0
    collection.close()


def test_garbage_since_the_last_round_goes_at_the_next(collection, clock):
    collection.collect()
    seen = weakref.ref(Cycle())
    clock.advance(COLLECT_EVERY_S)
    collection.collect()
    assert seen() is None


def test_what_became_garbage_while_set_aside_is_found_within_the_hour(collection, clock):
    cycle = Cycle()
    seen = weakref.ref(cycle)
    collection.collect()
    del cycle
    collection.collect()
    assert seen() is not None
    clock.advance(FULL_EVERY_S)
    collection.collect()
    assert seen() is None
    assert gc.get_freeze_count() > 0


def test_a_collector_that_is_switched_off_is_left_alone(collection):
    before = gc.get_freeze_count()
    gc.disable()
    try:
        collection.collect()
        assert gc.get_freeze_count() == before
    finally:
        gc.enable()
