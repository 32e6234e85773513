"""
How signed messages are sent over the broker: a direct queue per process, another per session.

Only bytes are sent. No body is decoded with kombu's serializers, so no message, whatever its content type, can make a
process unpickle or decompress anything (:mod:`celery_trace.transports.raw`).
"""

from __future__ import annotations

import logging
import socket
from _queue import Empty, SimpleQueue  # queue.SimpleQueue is replaced by green libraries; ours wait in real threads
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from celery_trace import os_threads
from celery_trace.control.signing import MESSAGE_LIMIT_BYTES
from celery_trace.guard import report
from celery_trace.transports.raw import RawRefusal, checked_channel

if TYPE_CHECKING:
    import kombu
    from kombu.transport.virtual import Channel

logger = logging.getLogger("celery_trace.shell")

#: A broker that supports it removes a queue after this time without a consumer, seconds.
QUEUE_EXPIRES_S = 120.0
#: Pause after each message that raises an error in kombu, seconds, so that this thread can't spin.
_UNREADABLE_PAUSE_S = 0.01
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

_Item = TypeVar("_Item")
Connect = Callable[[], "kombu.Connection"]


def command_address(process_uid: str) -> str:
    """The command queue of a process."""
    return f"celery-trace.live.{process_uid}"


def reply_address(session: str) -> str:
    """The reply queue of a session."""
    return f"celery-trace.reply.{session}"


def prepared(connection: kombu.Connection) -> kombu.Connection:
    """Configure a connection: short timeouts, and no heartbeat, which nothing would send."""
    connection.heartbeat = 0
    connection.connect_timeout = 3
    if "redis" in str(connection.transport_cls) or "valkey" in str(connection.transport_cls):
        options = dict(connection.transport_options or {})
        options.setdefault("socket_connect_timeout", 3)
        options.setdefault("socket_keepalive", True)
        connection.transport_options = options
    return connection


def direct_queue(name: str) -> kombu.Queue:
    """A queue on the default exchange that is deleted with its consumer."""
    from kombu import Exchange, Queue

    return Queue(
        name,
        exchange=Exchange(""),
        routing_key=name,
        durable=False,
        auto_delete=True,
        expires=QUEUE_EXPIRES_S,
        message_ttl=60.0,
        max_length=1000,
    )


def publish(channel: Channel, address: str, data: bytes) -> None:
    """Send bytes to a queue."""
    from kombu import Producer

    Producer(channel, auto_declare=False).publish(
        data,
        exchange="",
        routing_key=address,
        content_type="application/octet-stream",
        content_encoding="binary",
        delivery_mode=1,
        retry=False,
    )


def expire_queue(channel: Channel, address: str) -> None:
    """
    Let messages to a consumer that is gone expire.

    A broker with real queues drops them or expires the queue. In Redis a queue is a list, which a message recreates
    after its reader has deleted it, and which then stays forever.
    """
    client = getattr(channel, "client", None)
    if client is None or not hasattr(client, "pexpire"):
        return
    # Which commands add kombu's key prefix by themselves depends on its release.
    prefixed = "PEXPIRE" in getattr(client, "PREFIXED_SIMPLE_COMMANDS", ())
    prefix = "" if prefixed else getattr(channel, "global_keyprefix", "")
    client.pexpire(f"{prefix}{address}", int(QUEUE_EXPIRES_S * 1000))


class Receiver:
    """
    Reads one queue, in the thread that calls :meth:`listen`.

    Args:
        on_message: Called with the bytes of each message.
        refused: Called for each refused message, such as a compressed one.
        tick: Called between messages, about every ``idle_s()`` seconds or more often.
    """

    def __init__(
        self,
        address: str,
        connect: Connect,
        on_message: Callable[[bytes], None],
        refused: Callable[[RawRefusal], None],
        tick: Callable[[], None],
        idle_s: Callable[[], float],
    ) -> None:
        self.address = address
        self._connect = connect
        self._receive = on_message
        self._refused = refused
        self._tick = tick
        self._idle_s = idle_s
        self._pause = os_threads.lock()
        self._pause.acquire()
        self.stopping = False
        self.connected = False

    def stop(self) -> None:
        """Let :meth:`listen` return soon."""
        self.stopping = True
        if not self._pause.acquire(blocking=False):
            self._pause.release()

    def listen(self) -> None:
        """Read messages until :meth:`stop`; an unavailable broker is retried with backoff."""
        failures = 0
        while not self.stopping:
            try:
                with prepared(self._connect()) as connection:
                    self._consume(connection)
                failures = 0
            except Exception as error:
                if self.connected:
                    failures = 0
                self.connected = False
                if failures == 0:
                    logger.info("celery-trace: the live shell lost its broker connection (%s); retrying", error)
                wait_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                self._rest(wait_s)
        self.connected = False

    def _rest(self, wait_s: float) -> None:
        left_s = wait_s
        while left_s > 0 and not self.stopping:
            if self._pause.acquire(timeout=min(left_s, 0.5)):
                self._pause.release()
                return
            left_s -= 0.5
            self._tick()

    def _consume(self, connection: kombu.Connection) -> None:
        from kombu import Consumer

        channel = checked_channel(connection.channel(), MESSAGE_LIMIT_BYTES, unreadable=self._refused)
        queue = direct_queue(self.address)(channel)
        queue.declare()
        consumer = Consumer(channel, [queue], on_message=self._on_message, no_ack=True, auto_declare=False, accept=[])
        of_the_connection = (*connection.connection_errors, *connection.channel_errors, OSError)
        with consumer:
            self.connected = True
            self._tick()
            while not self.stopping:
                try:
                    connection.drain_events(timeout=self._idle_s())
                except TimeoutError:
                    pass
                except socket.timeout:  # noqa: UP041 - a green library's own class may differ from TimeoutError
                    pass
                except of_the_connection:
                    raise
                except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                    # A message raised an error in kombu and is gone; the next one may be ours.
                    self._refused(RawRefusal("malformed", f"{type(error).__name__}: {error}"[:300]))
                    if self._pause.acquire(timeout=_UNREADABLE_PAUSE_S):
                        self._pause.release()
                self._tick()
        channel.close()

    def _on_message(self, message: kombu.Message) -> None:
        try:
            if message.refused is not None:
                self._refused(message.refused)
                return
            body = message.body
            data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else bytes(body or b"")
            self._receive(data)
        except Exception as error:
            report("live shell: message", error)


class Sender(Generic[_Item]):
    """
    Publishes the items of other threads, from one thread with its own connection.

    The thread starts with the first item; :meth:`close` lets it publish waiting ones. Items that can't be published are
    dropped and counted; the reader notices the silence and falls back.

    Args:
        pack: Converts the waiting items into (address, bytes).
    """

    LIMIT = 4000  # items that may wait

    def __init__(self, connect: Connect, pack: Callable[[list[_Item]], list[tuple[str, bytes]]], name: str) -> None:
        self._connect = connect
        self._pack = pack
        self._name = name
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self._lock = os_threads.lock()
        self._started = False
        self._closed = False
        self.dropped = 0
        self._gone = os_threads.lock()

    def put(self, item: _Item) -> None:
        """Queue an item; never blocks."""
        if self._closed or self._items.qsize() > self.LIMIT:
            self.dropped += 1
            return
        self._items.put(item)
        if not self._started:
            with self._lock:
                if not self._started:
                    self._started = True
                    self._gone.acquire()
                    os_threads.start(self._run, self._name)

    def close(self, wait_s: float = 0.0) -> None:
        """Publish waiting items and end; wait for that at most ``wait_s`` seconds."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            started = self._started
        self._items.put(None)
        if started and wait_s > 0 and self._gone.acquire(timeout=wait_s):
            self._gone.release()

    def _run(self) -> None:
        connection: kombu.Connection | None = None
        channel: Channel | None = None
        try:
            while True:
                items = [self._items.get()]
                while True:
                    try:
                        items.append(self._items.get_nowait())
                    except Empty:
                        break
                over = None in items
                packed = self._pack([item for item in items if item is not None])
                for attempt in range(2):
                    try:
                        if channel is None:
                            connection = prepared(self._connect())
                            channel = connection.channel()
                        addresses = {address for address, _data in packed}
                        while packed:
                            publish(channel, *packed[0])
                            del packed[0]
                        for address in addresses:
                            expire_queue(channel, address)
                        break
                    except Exception as error:
                        _release(connection)
                        connection = channel = None
                        if attempt:
                            self.dropped += len(packed)
                            logger.info("celery-trace: a reply of the live shell could not be sent: %s", error)
                if over:
                    return
        except Exception as error:
            report("live shell: sender", error)
        finally:
            _release(connection)
            self._gone.release()


def _release(connection: kombu.Connection) -> None:
    try:
        if connection is not None:
            connection.release()
    except Exception as error:
        logger.debug("celery-trace: closing a connection: %s", error)
