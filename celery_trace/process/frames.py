"""The frames of runs, also those that no thread shows: of suspended greenlets and coroutines."""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePath
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from celery_trace import os_threads
from celery_trace.process.frame_locals import locals_of

#: Coroutines that a task waits for, one inside the other.
_DEEPEST: Final = 100
#: Tasks that a task waits for, directly or not, of which it is seen whether they get a turn.
_MOST_TASKS: Final = 200
#: Closures from a future of asyncio to the one that a thread will set: of `shield`, and of `wrap_future`.
_MOST_CLOSURES: Final = 8
_JUMPS_BACK: Final = ("JUMP_BACKWARD", "POP_JUMP_BACKWARD")
#: The functions in which a thread works for a future.
_WORKERS: Final = ("concurrent/futures/thread.py", "asgiref/current_thread_executor.py")

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    Task = asyncio.Task[object]
    Waiter = asyncio.Future[object]


class Greenlet(Protocol):
    """What is read of a greenlet."""

    @property
    def gr_frame(self) -> FrameType | None:
        """Its innermost frame; None if it runs or has ended."""

    @property
    def dead(self) -> bool:
        """Whether it has ended."""


class RunFrames(NamedTuple):
    """Where a run is now."""

    #: Innermost first.
    frames: list[FrameType]
    #: The thread that it is in; of a suspended run the one that it will continue in.
    thread: int
    #: Whether the thread runs it now. A suspended greenlet or coroutine waits for its turn.
    runs: bool = True
    #: Of a suspended run: it stays equal as long as the run has certainly had no turn.
    turn: object = None


class RunPlaces(Protocol):
    """Where runs are, if several of them share a thread."""

    def ident(self) -> int:
        """The number of what runs now, which is remembered."""

    def look(self, number: int, threads: Mapping[int, FrameType]) -> RunFrames | None:
        """Where the run with that number is, None if it has ended; ``threads`` has each thread's innermost frame."""


class _Mark:
    """
    Marks a frame of a suspended greenlet, as its trace function, which does nothing: a later call of the same function
    at the same place has a new frame, without the mark.

    If the greenlet may have returned to the same instruction in a loop, no mark shows that it has not.
    """

    __slots__ = ("at", "repeats")

    def __init__(self, frame: FrameType) -> None:
        self.at = frame.f_lasti
        self.repeats = _may_repeat(frame.f_code, frame.f_lasti)

    def __call__(self, _frame: FrameType, _event: str, _value: object) -> None:
        """A debugger traces this thread."""


@lru_cache(maxsize=1000)
def _may_repeat(code: CodeType, instruction: int) -> bool:
    """Whether an instruction is in a loop. Loops inside gevent and eventlet only repeat what has brought no data."""
    if not {"gevent", "eventlet"}.isdisjoint(PurePath(code.co_filename).parts[-3:-1]):
        return False
    return any(
        one.opname.startswith(_JUMPS_BACK) and one.argval <= instruction <= one.offset
        for one in dis.get_instructions(code)
        if one.opname != "JUMP_BACKWARD_NO_INTERRUPT"  # of one `await`
    )


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

    def look(self, number: int, threads: Mapping[int, FrameType]) -> RunFrames | None:
        greenlet = self._known.get(number)
        if greenlet is None or greenlet.dead:
            return None
        innermost = greenlet.gr_frame
        if innermost is None:  # the running one has no frame of its own
            return RunFrames(_stack(threads.get(self._thread)), self._thread)
        return RunFrames(_stack(innermost), self._thread, False, _turn_of(innermost))


def _turn_of(frame: FrameType) -> object:
    mark: object = frame.f_trace
    if mark is None:
        frame.f_trace = mark = _Mark(frame)
    if type(mark) is not _Mark or mark.repeats or mark.at != frame.f_lasti:
        return object()  # equal to nothing
    return mark


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
        self._threads[task] = thread
        self._known[id(task)] = task
        return id(task)

    def look(self, number: int, threads: Mapping[int, FrameType]) -> RunFrames | None:
        task = self._known.get(number)
        if task is None:
            innermost = threads.get(number)
            return RunFrames(_stack(innermost), number) if innermost is not None else None
        frames = _frames_of_task(task)
        if not frames:
            return None
        thread = self._threads[task]
        waiters: list[object] = []
        for one in _tree(task):
            if _runs(one):
                return RunFrames(_stack(threads.get(thread)), thread)
            waiters.append(one._fut_waiter)  # type: ignore[attr-defined]
        worker, inner = next(filter(None, (_worker(waiter, threads) for waiter in waiters)), (0, None))
        if worker:
            return RunFrames([*_stack(inner), *frames], worker)
        # Each turn of a task ends with a new future to wait for.
        return RunFrames(frames, thread, False, tuple(weakref.ref(waiter) for waiter in waiters if waiter is not None))


def _runs(task: Task) -> bool:
    """Only the frame of the running coroutine has a caller."""
    frames = _frames_of_coroutine(task.get_coro())
    return bool(frames) and frames[0].f_back is not None


def _tree(task: Task) -> Iterator[Task]:
    """A task and the tasks that it waits for, directly or not."""
    found, left = {task}, [task]
    while left:
        one = left.pop()
        yield one
        for other in _awaited(one):
            if other not in found and not other.done() and len(found) < _MOST_TASKS:
                found.add(other)
                left.append(other)


def _awaited(task: Task) -> list[Task]:
    """The tasks that a task waits for, the first unfinished one first."""
    asyncio = sys.modules["asyncio"]
    waiter: object = task._fut_waiter  # type: ignore[attr-defined]
    awaited: object = [waiter]
    if type(waiter) is asyncio.tasks._GatheringFuture:
        awaited = waiter._children  # type: ignore[attr-defined]
    else:
        frames = _frames_of_coroutine(task.get_coro())
        name = _NAMES_OF_TASKS.get("/".join(PurePath(frames[-1].f_code.co_filename).parts[-2:])) if frames else None
        if name is not None:
            awaited = name(locals_of(frames[-1])) or awaited
    try:
        tasks = list(awaited) if isinstance(awaited, list | tuple | set) else []
    except RuntimeError:  # a set that changes at this moment
        return []
    return [cast("Task", one) for one in tasks if type(one) is asyncio.Task and not one.done()]


def _of_group(local: Mapping[str, object]) -> object:
    return getattr(local.get("self"), "_tasks", None)


def _of_wait(local: Mapping[str, object]) -> object:
    return local.get("fs") or [local.get("fut")]


#: Where the innermost function of a coroutine has the tasks that it waits for, by the function's file.
_NAMES_OF_TASKS: Final[Mapping[str, Callable[[Mapping[str, object]], object]]] = {
    "asyncio/tasks.py": _of_wait,  # `wait`, and until 3.11 `wait_for`
    "asyncio/taskgroups.py": _of_group,
}


def _worker(waiter: object, threads: Mapping[int, FrameType]) -> tuple[int, FrameType] | None:
    """The thread that works for a future of asyncio, as for `to_thread` and for a synchronous view; None if none."""
    source = _source_of(waiter)
    if source is None:
        return None
    for thread, innermost in threads.items():
        frame: FrameType | None = innermost
        while frame is not None:
            code = frame.f_code
            works = code.co_name == "run" and code.co_filename.endswith(_WORKERS)
            if works and getattr(locals_of(frame).get("self"), "future", None) is source:
                return thread, innermost
            frame = frame.f_back
    return None


def _source_of(waiter: object) -> object:
    """The future of a thread's work that a future of asyncio gets its result from."""
    asyncio, futures = sys.modules["asyncio"], sys.modules["concurrent.futures"]
    seen = [waiter]
    for one in seen:  # which grows
        if type(one) is futures.Future:
            return one
        if type(one) is not asyncio.Future or len(seen) > _MOST_CLOSURES:
            continue
        for callback, _context in list(cast("Waiter", one)._callbacks or ()):
            for cell in getattr(callback, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # an empty cell
                    found: object = cell.cell_contents
                    if type(found) in (asyncio.Future, futures.Future) and all(found is not known for known in seen):
                        seen.append(found)
    return None


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
        return {number: place.frames for number, place in look_at_runs(numbers, places, threads).items()}
    finally:
        threads.clear()  # this frame is in it: until a garbage collection, the frames of all threads would live on


def look_at_runs(
    numbers: Iterable[int], places: RunPlaces | None, threads: Mapping[int, FrameType]
) -> dict[int, RunFrames]:
    """
    Where runs are now; without those that have no frames.

    Args:
        numbers: As of :func:`stacks_by_run`.
        places: Likewise.
        threads: The innermost frame of each thread.
    """
    found = {
        number: RunFrames(_stack(threads.get(number)), number) if places is None else places.look(number, threads)
        for number in numbers
    }
    return {number: place for number, place in found.items() if place is not None and place.frames}


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
        task = next(iter(_awaited(known)), None)
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
