"""Where the time of runs goes: the weights of samples, which runs they count for, and what is kept of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.model import UNSEEN, Kind, Measure, ProcessRecord, Role, TimeProfile
from celery_trace.process.blackbox import MOST_FRAMES, SampledStack
from celery_trace.process.thread_state import ThreadState
from celery_trace.profiles import sampled
from celery_trace.profiles.sampled import StackTimes
from celery_trace.runtime.probes import stack_probe
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.runtime.ticker import Ticker
from celery_trace.settings import Settings
from celery_trace.text.code_owner import CodeOwner

TASKS = "/srv/shop/tasks.py"
CELERY = "/usr/lib/python3/site-packages/celery/app/trace.py"


# --- a process in simulated time ---------------------------------------------------------------------------


class World:
    """A process with the real probe and ticker, in which time passes only by the script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Ticker, "start", lambda self: None)
        monkeypatch.setattr("celery_trace.runtime.recorder.PROBES", (StackProbe,))
        self.chance = random.Random(5)
        for name in ("random", "uniform"):
            monkeypatch.setattr(stack_probe.random, name, getattr(self.chance, name))
        self.clock = FakeClock()
        settings = Settings(dir=str(folder), memory="off")
        self.recorder = Recorder.start(settings, role=Role.CHILD, clock=self.clock)
        self.recorder.open_runs.monotonic = self.clock.monotonic_s
        self.probe = self.recorder.probe(StackProbe)
        assert self.probe.times is not None
        self.times = self.probe.times
        self.true_s: dict[str, float] = {}
        self._next_s = 0.0
        self._written: dict[str, TimeProfile] = {}
        monkeypatch.setattr(self.recorder, "write", self._note)

    def _note(self, record: object) -> None:
        if isinstance(record, TimeProfile):
            self._written[record.key] = record

    def _beat(self) -> None:
        self.recorder.ticker._wake.clear()
        self._next_s = self.clock.monotonic_s() + self.recorder.ticker.beat()

    def _until(self, end_s: float, *, blocked: bool) -> None:
        """Let time pass; the ticker's thread gets the interpreter unless a run keeps it."""
        while not blocked and (self.recorder.ticker._wake.is_set() or self._next_s < end_s):
            if not self.recorder.ticker._wake.is_set():
                self.clock.advance(max(0.0, self._next_s - self.clock.monotonic_s()))
            self._beat()
        self.clock.advance(max(0.0, end_s - self.clock.monotonic_s()))

    def wait(self, seconds: float) -> None:
        self._until(self.clock.monotonic_s() + seconds, blocked=False)

    def run(self, name: str, seconds: float, *, keeps_interpreter: bool = False) -> None:
        token = self.recorder.run_started(Kind.TASK, name, "id")
        self._until(self.clock.monotonic_s() + seconds, blocked=keeps_interpreter)
        self.recorder.run_ended(token, "SUCCESS")
        self.true_s[name] = self.true_s.get(name, 0.0) + seconds
        self._until(self.clock.monotonic_s(), blocked=False)

    def found_s(self, name: str) -> float:
        self.probe.write_rest()
        return sum(record.wall_us for record in self._written.values() if record.name == name) / 1_000_000


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.recorder.close()


def test_the_time_of_short_and_long_runs_is_right_on_average(world: World) -> None:
    for _ in range(1500):
        for _ in range(world.chance.randrange(60)):
            world.run("short", world.chance.uniform(0.001, 0.02))
            world.wait(0.002)
        world.run("half", world.chance.uniform(0.3, 0.7))
    assert world.found_s("half") == pytest.approx(world.true_s["half"], rel=0.05)
    assert world.found_s("short") == pytest.approx(world.true_s["short"], rel=0.05)


def test_a_run_that_wakes_an_idle_process_is_sampled_by_its_length(world: World) -> None:
    for _ in range(3000):
        world.wait(world.chance.uniform(5, 40))
        world.run("seldom", world.chance.choice((0.02, 0.05, 0.1, 0.4)))
    assert world.found_s("seldom") == pytest.approx(world.true_s["seldom"], rel=0.1)


def test_runs_that_keep_the_interpreter_count_though_no_sample_sees_them(world: World) -> None:
    for _ in range(80_000):
        world.run("blocking", 0.004, keeps_interpreter=True)
        world.wait(0.001)
        world.run("polite", 0.002)
    assert world.found_s("blocking") == pytest.approx(world.true_s["blocking"], rel=0.08)
    assert world.found_s("polite") == pytest.approx(world.true_s["polite"], rel=0.12)
    assert all(UNSEEN in record.frames for record in world._written.values() if record.name == "blocking")


def test_idle_time_counts_for_none(world: World) -> None:
    world.run("one", 5.0)
    world.wait(1000.0)
    world.run("one", 5.0)
    world.wait(1000.0)
    # Each run may have a sample more or less than its share.
    assert world.found_s("one") == pytest.approx(10.0, abs=2 * stack_probe.STACK_COUNTED_S)


# --- single samples ----------------------------------------------------------------------------------------


class Name:
    """A name that runs."""

    kind = Kind.TASK

    def __init__(self, name: str = "shop.pay") -> None:
        self.name = name
        self.all_runs = 0


class Token:
    """A run in progress."""

    def __init__(self, totals: Name, started_s: float = 0.0) -> None:
        self.totals = totals
        self.started_s = started_s


def frame(function: str, line: int = 1, file: str = TASKS) -> tuple[str, int, str]:
    return file, line, function


class Sampler:
    """Samples of this thread; ``state`` is what the kernel says of it."""

    def __init__(self, state: ThreadState = ThreadState.RUNS) -> None:
        self.clock = FakeClock()
        self.state = state
        process = ProcessRecord(uid="p", host="h", pid=1, started_at_s=0.0, role=Role.CHILD, release="1.2")
        self.times = StackTimes(process, CodeOwner(), self.clock, lambda _: self.state)
        self.name = Name()

    def look(self, *functions: str, after_s: float = 0.1, name: Name | None = None, **fields: Any) -> None:
        """A sample some time after the last one: a stack of functions, innermost first; none if nothing runs."""
        self.clock.advance(after_s)
        frames = fields.get("frames", [frame(function) for function in functions])
        ident = threading.get_ident()
        run = SampledStack(ident, Token(name or self.name), frames, len(frames), 1.0, ident)  # type: ignore[arg-type]
        self.times.look([run._replace(**fields)] if frames else [], [], self.clock.monotonic_s())

    def profile(self, name: str = "shop.pay") -> TimeProfile:
        (found,) = [one for one in self.times.changed(at_end=True) if one.name == name]
        return found


def by_function(profile: TimeProfile, measure: str = "wall_us") -> dict[str, int]:
    """By the innermost function."""
    return {profile.frames[row.frames[-1]].function: getattr(row, measure) for row in profile.stacks}


def test_a_sample_stands_for_half_the_time_before_and_half_the_time_after_it() -> None:
    sampler = Sampler()
    sampler.look()
    sampler.look("a", "task", after_s=0.3)
    sampler.look("b", "task", after_s=0.1)
    sampler.look(after_s=0.3)
    assert by_function(sampler.profile()) == {"a": 200_000, "b": 200_000}
    assert sampler.times._names[Kind.TASK, "shop.pay"].total.wall == pytest.approx(0.4)


def test_a_run_that_began_after_the_sample_was_due_is_not_counted() -> None:
    sampler = Sampler()
    sampler.clock.advance(1.0)
    ident = threading.get_ident()
    late = SampledStack(ident, Token(sampler.name, started_s=0.95), [frame("late")], 1, 1.0, ident)  # type: ignore[arg-type]
    sampler.times.look([late], [], due_s=0.9)
    assert list(sampler.times.changed(at_end=True)) == []
    missed = Token(Name("missed"), 0.85)
    sampler.clock.advance(1.0)
    sampler.times.look([late], [(ident, missed)], due_s=0.9)  # type: ignore[list-item]
    sampler.clock.advance(1.0)
    sampler.times.look([], [], due_s=2.0)
    assert by_function(sampler.profile("missed")) == {UNSEEN.function: 1_000_000}


def test_processor_time_goes_to_a_stack_of_a_thread_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    used_s = iter([10.0, 10.04, 10.09, 10.19, 10.20])
    monkeypatch.setattr(sampled.ThreadClock, "read_s", lambda self: next(used_s))
    sampler = Sampler()
    sampler.look("compute")  # the clock is read for the first time
    sampler.state = ThreadState.WAITS
    sampler.look("sleep")  # 40 ms are due
    sampler.look("sleep")  # 90 ms
    sampler.state = ThreadState.RUNS
    sampler.look("compute")
    sampler.state = ThreadState.WAITS
    sampler.look("sleep")
    profile = sampler.profile()
    assert by_function(profile, "cpu_us") == {"compute": 190_000, "sleep": 0}
    assert profile.cpu_us == 200_000, "what no stack was sampled for is part of the total"
    assert profile.measures == [Measure.WALL, Measure.CPU, Measure.LOCK]


def test_processor_time_is_no_more_than_the_time_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    used_s = iter([10.0, 15.0])
    monkeypatch.setattr(sampled.ThreadClock, "read_s", lambda self: next(used_s))
    sampler = Sampler()
    sampler.look("compute")
    sampler.look("compute")
    assert sampler.profile().cpu_us == 100_000


def test_a_thread_in_a_lock_waits_for_it_and_one_alone_waits_for_no_interpreter() -> None:
    sampler = Sampler(ThreadState.WAITS_FOR_LOCK)
    sampler.look("acquire")
    sampler.look("acquire")
    sampler.state = ThreadState.WAITS_FOR_GIL
    sampler.look("compute")
    sampler.state = ThreadState.WAITS
    sampler.look("recv")
    sampler.look()
    profile = sampler.profile()
    assert by_function(profile, "lock_us") == {"acquire": 200_000, "compute": 0, "recv": 0}
    assert profile.lock_us == 200_000


def test_of_several_threads_the_ones_that_get_no_processor_wait_for_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = Sampler(ThreadState.WAITS_FOR_GIL)
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        used_s = {threading.get_ident(): 0.0, other.ident: 0.0}
        monkeypatch.setattr(sampled, "ThreadClock", lambda ident: type("Clock", (), {
            "native_id": ident, "read_s": lambda self: used_s[ident],
        })())  # fmt: skip
        for _ in range(11):
            sampler.clock.advance(0.1)
            used_s[threading.get_ident()] += 0.09
            used_s[other.ident] += 0.01
            runs = [
                SampledStack(ident, Token(sampler.name), [frame(name)], 1, 1.0, ident)  # type: ignore[arg-type]
                for ident, name in ((threading.get_ident(), "works"), (other.ident, "waits"))
                if ident is not None
            ]
            sampler.times.look(runs, [], sampler.clock.monotonic_s())
        lock_us = by_function(sampler.profile(), "lock_us")
    finally:
        stop.set()
        other.join()
    assert lock_us["waits"] > 0.85 * 1_000_000
    assert lock_us["works"] < 0.25 * 1_000_000


def test_where_the_kernel_does_not_say_what_a_thread_does_there_is_no_lock_time() -> None:
    sampler = Sampler(ThreadState.UNKNOWN)
    sampler.look("a")
    sampler.look("a")
    profile = sampler.profile()
    assert profile.measures == [Measure.WALL, Measure.CPU]
    assert profile.lock_us == 0


def test_of_many_runs_at_once_a_sample_stands_for_those_that_are_not_sampled() -> None:
    sampler = Sampler()
    sampler.look()
    sampler.look("a", stands_for=3.0)
    sampler.look()
    assert sampler.profile().wall_us == 300_000


def test_a_stack_begins_at_the_task() -> None:
    sampler = Sampler()
    frames = [
        frame("dumps", 9, "/usr/lib/python3.11/json/__init__.py"), frame("pay"), frame("trace_task", 477, CELERY),
        frame("main", 3, "/srv/shop/manage.py"),
    ]  # fmt: skip
    sampler.look(frames=frames, inside=3)
    sampler.look()
    profile = sampler.profile()
    assert [profile.frames[place].function for place in profile.stacks[0].frames] == ["pay", "dumps"]


def test_a_deep_stack_says_that_its_outer_frames_are_missing() -> None:
    sampler = Sampler()
    frames = [frame("descend", number) for number in range(MOST_FRAMES)]
    sampler.look(frames=frames, inside=len(frames))
    sampler.look()
    profile = sampler.profile()
    stack = [profile.frames[place] for place in profile.stacks[0].frames]
    assert stack[0].function == "outer frames of a deep stack"
    assert len(stack) == MOST_FRAMES + 1


def test_stacks_of_a_name_are_bounded_and_no_time_is_lost() -> None:
    sampler = Sampler()
    for number in range(3 * sampled.MOST_IN_MEMORY):
        sampler.look(f"rare_{number}", after_s=0.01)
        sampler.look("often", after_s=0.03)
    times = sampler.times._names[Kind.TASK, "shop.pay"]
    assert len(times._stacks) <= sampled.MOST_IN_MEMORY
    assert len(times._frames) <= sampled.MOST_IN_MEMORY + 1
    profile = sampler.profile()
    assert profile.wall_us == pytest.approx(3 * sampled.MOST_IN_MEMORY * 40_000, rel=0.01)
    assert by_function(profile)["often"] == pytest.approx(3 * sampled.MOST_IN_MEMORY * 20_000, rel=0.01)
    assert len(profile.stacks) <= 100
    assert sum(row.wall_us for row in profile.stacks) < profile.wall_us


def test_stacks_of_all_names_are_bounded_when_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "MOST_OF_ALL", 50)
    sampler = Sampler()
    for number in range(10):
        for line in range(20):
            sampler.look(f"f{line}", name=Name(f"task {number}"))
    before = sum(one.wall_us for one in sampler.times.changed(at_end=True))
    assert sum(times.stacks for times in sampler.times._names.values()) == 50
    sampler.look("f1", name=Name("task 1"))
    sampler.look()
    (again,) = sampler.times.changed()
    assert again.wall_us == pytest.approx(before / 10 + 100_000, rel=0.1), "the total stays"


def test_names_are_bounded_and_the_time_of_further_ones_is_counted() -> None:
    sampler = Sampler()
    for number in range(sampled.MOST_NAMES + 5):
        sampler.look("a", name=Name(f"task {number}"))
    assert len(sampler.times._names) == sampled.MOST_NAMES
    assert sampler.times.left_out_s == pytest.approx(0.5)


def test_a_profile_is_written_when_it_has_changed_and_begins_again_with_the_hour() -> None:
    sampler = Sampler()
    sampler.clock.advance(3600 - sampler.clock.now_s() % 3600)
    sampler.look("a")
    sampler.look("a")
    sampler.name.all_runs = 3
    (first,) = sampler.times.changed()
    assert list(sampler.times.changed()) == []
    sampler.look("a")
    (second,) = sampler.times.changed()
    assert (first.key, first.runs, first.release) == (second.key, 3, "1.2")
    assert second.wall_us > first.wall_us
    sampler.look("a", after_s=3600.0)
    sampler.look()
    (third,) = sampler.times.changed()
    assert third.key == second.key, "time since the last record belongs to the hour in which it began"
    sampler.name.all_runs = 5
    sampler.look("a")
    sampler.look()
    (fourth,) = sampler.times.changed()
    assert fourth.key != third.key
    assert (fourth.runs, fourth.wall_us) == (2, 100_000)
    sampler.clock.advance(3600)
    list(sampler.times.changed())
    sampler.clock.advance(3600)
    list(sampler.times.changed())
    assert sampler.times._names == {}


def test_no_more_than_some_profiles_are_written_at_once_and_the_others_follow() -> None:
    sampler = Sampler()
    for number in range(sampled.MOST_AT_ONCE + 5):
        sampler.look("a", name=Name(f"task {number}"))
    sampler.look()
    assert len(list(sampler.times.changed())) == sampled.MOST_AT_ONCE
    assert len(list(sampler.times.changed())) == 5
    assert list(sampler.times.changed(at_end=True)) == []


def test_the_clock_of_an_ended_thread_is_dropped() -> None:
    sampler = Sampler()
    runs: list[SampledStack] = []
    stop = threading.Event()
    started = threading.Event()

    def work() -> None:
        ident = threading.get_ident()
        runs.append(SampledStack(ident, Token(sampler.name), [frame("a")], 1, 1.0, ident))  # type: ignore[arg-type]
        started.set()
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    sampler.clock.advance(0.1)
    sampler.times.look(runs, [], 1.0)
    native_id = thread.native_id
    assert [one.clock.native_id for one in sampler.times._threads.values()] == [native_id]
    stop.set()
    thread.join()
    while Path(f"/proc/self/task/{native_id}").exists():  # the kernel is a moment behind
        pass
    sampler.look()
    assert sampler.times._threads == {}
