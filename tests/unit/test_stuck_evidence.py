"""What a process finds out about its own threads: what they wait for, and since when they do nothing new."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from celery_trace.heap.sampler import locals_mark
from celery_trace.process.blackbox import _places_of
from celery_trace.process.frames import look_at_runs
from celery_trace.process.movement import Movement, ThreadSample
from celery_trace.process.waits import Wait, chain, examine
from celery_trace.redaction import Redactor
from tests.support.waiting import wait_until

LOCK = threading.Lock()


class Shop:
    """Has a lock, and one behind code that must not run."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.condition = threading.Condition()

    @property
    def dangerous(self) -> threading.Lock:
        raise AssertionError("a user's code was run")


@contextmanager
def in_thread(function: Callable[[], object], name: str = "other") -> Iterator[int]:
    """The number of a thread that runs this."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    assert thread.ident is not None
    yield thread.ident
    thread.join(10)
    assert not thread.is_alive()


def waits(thread: int, wanted: Callable[[Wait], bool]) -> Wait:
    """What it waits for, once that is as wanted."""
    found: list[Wait] = []

    def look() -> bool:
        frames = sys._current_frames()
        found.append(examine(chain(frames[thread]), frames))
        return wanted(found[-1])

    wait_until(look, "it waits as wanted", timeout_s=10, explain=lambda: str(found[-1]))
    return found[-1]


def here(word: str) -> int:
    """The number of the line of this file with a comment of this word."""
    with open(__file__, encoding="utf-8") as lines:
        return next(number for number, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {word}"))


def test_the_holder_of_a_lock_is_found_by_the_block_that_it_is_in() -> None:
    def takes() -> None:
        with LOCK:
            pass

    def holds() -> None:
        with LOCK, open("/dev/null", encoding="utf-8"):
            try:
                held.set()
                release.wait(10)  # inside
            finally:
                pass

    held, release = threading.Event(), threading.Event()
    with in_thread(holds, "holder"):
        assert held.wait(10)
        with in_thread(takes) as thread:
            found = waits(thread, lambda wait: wait.holder != "")
            release.set()
    assert (found.call, found.holder) == ("LOCK.__enter__", "holder")
    assert found.holds_at is not None
    assert (found.holds_at.file, found.holds_at.line) == (__file__, here("inside"))


def test_the_owner_of_a_reentrant_lock_is_known_without_a_block() -> None:
    def takes() -> None:
        shop.lock.acquire()
        shop.lock.release()

    def holds() -> None:
        shop.lock.acquire()
        held.set()
        release.wait(10)
        shop.lock.release()

    shop, held, release = Shop(), threading.Event(), threading.Event()
    with in_thread(holds, "owner"):
        assert held.wait(10)
        with in_thread(takes) as thread:
            found = waits(thread, lambda wait: wait.holder != "")
            release.set()
    assert (found.call, found.holder, found.holds_at) == ("shop.lock.acquire", "owner", None)


def test_a_condition_is_held_by_the_thread_that_is_in_its_block() -> None:
    def takes() -> None:
        with shop.condition:
            pass

    def holds() -> None:
        with shop.condition:
            held.set()
            release.wait(10)

    shop, held, release = Shop(), threading.Event(), threading.Event()
    with in_thread(holds, "holder"):
        assert held.wait(10)
        with in_thread(takes) as thread:
            found = waits(thread, lambda wait: wait.holder != "")
            release.set()
    assert found.holder == "holder"


def test_another_lock_of_the_same_name_is_not_mistaken_for_it() -> None:
    release, begun = threading.Event(), threading.Event()
    lock = threading.Lock()
    lock.acquire()

    def takes() -> None:
        with lock:
            pass

    def unrelated() -> None:
        lock = threading.Lock()
        with lock:
            begun.set()
            release.wait(10)

    with in_thread(unrelated, "unrelated"):
        assert begun.wait(10)
        with in_thread(takes) as thread:
            found = waits(thread, lambda wait: wait.call == "lock.__enter__")
            release.set()
            lock.release()
    assert (found.holder, found.holds_at) == ("", None)


def test_no_code_of_the_user_is_run_to_find_a_lock() -> None:
    def takes(shop: Any) -> None:
        begun.set()
        shop.dangerous.acquire() if dead else release.wait(10)

    begun, release, dead = threading.Event(), threading.Event(), False
    with in_thread(lambda: takes(Shop())) as thread:
        assert begun.wait(10)
        assert waits(thread, lambda wait: wait.call != "").holder == ""
        release.set()


class Proxy:
    """Computes what it stands for in the thread that looks at it, like Celery's and Django's."""

    __slots__ = ("_computed_by", "_lock")

    def __init__(self, lock: threading.Lock) -> None:
        self._computed_by: list[str] = []
        self._lock = lock

    @property
    def __class__(self) -> type:
        self._computed_by.append(threading.current_thread().name)
        return Shop

    @property
    def __dict__(self) -> dict[str, object]:
        self._computed_by.append(threading.current_thread().name)
        return {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._lock, name)


def test_a_proxy_computes_nothing() -> None:
    lock = threading.Lock()
    lock.acquire()
    proxy: Any = Proxy(lock)

    with in_thread(lambda: proxy.acquire()) as thread:
        assert waits(thread, lambda wait: wait.call == "proxy.acquire").holder == ""
        lock.release()
    assert proxy._computed_by == []


def test_source_in_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tasks.py")
    names: dict[str, Any] = {"release": threading.Event()}
    exec(compile("def waits():\n    release.wait(10)\n", str(tmp_path / "tasks.py"), "exec"), names)
    found: list[Wait] = []

    def look() -> None:
        frame = sys._current_frames()[thread]
        while frame.f_code is not names["waits"].__code__ and frame.f_back is not None:
            frame = frame.f_back
        found.append(examine(chain(frame), {thread: frame}))

    with in_thread(names["waits"]) as thread:
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(5)
        names["release"].set()
    assert [wait.call for wait in found] == [""]


def test_a_joined_thread_is_named() -> None:
    release = threading.Event()
    waited_for = threading.Thread(target=release.wait, args=(10,), name="printer", daemon=True)
    waited_for.start()
    with in_thread(waited_for.join) as thread:
        assert waits(thread, lambda wait: wait.joins != "").joins == "printer"
        release.set()


def test_a_secret_in_the_name_of_a_thread_is_redacted() -> None:
    release = threading.Event()
    waited_for = threading.Thread(target=release.wait, args=(10,), name="password=hunter2", daemon=True)
    waited_for.start()
    with in_thread(waited_for.join) as thread:
        waits(thread, lambda wait: wait.joins != "")
        frames = sys._current_frames()
        found = examine(chain(frames[thread]), frames, Redactor().text)
        release.set()
    assert found.joins == "password=[redacted]"


def test_an_asyncio_loop_is_named_by_the_lines_where_its_tasks_wait() -> None:
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        event = asyncio.Event()
        loops.append((asyncio.get_running_loop(), event))
        await asyncio.wait_for(event.wait(), 10)  # awaited

    with in_thread(lambda: asyncio.run(main())) as thread:
        found = waits(thread, lambda wait: wait.awaits != [])
        loop, event = loops[0]
        loop.call_soon_threadsafe(event.set)
    assert {(place.file, place.line) for place in found.awaits} >= {(__file__, here("awaited"))}


# --- movement


def look(
    movement: Movement, frames: dict[int, FrameType], began: dict[int, float], now_s: float, *threads: int
) -> dict[str, ThreadSample]:
    """Look at threads, all by default."""
    places = look_at_runs(threads or began, None, frames)
    stacks = {thread: _places_of(place.frames, ())[0] for thread, place in places.items()}
    return movement.look(stacks, places, frames, began, now_s)


class Looks:
    """Looks at one thread again and again."""

    def __init__(self, thread: int, stuck_s: float = 30.0) -> None:
        self.thread = thread
        self.movement = Movement(stuck_s, locals_mark())
        self.now_s = 100.0
        self.began_s = 100.0

    def __call__(self) -> ThreadSample:
        frames = sys._current_frames()
        self.now_s += 1
        return look(self.movement, frames, {self.thread: self.began_s}, self.now_s)[str(self.thread)]

    def for_a_while(self, times: int = 20) -> ThreadSample:
        """The last of several looks, some milliseconds apart."""
        for _ in range(times - 1):
            self()
            time.sleep(0.01)
        return self()


def test_a_thread_that_waits_in_one_call_is_quiet_and_still() -> None:
    release = threading.Event()
    with in_thread(lambda: release.wait(10)) as thread:
        looks = Looks(thread)
        wait_until(lambda: "wait" in sys._current_frames()[thread].f_code.co_name, "it waits", timeout_s=10)
        first = looks()
        last = looks.for_a_while()
        native_id = next(one.native_id for one in threading.enumerate() if one.ident == thread)
        release.set()
    assert last.native_id == native_id
    assert (last.place_since_s, last.still_since_s) == (first.place_since_s, first.still_since_s)
    assert last.quiet_since_s < looks.now_s
    assert last.wait is not None, "it was looked up after half of the time"
    assert first.wait is None


def test_a_thread_that_sleeps_again_and_again_is_not_quiet() -> None:
    release = threading.Event()

    def polls() -> None:
        while not release.is_set():
            time.sleep(0.001)

    with in_thread(polls) as thread:
        last = Looks(thread).for_a_while()
        release.set()
    assert last.quiet_since_s == 120.0


@pytest.mark.skipif(locals_mark() is None, reason="needs the extension module")
def test_a_loop_with_a_counter_changes_its_variables_and_an_empty_one_does_not() -> None:
    done: list[bool] = []

    def counts() -> None:
        n = 0
        while not done:
            n += 1

    def spins() -> None:
        while not done:
            pass

    with in_thread(counts) as thread:
        counted = Looks(thread).for_a_while()
        done.append(True)
    done.clear()
    with in_thread(spins) as thread:
        spun = Looks(thread).for_a_while()
        done.append(True)
    assert counted.locals_since_s is not None
    assert counted.locals_since_s >= 118, "it was another one at nearly every look"
    assert spun.locals_since_s == 101.0
    assert spun.wait is not None
    assert spun.wait.loops
    assert spun.busy > 0


def test_a_run_that_follows_at_the_same_place_starts_anew() -> None:
    release = threading.Event()
    with in_thread(lambda: release.wait(10)) as thread:
        looks = Looks(thread)
        looks.for_a_while(3)
        looks.began_s = looks.now_s
        again = looks()
        release.set()
    assert again.place_since_s == again.still_since_s == looks.now_s


def test_a_soft_time_limit_belongs_to_the_run_in_which_it_was_reached() -> None:
    release = threading.Event()
    with in_thread(lambda: release.wait(10)) as thread:
        looks = Looks(thread)
        looks.movement.soft_limit_reached(thread, 100.5)
        assert looks().soft_limit_at_s == 100.5
        looks.began_s = 101.5
        assert looks().soft_limit_at_s == 0.0
        release.set()


def test_a_thread_that_has_ended_is_forgotten() -> None:
    with in_thread(lambda: None) as thread:
        pass
    assert look(Movement(30.0), {}, {thread: 0.0}, 1.0) == {}


def test_a_thread_that_only_some_samples_have_is_not_forgotten() -> None:
    release = threading.Event()

    def waiting() -> bool:
        return release.wait(10)

    with in_thread(waiting) as one, in_thread(waiting) as other:
        for thread in (one, other):
            wait_until(lambda t=thread: "wait" in sys._current_frames()[t].f_code.co_name, "it waits", timeout_s=10)
        movement, began = Movement(30.0), {one: 100.0, other: 100.0}
        found: dict[str, ThreadSample] = {}
        for now_s in range(101, 111):
            frames, thread = sys._current_frames(), (one, other)[now_s % 2]
            found |= look(movement, frames, began, float(now_s), thread)
        release.set()
    assert [found[str(thread)].quiet_since_s for thread in (other, one)] == [101.0, 102.0]


def test_one_of_several_threads_is_looked_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    looked_up: list[tuple[int, float]] = []
    now_s = 0.0

    def note(stack: list[FrameType], frames: dict[int, FrameType], _: object) -> Wait:
        looked_up.append((next(thread for thread, frame in frames.items() if frame is stack[0]), now_s))
        return Wait()

    monkeypatch.setattr("celery_trace.process.movement.examine", note)
    with in_thread(lambda: release.wait(10)) as one, in_thread(lambda: release.wait(10)) as other:
        movement, began = Movement(30.0), {one: 100.0, other: 100.0}
        for now_s in (101.0, 130.0, 130.1, 130.3, 130.6):
            look(movement, sys._current_frames(), began, now_s)
        release.set()
    assert looked_up == [(one, 130.0), (other, 130.3)]


def test_a_movement_through_more_than_a_few_places_is_progress() -> None:
    done: list[bool] = []

    def depth(n: int) -> None:
        if n and not done:
            time.sleep(0.002)
            depth(n - 1)

    def recursive() -> None:
        while not done:
            depth(50)

    with in_thread(recursive) as thread:
        last = Looks(thread).for_a_while(40)
        done.append(True)
    assert last.place_since_s > 101.0
