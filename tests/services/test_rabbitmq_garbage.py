"""What anybody with a RabbitMQ can publish for us: bombs and garbage, also what its Python client can't take in."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Producer

from celery_trace.clock import SystemClock
from celery_trace.control import orders as control
from celery_trace.control.channel import command_address, reply_address
from celery_trace.control.orders import OrderReceiver
from celery_trace.model import ProcessRecord, new_id
from celery_trace.settings import Settings
from tests.support.shells import LiveProcess, answer
from tests.support.transport_contract import site
from tests.support.waiting import wait_until

HEADERS: list[dict[str, Any]] = [
    {"compression": "application/x-bz2"},
    {"compression": "application/x-gzip"},
    {"compression": "no-such"},
    {"compression": 5},
    {"compression": {"a": 1}},
]


def publish_bombs(channel: Any, address: str) -> None:
    body = bz2.compress(bytes(20_000_000))
    for headers in HEADERS:
        Producer(channel, auto_declare=False).publish(
            body, exchange="", routing_key=address, content_type="x/y", content_encoding="binary", headers=headers
        )


def publish_unreadable(connection: Connection, address: str) -> None:
    """A message whose content type is not UTF-8: RabbitMQ passes it on, and py-amqp raises in the middle of it."""
    message = amqp.basic_message.Message(b"x", content_type="MARK")
    serialized = message._serialize_properties()
    message._serialize_properties = lambda: serialized.replace(b"MARK", b"\xff\xfe\xff\xfe")  # type: ignore[method-assign]
    connection.default_channel.basic_publish(message, exchange="", routing_key=address)


@pytest.fixture
def connection(rabbitmq_url: str) -> Any:
    with Connection(rabbitmq_url) as connection:
        yield connection


def test_a_live_process_and_its_client_pass_over_bombs(
    rabbitmq_url: str, connection: Connection, tmp_path: Path
) -> None:
    live = LiveProcess(tmp_path, rabbitmq_url)
    try:
        connections: list[Connection] = []
        connect = live.connect
        live.keeper._connect = lambda: connections.append(connect()) or connections[-1]  # type: ignore[func-returns-value]
        kept = live.fail()
        with live.session(kept) as session:
            made = len(connections)
            publish_bombs(connection.default_channel, command_address(live.process.uid))
            publish_bombs(connection.default_channel, reply_address(session.id))
            assert answer(session, "1 + 1") == "2"
            wait_until(
                lambda: live.keeper.counters["live:refused:compressed"] == len(HEADERS),
                "all are refused",
                explain=lambda: str(live.keeper.counters),
            )
            wait_until(lambda: session.refused == len(HEADERS), "the client refuses them too")
            assert len(connections) == made, "nobody connected anew"
    finally:
        live.close()


def test_a_live_process_goes_on_after_a_message_that_its_client_library_cannot_take_in(
    rabbitmq_url: str, connection: Connection, tmp_path: Path
) -> None:
    live = LiveProcess(tmp_path, rabbitmq_url)
    try:
        connections: list[Connection] = []
        connect = live.connect
        live.keeper._connect = lambda: connections.append(connect()) or connections[-1]  # type: ignore[func-returns-value]
        kept = live.fail()
        with live.session(kept) as session:
            made = len(connections)
            for _ in range(3):
                publish_unreadable(connection, command_address(live.process.uid))
            assert answer(session, "1 + 1") == "2"
            wait_until(
                lambda: live.keeper.counters["live:refused:malformed"] == 3,
                "all are refused",
                explain=lambda: str(live.keeper.counters),
            )
            assert len(connections) == made, "nobody connected anew"
    finally:
        live.close()


def test_an_order_is_answered_over_rabbitmq(rabbitmq_url: str, tmp_path: Path) -> None:
    app = Celery("orders", broker=rabbitmq_url, set_as_current=False)
    settings = Settings(dir=str(tmp_path))
    process = ProcessRecord(uid=new_id(), host="here", pid=1, started_at_s=0.0, worker="orders@rabbit")
    receiver = OrderReceiver(settings, process, SystemClock(), None)
    receiver.install()
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, hostname="orders@rabbit", shutdown_timeout=60.0):
            answers = control.arm(app, settings, "shop.task", 120.0, user="ann")
    finally:
        receiver.close()
        app.close()
    assert answers == [{"worker": "orders@rabbit", "ok": True, "why": ""}]


def test_bombs_and_unreadable_messages_among_the_records_hold_nobody_up(
    rabbitmq_url: str, connection: Connection, tmp_path: Path
) -> None:
    with site(rabbitmq_url, tmp_path) as here:
        here.fail(range(10))
        here.collector.round()
        publish_bombs(connection.default_channel, here.queue)
        for _ in range(3):
            publish_unreadable(connection, here.queue)
        here.fail(range(10, 20))
        here.collector.round()
        with here.consuming() as consumer:
            here.wait_for(range(20))
            wait_until(lambda: here.waiting() == 0, "the queue is empty", timeout_s=30)
            assert consumer.counters["set_aside"] >= len(HEADERS)


def test_a_bomb_on_remote_control_is_dropped_unread(
    rabbitmq_url: str, connection: Connection, start_worker: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "errands.py").write_text("from celery import Celery\napp = Celery('errands')\n")
    worker = start_worker("errands", folder, concurrency=1, broker_url=rabbitmq_url)
    with Celery("asker", broker=rabbitmq_url, set_as_current=False) as asker:
        inspect = asker.control.inspect([worker.node], timeout=20, limit=1)
        assert inspect.ping() == {worker.node: {"ok": "pong"}}
        for headers in HEADERS:
            Producer(connection.default_channel, auto_declare=False).publish(
                bz2.compress(bytes(20_000_000)), exchange="celery.pidbox", content_type="application/json",
                content_encoding="utf-8", headers=headers,
            )  # fmt: skip
        assert inspect.ping() == {worker.node: {"ok": "pong"}}
    worker.stop()
    assert worker.tail().count("was dropped unread (compressed)") == 1, "once a minute"
