"""Main threads that do not run: of workers, and of beat, which sleeps long if it is well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_trace.alerting.rules import Facts, evaluate
from celery_trace.alerting.rules.stuck import KIND
from celery_trace.model import ProcessRecord, Role, StalledProcess
from celery_trace.redaction import Redactor
from celery_trace.running.mains import LOOK_S, MainWatch
from celery_trace.running.procfs import Descriptor, Procfs, ThreadFacts

NOW_S = 10_000.0
BROKER = Descriptor("socket", "10.0.0.9:5672")


class Known(Procfs):
    """A system in which a test says how often the main thread has run, and what it does."""

    run = 1
    facts = ThreadFacts(state="S", call="recvfrom", on=(BROKER,))
    opened = "p1.lock"

    def is_process(self, pid: int, opened: str) -> bool:
        return opened == self.opened

    def turns(self, pid: int, thread: int) -> int | None:
        assert pid == thread == 70
        return self.run

    def thread(self, pid: int, thread: int) -> ThreadFacts:
        return self.facts


@pytest.fixture
def procfs() -> Known:
    return Known()


Watch = Callable[..., list[StalledProcess]]


@pytest.fixture
def watch(procfs: Known) -> Watch:
    watching = MainWatch(30.0, procfs, Redactor())

    def watch(after_s: float, role: Role = Role.MAIN) -> list[StalledProcess]:
        process = ProcessRecord(uid="p1", host="h", pid=70, started_at_s=0.0, worker="w@h", role=role)
        return watching.look({"p1": None}, {"p1": process}.get, NOW_S + after_s)

    return watch


def test_a_main_thread_that_waits_for_the_broker_is_found_after_the_time(watch: Watch) -> None:
    assert watch(0) == watch(28) == []
    [stalled] = watch(34)
    assert (stalled.since_s, stalled.pid, stalled.worker) == (NOW_S, 70, "w@h")
    assert stalled.waiting_for == "waiting in recv from 10.0.0.9:5672"


def test_between_two_looks_nothing_is_read(watch: Watch, procfs: Known) -> None:
    watch(0)
    [before] = watch(34)
    procfs.run += 1
    assert watch(34 + LOOK_S / 2) == [before]
    assert watch(34 + LOOK_S + 1) == []


def test_an_event_loop_that_wakes_up_is_not_stalled(watch: Watch, procfs: Known) -> None:
    for after_s in range(0, 300, 10):
        procfs.run += 1
        assert watch(after_s) == []


def test_beat_may_sleep_for_five_minutes_and_not_for_longer(watch: Watch, procfs: Known) -> None:
    procfs.facts = ThreadFacts(state="S", call="clock_nanosleep")
    assert watch(0, Role.BEAT) == watch(310, Role.BEAT) == []
    [stalled] = watch(340, Role.BEAT)
    assert stalled.role is Role.BEAT
    procfs.facts = ThreadFacts(state="T", call="clock_nanosleep")
    [stalled] = watch(350, Role.BEAT)
    assert stalled.waiting_for == "stopped by a signal (SIGSTOP)"


def test_beat_that_waits_for_the_broker_is_stalled_like_a_worker(watch: Watch) -> None:
    watch(0, Role.BEAT)
    assert [stalled.role for stalled in watch(34, Role.BEAT)] == [Role.BEAT]


@pytest.mark.parametrize("role", [Role.CHILD, Role.SOLO, Role.WEB, Role.SCRIPT])
def test_a_process_whose_main_thread_runs_tasks_is_not_judged(watch: Watch, role: Role) -> None:
    assert watch(0, role) == watch(340, role) == []


def test_a_process_of_another_container_is_not_judged(watch: Watch, procfs: Known) -> None:
    procfs.opened = "of another process"
    assert watch(0) == watch(340) == []


def test_the_alert_says_what_no_longer_happens() -> None:
    def text(role: Role, **fields: str) -> str:
        stalled = StalledProcess(process="p1", worker="w@h", pid=70, role=role, since_s=NOW_S - 40, **fields)
        [reading] = evaluate(KIND.shipped, Facts(now_s=NOW_S, stalled=[stalled]))
        assert reading.value == 40
        return reading.text

    assert text(Role.MAIN, waiting_for="waiting in recv from h:1") == (
        "The main thread of w@h, pid 70, has not run for 40 s: waiting in recv from h:1. It takes no messages."
    )
    assert text(Role.BEAT).endswith("for 40 s: what it waits for is not known. Beat sends no tasks.")
