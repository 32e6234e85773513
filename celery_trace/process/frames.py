"""The frames of runs, also those that no thread shows: of suspended greenlets and coroutines."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Final, Protocol, cast

from celery_trace import os_threads
from celery_trace.process.frame_locals import locals_of

#: Coroutines that a task waits for, one inside the other.
_DEEPEST: Final = 100


if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    Task = asyncio.Task[object]


class Greenlet(Protocol):
    """What is read of a greenlet."""

    @property
    def gr_frame(self) -> FrameType | None:
        """Its innermost frame; None if it runs or has ended."""

    @property
    def dead(self) -> bool:
        """Whether it has ended."""


class RunPlaces(Protocol):
    """Where runs are, if several of them share a thread."""

    def ident(self) -> int:
        """The number of what runs now, which is remembered."""

    def stack(self, number: int, threads: Mapping[int, FrameType]) -> list[FrameType]:
        """The frames of that number, innermost first; ``threads`` has the innermost frame of each thread."""


class Greenlets:
    """
    The greenlets of this thread that runs are in, where gevent or eventlet has patched threads.

    Args:
        current: Returns the current greenlet.
    """

    def __init__(self, current: Callable[[], Greenlet]) -> None:
        self._current = current
        self._thread = os_threads.ident()
        self._known: weakref.WeakValueDictionary[int, Greenlet] = weakref.WeakValueDictionary()

    def ident(self) -> int:
        greenlet = self._current()
        number = id(greenlet)
        self._known[number] = greenlet
        return number

    def stack(self, number: int, threads: Mapping[int, FrameType]) -> list[FrameType]:
        greenlet = self._known.get(number)
        if greenlet is None or greenlet.dead:
            return []
        return _stack(greenlet.gr_frame or threads.get(self._thread))  # the running one has no frame of its own


class Coroutines:
    """The tasks of asyncio that runs are in, in a pool that runs coroutines; otherwise their threads."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[int, Task] = weakref.WeakValueDictionary()
        self._threads: weakref.WeakKeyDictionary[Task, int] = weakref.WeakKeyDictionary()

    def ident(self) -> int:
        thread = threading.get_ident()
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return thread
        task = asyncio.current_task()
        if type(task) is not asyncio.Task:
            return thread
        self._known[id(task)] = task
        self._threads[task] = thread
        return id(task)

    def stack(self, number: int, threads: Mapping[int, FrameType]) -> list[FrameType]:
        task = self._known.get(number)
        if task is None:
            return _stack(threads.get(number))
        frames = _frames_of_task(task)
        # Only a suspended coroutine ends there: the frame of the running one has callers.
        return _stack(threads.get(self._threads[task])) if frames and frames[-1].f_back is not None else frames


def shared_places() -> RunPlaces:
    """Where runs are in this process, if they may share a thread. To be called in the thread that runs tasks."""
    greenlet = sys.modules.get("greenlet")
    return Greenlets(greenlet.getcurrent) if greenlet is not None and os_threads.are_patched() else Coroutines()


def stacks_by_run(numbers: Iterable[int], places: RunPlaces | None) -> dict[int, list[FrameType]]:
    """
    The frames of runs, innermost first; without those that have none.

    Args:
        numbers: The threads of the runs, or the numbers of :meth:`RunPlaces.ident`.
        places: The process's; None if each run has a thread.
    """
    threads = sys._current_frames()
    try:
        stacks = {
            number: _stack(threads.get(number)) if places is None else places.stack(number, threads)
            for number in numbers
        }
    finally:
        threads.clear()  # this frame is in it: until a garbage collection, the frames of all threads would live on
    return {number: stack for number, stack in stacks.items() if stack}


def _stack(frame: FrameType | None) -> list[FrameType]:
    """
    A frame and its callers, innermost first.

    Where the thread waits for a coroutine, in an idle event loop of asyncio or for another thread's, the frames that
    wait are replaced by those of the coroutine.
    """
    stack: list[FrameType] = []
    callback, waiting = _functions_of_asyncio()
    in_callback = False
    while frame is not None:
        in_callback = in_callback or frame.f_code is callback
        task_of = waiting.get(frame.f_code)
        if task_of is not None and not in_callback:
            stack = _frames_of_task(task_of(locals_of(frame))) or stack
        stack.append(frame)
        frame = frame.f_back
    return stack


def _functions_of_asyncio() -> tuple[CodeType | None, Mapping[CodeType, Callable[[Mapping[str, object]], object]]]:
    """The code that runs a callback of an event loop; and the codes that wait for a task, with how to find the task."""
    events, loops = sys.modules.get("asyncio.events"), sys.modules.get("asyncio.base_events")
    if events is None or loops is None:
        return None, {}
    future = sys.modules["concurrent.futures"].Future  # of asyncio.run_coroutine_threadsafe()
    return events.Handle._run.__code__, {
        loops.BaseEventLoop.run_until_complete.__code__: lambda local: local.get("future"),
        future.result.__code__: _task_of_another_thread,
        future.exception.__code__: _task_of_another_thread,
    }


def _task_of_another_thread(local: Mapping[str, object]) -> object:
    """The task that gives a future of another thread its result: `asyncio` chains the two by a callback."""
    futures, asyncio = sys.modules["concurrent.futures"], sys.modules["asyncio"]
    waiting = local.get("self")
    if type(waiting) is not futures.Future:
        return None
    for called in cast("Future[object]", waiting)._done_callbacks:  # type: ignore[attr-defined]
        for cell in getattr(called, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                if type(cell.cell_contents) is asyncio.Task:
                    return cell.cell_contents
    return None


def _frames_of_task(task: object) -> list[FrameType]:
    """The frames of a task and of the tasks that it waits for, innermost first."""
    futures = sys.modules["asyncio"]
    frames: list[FrameType] = []
    for _ in range(_DEEPEST):
        if type(task) is not futures.Task:
            break
        known = cast("Task", task)
        frames += _frames_of_coroutine(known.get_coro())
        waits_for = known._fut_waiter  # type: ignore[attr-defined]
        if type(waits_for) is futures.tasks._GatheringFuture:
            waits_for = next((child for child in waits_for._children if not child.done()), None)
        task = waits_for
    return frames[::-1]


def _frames_of_coroutine(coroutine: object) -> list[FrameType]:
    """The frames of a suspended coroutine and of those that it awaits, outermost first."""
    frames: list[FrameType] = []
    for _ in range(_DEEPEST):
        frame: FrameType | None
        if type(coroutine) is CoroutineType:
            frame, coroutine = coroutine.cr_frame, coroutine.cr_await
        elif type(coroutine) is GeneratorType:
            frame, coroutine = coroutine.gi_frame, coroutine.gi_yieldfrom
        elif type(coroutine) is AsyncGeneratorType:
            frame, coroutine = coroutine.ag_frame, coroutine.ag_await
        else:
            break
        if frame is None:
            break
        frames.append(frame)
    return frames
