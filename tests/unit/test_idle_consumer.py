"""Why a worker takes no messages although it has a free process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_trace.runtime import idle_consumer
from celery_trace.runtime.idle_consumer import Idle, why_idle


def consumer(prefetch: int = 4, slots: int = 2, **channel: Any) -> Any:
    return SimpleNamespace(
        pool=SimpleNamespace(num_processes=slots),
        qos=SimpleNamespace(value=prefetch),
        task_consumer=SimpleNamespace(channel=SimpleNamespace(**channel)),
    )


def why(of: Any, **given: Any) -> Idle | None:
    return why_idle(of, **{"active": 0, "held": 0, "scheduled": 0, "now_s": 1000.0} | given)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        with client, other:
            yield client, other


def test_a_worker_that_may_take_messages_or_is_busy_has_no_reason() -> None:
    assert why(consumer()) is None
    assert why(consumer(), active=2, held=4) is None
    assert why(consumer(prefetch=0), held=100) is None


def test_a_full_prefetch_is_the_reason() -> None:
    assert why(consumer(), held=4) == Idle("its prefetch of 4 messages is full")
    because = "its prefetch of 4 messages is full, and 3 messages in it wait for their ETA"
    assert why(consumer(), held=4, active=1, scheduled=3) == Idle(because)


def test_messages_that_the_client_counts_are_held_too() -> None:
    qos = SimpleNamespace(_delivered={1: 0, 2: 0, 3: 0, 4: 0, 5: 0}, _dirty={1})
    assert why(consumer(_qos=qos)) == Idle("its prefetch of 4 messages is full")


def test_a_worker_without_a_connection_says_so() -> None:
    assert why(SimpleNamespace(task_consumer=None, pool=None)) is None, "it is not known whether it has free processes"
    of = consumer()
    of.task_consumer = None
    assert why(of) == Idle("it has no connection to the broker")


@pytest.mark.parametrize("client", ["redis", "amqp"])
def test_a_silent_connection_is_the_reason_after_a_while(
    connection: tuple[socket.socket, socket.socket], client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = connection
    if client == "redis":
        of = consumer(client=SimpleNamespace(connection=SimpleNamespace(_sock=own)))
    else:
        of = consumer(connection=SimpleNamespace(_transport=SimpleNamespace(sock=own)))
    other.send(b"x")
    assert own.recv(1) == b"x"
    assert why(of) is None
    monkeypatch.setattr(idle_consumer, "SILENT_S", -1.0)
    found = why(of)
    assert found is not None
    host, port = own.getpeername()
    assert found.because == f"nothing arrives from the broker {host}:{port}"
    assert found.since_s == pytest.approx(1000.0, abs=10)
