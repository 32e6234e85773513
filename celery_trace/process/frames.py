"""The frames of a run that its thread does not show: those of a suspended greenlet or coroutine."""

from __future__ import annotations

import sys
import weakref
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

from celery_trace import os_threads

#: Coroutines that a task waits for, one inside the other.
_DEEPEST: Final = 100


class Greenlets:
    """
    The greenlets of this thread that runs are in, where gevent or eventlet has patched threads.

    Args:
        current: Returns the current greenlet.
    """

    def __init__(self, current: Any) -> None:
        self._current = current
        self.thread = os_threads.ident()
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def ident(self) -> int:
        """The number of the current greenlet, which is remembered."""
        greenlet = self._current()
        number = id(greenlet)
        self._known[number] = greenlet
        return number

    def frame(self, number: int) -> FrameType | None:
        """The innermost frame of a greenlet; None if it has ended, or is the one that runs."""
        frame: FrameType | None = getattr(self._known.get(number), "gr_frame", None)
        return frame

    def runs(self, number: int) -> bool:
        """Whether a greenlet is the running one of its thread."""
        greenlet = self._known.get(number)
        return greenlet is not None and greenlet.gr_frame is None and not greenlet.dead


def patched_greenlets() -> Greenlets | None:
    """To be called in the thread that runs tasks; None if threads are not patched."""
    greenlet = sys.modules.get("greenlet")
    if greenlet is None or not os_threads.are_patched():
        return None
    return Greenlets(greenlet.getcurrent)


def frames_by_run(threads: list[int], greenlets: Greenlets | None) -> dict[int, FrameType]:
    """
    The innermost frames of threads or greenlets; without those that have none.

    Args:
        threads: Their numbers.
        greenlets: The process's; None if each run has a thread.
    """
    now = sys._current_frames()
    if greenlets is None:
        return {thread: now[thread] for thread in threads if thread in now}
    found: dict[int, FrameType] = {}
    for number in threads:
        frame = greenlets.frame(number)
        if frame is None and greenlets.runs(number):
            frame = now.get(greenlets.thread)
        if frame is not None:
            found[number] = frame
    return found


def awaited(frame: FrameType) -> tuple[list[FrameType], FrameType]:
    """
    The frames of the coroutine that an idle event loop of asyncio waits for.

    Args:
        frame: The innermost frame of a thread.

    Returns:
        The coroutine's frames, innermost first, and the frame that called the event loop; nothing and ``frame`` if
        the thread is in no event loop, or the loop runs a callback.
    """
    events, loops = sys.modules.get("asyncio.events"), sys.modules.get("asyncio.base_events")
    if events is None or loops is None:
        return [], frame
    callback, until_complete = events.Handle._run.__code__, loops.BaseEventLoop.run_until_complete.__code__
    outer: FrameType | None = frame
    while outer is not None and outer.f_code is not callback:
        if outer.f_code is until_complete:
            inner = _frames_of_task(outer.f_locals.get("future"))
            return (inner, outer) if inner else ([], frame)
        outer = outer.f_back
    return [], frame


def _frames_of_task(task: Any) -> list[FrameType]:
    """The frames of a task and of the tasks that it waits for, innermost first."""
    futures = sys.modules["asyncio"]
    frames: list[FrameType] = []
    for _ in range(_DEEPEST):
        if type(task) is not futures.Task:
            break
        frames += _frames_of_coroutine(task.get_coro())
        waits_for = task._fut_waiter
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
