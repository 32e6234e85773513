"""Flower's events on the loop: all of them are taken in, and none of the loop's other work waits behind them."""

import asyncio
import time

import pytest
from celery import Celery
from tornado.ioloop import IOLoop

from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor
from flower_plugin import upstream
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.calls import Calls
from flower_plugin.incoming.events import EventCheck
from tests.support.monitor_app import QuietEvents


def with_events(test):
    """Run a coroutine of (events, what the state was told) on a loop of its own."""

    async def main():
        capp = Celery("shop", broker="memory://", set_as_current=False)
        clock = SystemClock()
        check = EventCheck(Redactor(), clock, Calls(Redactor()))
        events = QuietEvents(capp, IOLoop.current(), max_tasks_in_memory=100, link=BrokerLink(clock), check=check)
        told = []
        events.state.event = told.append
        await test(events, told)

    asyncio.run(main())


async def until(look):
    end_s = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.001)


def test_a_flood_of_events_lets_the_loop_do_its_other_work_in_between(monkeypatch):
    monkeypatch.setattr(upstream, "SLICE_S", 0.0)  # one event a round

    async def check(events, told):
        for number in range(500):
            events.on_event({"type": "task-sent", "number": number})
        seen = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(len(told)))
        await until(lambda: len(told) == 500)
        assert seen[0] < 5
        assert [event["number"] for event in told] == list(range(500))
        assert events.skipped == 0

    with_events(check)


def test_what_does_not_fit_in_is_skipped_oldest_first_and_counted(monkeypatch, caplog):
    monkeypatch.setattr(upstream, "MOST_WAITING", 10)

    async def check(events, told):
        for number in range(25):
            events.on_event({"type": "task-sent", "number": number})
        await until(lambda: len(told) == 10)
        assert [event["number"] for event in told] == list(range(15, 25))
        assert events.skipped == 15
        events.on_event({"type": "task-sent", "number": 99})  # and it goes on
        await until(lambda: len(told) == 11)

    with_events(check)
    assert caplog.text.count("faster than this monitor") == 1


@pytest.mark.parametrize("odd", [{}, {"type": "task-sent"}, {"type": 5, "hostname": None}])
def test_an_event_that_flower_does_not_expect_holds_up_no_other(odd):
    async def check(events, told):
        del events.state.event  # Flower's own
        events.on_event(odd)
        now_s = time.time()
        events.on_event({"type": "worker-online", "hostname": "w@h", "timestamp": now_s, "local_received": now_s,
                         "clock": 1, "utcoffset": 0, "pid": 1})  # fmt: skip
        await until(lambda: "w@h" in events.state.workers)

    with_events(check)
