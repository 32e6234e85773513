"""What a thread of this process does, as the kernel shows it, and its processor time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from celery_trace.process import thread_state
from celery_trace.process.thread_state import ThreadClock, ThreadState, state_of
from tests.support.requirements import lacking
from tests.support.waiting import wait_until


@pytest.fixture
def shown() -> None:
    """Skip where the state can't be known."""
    if thread_state.thread_state is thread_state._unknown:
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")
    if not os.access("/proc/self/syscall", os.R_OK):
        pytest.skip("the kernel does not show what a thread waits for")


@contextmanager
def thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    made = threading.Thread(target=work)
    made.start()
    yield made


def seen(made: threading.Thread, wanted: set[ThreadState]) -> bool:
    assert made.native_id is not None
    return state_of(made.native_id) in wanted


@pytest.mark.usefixtures("shown")
def test_waiting_for_a_lock_differs_from_waiting_for_a_pipe_and_from_the_interpreter() -> None:
    lock = threading.Lock()
    lock.acquire()
    reader, writer = os.pipe()
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    with thread(lock.acquire) as locked, thread(lambda: os.read(reader, 1)) as reading, thread(spin) as spinning:
        try:
            wait_until(lambda: seen(locked, {ThreadState.WAITS_FOR_LOCK}), "a thread in a lock")
            wait_until(lambda: seen(reading, {ThreadState.WAITS}), "a thread that reads")
            states = set()
            for _ in range(200):
                sum(range(20_000))  # keeps the interpreter
                states.add(state_of(spinning.native_id or 0))
            assert states <= {ThreadState.RUNS, ThreadState.WAITS_FOR_GIL}
        finally:
            stop.set()
            lock.release()
            os.write(writer, b"x")
            for made in (locked, reading, spinning):
                made.join()
            os.close(reader)
            os.close(writer)


@pytest.mark.usefixtures("shown")
def test_a_thread_that_computes_waits_for_the_interpreter_while_another_has_it() -> None:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    with thread(spin) as spinning:
        try:

            def is_waiting() -> bool:
                sum(range(100_000))
                return seen(spinning, {ThreadState.WAITS_FOR_GIL})

            wait_until(is_waiting, "a thread that waits for the interpreter")
        finally:
            stop.set()
            spinning.join()


def test_of_an_unknown_thread_nothing_is_known() -> None:
    assert state_of(2**22 + 5) is ThreadState.UNKNOWN


def test_the_clock_of_a_thread_counts_its_processor_time_and_ends_with_it() -> None:
    stop = threading.Event()
    with thread(stop.wait) as waiting:
        assert waiting.ident is not None
        clock = ThreadClock(waiting.ident)
        assert clock.native_id == waiting.native_id
        before_s = clock.read_s()
        own = ThreadClock(threading.get_ident())
        own_before_s = own.read_s()
        until_s = time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass
        assert own.read_s() - own_before_s >= 0.019
        assert clock.read_s() - before_s < 0.01
        stop.set()
        waiting.join()

    def has_ended() -> bool:
        try:
            clock.read_s()
        except OSError:
            return True
        return False

    wait_until(has_ended, "the clock's end")


_ENDED_THREADS = """
import threading
from celery_trace.process.thread_state import clock_of
go = threading.Event()
threads = [threading.Thread(target=go.wait) for _ in range(40)]  # more stacks than the C library keeps
for thread in threads:
    thread.start()
numbers = [thread.ident for thread in threads]
go.set()
for thread in threads:
    thread.join()
found = 0
for number in numbers:
    try:
        clock_of(number)
    except OSError:
        found += 1
print(found)
"""


def test_no_clock_is_read_of_a_thread_that_has_ended() -> None:
    ran = subprocess.run([sys.executable, "-c", _ENDED_THREADS], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "40\n"), ran.stderr


def test_without_the_extension_module_threading_knows_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_state, "native_id", thread_state._registered)
    assert ThreadClock(threading.get_ident()).native_id == threading.get_native_id()
    with pytest.raises(OSError, match="no such thread"):
        ThreadClock(12345)
