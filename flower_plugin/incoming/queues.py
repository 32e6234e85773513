"""
How many messages wait in the broker's queues, and since when.

Flower reads lengths over asyncio from Redis, and from RabbitMQ over its management plugin, which many don't have. A
passive declaration works on every transport of kombu, changes nothing, and has RabbitMQ's number of consumers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, cast

import msgspec
from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError
from msgspec import Struct

from celery_trace import published
from celery_trace.errors import Unavailable
from flower_plugin.incoming.broker import why_of

#: Maximum time for one answer of the broker, seconds.
TIMEOUT_S: Final = 4.0
#: Queues of one reading.
MOST_QUEUES: Final = 200


class _Declared(Protocol):
    message_count: int
    consumer_count: int


class BrokerChannel(Protocol):
    """A channel of kombu."""

    def queue_declare(self, *, queue: str, passive: bool) -> _Declared:
        """Passive: the queue's counts; an error if there is no such queue."""


class _RedisClient(Protocol):
    def lindex(self, key: str, index: int) -> bytes | str | None: ...


class _RedisChannel(Protocol):
    client: _RedisClient
    priority_steps: Iterable[int]
    global_keyprefix: str

    def _q_for_pri(self, queue: str, priority: int) -> str: ...


class QueueReading(Struct, frozen=True, kw_only=True):
    """A queue now. ``consumers`` is None where the broker does not count them, ``oldest_age_s`` if it is unknown."""

    depth: int
    consumers: int | None = None
    oldest_age_s: float | None = None


class _MessageHead(Struct):
    """The part of a message in Redis that is read."""

    headers: dict[str, object] = {}


class QueueReader:
    """Reads queues over a connection that it keeps. Blocks; used by one thread at a time."""

    def __init__(self, capp: Celery) -> None:
        self._capp = capp
        self._connection: Connection | None = None
        self._channel: BrokerChannel | None = None

    def configured(self) -> list[str]:
        """The names of the app's own queues."""
        return [str(name) for name in self._capp.amqp.queues]

    def read(self, names: Iterable[str], now_s: float) -> dict[str, QueueReading]:
        """
        Read these queues; those that the broker does not know are left out.

        Args:
            names: The first :data:`MOST_QUEUES` are read.
            now_s: The time, seconds since the epoch.

        Raises:
            Unavailable: The broker does not answer.
        """
        found: dict[str, QueueReading] = {}
        try:
            for name in list(names)[:MOST_QUEUES]:
                reading = self._read(name, now_s)
                if reading is not None:
                    found[name] = reading
        except (OSError, KombuError, *self._errors()) as error:
            self.close()
            raise Unavailable(
                "Can't read the length of the queues", why_of(error), "It is tried again in a few seconds."
            ) from error
        return found

    def close(self) -> None:
        """Close the connection. Idempotent."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.release()

    def _errors(self) -> tuple[type[Exception], ...]:
        connection = self._connection
        return (*connection.connection_errors, *connection.channel_errors) if connection is not None else ()

    def _open(self) -> BrokerChannel:
        if self._channel is None:
            if self._connection is None:
                connection = self._capp.connection_for_read()
                options = dict(connection.transport_options or {})
                is_amqp = connection.transport.driver_type == "amqp"
                names = ("read_timeout", "write_timeout") if is_amqp else ("socket_timeout", "socket_connect_timeout")
                connection.transport_options = {**dict.fromkeys(names, TIMEOUT_S), **options}
                connection.connect_timeout = TIMEOUT_S
                self._connection = connection
                connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=TIMEOUT_S)
            self._channel = cast("BrokerChannel", self._connection.channel())
        return self._channel

    def _read(self, name: str, now_s: float) -> QueueReading | None:
        channel = self._open()
        virtual = not hasattr(channel, "wait")  # kombu's own channels; py-amqp's are the broker's
        try:
            answer = channel.queue_declare(queue=name, passive=True)
        except self._errors() as error:
            if getattr(error, "reply_code", getattr(error, "code", None)) not in (404, "404"):
                raise
            if virtual:  # in Redis an empty queue does not exist
                return QueueReading(depth=0)
            self._channel = None  # RabbitMQ closes it
            return None
        return QueueReading(
            depth=int(answer.message_count),
            consumers=None if virtual else int(answer.consumer_count),
            oldest_age_s=_oldest_age_s(channel, name, now_s) if answer.message_count else None,
        )


def _oldest_age_s(channel: BrokerChannel, name: str, now_s: float) -> float | None:
    """How long the message at the head of a Redis queue waits; the oldest of its priorities. None elsewhere."""
    if not hasattr(getattr(channel, "client", None), "lindex"):
        return None
    redis = cast("_RedisChannel", channel)
    ages: list[float] = []
    for step in redis.priority_steps:
        # Workers take messages from the right end. kombu does not add its prefix to this command.
        raw = redis.client.lindex(f"{redis.global_keyprefix}{redis._q_for_pri(name, step)}", -1)
        age_s = head_age_s(raw, now_s) if raw is not None else None
        if age_s is not None:
            ages.append(age_s)
    return max(ages, default=None)


def head_age_s(raw: bytes | str, now_s: float) -> float | None:
    """How long a message waits, from its form in Redis, whoever has put it there; None if it does not say."""
    try:
        headers = msgspec.json.decode(raw, type=_MessageHead).headers
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    since_s = published.waiting(headers, published.eta_of(headers), now_s).since_s
    return max(0.0, now_s - since_s) if since_s is not None else None
