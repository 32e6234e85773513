"""
How a monitor takes batches from the broker, so that after its death the next monitor gets them.

RabbitMQ keeps unacknowledged messages and delivers them again when the connection is gone: :class:`KombuIntake` is
enough. With Redis, kombu pops a message and records it in a second step; a monitor that is killed between the two
loses the batch. :class:`RedisIntake` moves it atomically into the monitor's own list, and other monitors return the
lists of dead ones.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import kombu

from celery_trace.transports.raw import RawRefusal, RedisEntry, checked_channel, entry

if TYPE_CHECKING:
    from kombu.transport.virtual import Channel
    from redis.client import Pipeline

#: Size limit of a message, bytes. A collector's batch has 2 MiB, and a single record at most 8 MiB.
MOST_MESSAGE_BYTES = 16 * 1024 * 1024
#: Most batches that a monitor takes without acknowledging, and writes in one transaction.
PREFETCH = 16
#: How long it waits for one more of them, seconds.
LINGER_S = 0.02
#: How long one call of ``take`` waits for the first batch, seconds.
PATIENCE_S = 1.0
#: On Redis, the polling interval, seconds.
LOOK_S = 0.2
#: A monitor that has not renewed its lease for this long is dead: its batches go back to the queue, seconds.
LEASE_S = 60.0


class Taken(Protocol):
    """A message taken from the queue."""

    @property
    def body(self) -> bytes:
        """The collector's body; for a refused message, its raw remains."""

    @property
    def refused(self) -> RawRefusal | None:
        """Why it was not read."""

    def ack(self) -> None:
        """Acknowledge it: the broker may delete it."""


class Intake(Protocol):
    """What a monitor needs of a broker. A context manager; leaving it returns unacknowledged messages."""

    def __enter__(self) -> Self:
        """Start taking."""

    def __exit__(self, *error: object) -> None:
        """Return unacknowledged messages."""

    def take(self, ended: Callable[[], bool]) -> Sequence[Taken]:
        """Up to :data:`PREFETCH` messages; none if none came for a second, or if it is to end."""

    def renew(self) -> None:
        """Renew the lease on taken messages. Called while waiting for the store."""


def open_intake(connection: kombu.Connection, queue: kombu.Queue, *, name: str, lease_s: float = LEASE_S) -> Intake:
    """
    The intake for the connection's broker.

    Args:
        connection: An open connection.
        queue: Bound to the connection's channel and declared.
        name: Distinguishes this monitor from others; it stays the same after a lost connection.
        lease_s: See :data:`LEASE_S`.
    """
    if connection.transport.driver_type == "redis":
        return RedisIntake(connection.default_channel, queue.name, name=name, lease_s=lease_s)
    return KombuIntake(connection, queue)


# --- brokers with acknowledgement --------------------------------------------------------------------------


class _Message:
    def __init__(self, message: kombu.Message) -> None:
        self._message = message
        self.refused: RawRefusal | None = message.refused
        body = message.body
        self.body: bytes = body.encode("latin-1", "replace") if isinstance(body, str) else bytes(body or b"")

    def ack(self) -> None:
        self._message.ack()


class KombuIntake:
    """Kombu's consumer: the broker keeps unacknowledged messages and redelivers them when the channel closes."""

    def __init__(self, connection: kombu.Connection, queue: kombu.Queue) -> None:
        self._connection = connection
        self._arrived: list[kombu.Message] = []
        channel = checked_channel(connection.default_channel, MOST_MESSAGE_BYTES)
        self._consumer = kombu.Consumer(
            channel, [queue], no_ack=False, accept=None, prefetch_count=PREFETCH,
            auto_declare=False, on_message=self._arrived.append,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._consumer.consume()
        return self

    def __exit__(self, *error: object) -> None:
        self._consumer.cancel()

    def take(self, ended: Callable[[], bool]) -> Sequence[Taken]:
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=PATIENCE_S)
            while len(self._arrived) < PREFETCH and not ended():  # waiting messages go into the same transaction
                self._connection.drain_events(timeout=LINGER_S)
        taken = [_Message(message) for message in self._arrived]
        self._arrived.clear()
        return taken

    def renew(self) -> None:
        """Nothing to do: the open connection is enough."""


# --- Redis and Valkey ------------------------------------------------------------------------------------


class _MovedMessage:
    def __init__(self, item: bytes, forget: Callable[[bytes], object]) -> None:
        self._item = item
        self._forget = forget
        self.body, self.refused = read_item(item)

    def ack(self) -> None:
        self._forget(self._item)


def read_item(item: bytes) -> tuple[bytes, RawRefusal | None]:
    """
    The body of a message as kombu stores it in Redis, base64 within JSON.

    Returns:
        The body and None; for anything else the whole item, unless it is too big, and why it was refused.
    """
    found = entry(item, MOST_MESSAGE_BYTES)
    if isinstance(found, RedisEntry):
        if found.headers.get("compression"):
            found = RawRefusal("compressed", "it is marked as compressed by kombu, which our batches never are")
        elif found.properties.get("body_encoding") == "base64":
            try:
                return base64.b64decode(found.body, validate=True), None
            except ValueError:
                found = RawRefusal("malformed", "its body is not base64")
        else:
            found = RawRefusal("malformed", "its body is not base64")
    return (b"" if found.why == "too_big" else item), found


class RedisIntake:
    """
    Takes with ``LMOVE``: at any time a batch is in the queue or in the list of the monitor that has it.

    Taking, registering the monitor and setting the lease are one transaction (``MULTI``), so a monitor may die, or its
    reply be lost, at any point: the next monitor finds the list and returns it when the lease has expired.
    Acknowledging removes the batch from the list. Needs Redis 6.2, or any Valkey.

    A server without free memory refuses ``LMOVE`` and would never get rid of the batches that fill it. Then they are
    read in place and removed once stored; two monitors may read the same ones, which is harmless.

    The keys contain the queue's name in braces, so that a cluster keeps them together.

    Args:
        channel: Kombu's channel, for its connections, database and key prefix.
        queue: The queue's name.
        name: This monitor's name; unique among living ones.
        lease_s: See :data:`LEASE_S`.
    """

    def __init__(self, channel: Channel, queue: str, *, name: str, lease_s: float = LEASE_S) -> None:
        import redis
        from redis.exceptions import OutOfMemoryError

        self._full = OutOfMemoryError
        # Not the channel's own client, which adds the prefix to some commands only.
        self._client: Any = redis.Redis(connection_pool=channel.pool)
        self._queue = f"{channel.global_keyprefix}{queue}"
        self._takers = f"{{{self._queue}}}.takers"
        self._name = name
        self._lease_s = lease_s
        self._looked_s = -lease_s

    def _list_of(self, name: str) -> str:
        return f"{{{self._queue}}}.taken.{name}"

    def _lease_of(self, name: str) -> str:
        return f"{{{self._queue}}}.lease.{name}"

    def __enter__(self) -> Self:
        with contextlib.suppress(self._full):
            self._put_back(self._name)  # taken for us by a command whose reply was lost
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):  # the broker is unavailable: the lease expires, and the next one does it
            self._put_back(self._name)
            with self._client.pipeline(transaction=True) as pipe:
                pipe.srem(self._takers, self._name)
                pipe.delete(self._lease_of(self._name))
                pipe.execute()

    def take(self, ended: Callable[[], bool]) -> Sequence[Taken]:
        until_s = time.monotonic() + PATIENCE_S
        while not ended():
            if time.monotonic() - self._looked_s > self._lease_s / 4:
                self._reclaim_expired()
            taken = self._take() if self._client.llen(self._queue) else []
            if taken:
                return taken
            if time.monotonic() >= until_s:
                break
            time.sleep(LOOK_S)
        return []

    def _take(self) -> list[_MovedMessage]:
        try:
            return [_MovedMessage(item, self._forget) for item in self._move()]
        except self._full:
            waiting = self._client.lrange(self._queue, -PREFETCH, -1)[::-1]
            return [_MovedMessage(item, self._remove) for item in waiting]

    def _move(self) -> list[bytes]:
        with self._client.pipeline(transaction=True) as pipe:
            self._renew_lease(pipe)
            for _ in range(PREFETCH):
                pipe.lmove(self._queue, self._list_of(self._name), "RIGHT", "RIGHT")
            answers = pipe.execute()
        return [item for item in answers[2:] if item is not None]

    def renew(self) -> None:
        # As above; the next renewal comes soon.
        with contextlib.suppress(Exception), self._client.pipeline(transaction=True) as pipe:
            self._renew_lease(pipe)
            pipe.execute()

    def _renew_lease(self, pipe: Pipeline) -> None:
        pipe.sadd(self._takers, self._name)
        pipe.set(self._lease_of(self._name), "1", px=int(self._lease_s * 1000))

    def _forget(self, item: bytes) -> None:
        # By value: if the lease expired and the batch was returned meanwhile, it is no longer in the list.
        self._client.lrem(self._list_of(self._name), 1, item)

    def _remove(self, item: bytes) -> None:
        self._client.lrem(self._queue, -1, item)

    def _reclaim_expired(self) -> None:
        """Return the batches of dead monitors, and unregister them."""
        self._looked_s = time.monotonic()
        for member in self._client.smembers(self._takers):
            name = member.decode() if isinstance(member, bytes) else str(member)
            if name == self._name or self._client.exists(self._lease_of(name)):
                continue
            with contextlib.suppress(self._full):  # retried later
                self._put_back(name)
                self._unregister(name)

    def _put_back(self, name: str) -> None:
        """Return the newest first, each to the end that is taken from, which keeps their order."""
        while self._client.lmove(self._list_of(name), self._queue, "RIGHT", "RIGHT") is not None:
            pass

    def _unregister(self, name: str) -> None:
        """Unregister a monitor, unless it was only slow and takes again: then its list must stay registered."""
        from redis.exceptions import WatchError

        with self._client.pipeline(transaction=True) as pipe:
            pipe.watch(self._list_of(name), self._lease_of(name))
            if not pipe.exists(self._list_of(name), self._lease_of(name)):
                pipe.multi()
                pipe.srem(self._takers, name)
                with contextlib.suppress(WatchError):
                    pipe.execute()


__all__ = ["LEASE_S", "PREFETCH", "Intake", "KombuIntake", "RedisIntake", "Taken", "open_intake", "read_item"]
