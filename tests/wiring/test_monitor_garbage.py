"""The monitor's heap is set aside from the collector of garbage, and garbage in it is found all the same."""

import gc
import weakref

import pytest

from celery_trace.clock import FakeClock
from flower_plugin.garbage import THOROUGH_EVERY_S, TIDY_EVERY_S, GarbageRounds


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rounds(clock):
    rounds = GarbageRounds(clock)
    yield rounds
    rounds.close()


def test_what_is_alive_is_set_aside_and_put_back_at_the_end(rounds):
    kept = [Cycle() for _ in range(1_000)]
    rounds.tidy()
    assert gc.get_freeze_count() > len(kept)
    assert len(gc.get_objects()) < len(kept)
    rounds.close()
    assert gc.get_freeze_count() == 0
    rounds.close()


def test_garbage_since_the_last_round_goes_at_the_next(rounds, clock):
    rounds.tidy()
    seen = weakref.ref(Cycle())
    clock.advance(TIDY_EVERY_S)
    rounds.tidy()
    assert seen() is None


def test_what_became_garbage_while_set_aside_is_found_within_the_hour(rounds, clock):
    cycle = Cycle()
    seen = weakref.ref(cycle)
    rounds.tidy()
    del cycle
    rounds.tidy()
    assert seen() is not None
    clock.advance(THOROUGH_EVERY_S)
    rounds.tidy()
    assert seen() is None
    assert gc.get_freeze_count() > 0


def test_a_collector_that_is_switched_off_is_left_alone(rounds):
    before = gc.get_freeze_count()
    gc.disable()
    try:
        rounds.tidy()
        assert gc.get_freeze_count() == before
    finally:
        gc.enable()
