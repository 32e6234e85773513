"""The ground: guard, clock, ticker, records."""

from __future__ import annotations

import logging
import threading

import msgspec
import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_trace import guard, model
from celery_trace.clock import FakeClock, SystemClock
from celery_trace.guard import Guard
from celery_trace.runtime.ticker import Ticker


@pytest.fixture
def fresh_errors(monkeypatch):
    monkeypatch.setattr(guard, "own_errors", type(guard.own_errors)())
    return guard.own_errors


@pytest.fixture
def counted(fresh_errors):
    return lambda: dict(guard.own_errors)


def test_our_error_is_swallowed_counted_and_logged_once(counted, caplog):
    with caplog.at_level(logging.WARNING, "celery_trace"):
        for _ in range(3):
            with Guard("here"):
                raise KeyError("ours")
    assert counted() == {"here": 3}
    assert len(caplog.records) == 1
    assert "The task is not affected" in caplog.text


@pytest.mark.parametrize("theirs", [SystemExit, KeyboardInterrupt, GeneratorExit, SoftTimeLimitExceeded])
def test_what_belongs_to_the_task_passes_through(counted, theirs):
    with pytest.raises(theirs), Guard("here"):
        raise theirs
    assert counted() == {}


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(100.0)
    clock.advance(5)
    clock.step_back(3)
    assert (clock.now_s(), clock.monotonic_s()) == (102.0, 5.0)


def test_a_ticker_calls_what_is_due_and_skips_missed_beats():
    clock = FakeClock()
    ticker = Ticker(clock)
    calls = []
    ticker.every(2.0, lambda: calls.append("two"), "two")
    ticker.every(5.0, lambda: calls.append("five"), "five")
    assert ticker.beat() == 2.0
    clock.advance(11)
    ticker.beat()
    assert calls == ["two", "five"]
    clock.advance(2)
    ticker.beat()
    assert calls == ["two", "five", "two"]


def test_a_call_that_raises_is_made_again_next_time(fresh_errors, caplog):
    clock = FakeClock()
    ticker = Ticker(clock)
    ticker.every(1.0, lambda: 1 / 0, "broken")
    for _ in range(2):
        clock.advance(1)
        ticker.beat()
    assert guard.own_errors["ticker: broken"] == 2


def test_a_stopped_ticker_leaves_no_thread():
    ticker = Ticker(SystemClock(), name="celery-trace-test-ticker")
    beaten = threading.Event()
    ticker.every(0.001, beaten.set, "beat")
    ticker.start()
    ticker.start()
    assert beaten.wait(10)
    ticker.stop(timeout_s=10)
    assert "celery-trace-test-ticker" not in {thread.name for thread in threading.enumerate()}


def test_every_record_survives_the_journey_through_json():
    records = [
        model.ProcessRecord(uid="u", host="h", pid=1, started_at_s=1.5, role=model.Role.CHILD, counters=["pymalloc"]),
        model.Rollup(
            process="u", kind=model.Kind.TASK, name="t", bucket_s=300, seq=1, runs=2, durations=model.Histogram([1, 1])
        ),
        model.Run(
            id="r",
            process="u",
            kind=model.Kind.BLOCK,
            name="b",
            started_at_s=1.0,
            duration_s=0.5,
            top=[model.Site(file="f", line=1, bytes=10, blocks=1)],
        ),
        model.Sample(process="u", at_s=1.0, memory=model.MemoryState(rss_bytes=1)),
        model.Window(
            id="w",
            investigation="i",
            process="u",
            kind=model.Kind.TASK,
            name="t",
            stage=model.Stage.SAMPLED,
            verdict=model.Verdict.LEAKING,
            at_s=1.0,
            runs=8,
            run_number=40,
            evidence=model.Evidence(8, 4, 4, 512.5, 8, 2, 0.25),
            holder=model.Holder(path=["m (module)", "kept: list[8]"], bound="deque (8/9)", searched=True),
            growth=[(0.5, 256), (1.0, 512)],
        ),
        model.HeapProfile(
            process="u",
            kind=model.Kind.TASK,
            name="t",
            at_s=1.0,
            frames=[model.Line("f", 1, "g", "x")],
            stacks=[model.HeapStack([0], 512)],
            peaks={40: 3},
        ),
        model.TimeProfile(
            process="u",
            kind=model.Kind.TASK,
            name="t",
            began_s=0.5,
            at_s=1.0,
            runs=2,
            wall_us=900,
            cpu_us=300,
            lock_us=100,
            measures=[model.Measure.WALL, model.Measure.CPU],
            frames=[model.Line("f", 1, "g", "x")],
            stacks=[model.TimeStack([0], 800, 300, 100)],
        ),
        model.Failure(
            id="f",
            process="u",
            kind=model.Kind.TASK,
            name="t",
            outcome=model.Outcome.FAILED,
            at_s=1.0,
            capture=model.Capture(
                heap=[model.Node("str", "plain", "Hello"), model.Node("list", "list", items=[0])],
                exceptions=[
                    model.CapturedException(
                        type="E",
                        module="m",
                        message="x",
                        frames=[model.Frame(file="f", line=1, function="g", locals=[model.Variable("a", 0)])],
                    )
                ],
            ),
        ),
        model.Kept(process="u", failure="f", at_s=1.0, until_s=2.0, address="q"),
        model.Stats(process="u", seq=1, at_s=1.0, counters={"written:failure": 1}),
        model.AuditEntry(id="a", at_s=1.0, where="worker", command="1+1"),
        model.Flow(process="u", queue="q", name="t", bucket_s=300, seq=1, started=1, waits=model.Histogram([0, 1])),
        model.Consuming(process="u", queue="q", at_s=1.0, reserved=1, ahead=[model.Ahead("t", "i", 0.5)]),
        model.QueueSample(queue="q", at_s=1.0, depth=3, oldest_age_s=0.5),
        model.MessageStart(process="u", worker="w", queue="q", name="t", task_id="i", started_at_s=1.0),
        model.Schedule(process="u", entry="e", task="t", every="10 s", at_s=1.0, due_at_s=11.0),
        model.Chord(group="g", at_s=1.0, unlock="u", body="t", members=["a"], complete=True),
        model.RunningSnapshot(
            place="h:1",
            at_s=1.0,
            runs=[
                model.RunningRun(
                    process="u",
                    kind=model.Kind.TASK,
                    name="t",
                    pid=1,
                    role=model.Role.CHILD,
                    started_at_s=0.5,
                    stack=[model.Line("f", 1, "g", "x")],
                )
            ],
            ended={"u": 7},
        ),
    ]
    assert {type(record) for record in records} == set(model.AnyRecord.__args__)
    for record in records:
        line = model.encode(record)
        assert b"\n" not in line
        assert model.decode(line) == record
        assert record.key


def test_what_is_no_record_is_refused():
    for line in (b"", b"{}", b'{"record":"unknown"}', b'{"record":"kept","process":1}', b"\xff\xfe"):
        with pytest.raises(msgspec.DecodeError):
            model.decode(line)


def test_the_id_of_a_failure_is_the_same_for_every_witness():
    assert model.failure_id("abc", 1) == model.failure_id("abc", 1) != model.failure_id("abc", 2)
    assert model.failure_id("\ud800", 0)


def test_duration_buckets_double():
    assert [model.Histogram.bucket(s) for s in (0.0, 0.00009, 0.0001, 0.0002, 0.0004)] == [0, 0, 1, 2, 3]
    assert model.Histogram.bucket(1e9) == model.Histogram.BUCKETS - 1


def test_a_ticker_of_an_idle_process_sleeps_until_it_is_woken():
    clock = FakeClock()
    ticker = Ticker(clock)
    idle = [False]
    ticker.is_idle = lambda: idle[0]
    calls = []
    ticker.every(0.1, lambda: calls.append("often"), "often", idle_s=30.0)
    ticker.every(2.0, lambda: calls.append("seldom"), "seldom")
    clock.advance(0.1)
    assert ticker.beat() == pytest.approx(0.1)
    idle[0] = True
    clock.advance(0.1)
    assert ticker.beat() == pytest.approx(1.8)
    assert ticker.asleep
    assert calls == ["often", "often"]
    clock.advance(5.0)
    ticker.beat()
    assert calls == ["often", "often", "seldom"]
    idle[0] = False
    ticker.wake()
    assert not ticker.asleep
    assert ticker.beat() == pytest.approx(0.1), "what was put off is due at its usual interval again"


def test_a_timer_says_itself_when_it_is_due_after_an_idle_time_and_by_how_much_it_may_be_early():
    clock = FakeClock()
    ticker = Ticker(clock)
    idle = [True]
    ticker.is_idle = lambda: idle[0]
    calls = []
    exact = ticker.every(1.0, lambda: calls.append(clock.monotonic_s()), "exact", idle_s=30.0)
    ticker.every(0.95, lambda: None, "other")
    exact.early, exact.wake = 0.0, lambda: clock.monotonic_s() + 0.25
    clock.advance(40.0)
    ticker.beat()
    idle[0] = False
    ticker.wake()
    assert ticker.beat() == pytest.approx(0.25)
    assert calls == [40.0]
    clock.advance(0.25)
    ticker.beat()
    clock.advance(0.95)
    assert ticker.beat() == pytest.approx(0.05), "the other timer's beat is not used"
    clock.advance(0.05)
    ticker.beat()
    assert calls == pytest.approx([40.0, 40.25, 41.25])


def test_a_call_that_changes_its_interval_is_made_after_the_new_one():
    clock = FakeClock()
    ticker = Ticker(clock)
    intervals = iter([0.1, 5.0])

    def call():
        timer.every_s = next(intervals)

    timer = ticker.every(2.0, call, "changing")
    clock.advance(2.0)
    assert ticker.beat() == pytest.approx(0.1)
    clock.advance(0.1)
    assert ticker.beat() == pytest.approx(5.0)
