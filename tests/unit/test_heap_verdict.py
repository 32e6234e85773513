"""What survivors, holder and time say of a site."""

from __future__ import annotations

import pytest

from celery_trace.heap.verdict import at_most, judge
from celery_trace.model import Evidence, Holder, Verdict

FOUND = Holder(path=["shop.tasks (module)", "_receipts: list[640]", "Receipt × 640"], searched=True)


def evidence(early: int, late: int, *, runs: int = 400, released: float = 0.0, proved: int = 0) -> Evidence:
    events = early + late
    return Evidence(runs, early, late, 1000.0 * events, events, proved, released)


def test_even_births_that_stay_under_a_holder_without_a_bound_are_a_leak() -> None:
    judgement = judge(evidence(40, 40), FOUND)
    assert judgement.verdict is Verdict.LEAKING
    assert judgement.confidence > 0.999
    assert judgement.why == "memory of 80 of 400 runs is still alive"
    assert judgement.waits_for == ""


@pytest.mark.parametrize(
    ("early", "late", "why"),
    [(60, 1, "growth has stopped"), (1, 60, "only recent memory is alive")],
    ids=["a cache that has filled", "a queue"],
)
def test_births_that_stop_and_survivors_that_go_are_no_leak(early: int, late: int, why: str) -> None:
    judgement = judge(evidence(early, late), FOUND)
    assert (judgement.verdict, judgement.why) == (Verdict.STEADY, why)


def test_a_bounded_holder_that_still_fills_grows_and_a_full_one_is_steady() -> None:
    filling = judge(evidence(40, 40), Holder(path=FOUND.path, bound="lru_cache (80/500)", searched=True))
    assert (filling.verdict, filling.waits_for) == (Verdict.GROWING, "the holder to fill")
    full = judge(evidence(40, 40), Holder(path=FOUND.path, bound="lru_cache (500/500)", full=True, searched=True))
    assert full.verdict is Verdict.STEADY


def test_what_is_released_as_fast_as_it_is_born_is_steady() -> None:
    assert judge(evidence(40, 40, released=0.9), FOUND).verdict is Verdict.STEADY
    assert judge(evidence(40, 40, released=0.3), FOUND).verdict is Verdict.GROWING


def test_no_verdict_before_the_search_for_the_holder_has_ended() -> None:
    judgement = judge(evidence(40, 40))
    assert (judgement.verdict, judgement.waits_for) == (Verdict.SUSPECT, "the search for its holder")


def test_without_a_root_a_full_collection_has_to_prove_that_it_is_no_garbage() -> None:
    rootless = Holder(searched=True, why="held from C code")
    assert judge(evidence(40, 40), rootless).waits_for == "a full garbage collection"
    assert judge(evidence(40, 40, proved=5), rootless).verdict is Verdict.LEAKING
    assert judge(evidence(8, 8, proved=16), rootless).waits_for == "4 more such runs"


def test_a_leak_needs_as_many_runs_as_the_setting_says() -> None:
    early = judge(evidence(25, 25, runs=50), FOUND)
    assert (early.verdict, early.waits_for) == (Verdict.GROWING, "100 more runs")
    assert judge(evidence(25, 25, runs=50), FOUND, least_runs=40).verdict is Verdict.LEAKING


def test_few_runs_have_no_verdict_and_say_how_many_more_it_takes() -> None:
    judgement = judge(evidence(2, 2, runs=6), FOUND)
    assert (judgement.verdict, judgement.waits_for) == (Verdict.TOO_FEW_RUNS, "4 more runs")


def test_runs_that_keep_megabytes_have_a_verdict_sooner() -> None:
    large = Evidence(4, 2, 2, 4 * 7.6 * 2**20, 8)
    assert judge(large, FOUND).verdict is Verdict.GROWING
    assert judge(Evidence(6, 3, 3, 6 * 7.6 * 2**20, 8), FOUND).verdict is Verdict.LEAKING
    in_some = Evidence(8, 3, 3, 8 * 7.6 * 2**20, 8)
    assert judge(in_some, FOUND).waits_for == "142 more runs"
    assert judge(Evidence(3, 1, 2, 3 * 7.6 * 2**20, 3), FOUND).waits_for == "1 more runs"


def test_what_holds_a_lot_of_memory_is_called_a_leak_before_the_process_is_killed_for_it() -> None:
    assert judge(Evidence(10, 5, 5, 10 * 7.6 * 2**20, 10), FOUND).verdict is Verdict.LEAKING
    assert judge(Evidence(10, 5, 5, 10 * 4.0 * 2**20, 10), FOUND).waits_for == "140 more runs"
    bounded = Holder(path=FOUND.path, bound="lru_cache (10/32)", searched=True)
    assert judge(Evidence(10, 5, 5, 10 * 7.6 * 2**20, 10), bounded).verdict is Verdict.GROWING


def test_one_block_that_grows_is_a_leak_once_something_holds_it_for_good() -> None:
    text = Evidence(400, 12, 12, 200_000.0, 24, one_block=True)
    judgement = judge(text, Holder(path=["shop.tasks (module)", "_log: str"], searched=True))
    assert judgement.verdict is Verdict.LEAKING
    assert judgement.why == "one block has grown by 195.3 KiB in 400 runs"
    for unheld in (
        Holder(searched=True, why="held from C code", outside=True),
        Holder(path=["pay() (frame)", "rows: list[9]"], searched=True),
    ):
        judgement = judge(text, unheld)
        assert (judgement.verdict, judgement.waits_for) == (Verdict.SUSPECT, "a holder")


def test_births_that_become_fewer_are_those_of_a_table_that_fills() -> None:
    judgement = judge(evidence(60, 36), FOUND)
    assert (judgement.verdict, judgement.waits_for) == (Verdict.GROWING, "more runs")
    assert judge(evidence(52, 44), FOUND).verdict is Verdict.LEAKING


def test_small_objects_that_the_interpreter_reuses_are_not_blamed_on_the_line_that_made_them() -> None:
    reused = Holder(path=FOUND.path, searched=True, recycled=True)
    judgement = judge(Evidence(400, 40, 40, 400 * 360.0, 80), reused)
    assert (judgement.verdict, judgement.waits_for) == (Verdict.GROWING, "larger objects")
    assert judge(Evidence(400, 40, 40, 400 * 3_600.0, 80), reused).verdict is Verdict.LEAKING


def test_a_leak_in_one_run_of_two_hundred_is_found_over_eight_thousand() -> None:
    assert judge(evidence(20, 20, runs=8_000), FOUND).verdict is Verdict.LEAKING


@pytest.mark.parametrize("trials", [10, 60, 399, 401, 5_000])
def test_the_binomial_distribution_is_monotonic_and_ends_at_one(trials: int) -> None:
    values = [at_most(successes, trials, 0.2) for successes in range(0, trials + 1, max(1, trials // 50))]
    assert values == sorted(values)
    assert 0.0 <= values[0] < 0.2
    assert at_most(trials, trials, 0.2) == 1.0


def test_the_binomial_distribution_agrees_with_its_definition() -> None:
    assert at_most(1, 3, 0.5) == pytest.approx(0.5)
    assert at_most(2, 10, 0.2) == pytest.approx(0.6778, abs=1e-4)
