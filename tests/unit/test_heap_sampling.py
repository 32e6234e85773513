"""Stretches of sampling, the search in steps and the windows of a heap watch, with a sampler made for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_trace import guard
from celery_trace.clock import FakeClock
from celery_trace.heap import holder_search
from celery_trace.heap.holder_search import HolderSearch
from celery_trace.heap.picks import UNTAGGED
from celery_trace.heap.retainers import Found
from celery_trace.heap.run_counts import RunCounts
from celery_trace.heap.sampler import Sampler
from celery_trace.heap.sampling import COARSE_BYTES, COARSEST_BYTES, Sampling, coarsest_bytes
from celery_trace.heap.sites import SiteState
from celery_trace.heap.survivors import IN_FLIGHT_RUNS, Key
from celery_trace.heap.tags import TagTable
from celery_trace.heap.verdict import Judgement
from celery_trace.heap.watched_process import WatchedProcess
from celery_trace.heap.window_writer import MOST_POINTS, REPEAT_S, WindowWriter, with_point
from celery_trace.model import Evidence, Holder, Kind, ProcessRecord, Role, Stage, Verdict, Window
from celery_trace.text.code_owner import CodeOwner

PAY: Key = (1, ("/srv/shop/tasks.py", 10))
FOUND = {PAY: Found(Holder(path=["shop (module)", "_orders: dict[90]"], searched=True))}
GROWS = Evidence(runs=100, early=48, late=48, bytes=100_000.0, picks=200)


class Sampler:
    """The sampler's counters, set by hand."""

    sees_all = True
    pace = Sampler.pace
    referrers = holding_frames = None

    def __init__(self) -> None:
        self.on = False
        self.counters: dict[str, Any] = {"calls": 0, "pick_s": 0.0, "mean_bytes": 4096.0, "collections": 0}

    def start(self, mean_bytes: float) -> None:
        self.on = True

    def stop(self) -> None:
        self.on = False

    def cost_s(self) -> float:
        return 1e-3

    def coarsen(self) -> None:
        self.counters["mean_bytes"] *= 2

    def stats(self) -> dict[str, Any]:
        return dict(self.counters)

    def plain(self, blocks: Any) -> set[int]:
        return set()


# --- stretches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "runs", "bytes_"),
    [
        (Role.CHILD, 0.0, COARSE_BYTES),
        (Role.CHILD, 1_000.0, 16_000.0),
        (Role.CHILD, 10_000.0, COARSEST_BYTES),
        (Role.MAIN, 0.0, COARSEST_BYTES),
    ],
)
def test_the_coarsest_distance_of_picks_rises_with_the_runs(role: Role, runs: float, bytes_: float) -> None:
    assert coarsest_bytes(role, runs) == bytes_


def sampling(role: Role = Role.CHILD) -> tuple[Sampling, Sampler]:
    sampler = Sampler()
    found = Sampling(sampler, role, 0.01, FakeClock())
    found.start()
    return found, sampler


def test_calls_and_picks_are_spent_from_the_budget_once() -> None:
    stretch, sampler = sampling()
    sampler.counters.update(calls=100, pick_s=0.25)
    stretch.account(1.0)
    stretch.account(1.0)
    assert stretch.duty.spent_s == pytest.approx(0.35)


def test_expensive_picks_become_fewer_down_to_the_coarsest() -> None:
    stretch, sampler = sampling()
    for number in range(1, 9):
        sampler.counters["pick_s"] = 1_000.0 * number
        stretch.account(1.0)
    assert sampler.counters["mean_bytes"] == COARSE_BYTES


def test_a_sample_is_news_only_after_allocations() -> None:
    stretch, sampler = sampling()
    assert stretch.has_moved()
    assert not stretch.has_moved()
    sampler.counters["calls"] = 5
    stretch.account(1.0)
    assert stretch.has_moved()


def test_a_sample_is_thinned_once_for_each_distance() -> None:
    stretch, _ = sampling()
    assert [stretch.was_thinned(mean) for mean in (4096.0, 8192.0, 8192.0)] == [False, True, False]


def test_pauses_grow_by_half_to_what_a_look_costs() -> None:
    stretch, _ = sampling()
    assert stretch.pause_after(0.0) == 2.0
    assert [stretch.pause_after(0.012) for _ in range(3)] == [3.0, pytest.approx(4.0), pytest.approx(4.0)]
    assert max(stretch.pause_after(10.0) for _ in range(20)) == 20.0


def test_a_stretch_ends_sooner_where_no_tasks_run() -> None:
    over = []
    for role in (Role.CHILD, Role.MAIN):
        clock = FakeClock()
        stretch = Sampling(Sampler(), role, 0.01, clock)
        stretch.start()
        stretch.duty.spend(100.0)
        clock.advance(21.0)
        over.append(stretch.duty.is_over(0.0))
    assert over == [False, True]


def test_a_stretch_is_on_until_it_is_stopped() -> None:
    stretch, sampler = sampling()
    assert (stretch.is_on, sampler.on) == (True, True)
    stretch.stop()
    assert (stretch.is_on, sampler.on) == (False, False)


# --- the search -----------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[HolderSearch, Sampler, list[Any]]]:
    """A search whose passes are given: what each yields, or the error that it raises."""

    def make(*given: Any, budget: float = 1.0) -> tuple[HolderSearch, Sampler, list[Any]]:
        def search(*_: Any, **__: Any) -> Iterator[Any]:
            for one in given:
                if isinstance(one, Exception):
                    raise one
                yield one

        monkeypatch.setattr(holder_search.retainers, "search", search)
        found: list[Any] = []
        sampler = Sampler()
        return HolderSearch(sampler, budget, found.append), sampler, found

    return make


def test_a_search_hands_over_what_it_found_after_its_last_pass(passes: Any) -> None:
    search, _, found = passes(None, None, FOUND)
    search.begin({PAY: [(16, 8)]})
    search.step()
    search.step()
    assert (search.is_on, found) == (True, [])
    search.step()
    assert (search.is_on, found) == (False, [FOUND])
    search.step()
    assert found == [FOUND]


def test_quick_passes_are_taken_in_one_go(passes: Any) -> None:
    search, _, found = passes(None, None, FOUND)
    search.begin({PAY: [(16, 8)]})
    search.quick_steps()
    assert found == [FOUND]


def test_a_slow_pass_is_the_only_one_of_its_look(passes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder_search, "QUICK_S", 0.0)
    search, _, found = passes(None, FOUND)
    search.begin({PAY: [(16, 8)]})
    search.quick_steps()
    assert (search.is_on, found) == (True, [])


def test_the_next_search_waits_until_the_last_one_is_paid_off(passes: Any) -> None:
    search, _, _ = passes(FOUND, budget=1e-9)
    assert not search.waits
    search.begin({PAY: [(16, 8)]})
    search.quick_steps()
    assert search.waits


def test_a_search_that_fails_ends_and_is_counted(passes: Any) -> None:
    before = guard.own_errors["heap watch: search for a holder"]
    search, _, found = passes(ValueError("a pass failed"))
    search.begin({PAY: [(16, 8)]})
    search.finish()
    assert (search.is_on, found) == (False, [])
    assert guard.own_errors["heap watch: search for a holder"] == before + 1


def test_a_collection_during_a_search_proves_nothing(passes: Any) -> None:
    search, sampler, _ = passes(None, FOUND)
    search.count_collections(3)
    assert search.proving == 3
    search.begin({PAY: [(16, 8)]})
    sampler.counters["collections"] = 4
    search.finish()
    assert search.proving == 3
    search.count_collections(5)
    assert search.proving == 5


# --- windows --------------------------------------------------------------------------------------------


class Writer:
    """The windows of a process with one task."""

    def __init__(self, begun: int = 100, role: Role = Role.CHILD) -> None:
        tags = TagTable()
        tags.add(Kind.TASK, "pay")
        self.clock = FakeClock()
        counts = RunCounts(lambda _: begun, tags, began_s=0.0)
        self.runs = counts.now(0.0)
        counts.begin_stretch({})
        process = ProcessRecord(uid="p", host="host", pid=1, started_at_s=0.0, role=role, release="1.8.2")
        watched = WatchedProcess(process, self.clock, Sampler(), CodeOwner(()), tags, counts, lambda: 2)
        self.windows: list[Window] = []
        self.writer = WindowWriter(watched, self.windows.append)
        self.site = SiteState((), judgement=Judgement(Verdict.GROWING, 0.97, "it grows"))

    def write(self, evidence: Evidence = GROWS, now_s: float = 1_000.0) -> int:
        self.writer.write(PAY, self.site, evidence, self.runs, now_s)
        return len(self.windows)


def test_a_site_is_written_when_it_is_new_and_not_again_unchanged() -> None:
    on = Writer()
    assert on.write() == 1
    assert on.write() == 1
    window = on.windows[0]
    assert (window.kind, window.name, window.verdict, window.stage) == (
        Kind.TASK,
        "pay",
        Verdict.GROWING,
        Stage.SAMPLED,
    )
    assert (window.runs, window.run_number, window.kept_bytes_per_run) == (100, 100, 1_000.0)
    assert (window.concurrent, window.by_site, window.release, window.note) == (2, False, "1.8.2", "it grows")
    assert window.growth == [(on.clock.now_s(), 100_000)]


def test_a_site_is_written_again_for_a_new_holder_a_quarter_more_or_after_a_minute() -> None:
    on = Writer()
    on.write()
    on.site.found = FOUND[PAY]
    assert on.write() == 2
    assert on.windows[-1].retained_by == FOUND[PAY].holder.path
    more = Evidence(runs=130, early=62, late=62, bytes=130_000.0, picks=260)
    assert on.write(more) == 3
    slightly = Evidence(runs=131, early=62, late=63, bytes=131_000.0, picks=262)
    assert on.write(slightly) == 3
    assert on.write(slightly, 1_000.0 + REPEAT_S) == 4
    assert on.write(slightly, 1_000.0 + 2 * REPEAT_S) == 4


def test_runs_that_were_not_observed_are_part_of_the_curve() -> None:
    on = Writer()
    on.writer._counts.begin_stretch(on.runs)
    on.write()
    assert on.windows[0].growth[0][1] == 200_000


@pytest.mark.parametrize("role", [Role.THREADS, Role.GREEN, Role.WEB])
def test_where_runs_overlap_a_window_says_that_it_goes_by_the_site(role: Role) -> None:
    on = Writer(role=role)
    on.write()
    assert on.windows[0].by_site


def test_a_long_run_is_reported_while_it_grows_and_when_it_has_released_it() -> None:
    on = Writer()
    key = (PAY[0] + (1 << 16), PAY[1])
    for lasted_s, now_s in ((40.0, 0.0), (41.0, 1.0), (0.0, 2.0), (0.0, 3.0)):
        on.writer.write_long_run(key, on.site, GROWS, on.runs, lasted_s=lasted_s, now_s=now_s)
    assert [(window.stage, window.verdict, window.name) for window in on.windows] == [
        (Stage.RUN, Verdict.GROWING, "pay"),
        (Stage.RUN, Verdict.STEADY, "pay"),
    ]
    assert [window.note for window in on.windows] == ["97.7 KiB in one run of 40 s", "the run has released it"]


def test_a_long_run_that_never_grew_is_not_reported() -> None:
    on = Writer()
    on.writer.write_long_run(PAY, on.site, GROWS, on.runs, lasted_s=0.0, now_s=0.0)
    assert on.windows == []


def test_a_clean_task_is_reported_again_after_twice_the_runs() -> None:
    on = Writer(begun=50)
    for begun in (50, 60, 80, 100, 120):
        on.writer.write_clean({UNTAGGED: 900, PAY[0]: begun}, set(), 40)
    assert [window.runs for window in on.windows] == [50 - IN_FLIGHT_RUNS, 100 - IN_FLIGHT_RUNS]
    assert all(window.verdict is Verdict.STEADY and not window.sites for window in on.windows)


def test_a_task_that_has_a_site_is_not_clean() -> None:
    on = Writer()
    on.writer.write_clean(on.runs, {PAY[0]}, 40)
    assert on.windows == []


def test_a_curve_is_thinned_out_but_keeps_its_last_points() -> None:
    growth: list[tuple[float, int]] = []
    for second in range(500):
        growth = with_point(growth, (float(second), second))
        assert len(growth) <= MOST_POINTS
        assert growth[-1] == (float(second), second)
    assert growth[0] == (0.0, 0)
    assert growth == sorted(growth)
