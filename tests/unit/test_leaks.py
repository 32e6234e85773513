"""What the windows of many processes say together."""

from __future__ import annotations

from itertools import count
from typing import Any

from msgspec.structs import replace

from celery_trace.leaks import leak_table
from celery_trace.model import Kind, Leak, Site, Stage, Verdict, Window

_numbers = count()


def window(process: str, at_s: float, stage: Stage, verdict: Verdict, run_number: int = 50, **values: Any) -> Window:
    grows = verdict in (Verdict.GROWING, Verdict.LEAKING)
    site = Site(file="/srv/shop.py", line=7, function="keep", code="seen.append(x)", bytes=4096, blocks=2)
    return Window(
        id=f"w{next(_numbers)}",
        investigation="i",
        process=process,
        kind=Kind.TASK,
        name="shop.keep",
        stage=stage,
        verdict=verdict,
        at_s=at_s,
        runs=8,
        run_number=run_number,
        kept_bytes_per_run=4096.0,
        sites=[site] if grows else [],
        **values,
    )


def the_row(*windows: Window) -> Leak:
    (row,) = leak_table(windows, now_s=0.0)
    return row


def test_one_process_that_looked_again_is_enough_for_a_leak() -> None:
    row = the_row(window("a", 1.0, Stage.LOCATED, Verdict.GROWING), window("a", 2.0, Stage.VERDICT, Verdict.LEAKING))
    assert (row.verdict, row.file, row.line, row.kept_bytes_per_run) == (Verdict.LEAKING, "/srv/shop.py", 7, 4096)


def test_a_later_verdict_of_another_process_takes_it_back() -> None:
    leaking = window("a", 2.0, Stage.VERDICT, Verdict.LEAKING)
    assert the_row(leaking, window("b", 1.0, Stage.VERDICT, Verdict.STEADY)).verdict is Verdict.LEAKING
    assert the_row(leaking, window("b", 3.0, Stage.VERDICT, Verdict.STEADY)).verdict is Verdict.STEADY


def test_it_stays_taken_back_whatever_that_process_looked_at_since() -> None:
    row = the_row(
        window("a", 2.0, Stage.VERDICT, Verdict.LEAKING),
        window("b", 3.0, Stage.VERDICT, Verdict.STEADY),
        window("b", 4.0, Stage.SUSPECT, Verdict.SUSPECT),
        window("b", 5.0, Stage.CENSUS, Verdict.STEADY),
    )
    assert row.verdict is Verdict.STEADY


def test_it_leaks_again_when_a_process_says_so_after_that() -> None:
    row = the_row(
        window("a", 2.0, Stage.VERDICT, Verdict.LEAKING),
        window("b", 3.0, Stage.VERDICT, Verdict.STEADY),
        window("c", 4.0, Stage.VERDICT, Verdict.LEAKING),
    )
    assert row.verdict is Verdict.LEAKING


def test_what_was_only_replaced_does_not_take_a_leak_back() -> None:
    """A census that finds garbage alone says nothing of what leaked elsewhere."""
    row = the_row(window("a", 2.0, Stage.VERDICT, Verdict.LEAKING), window("b", 3.0, Stage.CENSUS, Verdict.STEADY))
    assert row.verdict is Verdict.LEAKING


def test_growth_to_the_end_of_several_processes_is_a_leak_unless_it_has_a_bound() -> None:
    processes = [f"p{number}" for number in range(6)]
    windows = [
        made
        for at_s, process in enumerate(processes)
        for made in (
            window(process, at_s, Stage.SUSPECT, Verdict.SUSPECT, 20),
            window(process, at_s + 0.5, Stage.CENSUS, Verdict.GROWING, 80),
        )
    ]
    assert the_row(*windows).verdict is Verdict.LEAKING
    assert the_row(*windows[:2]).verdict is Verdict.GROWING
    bounded = window("p9", 9.0, Stage.CENSUS, Verdict.GROWING, 80, bounded="deque (40/100)")
    assert the_row(*windows, bounded).verdict is Verdict.GROWING


def test_a_walk_that_met_no_root_does_not_take_back_what_an_earlier_one_found() -> None:
    path = ["shop.registry (module)", "_orders: list[120]", "Order × 120"]
    found = window("a", 1.0, Stage.LOCATED, Verdict.GROWING, retained_by=path)
    lost = window("a", 2.0, Stage.VERDICT, Verdict.LEAKING, retained_by=["dict × 1", "dict"])
    assert the_row(found, lost).retained_by == path
    assert the_row(lost).retained_by == ["dict × 1", "dict"]


def test_runs_of_a_steady_phase_are_in_no_total() -> None:
    row = the_row(
        window("a", 1.0, Stage.VERDICT, Verdict.LEAKING, run_number=100),
        window("a", 2.0, Stage.VERDICT, Verdict.STEADY, run_number=400),
    )
    assert (row.runs, row.kept_bytes_total) == (400, 100 * 4096)
    assert row.samples[-1][1] == row.kept_bytes_total


def test_a_first_census_is_a_suspicion_until_somebody_looked_again_or_found_the_line() -> None:
    census = replace(window("a", 2.0, Stage.CENSUS, Verdict.GROWING), sites=[])
    assert the_row(census).verdict is Verdict.SUSPECT
    steady = window("b", 1.0, Stage.LOCATED, Verdict.STEADY)
    assert the_row(steady, census).verdict is Verdict.STEADY
    again = replace(census, id="again", at_s=3.0, run_number=80)
    assert the_row(steady, census, again).verdict is Verdict.GROWING
    located = window("a", 3.0, Stage.LOCATED, Verdict.GROWING)
    assert the_row(steady, census, located).verdict is Verdict.GROWING
