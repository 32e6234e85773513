"""A plain process that leaks: from the gate to the verdict, and what must not be taken for a leak."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import time
import tracemalloc
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from celery_trace.leaks import leak_table
from celery_trace.model import Kind, Stage, Verdict
from celery_trace.probes import budget, holding
from celery_trace.probes.census import CensusWindow
from celery_trace.probes.lease import AloneLease
from celery_trace.probes.retention import Retention
from tests.support.memory_runs import Bench, rows_of

HERE = str(Path(__file__))


def line_of(mark: str) -> int:
    """The line of this file that carries a mark."""
    lines = Path(HERE).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))


class Order:
    def __init__(self, number: int) -> None:
        self.number = number
        # Larger than what glibc keeps at hand by sevens: of those, some that another test freed would come unseen.
        self.text = f"order {number} " * 200


_orders: dict[int, Order] = {}
_texts: list[bytes] = []


def leak_orders(number: int) -> None:
    _orders[len(_orders)] = Order(number)


_lines: list[list[str]] = []


def leak_lines(number: int) -> None:
    # A kilobyte in small blocks: of a single larger one glibc hands out seven that were freed before, unseen.
    _lines.append([f"order {number}, line {line}" for line in range(12)])


def leak_bytes(number: int) -> None:
    _texts.append(bytes(10_000 + number % 2))  # LEAK bytes


def test_a_leak_of_a_kilobyte_is_suspect_located_and_decided_within_the_promised_runs() -> None:
    bench = Bench().run(leak_lines, 165)
    rows = bench.close()
    assert rows[0].verdict is Verdict.LEAKING
    assert bench.runs_until(Stage.SUSPECT) <= 30
    assert bench.runs_until(Stage.LOCATED) <= 35
    assert bench.runs_until(Stage.VERDICT) <= 160
    assert rows[0].file == HERE
    assert sum(row.kept_bytes_per_run for row in rows) == pytest.approx(1_100, rel=0.35)


def test_the_fast_setting_decides_within_eighty_five_runs() -> None:
    bench = Bench(recheck_runs=60).run(leak_lines, 90)
    assert bench.close()[0].verdict is Verdict.LEAKING
    assert bench.runs_until(Stage.VERDICT) <= 85


def test_over_budget_nothing_is_begun_and_what_was_begun_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CREDIT_S", 50.0)
    monkeypatch.setattr(budget, "CREDIT_TO_END_S", 150.0)
    bench = Bench(budget=0.0001).run(leak_lines, 40)
    assert "located" in bench.stages()
    bench.probe.budget.spent_s = 100.0
    bench.run(leak_orders, 40)
    # A suspicion may be noted, which costs nothing.
    assert {one.stage for one in bench.windows if one.name == "leak_orders"} <= {Stage.SUSPECT}
    bench.run(leak_lines, 125, start=40)
    assert bench.close()[0].verdict is Verdict.LEAKING


def test_a_leak_that_begins_in_a_busy_process_is_found_though_most_runs_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaks_late(number: int) -> None:
        if number >= 400:
            leak_lines(number)

    monkeypatch.setattr(budget, "_MOST_SKIPPED", 5)
    monkeypatch.setattr(budget, "CREDIT_S", 50.0)
    monkeypatch.setattr(budget, "CREDIT_TO_END_S", 150.0)
    bench = Bench(budget=1e-6).run(leaks_late, 400)
    assert bench.windows == []
    bench.run(leaks_late, 500, start=400)
    assert bench.close()[0].verdict is Verdict.LEAKING
    assert 400 < bench.runs_until(Stage.SUSPECT) < 460


def test_a_block_inside_a_run_that_is_not_measured_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(budget=1e-6)

    def outer(number: int) -> None:
        if number >= 300:
            bench.run(leak_lines, 1, kind=Kind.BLOCK, start=number)

    monkeypatch.setattr(budget, "_MOST_SKIPPED", 5)
    monkeypatch.setattr(budget, "CREDIT_S", 50.0)
    monkeypatch.setattr(budget, "CREDIT_TO_END_S", 150.0)
    bench.run(outer, 700)
    rows = bench.close()
    assert (Kind.BLOCK, "leak_lines", Verdict.LEAKING) in [(row.kind, row.name, row.verdict) for row in rows]


def test_above_all_credit_an_investigation_waits() -> None:
    bench = Bench(budget=0.0001).run(leak_lines, 40)
    bench.probe.budget.spent_s = 100.0
    bench.run(leak_lines, 125, start=40)
    assert "verdict" not in bench.stages()
    bench.close()


def test_waiting_for_the_processor_is_not_charged_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def slow_to_get_the_processor(*_: Any, **__: Any) -> None:
        waits.append(0.4)
        time.sleep(waits[-1])

    bench = Bench(budget=0.0001).run(leak_lines, 19)
    monkeypatch.setattr(CensusWindow, "resume", slow_to_get_the_processor)
    before_s = bench.probe.budget.spent_s
    bench.run(leak_lines, 6, start=19)
    bench.close()
    assert bench.stages()[:2] == ["suspect", "census"]
    assert bench.probe.budget.spent_s - before_s < 0.5 * sum(waits)


def test_a_row_names_the_line_the_rate_and_what_retains_it() -> None:
    (row, *_) = rows_of(leak_bytes)
    assert (row.file, row.line, row.function) == (HERE, line_of("LEAK bytes"), "leak_bytes")
    assert row.code.startswith("_texts.append")
    assert row.kept_bytes_per_run == pytest.approx(10_033, rel=0.02)
    assert row.retained_by[0] == f"{__name__} (module)"
    assert row.retained_by[1] == "_texts: list"
    assert row.retained_by[2].startswith("bytes × ")
    assert [kind.type for kind in row.types] == ["bytes"]


def test_objects_are_named_by_type_and_by_the_way_to_their_root() -> None:
    rows = rows_of(leak_orders)
    assert any(kind.type.endswith("Order") for kind in rows[0].types)
    assert rows[0].retained_by[:2] == [f"{__name__} (module)", "_orders: dict"]
    assert rows[0].retained_by[2].startswith("Order × ")


_latest: list[Any] = []


def rotate(number: int) -> None:
    _latest[:] = [bytearray(300_000 + number), [Order(number) for _ in range(20)]]


def raise_only(number: int) -> None:
    big = [0] * 10_000
    big.append(ValueError(number))  # type: ignore[arg-type]
    raise ValueError(big)


def leave_a_cycle(number: int) -> None:
    one: list[Any] = [number] * 50
    other = [one]
    one.append(other)


def return_much(number: int) -> list[list[int]]:
    return [[number, index] for index in range(1_000)]


_few: dict[int, bytes] = {}


def fill_a_small_cache(number: int) -> None:
    _few[number % 60] = bytes(5_000)


@lru_cache(maxsize=1_000)
def _cached(number: int) -> list[int]:
    return [number] * 100


def fill_an_lru_cache(number: int) -> None:
    _cached(number)


_window: deque[bytes] = deque(maxlen=1_000)


def fill_a_deque(_: int) -> None:
    _window.append(bytes(2_000))


@pytest.mark.parametrize(
    "task",
    [rotate, raise_only, leave_a_cycle, return_much, fill_a_small_cache, fill_an_lru_cache, fill_a_deque],
    ids=lambda task: task.__name__,
)
def test_what_only_looks_like_a_leak_is_never_leaking(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The walk to what retains it may take long here: the heap of this process is what hundreds of tests left.
    monkeypatch.setattr(holding, "_RETENTION_S", 2.0)
    bench = Bench().run(task, 300)
    bench.close()
    assert Verdict.LEAKING not in {window.verdict for window in bench.windows}


@lru_cache(maxsize=100_000)
def _large(number: int) -> list[str]:
    return [f"product {number}, {line}" for line in range(20)]


def fill_a_large_cache(number: int) -> None:
    _large(number)


def test_a_cache_with_a_bound_says_which() -> None:
    rows = rows_of(fill_a_deque, 200)
    assert rows[0].bounded.startswith("deque (")
    _window.clear()


def test_a_leak_in_one_run_of_ten_is_found() -> None:
    def one_in_ten(number: int) -> None:
        if number % 10 == 3:
            _texts.append(bytes(20_000))  # LEAK rare

    bench = Bench().run(one_in_ten, 400)
    rows = bench.close()
    assert (rows[0].verdict, rows[0].line) == (Verdict.LEAKING, line_of("LEAK rare"))
    assert rows[0].kept_bytes_per_run == pytest.approx(2_003, rel=0.15)


def test_a_leak_that_was_mended_goes_back_to_steady() -> None:
    mended = False

    def sometimes(number: int) -> None:
        if not mended:
            _texts.append(bytes(10_000 + number % 2))

    bench = Bench(recheck_runs=30).run(sometimes, 60)
    assert bench.windows[-1].verdict is Verdict.LEAKING
    mended = True
    bench.run(sometimes, 80)
    assert bench.close()[0].verdict is Verdict.STEADY


def test_a_block_is_judged_when_it_ends_and_not_by_what_follows_it() -> None:
    bench = Bench()
    for number in range(100):
        bench.run(lambda _: None, 1, kind=Kind.BLOCK)
        _texts.append(bytes(10_000 + number % 2))
    assert bench.close() == []


def test_the_collector_and_tracing_are_left_as_they_were_found() -> None:
    bench = Bench().run(leak_orders, 22)
    bench.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert not tracemalloc.is_tracing()


def test_a_closed_probe_measures_nothing_and_breaks_nothing() -> None:
    bench = Bench()
    token = bench.probe.before(Kind.TASK, "late")
    bench.close()
    assert bench.probe.after(token).kept_blocks is None
    assert bench.probe.before(Kind.TASK, "later") is None


def test_a_verdict_is_reached_over_processes_that_each_live_for_few_runs() -> None:
    lease = AloneLease()
    windows = []
    for process in range(40):
        bench = Bench(lease=lease, process=f"process-{process}")
        bench.run(leak_bytes, 12)
        bench.close()
        windows += bench.windows
    rows = leak_table(windows, now_s=0.0)
    assert (rows[0].verdict, rows[0].line) == (Verdict.LEAKING, line_of("LEAK bytes"))
    assert rows[0].processes > 3


def test_what_one_child_has_settled_is_not_investigated_again_by_the_next_ones_for_a_while() -> None:
    lease = AloneLease()
    first = Bench(lease=lease, recheck_runs=30, process="first").run(leak_bytes, 70)
    first.close()
    assert first.windows[-1].verdict is Verdict.LEAKING
    second = Bench(lease=lease, recheck_runs=30, process="second").run(leak_bytes, 20)
    second.close()
    assert second.windows == []
    stale = lease.note(Kind.TASK, "leak_bytes")
    assert stale is not None
    lease.leave(Kind.TASK, "leak_bytes", replace(stale, at_s=stale.at_s - 60))
    third = Bench(lease=lease, recheck_runs=30, process="third").run(leak_bytes, 20)
    third.close()
    assert third.stages() == ["suspect", "census"]


def test_a_bound_that_one_process_saw_holds_where_another_finds_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    _large.cache_clear()
    monkeypatch.setattr(holding, "_RETENTION_S", 2.0)  # the walk may take long here, see above
    lease, windows = AloneLease(), []
    nowhere = Retention(["method × 1"], "", "held from C code or from a running frame")
    for process in range(30):
        if process == 3:  # from here on chance has it that no sample leads to a root
            monkeypatch.setattr(holding, "who_retains", lambda *_, **__: nowhere)
        bench = Bench(lease=lease, process=f"process-{process}")
        bench.run(fill_a_large_cache, 12, start=100 * process)
        bench.close()
        windows += bench.windows
    assert windows[-1].process != "process-0"
    assert {window.verdict for window in windows} <= {Verdict.SUSPECT, Verdict.GROWING}
    assert [row.verdict for row in leak_table(windows, now_s=0.0)] == [Verdict.GROWING]


@lru_cache(maxsize=170)
def _middling(number: int) -> list[str]:
    return [f"product {number}, {line}" for line in range(20)]


def fill_a_middling_cache(number: int) -> None:
    _middling(number)


def test_a_cache_that_is_filling_is_known_where_the_walk_to_it_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up = Retention(["list × 1"], "", "gave up after 120 ms")
    monkeypatch.setattr(holding, "who_retains", lambda *_, **__: gave_up)
    bench = Bench().run(fill_a_middling_cache, 165)
    assert bench.windows[-1].stage is Stage.VERDICT
    assert bench.windows[-1].verdict is Verdict.GROWING
    assert bench.windows[-1].bounded.endswith("/170)")
    bench.run(fill_a_middling_cache, 400, start=165)
    bench.close()
    assert {window.verdict for window in bench.windows} == {Verdict.SUSPECT, Verdict.GROWING, Verdict.STEADY}


def test_beside_a_cache_that_has_filled_a_leak_is_known_by_its_next_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak_beside_a_cache(number: int) -> None:
        leak_lines(number)
        _beside(number)

    gave_up = Retention(["list × 1"], "", "gave up after 120 ms")
    monkeypatch.setattr(holding, "who_retains", lambda *_, **__: gave_up)
    bench = Bench().run(leak_beside_a_cache, 420)
    bench.close()
    verdicts = [window.verdict for window in bench.windows if window.stage is Stage.VERDICT]
    assert verdicts == [Verdict.GROWING, Verdict.LEAKING]


@lru_cache(maxsize=140)
def _beside(number: int) -> list[str]:
    return [f"line {number}, {line}" for line in range(4)]


def test_a_leak_that_pauses_just_when_it_is_looked_at_again_is_not_let_go() -> None:
    def pauses(number: int) -> None:
        if not 134 <= number < 146:
            leak_lines(number)

    bench = Bench().run(pauses, 250)
    rows = bench.close()
    assert Verdict.STEADY not in {window.verdict for window in bench.windows}
    assert rows[0].verdict is Verdict.LEAKING


def test_young_garbage_that_piles_up_is_swept_and_not_suspected() -> None:
    def untidy(_: int) -> None:
        cycle: list[Any] = []
        cycle.append(cycle)

    bench = Bench().run(untidy, 100)
    bench.close()
    assert bench.windows == []


def test_a_new_process_of_the_mended_code_takes_the_row_back_to_steady() -> None:
    lease = AloneLease()
    old = Bench(lease=lease, recheck_runs=30, process="old").run(leak_bytes, 70)
    old.close()

    def leak_bytes_mended(number: int) -> None:
        bytes(10_000 + number % 2)

    leak_bytes_mended.__name__ = "leak_bytes"
    new = Bench(lease=lease, recheck_runs=30, process="new").run(leak_bytes_mended, 70)
    new.close()
    assert leak_table(old.windows, now_s=0.0)[0].verdict is Verdict.LEAKING
    assert leak_table(old.windows + new.windows, now_s=0.0)[0].verdict is Verdict.STEADY


def test_leaked_descriptors_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.touch()
    opened = []

    def keep_open(_: int) -> None:
        opened.append(os.open(path, os.O_RDONLY))

    rows = rows_of(keep_open, 130, recheck_runs=30)
    for descriptor in opened:
        os.close(descriptor)
    (row,) = [row for row in rows if row.native]
    assert (row.resource, row.verdict) == ("fds", Verdict.LEAKING)
    assert row.kept_blocks_per_run == 1.0
    assert str(path) in row.note


def test_leaked_mappings_are_named_as_such() -> None:
    mapped = []

    def keep_mapped(_: int) -> None:
        mapped.append(mmap.mmap(-1, 64 * 1024))

    rows = rows_of(keep_mapped, 130, recheck_runs=30)
    for one in mapped:
        one.close()
    (row,) = [row for row in rows if row.native]
    assert (row.resource, row.verdict, row.kept_bytes_per_run) == ("mmap", Verdict.LEAKING, 64 * 1024)


def test_memory_that_a_c_library_keeps_is_native() -> None:
    allocate = ctypes.CDLL(None).malloc
    allocate.restype = ctypes.c_void_p
    release = ctypes.CDLL(None).free
    release.argtypes = [ctypes.c_void_p]
    kept = []

    def keep_in_c(_: int) -> None:
        kept.append(allocate(20_000))

    rows = rows_of(keep_in_c, 130, recheck_runs=30)
    for address in kept:
        release(address)
    (row,) = [row for row in rows if row.native]
    assert (row.resource, row.verdict) == ("malloc", Verdict.LEAKING)
    assert row.kept_bytes_per_run == pytest.approx(20_000, rel=0.15)
