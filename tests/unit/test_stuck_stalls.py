"""Since when a run makes no progress: what counts, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from celery_trace.model import Line, ProcessRecord, Role, is_stuck
from celery_trace.process.movement import ThreadSample
from celery_trace.process.waits import Wait
from celery_trace.running.procfs import Child, Descriptor, Procfs, ThreadFacts
from celery_trace.running.stalls import Stalls, stall_of
from celery_trace.running.waiting import Activity

AT_S = 1_000.0
BEGAN_S = AT_S - 100


def thread(**fields: Any) -> ThreadSample:
    """A thread that has been at one place for 100 s and was awake until now."""
    known = ThreadSample(7, BEGAN_S, BEGAN_S, AT_S, None, 0.0, Wait(call="x.y"))
    return replace(known, **fields)


def activity(**fields: Any) -> tuple[float, Activity] | None:
    stall = stall_of(thread(**fields), AT_S, AT_S + 0.1)
    return None if stall is None else (AT_S - stall.since_s, stall.activity)


def test_a_thread_that_has_not_run_waits_since_then() -> None:
    assert activity(quiet_since_s=AT_S - 40) == (40, Activity.WAITS)
    assert activity(quiet_since_s=AT_S - 40, still_since_s=AT_S - 30) == (30, Activity.WAITS)


def test_a_thread_that_wakes_up_makes_progress() -> None:
    assert activity(busy=0.05) is None


def test_a_loop_makes_progress_while_a_variable_changes() -> None:
    loop: dict[str, Any] = {"busy": 0.9, "wait": Wait(loops=True)}
    assert activity(**loop, locals_since_s=AT_S) == (0, Activity.LOOPS)
    assert activity(**loop, locals_since_s=BEGAN_S) == (100, Activity.LOOPS)
    assert activity(**loop, locals_since_s=None) is None, "its variables can't be read"


def test_a_call_of_c_code_that_computes_is_no_loop() -> None:
    assert activity(busy=0.9) == (100, Activity.IN_C)
    assert activity(busy=0.9, still_since_s=AT_S - 1, locals_since_s=BEGAN_S) == (100, Activity.LOOPS)


def test_the_same_result_and_a_locked_database_are_waited_for_although_the_thread_wakes_up() -> None:
    assert activity(result_since_s=AT_S - 20) == (20, Activity.WAITS)
    assert activity(wait=Wait(call="db.execute"), still_since_s=AT_S - 20) == (20, Activity.WAITS)


def test_without_samples_since_the_last_one() -> None:
    stall = stall_of(thread(), AT_S, AT_S + 50)
    assert stall is not None
    assert (stall.since_s, stall.activity) == (AT_S, Activity.HOLDS_LOCK)


@pytest.mark.parametrize(
    ("elapsed_s", "p99_s", "stalled_s", "stuck"),
    [
        (31, None, 30, True),
        (31, None, 29, False),  # it has made progress
        (29, None, 29, False),  # it is young
        (31, 10.5, 30, False),  # its task is slow
        (32, 10.5, 30, True),
        (3600, 1000, 3600, True),
        (3600, 1300, 3600, False),
    ],
)
def test_a_run_is_stuck_only_if_it_is_unusually_long_and_makes_no_progress(
    elapsed_s: float, p99_s: float | None, stalled_s: float, stuck: bool
) -> None:
    assert is_stuck(elapsed_s, p99_s, stalled_s, 30.0) is stuck


class Known(Procfs):
    """A system whose facts a test sets."""

    facts = ThreadFacts(state="S", call="wait4")
    is_ours = True

    def is_process(self, pid: int, opened: str) -> bool:
        return self.is_ours and (pid, opened) == (70, "p1.lock")

    def thread(self, pid: int, thread: int) -> ThreadFacts:
        assert (pid, thread) == (70, 7)
        return self.facts


Judge = Callable[..., tuple[float, str]]


@pytest.fixture
def procfs() -> Known:
    return Known()


@pytest.fixture
def judge(procfs: Known) -> Judge:
    stalls = Stalls(30.0, procfs=procfs)
    process = ProcessRecord(uid="p1", host="h", pid=70, started_at_s=0.0, worker="w@h", role=Role.CHILD)
    stack = [Line("/srv/shop/tasks.py", 7, "pay")]

    def judge(now_s: float, sampled_at_s: float | None = None, **fields: Any) -> tuple[float, str]:
        found = stalls.judge(("p1",), process, thread(**fields), stack, sampled_at_s or now_s, now_s)
        stalls.next_round()
        return found

    return judge


def test_a_child_that_works_is_progress(judge: Judge, procfs: Known) -> None:
    waits = {"quiet_since_s": AT_S - 20}
    procfs.facts = replace(procfs.facts, children=(Child(12, "ffmpeg", 5.0),))
    assert judge(AT_S, **waits)[0] == AT_S, "a quarter of the time"
    procfs.facts = replace(procfs.facts, children=(Child(12, "ffmpeg", 6.5),))
    assert judge(AT_S + 1.5, **waits) == (AT_S + 1.5, "waiting for child process 12 (ffmpeg)")
    assert judge(AT_S + 3, **waits)[0] == AT_S + 1.5, "it has stopped working"


def test_before_half_of_the_time_nothing_is_looked_up(
    judge: Judge, procfs: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Known, "is_process", None)
    assert judge(AT_S, quiet_since_s=AT_S - 14) == (0.0, "")


def test_nothing_of_the_system_is_believed_of_a_process_in_another_container(judge: Judge, procfs: Known) -> None:
    procfs.is_ours = False
    assert judge(AT_S, quiet_since_s=AT_S - 20) == (AT_S - 20, "waiting in x.y at /srv/shop/tasks.py:7")


def test_who_holds_pythons_lock_is_said_only_once_it_is_known(judge: Judge, procfs: Known) -> None:
    procfs.facts = ThreadFacts(state="R", cpu_s=100.0)
    assert judge(AT_S + 20, AT_S) == (AT_S, "")
    procfs.facts = ThreadFacts(state="R", cpu_s=101.5)
    words = "inside C code that holds Python's lock, last seen at /srv/shop/tasks.py:7"
    assert judge(AT_S + 21.5, AT_S) == (AT_S, words)
    procfs.facts = ThreadFacts(state="S", cpu_s=101.5, call="futex")
    assert judge(AT_S + 23, AT_S) == (AT_S, "waiting for Python's lock, which C code in another thread holds")
    procfs.facts = ThreadFacts(state="T", cpu_s=101.5)
    assert judge(AT_S + 24.5, AT_S) == (AT_S, "stopped by a signal (SIGSTOP)")


def test_a_soft_time_limit_that_was_caught_is_named(judge: Judge) -> None:
    assert judge(AT_S, soft_limit_at_s=AT_S - 5) == (0.0, "continues after it caught the error of its soft time limit")
    _, words = judge(AT_S, soft_limit_at_s=AT_S - 50, quiet_since_s=AT_S - 20)
    assert words == "waiting for a child process, after it caught the error of its soft time limit"
    _, words = judge(AT_S, soft_limit_at_s=AT_S - 1, quiet_since_s=AT_S - 20)
    assert words == "waiting for a child process", "it was reached later"


def test_a_secret_in_a_path_is_redacted(judge: Judge, procfs: Known) -> None:
    procfs.facts = ThreadFacts(state="S", call="recvfrom", on=(Descriptor("socket", "/run/password=hunter2"),))
    assert judge(AT_S, quiet_since_s=AT_S - 20)[1] == "waiting in recv from /run/password=[redacted]"


def test_the_sentence_about_a_loop_does_not_change_with_its_lines(tmp_path: Path) -> None:
    stalls = Stalls(30.0, procfs=Procfs(tmp_path))
    process = ProcessRecord(uid="p1", host="h", pid=70, started_at_s=0.0, worker="w@h", role=Role.CHILD)
    loop = thread(busy=0.9, wait=Wait(loops=True), locals_since_s=BEGAN_S)
    words = []
    for line in (7, 8, 9):
        words.append(stalls.judge((), process, loop, [Line("/srv/shop/tasks.py", line, "pay")], AT_S, AT_S)[1])
        stalls.next_round()
    assert words == ["spinning at /srv/shop/tasks.py:7"] * 3
