"""The frames of runs that share a thread."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent import futures
from types import FrameType

import pytest

from celery_trace.process.frames import Coroutines, RunFrames, _may_repeat, look_at_runs, stacks_by_run
from tests.support.waiting import wait_until


def names(stack: list[FrameType]) -> list[str]:
    return [frame.f_code.co_name for frame in stack]


def test_a_thread_that_waits_for_a_coroutine_shows_its_frames_and_not_the_loops() -> None:
    begun = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def inner(over: asyncio.Event) -> None:
        begun.set()
        await over.wait()

    async def generated(over: asyncio.Event) -> None:
        await asyncio.gather(asyncio.create_task(inner(over)))

    async def outer() -> None:
        over = asyncio.Event()
        stop.append((asyncio.get_running_loop(), over))
        await generated(over)

    def task() -> None:
        asyncio.run(outer())

    thread = threading.Thread(target=task)
    thread.start()
    assert begun.wait(10)
    found: list[str] = []
    for _ in range(1000):  # until the loop is idle
        assert thread.ident is not None
        found = names(stacks_by_run([thread.ident], None)[thread.ident])
        if found[0] == "wait" and "outer" in found:
            break
    loop, over = stop[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(10)
    assert found[:4] == ["wait", "inner", "generated", "outer"]
    assert found[4] == "run_until_complete"
    assert "task" in found
    assert "select" not in found


def test_a_thread_that_waits_for_another_threads_coroutine_shows_its_frames() -> None:
    loop = asyncio.new_event_loop()
    looping = threading.Thread(target=loop.run_forever)
    looping.start()
    begun = threading.Event()

    async def awaits() -> None:
        begun.set()
        await asyncio.sleep(30)

    future = asyncio.run_coroutine_threadsafe(awaits(), loop)

    def waits_for_it() -> None:
        assert futures.CancelledError in (type(error) for error in [_error_of(future)])

    waiting = threading.Thread(target=waits_for_it)
    waiting.start()
    assert begun.wait(10)
    found: list[str] = []
    for _ in range(1000):
        assert waiting.ident is not None
        found = names(stacks_by_run([waiting.ident], None)[waiting.ident])
        if found[:2] == ["sleep", "awaits"]:
            break
    future.cancel()
    waiting.join(10)
    loop.call_soon_threadsafe(loop.stop)
    looping.join(10)
    loop.close()
    assert found[:3] == ["sleep", "awaits", "result"]
    assert "waits_for_it" in found


def _error_of(future: futures.Future[None]) -> BaseException | None:
    try:
        future.result()
    except BaseException as error:
        return error
    return None


def test_coroutines_of_one_thread_have_numbers_and_stacks_of_their_own() -> None:
    places = Coroutines()
    numbers: list[int] = []

    async def run(over: asyncio.Event, name: str) -> None:
        numbers.append(places.ident())
        await over.wait()

    async def main() -> None:
        over = asyncio.Event()
        tasks = [asyncio.create_task(run(over, name)) for name in "ab"]
        await asyncio.sleep(0)
        own = places.ident()
        stacks = stacks_by_run([*numbers, own], places)
        assert [stacks[number][1].f_locals["name"] for number in numbers] == ["a", "b"]
        assert names(stacks[numbers[0]]) == ["wait", "run"]
        assert "main" in names(stacks[own])  # the one that runs has the thread's stack
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(set(numbers)) == 2
    assert places.ident() == threading.get_ident()
    assert stacks_by_run(numbers, places) == {}


def look_at(places: Coroutines, number: int) -> RunFrames:
    return look_at_runs([number], places, sys._current_frames())[number]


class Looked:
    """Runs a coroutine in a loop of its own thread, as a run that can be looked at."""

    def __init__(self, function: Callable[[], Coroutine[object, object, None]]) -> None:
        self.places = Coroutines()
        self.began = threading.Event()
        self.number = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self.thread.start()
        assert self.began.wait(10)

    def _run(self, function: Callable[[], Coroutine[object, object, None]]) -> None:
        async def run() -> None:
            self.number = self.places.ident()
            self.began.set()
            await function()

        with contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(run())

    def until(self, wanted: Callable[[RunFrames], bool]) -> RunFrames:
        found: list[RunFrames] = []

        def look() -> bool:
            found[:] = [look_at(self.places, self.number)]
            return wanted(found[0])

        wait_until(look, "it is where it should be", timeout_s=10, explain=lambda: str(names(found[0].frames)))
        return found[0]

    def end(self) -> None:
        self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self.loop)])
        self.thread.join(10)
        self.loop.close()


async def _again_and_again() -> None:
    while True:
        await asyncio.sleep(0.01)


async def _wait_for_another() -> None:
    await asyncio.wait({asyncio.ensure_future(_again_and_again())})


async def _wait_with_a_limit() -> None:
    await asyncio.wait_for(_again_and_again(), 100)


async def _wait_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())
        group.create_task(_again_and_again())


async def _wait_for_several() -> None:
    await asyncio.gather(asyncio.Event().wait(), _again_and_again())


@pytest.mark.parametrize(
    "function", [_again_and_again, _wait_for_another, _wait_with_a_limit, _wait_in_a_group, _wait_for_several]
)
def test_a_run_has_had_a_turn_if_any_task_that_it_waits_for_has(
    function: Callable[[], Coroutine[object, object, None]],
) -> None:
    run = Looked(function)
    first = run.until(lambda place: not place.runs)
    then = run.until(lambda place: not place.runs and place.turn != first.turn)
    run.end()
    assert then.thread == first.thread == run.thread.ident


def _turns(place: RunFrames) -> tuple[object, ...]:
    return place.turn if isinstance(place.turn, tuple) else ()


def test_a_coroutine_that_waits_for_one_thing_has_no_turn() -> None:
    async def waits() -> None:
        await asyncio.gather(asyncio.Event().wait(), asyncio.Event().wait())

    run = Looked(waits)
    first = run.until(lambda place: not place.runs and len(place.frames) > 2 and len(_turns(place)) == 3)
    time.sleep(0.1)
    then = run.until(lambda place: True)
    run.end()
    assert not then.runs
    assert _turns(then) == _turns(first)


@pytest.mark.parametrize("shielded", [False, True])
def test_a_coroutine_that_waits_for_a_thread_is_where_that_thread_is(shielded: bool) -> None:
    over = threading.Event()

    def view() -> None:
        over.wait(20)

    async def waits() -> None:
        future = asyncio.get_running_loop().run_in_executor(None, view)
        await (asyncio.shield(future) if shielded else future)

    run = Looked(waits)
    place = run.until(lambda place: place.thread != run.thread.ident)
    shown = names(place.frames)
    over.set()
    run.thread.join(10)
    run.loop.run_until_complete(run.loop.shutdown_default_executor())
    run.loop.close()
    assert place.runs
    assert shown.index("view") < shown.index("waits")


def test_a_call_in_a_loop_may_be_a_later_one() -> None:
    def calls() -> FrameType:
        frame = sys._getframe()
        for _ in range(1):
            pass
        return frame

    def loops() -> FrameType:
        for _ in range(2):
            frame = sys._getframe()
        return frame

    found = [(function.__code__, _where(function)) for function in (calls, loops)]
    assert [_may_repeat(code, at) for code, at in found] == [False, True]


def _where(function: Callable[[], FrameType]) -> int:
    """The instruction of its call of `_getframe`."""
    [*_, at] = [one.offset for one in dis.get_instructions(function) if one.argval == "_getframe"]
    return at


def test_a_thread_without_python_code_has_no_stack() -> None:
    assert stacks_by_run([1], None) == {}


def test_frames_that_were_read_are_not_kept_until_the_next_garbage_collection() -> None:
    class Local:
        """A local variable of the task."""

    held: list[weakref.ref[Local]] = []
    began, ends = threading.Event(), threading.Event()

    def task() -> None:
        local = Local()
        held.append(weakref.ref(local))
        began.set()
        ends.wait()

    thread = threading.Thread(target=task)
    thread.start()
    began.wait()
    gc.disable()
    try:
        assert thread.ident is not None
        assert stacks_by_run([thread.ident], None)
        ends.set()
        thread.join()
        assert held[0]() is None
    finally:
        gc.enable()
