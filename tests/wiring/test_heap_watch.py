"""The heap of this process, really sampled: which lines are told, of which tasks, with what holder, and what is not."""

from __future__ import annotations

import array
import ctypes
import functools
import gc
import io
import json
import os
import queue
import re
import threading
import time
import tracemalloc
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.heap import holder_search, long_runs, retainers, run_counts, sites, verdict, window_writer
from celery_trace.heap.leaks import leak_table
from celery_trace.heap.tags import PROCESS
from celery_trace.heap.watch import watch_heap
from celery_trace.model import Kind, ProcessRecord, Role, Stage, Verdict, Window
from celery_trace.settings import Settings
from celery_trace.text.code_owner import code_of
from tests.support import heaps as heap_tests
from tests.support.heap_runs import watched

HERE = str(Path(__file__))
MODULE = f"{__name__} (module)"


def line_of(mark: str) -> int:
    """The line of this file that carries a mark."""
    lines = Path(HERE).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))


# --- tasks --------------------------------------------------------------------------------------------


class Receipt:
    def __init__(self, number: int) -> None:
        self.number = number
        self.text = f"receipt {number:08d} " * 60  # LEAK receipts


_receipts: list[Receipt] = []
_texts: dict[str, bytes] = {}
_latest: dict[str, Any] = {}
_window: deque[bytes] = deque(maxlen=2_000)
_queue: deque[bytes] = deque()
_few: dict[int, bytes] = {}
_visitors: list[dict[str, Any]] = []


@functools.lru_cache(maxsize=2_000)
def _prices(number: int) -> bytes:
    return bytes(2_000 + number % 7)


def keeps_receipts(number: int) -> None:
    _receipts.append(Receipt(number))


def keeps_texts(number: int) -> None:
    _texts[f"ann{len(_texts)}"] = bytes(5_000 + number % 2)  # LEAK texts


def keeps_in_one_run_of_ten(number: int) -> None:
    if number % 10 == 3:
        _texts[f"rare{len(_texts)}"] = bytes(20_000)  # LEAK rare


def begins_late(number: int) -> None:
    if number >= 300:
        keeps_texts(number)


def replaces(number: int) -> None:
    _latest["report"] = [f"row {number}, {part}" for part in range(300)]


def fills_a_cache(number: int) -> None:
    _prices(number)


def fills_a_deque(number: int) -> None:
    _window.append(bytes(2_000 + number % 7))


def fills_a_small_cache(number: int) -> None:
    _few[number % 40] = bytes(5_000)


def uses_dicts(number: int) -> None:
    _ = [{"number": number, "index": index} for index in range(60)]  # their blocks are reused by the next dicts


def keeps_visitors(number: int) -> None:
    _visitors.append({"agent": f"agent {number}", "trail": [f"step {step} of {number}" for step in range(60)]})


def works_off_a_queue(number: int) -> None:
    _queue.append(bytes(5_000))
    if len(_queue) > 30:
        _queue.popleft()


def leaves_a_cycle(number: int) -> None:
    one: list[Any] = [number] * 200
    one.append(one)


def only_raises(number: int) -> None:
    numbers = [number] * 5_000
    raise ValueError(numbers)


def returns_much(number: int) -> list[list[int]]:
    return [[number, index] for index in range(300)]


def hands_to_c(number: int) -> None:
    reference = ctypes.py_object(bytes(3_000 + number % 2))  # LEAK held by C
    ctypes.pythonapi.Py_IncRef(reference)  # as an extension does that forgets to give one back


def hands_a_list_to_c(number: int) -> None:
    reference = ctypes.py_object([number] * 400)  # LEAK list held by C
    ctypes.pythonapi.Py_IncRef(reference)


def passes(_: int) -> None:
    sum(range(200))


@pytest.fixture(autouse=True)
def begins_empty() -> Iterator[None]:
    yield
    for kept in (_receipts, _texts, _latest, _window, _queue, _few):
        kept.clear()
    _prices.cache_clear()


# --- tasks that take turns ------------------------------------------------------------------------------


def test_leaks_of_several_tasks_that_take_turns_are_told_apart() -> None:
    with watched() as on:
        on.turns(keeps_receipts, fills_a_cache, keeps_texts, replaces, works_off_a_queue, passes, runs=260)
        rows = on.rows()
    leaking = {row.name: row for row in reversed(rows) if row.verdict is Verdict.LEAKING}  # the largest of each
    assert leaking.keys() == {"keeps_receipts", "keeps_texts"}
    texts, receipts = leaking["keeps_texts"], leaking["keeps_receipts"]
    assert (texts.file, texts.line, texts.function) == (HERE, line_of("LEAK texts"), "keeps_texts")
    assert texts.kept_bytes_per_run == pytest.approx(5_033, rel=0.25)
    assert texts.retained_by[0] == MODULE
    assert texts.retained_by[1].startswith("_texts: dict[")
    assert [kind.type for kind in texts.types] == ["bytes"]
    assert "ann" not in str([texts.retained_by, texts.types, texts.why, texts.note])
    assert (receipts.line, receipts.role) == (line_of("LEAK receipts"), "child")
    assert receipts.retained_by[1].startswith("_receipts: list[")
    assert receipts.retained_by[2].startswith("Receipt × ")
    assert receipts.code.startswith("self.text =")


def test_a_leak_in_one_run_of_ten_is_found_at_its_rate() -> None:
    with watched() as on:
        on.turns(keeps_in_one_run_of_ten, passes, runs=1000)
        (row,) = on.rows()
    assert (row.verdict, row.line) == (Verdict.LEAKING, line_of("LEAK rare"))
    assert row.kept_bytes_per_run == pytest.approx(2_003, rel=0.25)


def test_what_was_kept_in_all_is_what_is_alive_and_not_the_rate_of_all_runs() -> None:
    with watched() as on:
        on.turns(begins_late, runs=400, looks=8)
        (row,) = on.rows()
    assert row.kept_bytes_total == pytest.approx(100 * 5_033, rel=0.25)


def test_the_first_rows_come_with_what_they_wait_for() -> None:
    with watched() as on:
        on.turns(keeps_texts, runs=40)
        (row,) = on.rows()
    assert (row.verdict, row.retained_by[0]) == (Verdict.GROWING, MODULE)
    assert row.waits_for == "113 more runs"  # the last three may be in flight
    assert row.confidence > 0.9


_reports: list[bytes] = []


def keeps_a_huge_report(number: int) -> None:
    _reports.append(b"%08d" % number * 2**20)  # LEAK huge reports


def test_a_task_is_not_accused_of_dicts_that_another_task_keeps_in_reused_blocks() -> None:
    with watched(mean_bytes=1024.0) as on:
        on.turns(uses_dicts, keeps_visitors, runs=800, looks=8)
        rows = {row.name: row for row in on.rows()}
        _visitors.clear()
    assert rows["keeps_visitors"].verdict is Verdict.LEAKING
    if "uses_dicts" in rows:  # else none of its blocks was sampled and reused
        assert (rows["uses_dicts"].verdict, rows["uses_dicts"].why) == (Verdict.STEADY, verdict.REUSED)


def test_a_task_that_keeps_megabytes_is_judged_after_each_of_its_first_runs() -> None:
    verdicts = []
    with watched(mean_bytes=4096.0) as on:
        for number in range(1, 11):
            on.run(keeps_a_huge_report, number)
            if number == 5:
                on.judge()  # as the first look after some seconds
            on.look()
            verdicts.append(next((row.verdict for row in on.rows("keeps_a_huge_report")), None))
        _reports.clear()
    assert verdicts[:4] == [None] * 4
    assert verdicts[9] is Verdict.LEAKING, "after nine or ten runs, by how fast the holder is found"


LOOK_ALIKES = [
    replaces,
    fills_a_cache,
    fills_a_deque,
    fills_a_small_cache,
    works_off_a_queue,
    leaves_a_cycle,
    returns_much,
]


@pytest.mark.parametrize("task", LOOK_ALIKES, ids=lambda task: task.__name__)
def test_what_only_looks_like_a_leak_is_never_leaking(task: Callable[[int], Any]) -> None:
    with watched() as on:
        on.turns(task, passes, runs=300, looks=10)
        on.close()
        assert Verdict.LEAKING not in {window.verdict for window in on.windows}
        assert all(row.bounded for row in on.rows() if row.verdict is Verdict.GROWING)


def test_a_collection_during_a_search_proves_nothing_of_what_the_search_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Garbage that it holds meanwhile outlives the collection, and was taken for a leak then."""
    gc.disable()
    try:
        with watched() as on:
            search = on.watch._sampler.referrers

            def collects_meanwhile(*asked: Any) -> list[tuple[int, Any, Any]]:
                found = search(*asked)
                gc.collect()
                return found

            monkeypatch.setattr(on.watch._sampler, "referrers", collects_meanwhile)
            on.turns(leaves_a_cycle, runs=400, looks=8)
            evidence = [window.evidence for window in on.windows if window.evidence is not None]
            assert any(one.events >= 20 for one in evidence)
            assert {one.proved for one in evidence} == {0}
            assert not any(window.holder.outside for window in on.windows if window.holder is not None)
    finally:
        gc.enable()


@pytest.mark.parametrize(("task", "mark"), [(hands_to_c, "LEAK held by C"), (hands_a_list_to_c, "LEAK list held by C")])
def test_what_c_code_holds_needs_no_collection_to_be_no_garbage(task: Callable[[int], Any], mark: str) -> None:
    gc.disable()
    try:
        with watched() as on:
            on.turns(task, passes, runs=300, looks=10)
            (row,) = [row for row in on.rows() if row.verdict is Verdict.LEAKING]
    finally:
        gc.enable()
    assert (row.name, row.line, row.retained_by) == (task.__name__, line_of(mark), [])
    assert row.note == retainers.OUTSIDE


_columns: list[Any] = []


def keeps_arrays(number: int) -> None:
    _columns.append(array.array("d", [float(number)]) * 300)  # LEAK an array's memory


def keeps_buffers(number: int) -> None:
    _columns.append(ctypes.create_string_buffer(3_000 + number))  # LEAK a ctypes buffer's memory


@pytest.mark.parametrize(
    ("task", "mark", "kind"),
    [
        (keeps_arrays, "LEAK an array's memory", "array"),
        (keeps_buffers, "LEAK a ctypes buffer's memory", "c_char_Array_"),
    ],
)
def test_memory_that_an_extension_type_allocates_is_held_by_what_holds_its_object(
    task: Callable[[int], Any], mark: str, kind: str
) -> None:
    heap_tests.sampler()
    _columns.clear()
    with watched() as on:
        on.turns(task, passes, runs=300, looks=6)
        (row,) = [row for row in on.rows() if row.verdict is Verdict.LEAKING]
    _columns.clear()
    assert row.line == line_of(mark)
    assert row.retained_by[1].startswith("_columns: list[")
    assert row.retained_by[2].startswith(kind)


class Log:
    text = ""
    data = bytearray()
    file = io.BytesIO()
    numbers = array.array("d")


def joins_a_text(number: int) -> None:
    Log.text += f"{number:08d}" * 200  # LEAK a text


def extends_bytes(number: int) -> None:
    Log.data.extend(b"%08d" % number * 200)  # LEAK bytes


def writes_to_a_buffer(number: int) -> None:
    Log.file.write(b"%08d" % number * 200)  # LEAK a buffer


def extends_an_array(number: int) -> None:
    Log.numbers.extend([float(number)] * 200)  # LEAK an array


@pytest.mark.parametrize(
    ("task", "mark", "holder"),
    [
        (joins_a_text, "LEAK a text", "text: str"),
        (extends_bytes, "LEAK bytes", "data: bytearray"),
        (writes_to_a_buffer, "LEAK a buffer", "file: BytesIO"),
        (extends_an_array, "LEAK an array", "numbers: array"),
    ],
)
def test_one_object_that_grows_is_a_leak(task: Callable[[int], Any], mark: str, holder: str) -> None:
    heap_tests.sampler()
    Log.text, Log.data, Log.file, Log.numbers = "", bytearray(), io.BytesIO(), array.array("d")
    with watched() as on:
        on.turns(task, passes, runs=300, looks=20)
        (row,) = [row for row in on.rows() if row.verdict is Verdict.LEAKING]
    Log.text, Log.data, Log.file, Log.numbers = "", bytearray(), io.BytesIO(), array.array("d")
    assert (row.name, row.line) == (task.__name__, line_of(mark))
    assert row.kept_bytes_per_run == pytest.approx(1_600, rel=0.2)
    assert row.retained_by[0] == f"{__name__}.Log (class)"
    assert row.retained_by[-1].startswith(holder), row.retained_by


_previous: list[bytes] = []


def builds_more_each_time(number: int) -> None:
    rows = bytearray(1_000)
    for _ in range(number):
        rows.extend(bytes(1_000))
    _previous[:] = [bytes(rows[:100])]


def test_what_each_run_builds_and_drops_is_no_leak_even_if_it_is_more_each_time() -> None:
    with watched() as on:
        for number in range(200):
            on.run(builds_more_each_time, number)
            if number % 10 == 0:
                on.judge()
        on.close()
        assert not [row for row in on.rows() if row.verdict in (Verdict.LEAKING, Verdict.GROWING)]


def test_a_local_variable_of_a_function_that_runs_is_a_holder() -> None:
    heap_tests.sampler()  # without the extension, frames can't be read
    handed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    taken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def keeps_what_comes() -> None:
        kept = []
        while (text := handed.get()) is not None:
            kept.append(text)
            taken.put(None)

    def hands_over(number: int) -> None:
        handed.put(b"%d" % number * 900)  # LEAK held by a frame
        taken.get()  # on a busy machine, most would wait in the queue, which would be their holder

    keeper = threading.Thread(target=keeps_what_comes)
    keeper.start()
    try:
        with watched() as on:
            on.turns(hands_over, passes, runs=300, looks=6)
            (row,) = [row for row in on.rows() if row.verdict is Verdict.LEAKING]
    finally:
        handed.put(None)
        keeper.join()
    assert row.line == line_of("LEAK held by a frame")
    assert row.retained_by[0].endswith("keeps_what_comes() (frame)")
    assert row.retained_by[1].startswith("kept: list[")


def test_one_run_that_goes_on_and_grows_is_reported_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    heap_tests.sampler()
    monkeypatch.setattr(long_runs, "LONG_S", 0.3)
    monkeypatch.setattr(long_runs, "SLICE_S", 0.02)
    monkeypatch.setattr(sites, "LEAST_BYTES_OF_LONG_RUN", 100_000)
    with watched() as on:

        def imports(_: int) -> None:
            rows = []
            until_s = time.monotonic() + 1.5
            while time.monotonic() < until_s:
                rows.append(b"x" * 20_000)  # LEAK within one run
                time.sleep(0.002)  # the run lasts: its births are compared over time
            on.judge()

        on.run(imports)
        (row,) = [row for row in on.rows("imports") if row.line == line_of("LEAK within one run")]
        assert (row.verdict, row.waits_for) == (Verdict.GROWING, "the end of the run")
        assert re.fullmatch(r"\d+\.\d MiB in one run of .*", row.why)
        assert row.kept_bytes_total == pytest.approx(row.kept_bytes_per_run)
        assert row.retained_by[0].endswith("imports() (frame)")
        assert row.retained_by[1].startswith("rows: list[")
        (after,) = [row for row in on.judge().rows("imports") if row.line == line_of("LEAK within one run")]
    assert (after.verdict, after.why) == (Verdict.STEADY, "the run has released it")


def test_a_cache_that_fills_says_how_full_it_is() -> None:
    with watched() as on:
        on.turns(fills_a_cache, fills_a_deque, runs=200)
        rows = {row.name: row for row in on.rows() if row.verdict is Verdict.GROWING}
    assert rows["fills_a_cache"].bounded.startswith("lru_cache (")
    assert rows["fills_a_deque"].bounded.startswith("deque (")


def test_runs_that_raise_keep_nothing_and_hide_nothing() -> None:
    with watched() as on:
        held: BaseException | None = None
        for number in range(200):
            on.run(keeps_texts, number)
            try:
                on.run(only_raises, number)
            except ValueError as error:
                held = error  # as billiard holds the last result until the next one ends
        del held
        rows = on.judge().rows()
    assert [(row.name, row.verdict) for row in rows] == [("keeps_texts", Verdict.LEAKING)]


class Link:
    newest: Any = None

    def __init__(self, number: int) -> None:
        self.after = Link.newest
        self.values = [number] * 200  # LEAK links


def grows_a_chain(number: int) -> None:
    Link.newest = Link(number)


def test_the_holder_of_a_chain_is_found_though_it_grows_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder_search, "QUICK_S", 1.0)  # the heap of this process is what hundreds of tests left
    try:
        with watched() as on:
            for number in range(480):
                on.run(grows_a_chain, number)
                if not number % 6:
                    on.watch._due_s = 0.0
                    on.look()
                    row = next((row for row in on.rows() if row.line == line_of("LEAK links")), None)
                    if row is not None and row.verdict is Verdict.LEAKING:
                        break  # else its holder is still searched, or searched again
        assert row is not None
        assert row.verdict is Verdict.LEAKING
        assert row.retained_by[:2] == [f"{__name__}.Link (class)", "newest: Link"]
    finally:
        Link.newest = None


# --- whose it is -----------------------------------------------------------------------------------------


def test_what_a_run_inside_a_run_keeps_is_the_inner_ones() -> None:
    def outer(number: int) -> None:
        on.run(keeps_texts, number, kind=Kind.BLOCK)
        _latest[f"outer{number}"] = bytes(3_000)  # LEAK outer

    with watched() as on:
        on.turns(outer, runs=200)
        rows = {(row.kind, row.name): row.line for row in on.rows() if row.verdict is Verdict.LEAKING}
    assert rows == {("block", "keeps_texts"): line_of("LEAK texts"), ("task", "outer"): line_of("LEAK outer")}


def elsewhere(tasks: list[Callable[[int], Any]], runs: int) -> None:
    """Run functions in a thread that nobody has told of a task."""

    def work() -> None:
        for number in range(runs):
            for task in tasks:
                task(number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_without_a_task_is_known_by_the_marked_function_in_its_stack() -> None:
    def calls_below(number: int) -> None:
        keeps_texts(number)

    with watched(role=Role.GREEN) as on:
        for task in (calls_below, passes):
            on.watch.tag(Kind.TASK, task.__name__, code_of(task))
        for number in range(200):
            for task in (calls_below, passes):
                # As a greenlet switches within a run: the thread has no task of its own.
                on.watch.restore(on.watch.run(on.watch.tag(Kind.TASK, task.__name__)))
                elsewhere([lambda _, task=task, number=number: task(number)], 1)
        (row,) = on.judge().rows()
    assert (row.name, row.line, row.verdict) == ("calls_below", line_of("LEAK texts"), Verdict.LEAKING)
    assert row.kept_bytes_per_run == pytest.approx(5_033, rel=0.25)


def test_a_look_from_the_thread_that_runs_all_tasks_hides_none_of_them() -> None:
    """Where greenlets share a thread, the ticker's is one of them."""

    def beside_the_ticker(number: int) -> None:
        keeps_texts(number)

    with watched(role=Role.GREEN) as on:
        on.watch.tag(Kind.TASK, beside_the_ticker.__name__, code_of(beside_the_ticker))
        for number in range(200):
            on.watch.look()
            on.run(beside_the_ticker, number)
        (row,) = on.judge().rows()
    assert (row.name, row.line, row.verdict) == ("beside_the_ticker", line_of("LEAK texts"), Verdict.LEAKING)


def test_what_no_task_explains_is_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_counts, "PROCESS_RUN_S", 0.01)
    with watched(role=Role.MAIN) as on:
        for number in range(480):
            elsewhere([keeps_texts], 1)
            keeps_texts(1_000 + number)
            time.sleep(0.015)
            if number % 120 == 119:
                (row,) = on.judge().rows()
                if row.verdict is Verdict.LEAKING:
                    break  # else its holder seems to grow more slowly than before, by chance
    assert (row.kind, row.name, row.role) == (Kind.PROCESS, PROCESS, "main")
    assert (row.line, row.verdict) == (line_of("LEAK texts"), Verdict.LEAKING)
    assert row.retained_by[1].startswith("_texts: dict")


def test_a_process_without_tasks_tells_what_holds_much_once_for_all_lines_of_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a worker's main process holds messages with an ETA: they came at once, and stay."""
    monkeypatch.setattr(run_counts, "PROCESS_RUN_S", 0.01)
    text = json.dumps([{"id": number, "body": "x" * 400} for number in range(50)])
    with watched(role=Role.MAIN, mean_bytes=8192.0) as on:
        began_s = time.monotonic()
        with ThreadPoolExecutor(1) as library:  # no line of ours is on its stack
            _latest["messages"] = [*library.map(json.loads, [text] * 1_000)]
        time.sleep(max(0.2, 3 * (time.monotonic() - began_s)))
        rows = on.judge().rows()
        _latest.clear()
    (row,) = rows
    assert row.name == PROCESS
    assert row.verdict not in (Verdict.LEAKING, Verdict.GROWING)
    assert row.file.endswith("json/decoder.py")
    assert row.retained_by[:2] == [MODULE, "_latest: dict[1]"]
    assert row.retained_by[2:] == ["['messages']: list[1000]", "list × 1000"]


def test_what_we_allocate_ourselves_is_nobodys_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look keeps evidence, stacks and windows; the windows of this test are a leak, and ours."""
    monkeypatch.setattr(run_counts, "PROCESS_RUN_S", 0.005)
    monkeypatch.setattr(window_writer, "REPEAT_S", 0.0)
    with watched(role=Role.SOLO) as on:
        for _ in range(40):
            on.turns(keeps_texts, passes, runs=5, looks=1)
        assert len(on.windows) > 10
        assert {row.name for row in on.rows()} == {"keeps_texts"}


# --- how it goes on -----------------------------------------------------------------------------------------


def test_a_tracemalloc_of_the_users_comes_and_goes_and_sampling_begins_again() -> None:
    with watched() as on:
        on.turns(keeps_texts, runs=80)
        tracemalloc.start()
        on.turns(keeps_texts, runs=10)
        tracemalloc.stop()  # it puts back what it found, or takes the hooks out with its own
        on.look()
        on.turns(keeps_texts, runs=120)
        assert on.watch.state == "sampling"
        (row,) = on.rows()
    assert (row.verdict, row.line) == (Verdict.LEAKING, line_of("LEAK texts"))
    assert row.kept_bytes_per_run == pytest.approx(5_033, rel=0.4)


def test_a_tracemalloc_that_was_on_before_and_ends_takes_the_hooks_along_and_a_look_puts_them_back() -> None:
    tracemalloc.start()
    try:
        with watched() as on:
            on.turns(keeps_texts, runs=20)
            tracemalloc.stop()
            assert not on.watch._sampler.is_on()
            on.look()
            assert on.watch._sampler.is_on()
            on.turns(keeps_texts, runs=200)
            assert [row.verdict for row in on.rows()] == [Verdict.LEAKING]
    finally:
        tracemalloc.stop()


def test_processes_that_live_for_ten_runs_report_at_their_end_and_together_name_the_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holder_search, "SEARCH_AT_END_S", 60.0)  # hundreds of tests have left objects
    windows: list[Window] = []
    for number in range(25):
        with watched(process=f"process-{number}") as on:
            for run in range(10):
                on.run(keeps_texts, 100 * number + run)
                on.run(replaces, run)
            on.close()
            assert {window.verdict for window in on.windows if window.name == "keeps_texts"} <= {Verdict.TOO_FEW_RUNS}
            windows += on.windows
    leaking = [row for row in leak_table(windows, now_s=0.0) if row.verdict is Verdict.LEAKING]
    assert [(row.name, row.line) for row in leaking] == [("keeps_texts", line_of("LEAK texts"))]
    assert leaking[0].processes > 20
    assert leaking[0].kept_bytes_per_run == pytest.approx(5_033, rel=0.4)
    assert leaking[0].retained_by[:1] == [MODULE]


def test_a_task_that_keeps_nothing_is_reported_clean_and_refutes_what_others_saw() -> None:
    with watched(process="old") as old:
        old.turns(keeps_texts, runs=200)

    def mended(_: int) -> None:
        bytes(5_000)

    mended.__name__ = "keeps_texts"
    with watched(process="new") as new:
        new.turns(mended, passes, runs=100)
    clean = [window for window in new.windows if window.name == "keeps_texts"]
    assert {(window.verdict, window.stage) for window in clean} == {(Verdict.STEADY, Stage.SAMPLED)}
    assert not any(window.sites for window in clean)
    assert [window.runs for window in clean] == [47, 97], "again when it has run twice as often"
    assert [row.verdict for row in old.rows()] == [Verdict.LEAKING]
    together = leak_table(old.windows + new.windows, now_s=0.0)
    assert [(row.name, row.verdict) for row in together] == [("keeps_texts", Verdict.STEADY)]


def test_a_leak_that_is_emptied_is_taken_back() -> None:
    with watched() as on:
        on.turns(keeps_texts, runs=200)
        assert [row.verdict for row in on.rows()] == [Verdict.LEAKING]
        _texts.clear()
        on.turns(passes, runs=100)
        for number in range(200):
            on.run(lambda _: None, number)
        on.judge()
        (row,) = on.rows("keeps_texts")
    assert row.verdict is Verdict.STEADY


def test_over_its_budget_it_pauses_and_goes_on_later_where_it_stopped() -> None:
    clock = FakeClock()
    with watched(clock=clock, budget=0.01) as on:
        on.turns(keeps_texts, runs=260)
        on.watch.duty.spend(10.0)
        on.look()
        assert on.watch.state.startswith("paused: next stretch in ")
        assert not on.watch._sampler.is_on()
        for number in range(20):
            on.run(keeps_texts, number)
        on.look()
        assert not on.watch._sampler.is_on()
        clock.advance(2_000.0)
        on.look()
        assert on.watch.state == "sampling"
        on.turns(keeps_texts, runs=60)
        (row,) = on.rows()
    assert (row.verdict, row.line) == (Verdict.LEAKING, line_of("LEAK texts"))
    assert row.kept_bytes_per_run == pytest.approx(5_033, rel=0.25)


def test_a_stretch_that_ends_is_judged_to_its_last_run() -> None:
    with watched(clock=FakeClock(), budget=0.01) as on:
        for number in range(260):
            on.run(keeps_texts, number)
        on.watch.duty.spend(10.0)
        on.look()
        assert on.watch.state.startswith("paused")
        (row,) = on.rows()
    assert row.why == "memory of 257 of 257 runs is still alive"


def test_a_process_that_a_task_forks_writes_nothing_and_its_parent_goes_on() -> None:
    with watched() as on:

        def forks(number: int) -> None:
            keeps_texts(number)
            if number % 50:
                return
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    before = len(on.windows)
                    for run in range(200):
                        on.run(keeps_texts, run)
                    on.watch.look()
                    on.watch.close()
                    status = int(len(on.windows) != before or on.watch.is_open)
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        on.turns(forks, runs=200)
        rows = on.rows()
    assert [(row.name, row.verdict) for row in rows] == [("forks", Verdict.LEAKING)]


def test_a_collector_that_is_off_and_a_frozen_heap_stay_so() -> None:
    gc.disable()
    gc.freeze()  # and a monitor in this process may have frozen it before
    try:
        with watched() as on:
            on.turns(keeps_texts, leaves_a_cycle, runs=200)
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
            leaking = [row.name for row in on.rows() if row.verdict is Verdict.LEAKING]
            assert leaking == ["keeps_texts"], "garbage that nobody collects has no holder, so it is a suspicion"
    finally:
        gc.unfreeze()
        gc.enable()


def test_there_is_one_watch_in_a_process() -> None:
    with watched() as on:
        process = ProcessRecord(uid="p", host="host", pid=1, started_at_s=0.0, role=Role.SOLO)
        assert watch_heap(Settings(), process, on.windows.append, FakeClock()) is None


def test_a_closed_watch_says_nothing_more_and_breaks_nothing() -> None:
    with watched() as on:
        on.turns(keeps_texts, runs=50)
        on.close()
        said = len(on.windows)
        on.run(keeps_texts)
        on.look()
        on.close()
        assert len(on.windows) == said


def test_nothing_that_a_task_lets_go_lives_longer_for_having_been_watched() -> None:
    with watched() as on:
        on.turns(keeps_receipts, runs=100)
        refs = [weakref.ref(one) for one in _receipts]
        gc.disable()
        try:
            _receipts.clear()
            assert not any(ref() for ref in refs)
        finally:
            gc.enable()
