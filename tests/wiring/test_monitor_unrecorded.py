"""A worker that records nothing says so in an event, and the monitor's pages say it on."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.spool.unrecorded import EVENT
from flower_plugin.incoming.unrecorded import MOST_CHARACTERS, MOST_WORKERS, OVER_S, UnrecordedWorkers
from tests.support.monitor_app import Client, make_monitor, serving


def an_event(worker: Any = "w1@here", **values: Any) -> dict[str, Any]:
    said = {
        "type": EVENT,
        "hostname": worker,
        "why": "/srv: Permission denied (uid 7)",
        "next": "Do this.",
        "waiting": 3,
    }
    return said | values


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def workers(clock: FakeClock) -> UnrecordedWorkers:
    return UnrecordedWorkers(clock)


def test_who_said_it_is_listed_until_it_is_silent_again(workers: UnrecordedWorkers, clock: FakeClock) -> None:
    workers.heard(an_event("w2@here"))
    workers.heard(an_event("w1@here"))
    assert [(one.worker, one.waiting) for one in workers.now()] == [("w1@here", 3), ("w2@here", 3)]
    clock.advance(OVER_S - 1)
    workers.heard(an_event("w1@here", waiting=5))
    clock.advance(2)
    assert [(one.worker, one.waiting) for one in workers.now()] == [("w1@here", 5)]


@pytest.mark.parametrize(
    "odd",
    [{}, [], None, {"type": "task-sent"}, {"type": 5}, an_event(None), an_event(why=7), an_event(next={}),
     {"type": EVENT}, {"type": EVENT, "hostname": "w"}],
)  # fmt: skip
def test_other_events_and_odd_ones_say_nothing(workers: UnrecordedWorkers, odd: Any) -> None:
    workers.heard(odd)
    assert workers.now() == []


def test_what_anybody_can_send_is_bounded(workers: UnrecordedWorkers, clock: FakeClock) -> None:
    for number in range(3 * MOST_WORKERS):
        workers.heard(an_event(f"{number:04}" + "w" * 5000, why="x" * 5000, next="y" * 5000, waiting="many"))
    found = workers.now()
    assert len(found) == MOST_WORKERS
    assert {(len(one.worker), len(one.why), len(one.next), one.waiting) for one in found} == {
        (MOST_CHARACTERS, MOST_CHARACTERS, MOST_CHARACTERS, 0)
    }
    clock.advance(OVER_S + 1)
    workers.heard(an_event("later@here"))
    assert [one.worker for one in workers.now()] == ["later@here"]


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("unrecorded")
    with serving(lambda: make_monitor(folder, roles=("eye:look",), pairs=("eye:e",))) as found:
        yield found


def test_each_page_says_who_records_nothing_why_and_what_to_do(monitor: Any) -> None:
    client, application = Client(monitor[0]), monitor[1]
    header = {"Authorization": "Basic " + base64.b64encode(b"eye:e").decode()}
    assert "records nothing" not in client.request("GET", "/trace/", headers=header).text
    application.events.on_event(an_event("<b>w1</b>@here"))
    for path in ("/trace/", "/trace/failures", "/trace/statistics"):
        text = client.request("GET", path, headers=header).text
        assert "&lt;b&gt;w1&lt;/b&gt;@here records nothing." in text
        assert "/srv: Permission denied (uid 7)" in text
        assert "Do this." in text
    assert "records nothing" not in client.request("GET", "/login").text
