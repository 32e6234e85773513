"""A worker that takes no messages although it has a free process: the alert says why."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery

from celery_trace.alerting.engine import AlertEngine
from celery_trace.clock import SystemClock
from celery_trace.model import Consuming, QueueSample
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from tests.support.fixtures_worker import StartWorker
from tests.support.processes import REPOSITORY
from tests.support.records import Records
from tests.worker.test_stuck_runs import end_at_once

APP = "tests.support.flow_project"
RULES = [{"rule": "queue_unread", "name": "queue_unread", "above": 0, "window": 60, "for": 0}]


class Proxy:
    """Forwards connections to a server until it is frozen. Then it keeps them open, and forwards nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._server]
        self._forwards = threading.Event()
        self._forwards.set()
        self.address = "{}:{}".format(*self._server.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._forwards.clear()

    def close(self) -> None:
        self._forwards.set()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            outer = socket.create_connection(self._target)
            self._sockets += [inner, outer]
            for source, target in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._forwards.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def proxy(own_broker_url: str) -> Iterator[Proxy]:
    url = urlsplit(own_broker_url)
    made = Proxy(url.hostname or "", url.port or 0)
    yield made
    made.close()


@pytest.fixture
def publisher(own_broker_url: str) -> Iterator[Celery]:
    with Celery(broker=own_broker_url, set_as_current=False) as app:
        yield app


@pytest.fixture
def alert(records: Records, trace_dir: Path, publisher: Celery) -> Iterator[Callable[[], str]]:
    """The text of the rule's alert, after the monitor's reading of the queue; empty while there is none."""
    store = open_store(Settings(dir=str(trace_dir)))
    engine = AlertEngine(store, records.queries, Settings(alert_rules=RULES), SystemClock(), channels=())  # type: ignore[arg-type]

    def text() -> str:
        with publisher.connection_for_read() as connection:
            depth = connection.default_channel.client.llen("celery")
        store.write([QueueSample(queue="celery", at_s=time.time(), depth=depth)])
        found = [alert.text for alert in engine.evaluate() if alert.state == "firing"]
        return found[0] if found else ""

    yield text
    store.close()


def state_of(records: Records) -> Consuming:
    [state] = records.wait(lambda queries: queries.consuming(), "the worker consumes")
    return state


@pytest.mark.timeout(150)
def test_a_connection_that_is_cut_silently_is_the_reason(
    start_worker: StartWorker, records: Records, own_broker_url: str, proxy: Proxy, publisher: Celery, alert: Any
) -> None:
    through = own_broker_url.replace(urlsplit(own_broker_url).netloc, proxy.address)
    worker = start_worker(
        APP, REPOSITORY, broker_url=through, concurrency=2, settings={"memory": "off"},
        extra={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert state_of(records).idle_because == ""
        proxy.freeze()
        for _ in range(3):
            publisher.send_task("flowing.nothing")
        text = records.wait(lambda _: "has taken none" in (found := alert()) and found, "the alert", timeout_s=90)
        # The broker may have sent one of them into the cut connection.
        assert re.match("[23] messages wait in queue celery", text)
        # Redis' client checks the connection after a while, and then waits for the answer.
        blocked = f"its main thread is blocked, waiting in recv from {proxy.address}"
        silent = f"nothing arrives from the broker {proxy.address}"
        assert re.search(f"{worker.node} has taken none for [^:]*: ({blocked}|{silent})", text)
    finally:
        end_at_once(worker)


@pytest.mark.timeout(120)
def test_a_prefetch_that_is_full_of_messages_with_an_eta_is_the_reason(
    start_worker: StartWorker, records: Records, publisher: Celery, alert: Any
) -> None:
    worker = start_worker(
        APP, REPOSITORY, concurrency=1, settings={"memory": "off"},
        extra={"PYTHONPATH": str(REPOSITORY), "FLOW_ETA_LIMIT": "4"},
    )  # fmt: skip
    assert state_of(records).idle_because == ""
    for _ in range(4):
        publisher.send_task("flowing.nothing", countdown=3000)
    records.wait(lambda _: state_of(records).scheduled == 4, "all are scheduled")
    for _ in range(2):
        publisher.send_task("flowing.nothing")
    text = records.wait(lambda _: "prefetch" in (found := alert()) and found, "the alert", explain=alert)
    assert text.startswith("2 messages wait in queue celery")
    assert "its prefetch of 4 messages is full, and 4 messages in it wait for their ETA" in text
    end_at_once(worker)
