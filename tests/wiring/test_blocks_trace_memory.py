"""``trace_memory`` around blocks, functions, coroutines and generators."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celery_trace import trace_memory
from celery_trace.model import Kind, Role, Run, Stage, Window
from celery_trace.runtime import recorder as recorders
from celery_trace.settings import Settings

HERE = str(Path(__file__))

_kept: list[Any] = []


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every record that this process's recorder writes."""
    recorders.close()
    records: list[Any] = []
    recorder = recorders.ensure(Settings(dir=str(tmp_path / "trace"), memory="auto"), Role.SCRIPT)
    monkeypatch.setattr(recorder.spool, "append", records.append)
    yield records
    recorders.close()
    _kept.clear()


def test_a_block_prints_its_ten_differences_with_the_line_that_kept_most(written: list[Any]) -> None:
    shown = io.StringIO()
    with trace_memory("orders", file=shown) as block:
        _kept.append([str(number) * 20 for number in range(1_000)])  # KEPT
    lines = shown.getvalue().splitlines()
    assert lines[0] == "[ Top 10 differences ] orders"
    assert lines[1].startswith(f"{HERE}:")
    assert "KiB, count=+1002" in lines[1]
    assert lines[2].strip().startswith("_kept.append")
    assert block.top[0].file == HERE
    assert block.top[0].function.startswith("test_a_block_prints")
    assert not tracemalloc.is_tracing()


def test_a_block_is_recorded_as_a_run_and_as_evidence(written: list[Any]) -> None:
    with trace_memory("recorded", show=False):
        _kept.append(bytearray(50_000))
    (run,) = [record for record in written if isinstance(record, Run)]
    (window,) = [record for record in written if isinstance(record, Window)]
    assert (run.kind, run.name, run.why) == (Kind.BLOCK, "recorded", "traced")
    assert run.top[0].bytes == pytest.approx(50_000, rel=0.02)
    assert (window.stage, window.sites[0].file) == (Stage.TRACED, HERE)


def test_a_block_without_a_label_is_named_by_its_own_line(written: list[Any]) -> None:
    async def body() -> int:
        async with trace_memory(show=False):
            return sys._getframe().f_lineno - 1

    with trace_memory(show=False):
        line = sys._getframe().f_lineno - 1
    names = [f"{__name__}:{line}", f"{__name__}:{asyncio.run(body())}"]
    assert [record.name for record in written if isinstance(record, Run)] == names


def test_memory_that_a_block_gives_back_is_shown_as_a_loss_within_an_outer_block(written: list[Any]) -> None:
    with trace_memory("outer", show=False) as outer:
        big = [bytes(1_000 + index % 2) for index in range(200)]
        with trace_memory("inner", show=False) as inner:
            big.clear()
    assert inner.top[0].bytes < -200_000
    assert all(site.bytes < 100_000 for site in outer.top)


def test_the_users_own_tracing_goes_on_after_a_block(written: list[Any]) -> None:
    tracemalloc.start(3)
    try:
        _kept.append(bytearray(90_000))
        with trace_memory("within", show=False) as block:
            _kept.append(bytearray(20_000))
        assert tracemalloc.is_tracing()
        assert tracemalloc.get_traceback_limit() == 3
        assert block.top[0].bytes == pytest.approx(20_000, rel=0.05)
    finally:
        tracemalloc.stop()


def test_a_decorated_function_keeps_its_name_its_result_and_its_exception(written: list[Any]) -> None:
    @trace_memory
    def divide(one: int, other: int) -> float:
        """Divide."""
        return one / other

    assert (divide.__name__, divide.__doc__, divide(6, 3)) == ("divide", "Divide.", 2)
    with pytest.raises(ZeroDivisionError):
        divide(1, 0)
    assert [run.state for run in written if isinstance(run, Run)] == ["SUCCESS", "FAILURE"]
    assert not tracemalloc.is_tracing()


def test_a_generator_is_one_run_from_its_first_item_to_its_end(written: list[Any]) -> None:
    @trace_memory("rows", show=False)
    def rows() -> Iterator[int]:
        _kept.append(bytearray(30_000))
        yield 1
        _kept.append(bytearray(30_000))
        yield 2

    assert list(rows()) == [1, 2]
    half = rows()
    next(half)
    half.close()  # type: ignore[attr-defined]
    runs = [record for record in written if isinstance(record, Run)]
    assert [run.state for run in runs] == ["SUCCESS", "SUCCESS"]
    assert runs[0].top[0].bytes + runs[0].top[1].bytes == pytest.approx(60_000, rel=0.05)
    assert not tracemalloc.is_tracing()


def test_coroutines_that_overlap_say_how_many_were_at_once(written: list[Any]) -> None:
    shown = io.StringIO()

    @trace_memory("part", file=shown)
    async def part(number: int) -> int:
        await asyncio.sleep(0.01 * number)
        return number

    async def both() -> list[int]:
        return list(await asyncio.gather(part(1), part(2)))

    assert asyncio.run(both()) == [1, 2]
    assert "2 concurrent runs" in shown.getvalue()
    assert not tracemalloc.is_tracing()


def test_an_async_generator_passes_items_values_and_its_end(written: list[Any]) -> None:
    @trace_memory("stream", show=False)
    async def stream() -> AsyncIterator[Any]:
        got = yield "first"  # type: ignore[misc]
        yield got

    async def read() -> list[Any]:
        items: Any = stream()
        return [await items.__anext__(), await items.asend("sent"), [item async for item in items]]

    assert asyncio.run(read()) == ["first", "sent", []]
    assert [run.name for run in written if isinstance(run, Run)] == ["stream"]


def test_with_memory_off_a_block_just_runs(tmp_path: Path) -> None:
    recorders.close()
    recorders.ensure(Settings(dir=str(tmp_path / "trace"), memory="off", black_box=False), Role.SCRIPT)
    shown = io.StringIO()
    try:
        with trace_memory("silent", file=shown):
            assert not tracemalloc.is_tracing()
    finally:
        recorders.close()
    assert shown.getvalue() == ""


def test_a_celery_task_is_refused_with_the_order_that_works() -> None:
    class Task:
        name = "shop.tasks.send"

        def apply_async(self) -> None:
            """As a Celery task has it."""

    with pytest.raises(TypeError, match=r"shop\.tasks\.send.*below the task decorator"):
        trace_memory("")(Task())  # type: ignore[type-var]


def test_the_differences_survive_the_way_to_the_store(written: list[Any]) -> None:
    with trace_memory("json", show=False):
        _kept.append(json.loads('["' + "x" * 5_000 + '"]'))
    run = next(record for record in written if isinstance(record, Run))
    assert all(site.file and site.line for site in run.top)


def test_no_secret_of_a_label_or_a_line_leaves_the_process(written: list[Any]) -> None:
    for _ in range(2):
        with trace_memory("import of https://bob:hunter2@shop.example.org/", show=False):
            _kept.append("sk_live_51Habcdefgh12345678" * 2_000)
    recorder = recorders.current()
    assert recorder is not None
    recorder.flush()
    runs = [record for record in written if isinstance(record, Run)]
    windows = [record for record in written if isinstance(record, Window)]
    assert {record.name for record in (*runs, *windows)} == {"import of https://bob:[redacted]@shop.example.org/"}
    assert any('"[redacted]" * 2_000' in site.code for record in windows for site in record.sites)
    data = msgspec.json.encode(written)
    assert b"hunter2" not in data
    assert b"sk_live" not in data
