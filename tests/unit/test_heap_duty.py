"""The duty cycle of sampling."""

from __future__ import annotations

from celery_trace.clock import FakeClock
from celery_trace.heap.duty import SAVED_S, Allowance, DutyCycle

FEWEST_RUNS, LONGEST_OVER_S = 150, 60.0


def duty_cycle(clock: FakeClock) -> DutyCycle:
    return DutyCycle(0.01, clock, fewest_runs=FEWEST_RUNS, longest_over_s=LONGEST_OVER_S)


def test_a_stretch_within_its_budget_goes_on_for_ever() -> None:
    clock = FakeClock()
    duty = duty_cycle(clock)
    for _ in range(1000):
        clock.advance(1.0)
        duty.spend(0.009)
        assert not duty.is_over(1e6)


def test_a_stretch_over_its_budget_ends_once_it_has_shown_something() -> None:
    clock = FakeClock()
    duty = duty_cycle(clock)
    clock.advance(5.0)
    duty.spend(0.35)
    assert not duty.is_over(FEWEST_RUNS - 1)
    assert duty.is_over(FEWEST_RUNS)
    clock.advance(LONGEST_OVER_S)
    duty.spend(5.0)
    assert duty.is_over(0.0), "or has gone on for long enough"


def test_the_pause_makes_up_for_what_was_spent_and_saves_for_the_next_stretch() -> None:
    clock = FakeClock()
    duty = duty_cycle(clock)
    clock.advance(10.0)
    duty.spend(0.4)
    assert duty.wait_s() == 40.0 + SAVED_S - 10.0
    assert not duty.may_begin()
    clock.advance(duty.wait_s())
    assert duty.may_begin()


def test_a_process_that_computes_all_day_samples_its_share() -> None:
    """At 7 % while on, a budget of 1 % leaves it on for about a seventh of the time."""
    clock = FakeClock()
    duty = duty_cycle(clock)
    on, on_s = True, 0.0
    for _ in range(20_000):
        clock.advance(1.0)
        if on:
            on_s += 1.0
            duty.spend(0.07)
            on = not duty.is_over(1e6)
        elif duty.may_begin():
            on = True
            duty.begin_stretch()
    assert 0.12 < on_s / 20_000 < 0.16
    assert duty.spent_s <= 0.0101 * 20_000


def test_an_allowance_bears_a_burst_and_no_lasting_excess() -> None:
    burst = Allowance(0.01, 0.0)
    assert not burst.exceeds(0.15, 1.0)
    assert not any(burst.exceeds(0.005, 1.0 + second) for second in range(1, 60))
    lasting = Allowance(0.01, 0.0)
    found = [lasting.exceeds(0.02, float(second)) for second in range(1, 60)]
    assert not any(found[:15])
    assert all(found[25:])
    assert not lasting.exceeds(0.005, 60.0)  # the rate is right by now, though the debt stands
