"""
How a monitor takes batches from the broker so that one it dies with goes to the next.

RabbitMQ keeps what was handed out and not acknowledged, and hands it out again when the connection is gone:
:class:`KombuIntake` is enough. With Redis, kombu pops a message and notes it down in a second step; a monitor that
is killed between the two takes the batch with it. :class:`RedisIntake` moves it in one step into a list of its own,
and whoever comes by puts the lists of the dead back.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import kombu

from celery_trace.transports.raw import RawRefusal, RedisEntry, checked_channel, entry

#: Most bytes of a message that are read. A collector's batch has 2 MiB, and a single record at most 8 MiB.
MOST_MESSAGE_BYTES = 16 * 1024 * 1024
#: So many batches a monitor takes before it has acknowledged the first, and writes in one transaction.
PREFETCH = 16
#: How long it waits for one more of them, seconds.
LINGER_S = 0.02
#: How long one call of ``take`` waits for the first batch, seconds.
PATIENCE_S = 1.0
#: On Redis, how often it looks whether something came, seconds.
LOOK_S = 0.2
#: A monitor that has not been heard of for so long is dead: what it had taken goes back into the queue, seconds.
LEASE_S = 60.0


class Taken(Protocol):
    """A message that was taken."""

    @property
    def body(self) -> bytes:
        """What the collector sent; of a message that was refused, what there is of it."""

    @property
    def refused(self) -> RawRefusal | None:
        """Why it was not read."""

    def ack(self) -> None:
        """It is safe: the broker may forget it."""


class Intake(Protocol):
    """What a monitor needs of a broker. A context manager; leaving it gives back what was not acknowledged."""

    def __enter__(self) -> Self:
        """Begin to take."""

    def __exit__(self, *error: object) -> None:
        """Give back what was not acknowledged."""

    def take(self, ended: Callable[[], bool]) -> Sequence[Taken]:
        """Up to :data:`PREFETCH` messages; none when there were none for a second, or when the end came."""

    def renew(self) -> None:
        """Say that the monitor lives and still works on what it took. Called while the store lets it wait."""


def open_intake(connection: kombu.Connection, queue: kombu.Queue, *, name: str, lease_s: float = LEASE_S) -> Intake:
    """
    The intake that fits the connection's broker.

    Args:
        connection: Is connected.
        queue: Bound to the connection's channel and declared.
        name: Distinguishes this monitor from others; the same one after it has lost its connection.
        lease_s: See :data:`LEASE_S`.
    """
    if connection.transport.driver_type == "redis":
        return RedisIntake(connection.default_channel, queue.name, name=name, lease_s=lease_s)
    return KombuIntake(connection, queue)


# --- brokers that know acknowledgement --------------------------------------------------------------------


class _Message:
    def __init__(self, message: Any) -> None:
        self._message = message
        self.refused: RawRefusal | None = message.refused
        body = message.body
        self.body: bytes = body.encode("latin-1", "replace") if isinstance(body, str) else bytes(body or b"")

    def ack(self) -> None:
        self._message.ack()


class KombuIntake:
    """Kombu's consumer: the broker keeps what is unacknowledged, and hands it out again when the channel closes."""

    def __init__(self, connection: kombu.Connection, queue: kombu.Queue) -> None:
        self._connection = connection
        self._arrived: list[Any] = []
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
            while len(self._arrived) < PREFETCH and not ended():  # what is there goes into the same transaction
                self._connection.drain_events(timeout=LINGER_S)
        taken = [_Message(message) for message in self._arrived]
        self._arrived.clear()
        return taken

    def renew(self) -> None:
        """Nothing to do: the open connection says it."""


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
    The body of a message as kombu lays it down in Redis, base64 within JSON.

    Returns:
        The body and None; of anything else the whole of it, unless that is too big, and why it was refused.
    """
    found = entry(item, MOST_MESSAGE_BYTES)
    if isinstance(found, RedisEntry):
        if found.headers.get("compression"):
            found = RawRefusal("compressed", "it says that kombu compressed it, which no batch of ours is")
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
    Takes with ``LMOVE``: at each moment a batch stands in the queue or in the list of the monitor that has it.

    Taking, the note who takes, and the lease are one transaction (``MULTI``), so that a monitor may die, or its
    answer be lost, at any point: the list stands there under a name that the next one finds, and is put back when the
    lease is over. Acknowledging removes the batch from the list. Needs Redis 6.2, or any Valkey.

    A server that has no memory left refuses ``LMOVE``, and would never get rid of the batches that fill it. Then they
    are read where they stand and removed once they are stored; two monitors may read the same ones, which is harmless.

    The keys carry the queue's name in braces, so that a cluster keeps them together.

    Args:
        channel: Kombu's; lends its connections, its database and its key prefix.
        queue: The queue's name.
        name: This monitor's; unique among those that live.
        lease_s: See :data:`LEASE_S`.
    """

    def __init__(self, channel: Any, queue: str, *, name: str, lease_s: float = LEASE_S) -> None:
        import redis
        from redis.exceptions import OutOfMemoryError

        self._full = OutOfMemoryError
        # Not the channel's own client: that one adds the prefix to some commands and not to others.
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
            self._put_back(self._name)  # what an answer that never came had taken for us
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):  # the broker is away: the lease runs out, and the next one does it
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
            standing = self._client.lrange(self._queue, -PREFETCH, -1)[::-1]
            return [_MovedMessage(item, self._remove) for item in standing]

    def _move(self) -> list[bytes]:
        with self._client.pipeline(transaction=True) as pipe:
            self._renew_lease(pipe)
            for _ in range(PREFETCH):
                pipe.lmove(self._queue, self._list_of(self._name), "RIGHT", "RIGHT")
            answers = pipe.execute()
        return [item for item in answers[2:] if item is not None]

    def renew(self) -> None:
        with contextlib.suppress(Exception), self._client.pipeline(transaction=True) as pipe:
            self._renew_lease(pipe)
            pipe.execute()

    def _renew_lease(self, pipe: Any) -> None:
        pipe.sadd(self._takers, self._name)
        pipe.set(self._lease_of(self._name), "1", px=int(self._lease_s * 1000))

    def _forget(self, item: bytes) -> None:
        # By value: if the lease ran out and the batch went back meanwhile, there is nothing of it here any more.
        self._client.lrem(self._list_of(self._name), 1, item)

    def _remove(self, item: bytes) -> None:
        self._client.lrem(self._queue, -1, item)

    def _reclaim_expired(self) -> None:
        """Put back what dead monitors had taken, and strike them off."""
        self._looked_s = time.monotonic()
        for member in self._client.smembers(self._takers):
            name = member.decode() if isinstance(member, bytes) else str(member)
            if name == self._name or self._client.exists(self._lease_of(name)):
                continue
            with contextlib.suppress(self._full):  # looked at again later
                self._put_back(name)
                self._unregister(name)

    def _put_back(self, name: str) -> None:
        """The newest first, each to the end that is taken from: they come out in the order they had."""
        while self._client.lmove(self._list_of(name), self._queue, "RIGHT", "RIGHT") is not None:
            pass

    def _unregister(self, name: str) -> None:
        """Unless it was only slow and takes again: then its list must stay known."""
        from redis.exceptions import WatchError

        with self._client.pipeline(transaction=True) as pipe:
            pipe.watch(self._list_of(name), self._lease_of(name))
            if not pipe.exists(self._list_of(name), self._lease_of(name)):
                pipe.multi()
                pipe.srem(self._takers, name)
                with contextlib.suppress(WatchError):
                    pipe.execute()


__all__ = ["LEASE_S", "PREFETCH", "Intake", "KombuIntake", "RedisIntake", "Taken", "open_intake", "read_item"]
