"""What is said of a run that makes no progress, by its stack and by what the system knows."""

from __future__ import annotations

import pytest

from celery_trace.model import Line
from celery_trace.process.waits import Wait, WaitPlace
from celery_trace.running.procfs import Child, Descriptor, ThreadFacts
from celery_trace.running.waiting import Activity, WaitEvidence, sentence

MINE = Line("/srv/shop/tasks.py", 7, "pay")
PYTHON = "/usr/lib/python3.12"


def said(
    *library: tuple[str, str], activity: Activity = Activity.WAITS, wait: Wait | None = None, **facts: object
) -> str:
    """The sentence for a stack of library functions (file, function), innermost first, below the user's line."""
    stack = [*(Line(file, 1, function) for file, function in library), MINE]
    known = ThreadFacts(**facts)  # type: ignore[arg-type]
    return sentence(WaitEvidence(activity=activity, stack=stack, own=len(library), wait=wait or Wait(), facts=known))


@pytest.mark.parametrize(
    ("call", "on", "words"),
    [
        ("recvfrom", [Descriptor("socket", "10.0.0.5:5432")], "waiting in recv from 10.0.0.5:5432"),
        ("read", [Descriptor("socket", "10.0.0.5:5432")], "waiting in read from 10.0.0.5:5432"),
        ("recvfrom", [Descriptor("socket")], "waiting in recv from a socket"),
        ("recvfrom", [], "waiting in recv at /srv/shop/tasks.py:7"),
        ("poll", [Descriptor("socket", "10.0.0.2:53")], "waiting for the name server 10.0.0.2:53"),
        ("poll", [], "waiting in poll at /srv/shop/tasks.py:7"),
        ("ppoll", [Descriptor("pipe")], "waiting for data from a pipe"),
        (
            "pselect6",
            [Descriptor("socket", "h:1"), Descriptor("pipe")],
            "waiting in select for 2 files or connections with h:1",
        ),
        ("sendto", [Descriptor("socket", "h:1")], "waiting in send to h:1"),
        ("write", [Descriptor("pipe")], "waiting to write to a pipe that is full"),
        ("write", [Descriptor("file", "/mnt/x")], "writing to /mnt/x"),
        ("read", [Descriptor("file", "/mnt/x")], "reading /mnt/x"),
        ("connect", [], "connecting to a server"),
        ("accept4", [Descriptor("listening", "0.0.0.0:80")], "waiting for a connection on 0.0.0.0:80"),
        ("flock", [Descriptor("file", "/x.lock")], "waiting for a lock of the file /x.lock"),
        ("fcntl", [], "waiting for a lock of the file"),
        ("fsync", [Descriptor("file", "/x")], "waiting for the disk"),
        ("openat", [], "opening a file at /srv/shop/tasks.py:7"),
        ("semop", [], "waiting for a semaphore of the system"),
        ("rt_sigsuspend", [], "waiting for a signal"),
        ("wait4", [], "waiting for a child process"),
        ("", [], "waiting at /srv/shop/tasks.py:7"),
    ],
)
def test_a_system_call_is_named_with_what_it_is_about(call: str, on: list[Descriptor], words: str) -> None:
    assert said(call=call, on=tuple(on)) == words


def test_only_the_child_that_is_waited_for_is_named() -> None:
    children = (Child(12, "sh", 0.0), Child(13, "tee", 0.0))
    assert said(call="wait4", child=13, children=children) == "waiting for child process 13 (tee)"
    assert said(call="wait4", children=children) == "waiting for child processes 12 (sh), 13 (tee)"


def test_a_sleep_is_called_one_only_if_the_code_calls_it() -> None:
    assert said(call="clock_nanosleep", wait=Wait(call="time.sleep")) == "in time.sleep"
    assert said(call="clock_nanosleep", wait=Wait(call="db.execute")).startswith("sleeping in C code called at")
    locked = said(call="clock_nanosleep", wait=Wait(call="db.execute"), sqlite="/srv/shop.db")
    assert locked == "waiting for a lock of the SQLite database /srv/shop.db"


def test_a_lock_is_named_with_the_thread_that_holds_it() -> None:
    held = Wait(call="lock.acquire", holder="cleaner", holds_at=WaitPlace("/srv/shop/clean.py", 30, "sweep"))
    assert said(call="futex", wait=held) == "waiting for a lock that thread cleaner holds at /srv/shop/clean.py:30"
    assert said(call="futex", wait=Wait(call="lock.acquire")) == "waiting for a lock at /srv/shop/tasks.py:7"
    assert said(call="futex") == "waiting for another thread at /srv/shop/tasks.py:7"


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (
            [(f"{PYTHON}/threading.py", "Condition.wait"), (f"{PYTHON}/queue.py", "Queue.get")],
            "waiting for an item in a queue",
        ),
        (
            [(f"{PYTHON}/threading.py", "Condition.wait"), (f"{PYTHON}/queue.py", "Queue.put")],
            "waiting for room in a queue",
        ),
        (
            [(f"{PYTHON}/threading.py", "Condition.wait"), (f"{PYTHON}/threading.py", "Event.wait")],
            "waiting for an Event to be set",
        ),
        ([(f"{PYTHON}/threading.py", "Semaphore.acquire")], "waiting for a Semaphore"),
        (
            [(f"{PYTHON}/threading.py", "Condition.wait"), (f"{PYTHON}/concurrent/futures/_base.py", "Future.result")],
            "waiting for a Future",
        ),
        ([("/site-packages/celery/result.py", "AsyncResult.get")], "waiting for the result of a task"),
        (
            [
                ("/site-packages/celery/result.py", "AsyncResult.get"),
                ("/site-packages/celery/result.py", "GroupResult.join"),
            ],
            "waiting for the results of several tasks",
        ),
        (
            [
                (f"{PYTHON}/selectors.py", "EpollSelector.select"),
                (f"{PYTHON}/asyncio/base_events.py", "BaseEventLoop.run_forever"),
            ],
            "waiting in an asyncio loop",
        ),
        (
            [(f"{PYTHON}/socket.py", "getaddrinfo"), (f"{PYTHON}/socket.py", "create_connection")],
            "resolving the name of a host",
        ),
    ],
)
def test_the_outermost_known_function_of_a_library_is_named(library: list[tuple[str, str]], words: str) -> None:
    assert said(*library, call="futex") == words


def test_the_users_own_file_of_the_same_name_is_no_library() -> None:
    stack = [Line("/srv/shop/queue.py", 3, "get")]
    words = sentence(WaitEvidence(activity=Activity.WAITS, stack=stack, facts=ThreadFacts(call="futex")))
    assert words == "waiting for another thread at /srv/shop/queue.py:3"


def test_the_result_is_named_with_its_task() -> None:
    waits = Wait(result_id="5c1f")
    assert said(("/x/celery/result.py", "AsyncResult.get"), wait=waits) == "waiting for the result of task 5c1f"


def test_the_system_says_if_a_process_is_stopped_whatever_its_stack() -> None:
    assert said(call="futex", state="T") == "stopped by a signal (SIGSTOP)"
    assert said(activity=Activity.LOOPS, state="t") == "stopped by a debugger"


def test_a_thread_of_which_nothing_is_known_is_not_described() -> None:
    assert sentence(WaitEvidence(activity=Activity.WAITS, stack=[])) == ""
