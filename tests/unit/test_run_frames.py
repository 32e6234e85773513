"""The frames of runs that share a thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent import futures
from types import FrameType

from celery_trace.process.frames import Coroutines, stacks_by_run


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
