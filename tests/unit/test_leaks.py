"""What the windows of many processes say together."""

from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from celery_trace.heap.leaks import CLEAN_RUNS, MOST_SAMPLES, leak_table
from celery_trace.model import Evidence, Holder, Kind, Leak, Site, Stage, TypeCount, Verdict, Window, decode, encode

PATH = ["shop.registry (module)", "_orders: list[120]", "Order × 120"]
FOUND = Holder(path=PATH, searched=True)
KEPT = 4096

_numbers = count()


def site(line: int = 7, file: str = "/srv/shop.py", size: int = KEPT) -> Site:
    return Site(file=file, line=line, function="keep", code="seen.append(x)", bytes=size, blocks=2)


def evidence(runs: int, *, every: int = 1, released: float = 0.0) -> Evidence:
    """One run in ``every`` has kept ``KEPT`` bytes, evenly over time."""
    events = runs // every
    return Evidence(
        runs=runs,
        early=events // 2,
        late=events - events // 2,
        bytes=float(KEPT * events),
        picks=events,
        released=released,
    )


def window(process: str, at_s: float, runs: int, verdict: Verdict = Verdict.GROWING, **values: Any) -> Window:
    """The latest word of a process on a site that keeps ``KEPT`` bytes in each of so many observed runs."""
    known = {
        "id": f"w{next(_numbers)}",
        "investigation": process,
        "process": process,
        "kind": Kind.TASK,
        "name": "shop.keep",
        "stage": Stage.SAMPLED,
        "verdict": verdict,
        "at_s": at_s,
        "runs": runs,
        "run_number": runs + 3,
        "kept_bytes_per_run": float(KEPT),
        "sites": [site()],
        "evidence": evidence(runs),
        "holder": FOUND,
        "retained_by": PATH,
    }
    return Window(**known | values)


def clean(process: str, at_s: float, runs: int, **values: Any) -> Window:
    """A process that ran the task so often and found nothing."""
    nothing = {"sites": [], "evidence": Evidence(runs=runs), "holder": None, "retained_by": []}
    return window(process, at_s, runs, Verdict.STEADY, **nothing | values)


def earlier(process: str, at_s: float, stage: Stage, verdict: Verdict, **values: Any) -> Window:
    """A window of a version before the sampled heap."""
    return Window(
        **{
            "id": f"w{next(_numbers)}",
            "investigation": "i",
            "process": process,
            "kind": Kind.TASK,
            "name": "shop.keep",
            "stage": stage,
            "verdict": verdict,
            "at_s": at_s,
            "runs": 8,
            "run_number": 50,
            "kept_bytes_per_run": float(KEPT),
            "sites": [site()],
        }
        | values
    )


def the_row(*windows: Window) -> Leak:
    (row,) = leak_table(windows, now_s=0.0)
    return row


# --- one row of many processes ------------------------------------------------------------------------


def test_a_row_has_the_line_the_rate_and_the_holder_of_its_site() -> None:
    row = the_row(window("a", 1.0, 200, role="child", types=[TypeCount("shop.Order", 120, 120 * KEPT)]))
    assert (row.file, row.line, row.function, row.code) == ("/srv/shop.py", 7, "keep", "seen.append(x)")
    assert (row.verdict, row.kept_bytes_per_run, row.kept_blocks_per_run) == (Verdict.LEAKING, KEPT, 1.0)
    assert (row.runs, row.processes, row.role) == (203, 1, "child")
    assert row.retained_by == PATH
    assert [one.type for one in row.types] == ["shop.Order"]
    assert sum(one.bytes for one in row.types) == row.kept_bytes_total


def test_the_types_of_all_processes_add_up_to_what_all_have_kept() -> None:
    row = the_row(
        window("a", 1.0, 100, types=[TypeCount("shop.Order", 3, 1000), TypeCount("dict", 1, 333)]),
        window("b", 2.0, 200, types=[TypeCount("dict", 1, 667)]),
        window("b", 3.0, 210),
    )
    assert [(one.type, one.count) for one in row.types] == [("dict", 2), ("shop.Order", 3)]
    assert sum(one.bytes for one in row.types) == row.kept_bytes_total > 2000
    assert abs(row.types[0].bytes - row.types[1].bytes) <= 1


def test_children_that_live_for_ten_runs_make_a_verdict_together() -> None:
    children = [window(f"child-{number}", number, 7, Verdict.TOO_FEW_RUNS) for number in range(30)]
    assert the_row(*children[:1]).verdict is Verdict.TOO_FEW_RUNS
    assert the_row(*children[:10]).verdict is Verdict.GROWING
    row = the_row(*children)
    assert (row.verdict, row.processes, row.runs) == (Verdict.LEAKING, 30, 300)
    assert row.kept_bytes_per_run == KEPT


def test_the_latest_word_of_a_process_counts_and_not_all_that_it_said() -> None:
    row = the_row(window("a", 1.0, 40), window("a", 2.0, 80), window("a", 3.0, 100))
    assert (row.runs, row.waits_for) == (103, "50 more runs")


def test_windows_may_come_in_any_order() -> None:
    windows = [window("a", 1.0, 40), window("b", 1.5, 50), window("a", 2.0, 90), clean("c", 3.0, 30)]
    assert leak_table(windows, now_s=0.0) == leak_table(windows[::-1], now_s=0.0)


def test_a_process_that_is_set_to_decide_sooner_is_believed() -> None:
    assert the_row(window("a", 1.0, 60)).verdict is Verdict.GROWING
    row = the_row(window("a", 1.0, 60, Verdict.LEAKING))
    assert (row.verdict, row.waits_for) == (Verdict.LEAKING, "")


def test_a_row_says_how_sure_it_is_what_that_rests_on_and_what_it_waits_for() -> None:
    row = the_row(window("a", 1.0, 100))
    assert 0.9 < row.confidence <= 1.0
    assert row.why == "memory of 100 of 100 runs is still alive"
    assert row.waits_for == "50 more runs"
    searching = the_row(window("a", 1.0, 100, holder=Holder(), retained_by=[]))
    assert (searching.verdict, searching.waits_for) == (Verdict.SUSPECT, "the search for its holder")


def test_two_lines_of_a_task_are_two_rows_the_one_that_keeps_more_first() -> None:
    small = replace(evidence(200), bytes=200.0 * 100)
    rows = leak_table([window("a", 1.0, 200, sites=[site(9)], evidence=small), window("a", 1.0, 200)], now_s=0.0)
    assert [(row.line, row.kept_bytes_per_run) for row in rows] == [(7, KEPT), (9, 100)]


def test_the_worst_verdict_comes_first() -> None:
    growing = window("a", 1.0, 60, name="shop.large", evidence=replace(evidence(60), bytes=5e7))
    rows = leak_table([growing, window("a", 1.0, 200)], now_s=0.0)
    assert [row.verdict for row in rows] == [Verdict.LEAKING, Verdict.GROWING]


def test_a_name_may_be_a_task_and_a_route() -> None:
    rows = leak_table([window("a", 1.0, 200), window("a", 1.0, 200, kind=Kind.REQUEST)], now_s=0.0)
    assert {row.kind for row in rows} == {"task", "request"}
    assert len({row.id for row in rows}) == 2


def test_the_id_of_a_row_is_the_same_whichever_process_reports_it() -> None:
    assert the_row(window("a", 1.0, 40)).id == the_row(window("b", 2.0, 400)).id


def test_growth_of_a_process_without_a_task_is_a_row_of_its_role() -> None:
    row = the_row(window("a", 1.0, 200, kind=Kind.PROCESS, name="(process)", role="main"))
    assert (row.kind, row.name, row.role, row.verdict) == ("process", "(process)", "main", Verdict.LEAKING)


# --- what holds it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "full", "verdict"),
    [("lru_cache (300/500)", False, Verdict.GROWING), ("lru_cache (500/500)", True, Verdict.STEADY)],
    ids=["filling", "full"],
)
def test_a_holder_with_a_bound_never_leaks(bound: str, full: bool, verdict: Verdict) -> None:
    holder = Holder(path=PATH, bound=bound, full=full, searched=True)
    row = the_row(window("a", 1.0, 5_000, holder=holder, bounded=bound))
    assert (row.verdict, row.bounded) == (verdict, bound)


def test_what_is_held_by_celery_itself_is_told_in_words() -> None:
    path = ["celery.worker.state (module)", "requests: dict[12000]", "Request × 12000"]
    of_celery = the_row(window("p1", 1.0, 200, holder=Holder(path=path, searched=True), retained_by=path))
    assert of_celery.note.startswith("messages that the worker has taken")
    path = ["shop (module)", "client: Client", "requests: dict[12000]", "Request × 12000"]
    assert the_row(window("p1", 1.0, 200, holder=Holder(path=path, searched=True), retained_by=path)).note == ""


def test_a_native_row_keeps_its_id_and_gets_the_line_once_one_process_has_found_it() -> None:
    def growing(at_s: float, **values: Any) -> Window:
        return window(
            "p1", at_s, 200, stage=Stage.NATIVE, native="fds", kept_blocks_per_run=1.0, kept_bytes_per_run=0.0,
            evidence=None, holder=None, retained_by=[], note="1 file descriptors a run", **values,
        )  # fmt: skip

    without = the_row(growing(1.0, sites=[]))
    opened = the_row(growing(1.0, sites=[]), growing(2.0, sites=[site(size=0)]), growing(3.0, sites=[]))
    assert (without.file, without.line) == ("", 0)
    assert (opened.file, opened.line, opened.code) == ("/srv/shop.py", 7, "seen.append(x)")
    assert opened.id == without.id
    assert opened.note == "1 file descriptors a run"


def test_a_holder_that_one_process_reached_says_more_than_a_search_without_result() -> None:
    nowhere = Holder(searched=True, why="held from C code")
    rows = window("a", 1.0, 100), window("b", 2.0, 100, holder=nowhere, retained_by=[])
    row = the_row(*rows)
    assert (row.verdict, row.retained_by) == (Verdict.LEAKING, PATH)
    assert the_row(rows[1]).note == "held from C code"


def test_a_bound_that_an_earlier_process_saw_holds_where_a_later_one_finds_no_root() -> None:
    bounded = Holder(path=PATH, bound="lru_cache (99/500)", searched=True)
    nowhere = Holder(searched=True, why="held from C code")
    row = the_row(
        window("a", 1.0, 100, holder=bounded, bounded=bounded.bound),
        window("b", 2.0, 400, holder=nowhere, retained_by=[]),
    )
    assert (row.verdict, row.bounded) == (Verdict.GROWING, "lru_cache (99/500)")


# --- what takes it back ---------------------------------------------------------------------------------


def test_a_site_that_later_processes_do_not_show_any_more_goes_back_to_steady() -> None:
    leaking = window("a", 1.0, 400, Verdict.LEAKING)
    few = clean("b", 2.0, CLEAN_RUNS // 2)
    assert the_row(leaking, few).verdict is Verdict.LEAKING
    row = the_row(leaking, few, clean("c", 3.0, CLEAN_RUNS // 2))
    assert (row.verdict, row.why) == (Verdict.STEADY, f"not seen in {CLEAN_RUNS} runs since")


def test_a_rare_leak_is_not_refuted_by_a_few_runs_that_left_nothing() -> None:
    rare = window("a", 1.0, 8_000, evidence=evidence(8_000, every=200))
    assert the_row(rare, clean("b", 2.0, 10 * CLEAN_RUNS)).verdict is Verdict.LEAKING
    assert the_row(rare, clean("b", 2.0, 1_000)).verdict is Verdict.STEADY


def test_clean_runs_from_before_do_not_take_it_back() -> None:
    leaking = window("b", 2.0, 400, Verdict.LEAKING)
    assert the_row(clean("a", 1.0, 10 * CLEAN_RUNS), leaking).verdict is Verdict.LEAKING


def test_clean_runs_of_another_task_do_not_take_it_back() -> None:
    other = clean("b", 2.0, 10 * CLEAN_RUNS, name="shop.other")
    assert the_row(window("a", 1.0, 400, Verdict.LEAKING), other).verdict is Verdict.LEAKING


def test_it_leaks_again_when_a_process_shows_it_after_that() -> None:
    windows = [window("a", 1.0, 400), clean("b", 2.0, 400), window("c", 3.0, 400)]
    assert the_row(*windows[:2]).verdict is Verdict.STEADY
    assert the_row(*windows).verdict is Verdict.LEAKING


def test_a_process_that_takes_its_own_word_back_needs_no_other() -> None:
    emptied = Evidence(runs=900, early=1, late=1, bytes=8192.0, picks=2, released=1.0)
    row = the_row(window("a", 1.0, 400, Verdict.LEAKING), window("a", 2.0, 900, Verdict.STEADY, evidence=emptied))
    assert row.verdict is Verdict.STEADY


def test_clean_runs_alone_are_no_row() -> None:
    assert leak_table([clean("a", 1.0, 400)], now_s=0.0) == []


# --- since when ------------------------------------------------------------------------------------------


def test_a_leak_began_with_the_release_that_first_showed_it() -> None:
    row = the_row(clean("a", 1.0, 200, release="1.8.1"), window("b", 2.0, 200, release="1.8.2"))
    assert (row.began_with, row.began_at) == ("1.8.2", 2.0)


def test_it_began_when_its_curve_does() -> None:
    grown = window("b", 9.0, 200, release="1.8.2", growth=[(5.0, 100), (9.0, 900)])
    assert the_row(clean("a", 1.0, 200, release="1.8.1"), grown).began_at == 5.0


@pytest.mark.parametrize(
    "before",
    [[], [clean("a", 1.0, CLEAN_RUNS - 1, release="1.8.1")], [clean("a", 1.0, 400, release="1.8.2")]],
    ids=["no earlier release", "it ran too seldom to tell", "the same release"],
)
def test_no_release_is_named_where_the_leak_may_be_older(before: list[Window]) -> None:
    row = the_row(*before, window("b", 2.0, 200, release="1.8.2"))
    assert (row.began_with, row.began_at) == ("", None)


# --- its curve ---------------------------------------------------------------------------------------------


def test_the_curve_adds_up_the_processes_rises_and_ends_at_the_total() -> None:
    one = window("a", 30.0, 200, growth=[(10.0, 1_000), (20.0, 2_000), (30.0, 3_000)])
    other = window("b", 25.0, 200, growth=[(15.0, 500), (25.0, 700)])
    row = the_row(one, other)
    assert row.samples == [(10.0, 1_000), (15.0, 1_500), (20.0, 2_500), (25.0, 2_700), (30.0, 3_700)]
    assert row.kept_bytes_total == 3_700


def test_the_curve_never_falls_though_an_estimate_did() -> None:
    row = the_row(window("a", 3.0, 200, growth=[(1.0, 900), (2.0, 1_400), (3.0, 1_300)]))
    assert all(before <= after for (_, before), (_, after) in pairwise(row.samples))
    assert row.kept_bytes_total == row.samples[-1][1]


def test_a_long_curve_is_thinned_out_and_keeps_its_end() -> None:
    points = [(float(second), 100 * second) for second in range(3_000)]
    row = the_row(*(window(f"p{number}", 3_000.0, 200, growth=points[number::5]) for number in range(5)))
    assert len(row.samples) <= MOST_SAMPLES + 1
    assert row.samples[-1] == (2_999.0, row.kept_bytes_total)


def test_without_a_curve_the_total_is_the_rate_of_all_runs() -> None:
    assert the_row(window("a", 1.0, 197)).kept_bytes_total == 200 * KEPT


# --- what a process has judged by itself -----------------------------------------------------------------


def test_growth_that_is_no_heap_is_a_row_by_its_resource() -> None:
    windows = [
        window(
            "a", at_s, 60, verdict, stage=Stage.NATIVE, native="fds", sites=[], evidence=None, holder=None,
            retained_by=[], kept_bytes_per_run=0.0, kept_blocks_per_run=1.0, note="1 file descriptors a run",
        )
        for at_s, verdict in ((1.0, Verdict.GROWING), (2.0, Verdict.LEAKING))
    ]  # fmt: skip
    row = the_row(*windows)
    assert (row.native, row.resource, row.verdict, row.line) == (True, "fds", Verdict.LEAKING, 0)
    assert (row.kept_blocks_per_run, row.note) == (1.0, "1 file descriptors a run")
    back = replace(windows[-1], id="back", at_s=3.0, verdict=Verdict.STEADY)
    assert the_row(*windows, back).verdict is Verdict.STEADY


def test_native_growth_stands_beside_the_lines_of_its_task() -> None:
    native = window("a", 1.0, 60, Verdict.LEAKING, stage=Stage.NATIVE, native="malloc", sites=[], evidence=None)
    rows = leak_table([native, window("a", 1.0, 200)], now_s=0.0)
    assert sorted((row.native, row.resource, row.line) for row in rows) == [(False, "", 7), (True, "malloc", 0)]


def traced(number: int, kept: int = KEPT) -> Window:
    blocks = 2.0 if kept else 0.0
    return earlier(
        "a", float(number), Stage.TRACED, Verdict.SUSPECT, kind=Kind.BLOCK, runs=1, run_number=number,
        kept_blocks_per_run=blocks, kept_bytes_per_run=float(kept),
    )  # fmt: skip


def test_traced_blocks_are_suspect_at_most_and_steady_when_they_mostly_keep_nothing() -> None:
    assert the_row(traced(1)).verdict is Verdict.TOO_FEW_RUNS
    assert the_row(*map(traced, range(1, 60))).verdict is Verdict.SUSPECT
    assert the_row(*map(traced, range(1, 5)), *(traced(number, 0) for number in range(5, 20))).verdict is Verdict.STEADY


def test_a_sampled_site_is_one_row_with_what_was_traced_of_it() -> None:
    row = the_row(*map(traced, range(1, 5)), window("a", 9.0, 200, kind=Kind.BLOCK))
    assert row.verdict is Verdict.LEAKING


# --- stores of earlier versions ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.LOCATED, Stage.VERDICT])
@pytest.mark.parametrize("verdict", [Verdict.GROWING, Verdict.LEAKING, Verdict.STEADY])
def test_a_window_of_0_1_0_is_a_row_with_its_verdict(stage: Stage, verdict: Verdict) -> None:
    row = the_row(earlier("a", 1.0, stage, verdict))
    assert (row.verdict, row.file, row.line, row.kept_bytes_per_run) == (verdict, "/srv/shop.py", 7, KEPT)
    assert (row.runs, row.kept_bytes_total) == (50, 50 * KEPT)


def test_the_last_word_of_0_1_0_counts() -> None:
    said = [
        earlier("a", 1.0, Stage.SUSPECT, Verdict.SUSPECT, sites=[]),
        earlier("a", 2.0, Stage.CENSUS, Verdict.GROWING, sites=[]),
        earlier("a", 3.0, Stage.LOCATED, Verdict.GROWING),
        earlier("a", 4.0, Stage.VERDICT, Verdict.LEAKING),
    ]
    assert the_row(*said).verdict is Verdict.LEAKING
    assert the_row(*said, earlier("a", 5.0, Stage.VERDICT, Verdict.STEADY)).verdict is Verdict.STEADY


def test_a_site_that_both_versions_know_is_one_row_of_the_newer_one() -> None:
    row = the_row(earlier("a", 1.0, Stage.VERDICT, Verdict.LEAKING), window("b", 2.0, 200))
    assert (row.verdict, row.processes, row.why) == (Verdict.LEAKING, 1, "memory of 200 of 200 runs is still alive")


def test_a_window_that_was_written_by_0_1_0_is_read() -> None:
    """Its JSON knows none of the fields that sampled windows brought."""
    line = (
        b'{"type":"window","id":"w","investigation":"i","process":"p","kind":"task","name":"shop.keep","stage":"verdict",'
        b'"verdict":"leaking","at_s":4.0,"runs":8,"run_number":50,"kept_bytes_per_run":4096.0,"sites":[{"file":"/srv/shop.py",'
        b'"line":7,"function":"keep","code":"seen.append(x)","bytes":4096,"blocks":2}]}'
    )
    tag = encode(window("a", 1.0, 5))[:20].partition(b":")[0]
    assert the_row(decode(line.replace(b'{"type"', tag, 1))).verdict is Verdict.LEAKING  # type: ignore[arg-type]


def test_a_sampled_window_survives_the_way_through_json() -> None:
    one = window("a", 1.0, 200, growth=[(1.0, 5)], release="1.8.2")
    assert decode(encode(one)) == one


def test_children_that_ended_too_soon_to_see_a_site_count_for_its_rate() -> None:
    saw = [window(f"saw{number}", 10.0 + number, 7, evidence=Evidence(7, 1, 0, 7.0 * KEPT, 1)) for number in range(10)]
    not_seen = [clean(f"no{number}", 10.5 + number, 7) for number in range(9)]
    before_and_after = [clean("early", 1.0, 7), clean("late", 100.0, 7)]
    (row,) = leak_table([*saw, *not_seen, *before_and_after], now_s=0.0)
    assert row.kept_bytes_per_run == pytest.approx(KEPT * 70 / 133, rel=0.01)


def test_a_process_that_reports_another_line_of_the_task_refutes_as_well() -> None:
    leaking = window("old", 10.0, 400)
    other = window("new", 500.0, 400, sites=[site(line=90)])
    rows = {row.line: row for row in leak_table([leaking, other], now_s=0.0)}
    assert (rows[7].verdict, rows[7].why) == (Verdict.STEADY, "not seen in 400 runs since")
    assert rows[90].verdict is Verdict.LEAKING
