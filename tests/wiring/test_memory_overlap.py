"""Several runs at once in one process: who is blamed, who is not, and what is said of the process."""

from __future__ import annotations

import functools
import itertools
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_trace.leaks import leak_table
from celery_trace.model import Kind, Leak, Role, Stage, Verdict, Window
from celery_trace.probes.overlap import PROCESS, OverlapWatch, code_of
from tests.support.memory_runs import Bench

HERE = str(Path(__file__))
THREADS = 4


def line_of(mark: str) -> int:
    """The line of this file that carries a mark."""
    lines = Path(HERE).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))


_lock = threading.Lock()
POOL_IS_FULL = threading.Event()
_kept: list[Any] = []
_latest: dict[str, Any] = {}
_cache = functools.lru_cache(maxsize=10_000)(lambda number: [f"{number}" * 300])


def leaks(number: int) -> None:
    with _lock:
        _kept.append([f"order {number}, line {line}" for line in range(12)])  # LEAK shared


def leaks_through_another(number: int) -> None:
    keep_for(number)


def keep_for(number: int) -> None:
    with _lock:
        _kept.append(bytes(3_000 + number % 2))  # LEAK below


def leaks_beside_a_pool(number: int) -> None:
    leaks(number)
    if not POOL_IS_FULL.is_set():
        with _lock:
            _kept.append(bytes(20_000 + number % 2))


def replaces(number: int) -> None:
    _latest["value"] = [f"{number} {part}" for part in range(500)]


def fills(number: int) -> None:
    _cache(number)


def passes(number: int) -> None:
    sum(range(200))


class Crowd:
    """Threads that run functions at once under one probe, and the look that the ticker would take."""

    def __init__(self, *tasks: Callable[[int], None], **bench: Any) -> None:
        self.bench = Bench(role=Role.THREADS, **bench)
        self.watch: OverlapWatch = self.bench.probe.overlap
        by_name = {task.__name__: task for task in tasks}
        self.watch.code_of = lambda kind, name: code_of(by_name.get(name)) if kind is Kind.TASK else []
        self._tasks = tasks
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]

    def _work(self) -> None:
        probe = self.bench.probe
        while not self._stop.is_set():
            number = next(self._numbers)
            task = self._tasks[number % len(self._tasks)]
            token = probe.before(Kind.TASK, task.__name__)
            task(number)
            self._stop.wait(0.002)  # as a task waits for its database, while the others run
            probe.after(token)

    @property
    def windows(self) -> list[Window]:
        return self.bench.windows

    def look_until(self, done: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Let the threads run and look at them, until something is known."""
        for thread in self._threads:
            thread.start()
        try:
            until_s = time.monotonic() + timeout_s
            while not done():
                assert time.monotonic() < until_s, f"not seen in {timeout_s} s: {self.windows}"
                self.watch.look()
                self._stop.wait(0.02)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
            self.bench.probe.close()
        assert not tracemalloc.is_tracing()

    def rows(self) -> list[Leak]:
        return leak_table(self.windows, now_s=0.0)


@pytest.fixture(autouse=True)
def begins_empty() -> None:
    _kept.clear()
    _latest.clear()
    _cache.cache_clear()


def test_a_leak_of_one_of_two_tasks_is_blamed_on_it_at_its_line() -> None:
    crowd = Crowd(leaks, passes, recheck_runs=60)
    crowd.look_until(lambda: any(window.verdict is Verdict.LEAKING for window in crowd.windows))
    leaking = [row for row in crowd.rows() if row.verdict is Verdict.LEAKING]
    assert {row.name for row in leaking} == {"leaks"}
    assert (leaking[0].file, leaking[0].line) == (HERE, line_of("LEAK shared"))
    assert leaking[0].kept_bytes_per_run == pytest.approx(1_000, rel=0.5)
    assert leaking[0].concurrent
    assert leaking[0].retained_by[:2] == [f"{__name__} (module)", "_kept: list"]
    assert {window.by_site for window in crowd.windows} == {True}


def test_a_leak_below_the_task_is_blamed_by_the_tasks_frame_in_the_traceback() -> None:
    crowd = Crowd(leaks_through_another, passes, recheck_runs=60)
    crowd.look_until(lambda: any(window.verdict is Verdict.LEAKING for window in crowd.windows))
    (row,) = [row for row in crowd.rows() if row.verdict is Verdict.LEAKING]
    assert (row.name, row.line) == ("leaks_through_another", line_of("LEAK below"))
    assert row.kept_bytes_per_run == pytest.approx(3_050, rel=0.3)


def test_a_leak_is_not_called_steady_because_something_else_filled_at_first() -> None:
    POOL_IS_FULL.clear()
    crowd = Crowd(leaks_beside_a_pool, recheck_runs=60)

    def leaking() -> bool:
        if crowd.windows:  # the first proof saw both grow
            POOL_IS_FULL.set()
        return any(window.verdict is Verdict.LEAKING for window in crowd.windows)

    crowd.look_until(leaking)
    assert not [window for window in crowd.windows if window.verdict is Verdict.STEADY]


def test_code_that_is_nobodys_is_told_as_the_processs_own() -> None:
    crowd = Crowd(leaks, passes, recheck_runs=60)
    crowd.watch.code_of = lambda kind, name: []
    crowd.look_until(lambda: any(window.verdict is Verdict.LEAKING for window in crowd.windows))
    (row,) = [row for row in crowd.rows() if row.verdict is Verdict.LEAKING]
    assert (row.name, row.line) == (PROCESS, line_of("LEAK shared"))
    assert not any(window.by_site for window in crowd.windows)


def test_code_that_two_tasks_share_is_blamed_on_neither() -> None:
    crowd = Crowd(leaks, passes, recheck_runs=60)
    crowd.watch.code_of = lambda kind, name: code_of(leaks)
    crowd.look_until(lambda: any(window.stage is Stage.PROCESS for window in crowd.windows))
    assert {window.name for window in crowd.windows} == {PROCESS}


def test_a_value_that_is_replaced_is_nobodys_leak() -> None:
    crowd = Crowd(replaces, passes, recheck_runs=60)
    crowd.look_until(lambda: crowd.watch._runs > 1_500)
    assert [window for window in crowd.windows if window.verdict is Verdict.LEAKING] == []


def test_a_cache_that_fills_is_growing_and_not_leaking() -> None:
    crowd = Crowd(fills, passes, recheck_runs=60)
    crowd.look_until(lambda: any(window.bounded for window in crowd.windows))
    assert {window.verdict for window in crowd.windows} == {Verdict.GROWING}
    assert "lru_cache" in crowd.windows[-1].bounded


def test_tracing_that_the_user_started_goes_on() -> None:
    tracemalloc.start(3)
    try:
        crowd = Crowd(leaks, passes, recheck_runs=60)
        crowd.bench.probe.close = lambda close=crowd.bench.probe.close: (close(), tracemalloc.stop())  # type: ignore[method-assign]
        stays = []
        crowd.look_until(
            lambda: (
                stays.append(tracemalloc.is_tracing())
                or any(window.verdict is Verdict.LEAKING for window in crowd.windows)
            )
        )
        assert all(stays)
    finally:
        tracemalloc.stop()


def test_without_budget_nothing_is_collected_or_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(leaks, passes, recheck_runs=60, budget=0.0001)
    crowd.bench.probe.budget.spent_s = 5.0
    monkeypatch.setattr("tracemalloc.start", lambda *_: pytest.fail("it traced over budget"))
    crowd.look_until(lambda: crowd.watch._runs > 600)
    assert crowd.windows == []


def test_a_closed_probe_stops_tracing_in_the_middle_of_a_window() -> None:
    crowd = Crowd(leaks, passes, recheck_runs=60)
    crowd.look_until(lambda: crowd.watch.traces)
    assert not crowd.watch.traces


class Order:
    """What a view class may look like."""

    def get(self) -> None: ...


def test_the_code_of_a_view_is_that_of_its_class_and_of_what_it_wraps() -> None:
    def view() -> None: ...

    view.view_class = Order  # type: ignore[attr-defined]

    @functools.wraps(view)
    def wrapper() -> None: ...

    assert {code.co_name for code in code_of(wrapper)} == {"wrapper", "view", "get"}
    assert code_of(Order().get)[0].co_name == "get"
    assert code_of(functools.partial(view)) == []
    assert code_of(None) == []
