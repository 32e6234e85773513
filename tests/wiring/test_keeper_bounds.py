"""What the live keeper holds, for how long, and what it costs the one who fails."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.guard import own_errors
from celery_trace.model import AnyRecord, Capture, CapturedException, Frame, Kept, ProcessRecord
from celery_trace.settings import Settings
from celery_trace.shell.live.estimate import estimate_bytes
from celery_trace.shell.live.keeper import Keeper, live_trace
from tests.support.shells import LiveProcess, caught, create_error, failure, outer
from tests.support.waiting import wait_until


@pytest.fixture
def away(tmp_path: Path) -> Iterator[LiveProcess]:
    """A process whose broker does not answer."""
    process = LiveProcess(tmp_path, "redis://127.0.0.1:1/0", keep_failures=3, keep_bytes=1024 * 1024)
    yield process
    process.close()


def gone(process: LiveProcess) -> dict[str, str]:
    return {one.failure: one.gone for one in process.records if isinstance(one, Kept)}


def test_nothing_is_started_before_the_first_failure(away: LiveProcess) -> None:
    assert not away.keeper.listening
    assert away.records == []


def test_the_oldest_go_first_when_there_are_too_many(away: LiveProcess) -> None:
    for number in range(5):
        away.fail(f"f{number}")
    assert gone(away) == {"f0": "evicted", "f1": "evicted", "f2": "", "f3": "", "f4": ""}
    assert away.keeper.kept_count == 3


def test_the_oldest_go_first_when_they_take_too_much_memory(away: LiveProcess) -> None:
    away.fail("small")
    away.fail("large", lambda: create_error(bytes(700_000)))
    away.fail("larger", lambda: create_error(bytes(800_000)))
    assert gone(away) == {"small": "evicted", "large": "evicted", "larger": ""}
    assert 800_000 < away.keeper.kept_bytes < 1_048_576


def test_what_is_too_large_alone_is_not_kept_and_the_record_says_so(away: LiveProcess) -> None:
    away.fail("huge", lambda: create_error(bytes(5_000_000)))
    assert gone(away) == {"huge": "evicted"}
    assert away.keeper.kept_count == 0


class Precious:
    pass


def test_what_celerys_own_frame_ends_with_is_not_kept(away: LiveProcess) -> None:
    """It stays in the traceback's frame: all of the stack once more, made to be sent to the main process."""
    names: dict[str, Any] = {}
    source = """
def trace_task(fail, keep):
    try:
        fail()
    except ValueError as error:
        seen = error
        keep(error)
    result = Result()
    return error_of(seen)

def fast_trace_task(fail, keep):
    returned = Result()
    trace_task(fail, keep)
"""
    exec(compile(source, "/site-packages/celery/app/trace.py", "exec"), names)
    results: list[weakref.ref[Precious]] = []

    def result() -> Precious:
        made = Precious()
        results.append(weakref.ref(made))
        return made

    def fail() -> None:
        raise ValueError("no")

    names |= {"Result": result, "error_of": type}
    names["fast_trace_task"](fail, lambda error: away.keeper.keep(failure("f"), error))
    gc.collect()
    assert [made() is None for made in results] == [False, False], "the traceback keeps the frames"
    away.fail("g")
    gc.collect()
    assert [made() is None for made in results] == [True, True]
    assert away.keeper.kept_count == 2


def test_letting_go_lets_the_objects_go(away: LiveProcess) -> None:
    thing = Precious()
    watch = weakref.ref(thing)
    holder = [thing]
    away.fail("f", lambda: create_error(list(holder)))
    away.records.clear()
    holder.clear()
    del thing
    gc.collect()
    assert watch() is not None
    assert away.keeper.drop("f")
    gc.collect()
    assert watch() is None
    assert not away.keeper.drop("f")


def test_after_its_time_a_failure_is_let_go_and_then_the_thread_ends(tmp_path: Path, own_broker_url: str) -> None:
    process = LiveProcess(tmp_path, own_broker_url, keep_seconds=0.5)
    process.fail("f")
    assert process.keeper.listening
    wait_until(lambda: gone(process) == {"f": "expired"}, "it expires")
    wait_until(lambda: not process.keeper.listening, "the thread ends")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("celery-trace-shell")]
    process.fail("g")
    assert process.keeper.listening
    process.close()


def test_a_broker_that_is_away_never_holds_up_a_failure(away: LiveProcess) -> None:
    away.fail()
    took_s = []
    for _ in range(50):
        error = caught(outer)
        started_s = time.perf_counter()
        away.keeper.keep(failure(), error)
        took_s.append(time.perf_counter() - started_s)
    assert sorted(took_s)[25] < 0.01


def test_without_a_thread_to_say_goodbye_the_end_is_not_held_up(away: LiveProcess) -> None:
    away.fail("f")
    started_s = time.perf_counter()
    away.keeper.close("shutdown")
    assert time.perf_counter() - started_s < 3
    assert gone(away) == {"f": "shutdown"}
    away.fail_after_close = away.keeper.keep(failure("g"), caught(outer))  # type: ignore[attr-defined, func-returns-value]
    assert "g" not in gone(away)


@pytest.mark.parametrize("setting", [{"keep_failures": 0}, {"keep_seconds": 0.0}])
def test_a_limit_of_nothing_keeps_nothing(tmp_path: Path, setting: dict[str, Any]) -> None:
    process = LiveProcess(tmp_path, "memory://", **setting)
    process.keeper.keep(failure("f"), caught(outer))
    assert process.records == []
    assert not process.keeper.listening


def test_an_exception_without_frames_is_not_kept(away: LiveProcess) -> None:
    away.keeper.keep(failure("f"), ValueError("never raised"))
    assert away.records == []


def test_a_key_that_cannot_be_used_costs_the_task_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_errors.clear()  # a place is logged in full once per process
    settings = Settings(dir=str(tmp_path), shell="live", shell_key="file:/nowhere")
    records: list[AnyRecord] = []
    process = ProcessRecord(uid="p", host="h", pid=1, started_at_s=0.0)
    keeper = Keeper(settings, process, records.append, lambda: None, FakeClock())
    keeper.keep(failure("f"), caught(outer))
    assert "Can't read the shell key" in caplog.text
    assert (records, keeper.kept_count) == ([], 0)
    assert not keeper.listening
    keeper.close("shutdown")


def test_frames_have_the_numbers_that_the_page_shows() -> None:
    error = caught(outer)
    code = create_error.__code__
    traceback: Any = error.__traceback__
    lines = {}
    while traceback is not None:
        lines[traceback.tb_frame.f_code.co_name] = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    frames = [
        Frame(file=lines["create_error"][0], line=lines["create_error"][1], function="create_error", in_app=False),
        Frame(file=lines["outer"][0], line=lines["outer"][1], function="outer"),
    ]
    raised = CapturedException(type="ZeroDivisionError", module="builtins", message="", frames=frames)
    trace = live_trace(failure(capture=Capture(exceptions=[raised])), error)
    assert trace is not None
    assert [(frame.function, frame.in_app) for frame in trace.frames] == [("create_error", False), ("outer", True)]
    assert code.co_name in repr(trace.frames[0])
    assert any("->" not in text for _number, text in trace.frames[0].source())


def test_the_kept_copies_survive_celery_clearing_the_frames() -> None:
    import traceback

    error = caught(outer)
    trace = live_trace(failure(), error)
    traceback.clear_frames(error.__traceback__)
    assert trace is not None
    assert trace.frames[0].locals["context_data"] == "Hello"


class Costly:
    """An object whose own methods must not be run to find out its size."""

    def __sizeof__(self) -> int:
        raise AssertionError("__sizeof__ was run")

    def __iter__(self) -> Any:
        raise AssertionError("__iter__ was run")

    def __len__(self) -> int:
        raise AssertionError("__len__ was run")


class Lazy:
    """As Django's lazy objects: whoever asks for the class makes it fetch itself."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise AssertionError("__class__ was asked for")


class OwnDict(dict[str, Any]):
    def __iter__(self) -> Any:
        raise AssertionError("__iter__ was run")

    def items(self) -> Any:
        raise AssertionError("items was run")


class Comparing(type):
    """A metaclass whose own comparison must not be run to find out what a value is."""

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("the metaclass was asked")

    def __hash__(cls) -> int:
        raise AssertionError("the metaclass was asked")


class Compared(metaclass=Comparing):
    pass


def test_the_estimate_runs_no_code_of_the_user() -> None:
    assert estimate_bytes([{"a": Costly(), "b": OwnDict(x=1), "c": Lazy(), "d": [Lazy()], "e": Compared()}]) > 0


def test_the_estimate_is_about_right_and_bounded_in_time() -> None:
    assert 900_000 < estimate_bytes([{"data": [bytes(1000) for _ in range(1000)]}]) < 1_200_000
    big = {"rows": [{"id": number, "text": "x" * 100} for number in range(300_000)]}
    started_s = time.thread_time()
    size = estimate_bytes([big])
    assert time.thread_time() - started_s < 0.5
    assert 20_000_000 < size < 500_000_000


def test_a_cycle_is_counted_once() -> None:
    values: list[Any] = [bytes(1000)]
    values.append(values)
    assert 1000 < estimate_bytes([values]) < 2000
