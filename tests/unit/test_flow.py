"""How long messages wait: the header, the counts, what is started twice, and what beat misses."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_trace import published
from celery_trace.clock import FakeClock
from celery_trace.guard import own_errors
from celery_trace.model import AnyRecord, Consuming, Flow, Histogram, MessageStart, Schedule
from celery_trace.runtime import consumed, messages
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.consumed import LONG_S, ConsumedMessages
from celery_trace.runtime.flow import MOST_PAIRS, MessageFlow
from celery_trace.runtime.publishing import message_published
from celery_trace.runtime.schedules import Schedules
from celery_trace.runtime.ticker import Ticker
from tests.support import store_records as make
from tests.support.requirements import lacking

NOW_S = 1_700_000_100.0
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    max_leaves=8,
)


# --- the header


def read(value: object, eta_s: float | None = None) -> published.Waiting:
    return published.waiting({published.HEADER: value}, eta_s, NOW_S)


def test_a_message_waits_since_it_was_published_or_since_its_eta() -> None:
    assert read(NOW_S - 5) == (NOW_S - 5, "")
    assert read(int(NOW_S) - 5, NOW_S - 2) == (NOW_S - 2, "")
    assert read(NOW_S - 5, NOW_S + 60) == (NOW_S + 60, "")
    assert read(NOW_S - 5, NOW_S - 900) == (NOW_S - 5, "")
    assert published.waiting({}, NOW_S - 2, NOW_S) == (None, "")


def test_a_clock_that_is_a_little_ahead_counts_as_now() -> None:
    assert read(NOW_S + 4) == (NOW_S, published.AHEAD)


@pytest.mark.parametrize(
    "value",
    ["soon", str(NOW_S), True, -NOW_S, 0, float("nan"), float("inf"), -float("inf"), 1e300, 10**400, NOW_S + 301,
     [NOW_S], {"at": NOW_S}, b"1"],
)  # fmt: skip
def test_a_value_that_is_no_time_of_a_message_is_refused(value: object) -> None:
    assert read(value) == (None, published.REFUSED)


@given(JSON, st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_no_header_raises_or_makes_a_wait_negative(value: object, eta_s: float | None) -> None:
    found = read(value, eta_s)
    assert found.since_s is None or found.since_s <= max(NOW_S, eta_s or 0)


@given(JSON)
def test_no_eta_in_a_header_raises(value: object) -> None:
    assert isinstance(published.eta_of({"eta": value}), float | None)


def test_an_eta_without_a_zone_is_utc() -> None:
    assert published.eta_of({"eta": "2023-11-14T22:13:20"}) == 1_700_000_000.0
    assert published.eta_of({"eta": "2023-11-14T23:13:20+01:00"}) == 1_700_000_000.0
    assert published.eta_of({"eta": None}) is None


def test_a_stamp_replaces_that_of_an_earlier_try() -> None:
    headers: dict[str, object] = {published.HEADER: 5.0}
    published.stamp(headers)
    assert abs(float(str(headers[published.HEADER])) - time.time()) < 5


# --- the counts


def flow_with(clock: FakeClock) -> tuple[MessageFlow, list[AnyRecord]]:
    written: list[AnyRecord] = []
    return MessageFlow("p1", written.append, clock, Ticker(clock)), written


def test_messages_are_added_up_per_queue_task_and_five_minutes() -> None:
    clock = FakeClock(NOW_S)
    flow, written = flow_with(clock)
    flow.published("mails", "shop.mail")
    flow.received("mails", "shop.mail", 0.5, 30.0)
    flow.started("mails", "shop.mail", 2.0, 1.0, redelivered=False, late=True)
    flow.started("mails", "shop.mail", 900.0, 1.0, redelivered=True, late=True)
    flow.started("mails", "shop.other", None, 0.0, redelivered=False, late=False)
    flow.flush()
    flow.flush()
    one, other = (record for record in written if isinstance(record, Flow))
    assert (one.published, one.received, one.started, one.redelivered, one.acks_late) == (1, 1, 2, 1, True)
    assert (one.wait_max_s, one.eta_max_s) == (2.0, 30.0), "a redelivered message's wait has its first run in it"
    assert one.waits.counts[Histogram.bucket(2.0)] == 1 == sum(one.waits.counts)
    assert sum(one.reserved.counts) == 2
    assert other.waits.counts == []
    clock.advance(300)
    flow.started("mails", "shop.mail", 3.0, 1.0, redelivered=False, late=True)
    flow.flush()
    assert [(record.bucket_s, record.started) for record in written[2:] if isinstance(record, Flow)] == [
        (one.bucket_s + 300, 1)
    ]


def test_what_changes_in_a_period_is_written_when_the_next_one_begins() -> None:
    clock = FakeClock(NOW_S)
    flow, written = flow_with(clock)
    flow.published("mails", "shop.mail")
    clock.advance(300)
    flow.published("mails", "shop.mail")
    assert len(written) == 1
    flow.flush()
    assert [record.published for record in written if isinstance(record, Flow)] == [1, 1]
    assert len({record.key for record in written}) == 2


def test_the_pairs_of_queue_and_task_are_bounded_and_the_rest_is_counted() -> None:
    flow, written = flow_with(FakeClock(NOW_S))
    for number in range(MOST_PAIRS + 7):
        flow.published("mails", f"shop.{number}")
    flow.flush()
    assert len(written) == MOST_PAIRS
    assert flow.counters == {"flow:left_out": 7}


def test_a_message_is_stamped_and_counted_once_though_each_app_of_the_process_gets_the_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow, written = flow_with(FakeClock(NOW_S))
    monkeypatch.setattr(recorders, "_current", SimpleNamespace(closed=False, flow=flow))
    queue = SimpleNamespace(name="mails")
    for _ in range(2):
        headers: dict[str, object] = {"id": "t1"}
        for _ in range(2):
            message_published(sender="shop.mail", headers=headers, exchange="x", routing_key="k", declare=[queue])
        assert published.HEADER in headers
    message_published(sender="shop.mail", headers={}, exchange="", routing_key="k")
    for hostile in (None, [], "text"):
        message_published(sender=None, headers=hostile, declare="mails")
    flow.flush()
    found = {(record.queue, record.name): record.published for record in written if isinstance(record, Flow)}
    assert found == {("mails", "shop.mail"): 2, ("k", "shop.mail"): 1}
    assert own_errors == {}


# --- what a worker consumes


class FakeRequest:
    """A request as Celery's consumer makes it."""

    def __init__(self, task_id: str, *, late: bool = False, eta: datetime | None = None, **headers: Any) -> None:
        self.id = task_id
        self.name = "shop.mail"
        self.task = SimpleNamespace(name="shop.mail", acks_late=late)
        self.eta = eta
        self.time_start: float | None = None
        self.request_dict = {"retries": 0, **headers}
        self.message = SimpleNamespace(delivery_info={})
        self.delivery_info = {"exchange": "", "routing_key": "mails", "redelivered": headers.get("redelivered")}


@pytest.fixture(params=["quick", "python"])
def state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Celery's state; messages are handled in both ways."""
    from celery.worker import state

    if request.param == "python":
        monkeypatch.setattr(consumed, "quick_messages", lambda *_: None)
    elif messages.Message is messages.PlainMessage:
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")
    state.reset_state()
    yield state
    state.reset_state()


def consumer_of(timeout_s: float | None = None) -> Any:
    queue = SimpleNamespace(name="mails", exchange=SimpleNamespace(name="mails"), routing_key="mails")
    transport = SimpleNamespace(Channel=SimpleNamespace(visibility_timeout=timeout_s) if timeout_s else None)
    connection = SimpleNamespace(transport_options={}, get_transport_cls=lambda: transport)
    task_consumer = SimpleNamespace(queues=[queue], _active_tags={})
    return SimpleNamespace(task_consumer=task_consumer, connection=connection)


class Worker:
    """A worker's messages, with its records."""

    def __init__(self, state: Any, timeout_s: float | None = None) -> None:
        self.state = state
        self.written: list[AnyRecord] = []
        clock = FakeClock(time.time())
        self.flow = MessageFlow("p1", self.written.append, clock, Ticker(clock))
        self.messages = ConsumedMessages(make.process(), self.flow, self.written.append)
        if self.messages.quick is not None:
            self.messages.quick.on = True
        self.consumer = consumer_of(timeout_s)

    def run(self, request: FakeRequest, started_s: float | None = None) -> FakeRequest:
        self.messages.received(self.consumer, request)
        self.state.task_reserved(request)
        request.time_start = time.time() if started_s is None else started_s
        self.state.task_accepted(request)
        self.messages.accepted(request)
        return request

    @property
    def starts(self) -> list[MessageStart]:
        return [record for record in self.written if isinstance(record, MessageStart)]

    def states(self) -> list[Consuming]:
        return [record for record in self.written if isinstance(record, Consuming)]


def test_a_visibility_timeout_counts_only_where_the_transport_has_one(state: Any) -> None:
    worker = Worker(state, 40.0)
    worker.consumer.connection.transport_options["visibility_timeout"] = 90
    worker.messages.look(worker.consumer)
    assert worker.states()[-1].visibility_timeout_s == 90.0
    other = Worker(state)
    other.consumer.connection.transport_options["visibility_timeout"] = 90
    other.messages.look(other.consumer)
    assert other.states()[-1].visibility_timeout_s is None


def test_a_message_that_is_run_once_has_no_record(state: Any) -> None:
    worker = Worker(state)
    first, second = worker.run(FakeRequest("t1")), worker.run(FakeRequest("t2", late=True))
    state.task_ready(first, successful=True)
    state.task_ready(second, successful=True)
    worker.messages.look()
    worker.run(FakeRequest("t1", retries=1))
    assert worker.starts == []
    assert own_errors == {}


def test_a_second_start_while_the_first_runs_is_written_with_the_first(state: Any) -> None:
    worker = Worker(state)
    first = worker.run(FakeRequest("t1", late=True))
    worker.run(FakeRequest("t1", late=True, redelivered=True))
    assert [(start.redelivered, start.ended_at_s) for start in worker.starts] == [(False, None), (True, None)]
    state.task_ready(first, successful=True)


def test_a_second_start_right_after_the_first_has_succeeded_is_no_overlap(state: Any) -> None:
    worker = Worker(state)
    first = worker.run(FakeRequest("t1"))
    state.task_ready(first, successful=True)
    second = worker.run(FakeRequest("t1", redelivered=True))
    before, after = worker.starts
    assert before.succeeded
    assert before.ended_at_s is not None
    assert before.ended_at_s <= after.started_at_s == second.time_start


def test_a_second_start_long_after_the_first_is_seen_too(state: Any) -> None:
    worker = Worker(state)
    state.task_ready(worker.run(FakeRequest("t1")), successful=True)
    worker.messages.look()
    worker.run(FakeRequest("t1"))
    assert [start.succeeded for start in worker.starts] == [True, False]


@pytest.mark.parametrize(("timeout_s", "lasts_s"), [(None, LONG_S), (40.0, 40.0)])
def test_a_run_that_is_acknowledged_late_and_lasts_long_is_written(
    state: Any, timeout_s: float | None, lasts_s: float
) -> None:
    worker = Worker(state, timeout_s)
    request = worker.run(FakeRequest("t1", late=True), time.time() - lasts_s - 5)
    worker.run(FakeRequest("t2"), time.time() - 4000)
    worker.messages.look()
    worker.messages.look()
    assert [(start.task_id, start.ended_at_s) for start in worker.starts] == [("t1", None)]
    state.task_ready(request, successful=True)
    worker.messages.close()
    assert worker.starts[-1].succeeded
    assert worker.starts[-1].key == worker.starts[0].key


def test_reserved_messages_are_listed_with_the_runs_ahead(state: Any) -> None:
    worker = Worker(state, 3600.0)
    worker.run(FakeRequest("t1"), time.time() - 10)
    waiting = FakeRequest("t2")
    worker.messages.received(worker.consumer, waiting)
    state.task_reserved(waiting)
    held = FakeRequest("t3", eta=datetime.now(UTC) + timedelta(minutes=5))
    worker.messages.received(worker.consumer, held)
    state.scheduled_requests.add(held)
    worker.messages.look()
    worker.messages.look()
    (found,) = worker.states()
    assert (found.queue, found.running, found.reserved, found.scheduled) == ("mails", 1, 1, 1)
    assert found.visibility_timeout_s == 3600.0
    assert [run.task_id for run in found.ahead] == ["t1"]
    worker.messages.close()
    assert worker.states()[-1].gone


def test_an_eta_is_not_in_the_wait_and_its_time_is_the_horizon(state: Any) -> None:
    worker = Worker(state)
    now_s = time.time()
    eta = datetime.fromtimestamp(now_s + 2.0, UTC)
    worker.run(FakeRequest("t1", eta=eta, **{published.HEADER: now_s - 1}), now_s + 2.25)
    worker.flow.flush()
    (flow,) = (record for record in worker.written if isinstance(record, Flow))
    assert 0.2 < flow.wait_max_s < 0.3
    assert 1.5 < flow.eta_max_s <= 2.0
    assert own_errors == {}


def test_a_clock_that_goes_backwards_makes_no_negative_wait(state: Any) -> None:
    worker = Worker(state)
    worker.run(FakeRequest("t1", **{published.HEADER: time.time() + 20}), time.time() - 30)
    worker.flow.flush()
    (flow,) = (record for record in worker.written if isinstance(record, Flow))
    assert (flow.wait_max_s, flow.waits.counts) == (0.0, [1])
    assert worker.flow.counters == {"flow:clock_ahead": 1}


# --- both ways


WAYS = [messages.FlowCounts, messages.PlainFlowCounts]


@pytest.mark.parametrize("kind", WAYS, ids=["quick", "python"])
def test_counts_of_a_period_are_added_up(kind: type[messages.FlowCounts]) -> None:
    counts = kind("mails", 300, 300.0)
    assert (counts.queue, counts.bucket_s, counts.ends_s, counts.dirty) == ("mails", 300, 600.0, False)
    counts.publish()
    counts.receive(0.5, 30.0)
    counts.receive(None, 2.0)
    counts.start(2.0, None, False, True)
    counts.start(900.0, 1.0, True, False)
    assert (counts.published, counts.received, counts.started, counts.redelivered) == (1, 2, 2, 1)
    assert (counts.wait_max_s, counts.eta_max_s, counts.acks_late, counts.dirty) == (2.0, 30.0, False, True)
    waits, transfers, reserved = counts.histograms()
    for found, second in ((waits, 2.0), (transfers, 0.5), (reserved, 1.0)):
        assert (len(found) - 1, sum(found), found[-1]) == (Histogram.bucket(second), 1, 1)


@given(st.floats(0.0, 1e12))
def test_both_ways_put_a_wait_into_the_same_bucket(wait_s: float) -> None:
    made = [kind("q", 0, 300.0) for kind in WAYS]
    for counts in made:
        counts.start(wait_s, wait_s, False, False)
    assert made[0].histograms() == made[1].histograms()


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        published.HEADER: st.one_of(st.floats(-10.0, 10.0).map(lambda ago_s: time.time() - ago_s), JSON),
        "redelivered": st.booleans() | st.none(),
        "retries": st.integers(0, 5) | JSON,
    },
)


@given(st.lists(st.tuples(st.sampled_from("abc"), HEADERS, st.booleans()), max_size=8))
def test_any_messages_are_counted_alike_in_both_ways(sent: list[tuple[str, dict[str, Any], bool]]) -> None:
    from celery.worker import state

    found = []
    for way in ("quick", "python"):
        state.reset_state()
        worker = Worker(state)
        if way == "python":
            worker.messages.quick = None
        for task_id, headers, has_eta in sent:
            eta = datetime.now(UTC) if has_eta else None
            request = FakeRequest(task_id, eta=eta, **headers)
            request.delivery_info["redelivered"] = None
            worker.run(request, time.time())
        worker.flow.flush()
        flows = [(one.received, one.started, one.redelivered, sum(one.waits.counts), sum(one.transfers.counts),
                  sum(one.reserved.counts)) for one in worker.written if isinstance(one, Flow)]  # fmt: skip
        starts = [(one.task_id, one.retries, one.redelivered) for one in worker.starts]
        found.append((flows, starts, dict(worker.flow.counters), sorted(worker.messages._started)))
    assert found[0] == found[1]


def test_a_usual_message_needs_no_python_until_the_consumers_queues_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery.worker import state

    worker = Worker(state)
    if worker.messages.quick is None:
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")
    in_python: list[str] = []
    queue_of = worker.messages._queue_of
    monkeypatch.setattr(worker.messages, "_queue_of", lambda *given: in_python.append("queue") or queue_of(*given))
    started = worker.flow.started
    monkeypatch.setattr(
        worker.flow, "started", lambda *given, **named: in_python.append("start") or started(*given, **named)
    )
    for number in range(3):
        worker.run(FakeRequest(f"t{number}"))
    assert in_python == ["queue", "start"]
    other = SimpleNamespace(name="other", exchange=SimpleNamespace(name=""), routing_key="other")
    worker.consumer.task_consumer = SimpleNamespace(queues=[other], _active_tags={"other": "1"})
    request = FakeRequest("t4")
    request.message.delivery_info["consumer_tag"] = "1"
    assert worker.run(request).trace_message.queue == "other"  # type: ignore[attr-defined]
    worker.messages.quick.on = False
    worker.run(FakeRequest("t5"))
    assert in_python == ["queue", "start"] * 3
    worker.flow.flush()
    assert {one.queue: one.started for one in worker.written if isinstance(one, Flow)} == {"mails": 3, "other": 2}


# --- beat


class FakeScheduler:
    """What is used of Celery's scheduler."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self.sent: list[str] = []
        self.broken = False

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True) -> None:
        if self.broken:
            raise OSError("the broker is away")
        self.sent.append(entry.name)


def entry_of(every: Any, last_s_ago: float) -> Any:
    from celery import Celery
    from celery.beat import ScheduleEntry

    app = Celery(set_as_current=False)
    every.app = app
    return ScheduleEntry(
        name="nightly", task="shop.report", schedule=every, app=app,
        last_run_at=datetime.now(UTC) - timedelta(seconds=last_s_ago),
    )  # fmt: skip


def follow(scheduler: FakeScheduler) -> tuple[Schedules, list[Schedule]]:
    written: list[Schedule] = []
    return Schedules(scheduler, "beat-1", written.append), written  # type: ignore[arg-type]


def test_an_entry_that_is_published_in_time_has_missed_nothing() -> None:
    scheduler = FakeScheduler()
    schedules, written = follow(scheduler)
    undo = schedules.install()
    entry = entry_of(schedule(10.0), 10.02)
    scheduler._heap = [(time.time(), 5, entry)]
    scheduler.apply_async(entry, advance=False)
    schedules.look()
    schedules.look()
    (found,) = written
    assert (found.entry, found.published, found.missed, found.failed, found.interval_s) == ("nightly", 1, 0, 0, 10.0)
    assert found.due_at_s == pytest.approx(time.time() + 10, abs=2)
    assert scheduler.sent == ["nightly"]
    undo()
    assert "apply_async" not in vars(scheduler)


@pytest.mark.parametrize(
    ("every", "last_s_ago", "least", "most"), [(schedule(10.0), 95.0, 8, 8), (crontab(), 600.0, 8, 10)]
)
def test_due_times_that_passed_while_beat_was_away_are_missed(
    every: Any, last_s_ago: float, least: int, most: int
) -> None:
    scheduler = FakeScheduler()
    schedules, written = follow(scheduler)
    schedules.install()
    scheduler.apply_async(entry_of(every, last_s_ago))
    schedules.look()
    assert least <= written[0].missed <= most
    assert written[0].interval_s == (10.0 if isinstance(every, schedule) and least == most else 60.0)


def test_a_message_that_cannot_be_published_is_counted_and_still_raises() -> None:
    scheduler = FakeScheduler()
    schedules, written = follow(scheduler)
    schedules.install()
    scheduler.broken = True
    with pytest.raises(OSError, match="away"):
        scheduler.apply_async(entry_of(schedule(10.0), 10.0))
    schedules.look()
    assert (written[0].failed, written[0].published, written[0].published_at_s) == (1, 0, None)


def test_an_entry_that_leaves_the_schedule_is_gone() -> None:
    scheduler = FakeScheduler()
    schedules, written = follow(scheduler)
    scheduler._heap = [
        (NOW_S, 5, entry_of(schedule(10.0), 1.0)),
        (NOW_S, 5, SimpleNamespace(name="b", task="t", schedule=1)),
    ]
    schedules.look()
    scheduler._heap = scheduler._heap[:1]
    schedules.look()
    assert [(record.entry, record.gone) for record in written] == [("nightly", False), ("b", False), ("b", True)]
