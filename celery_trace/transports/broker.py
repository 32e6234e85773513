"""
The transport ``broker``: batches on a durable queue, from many hosts' collectors to one or more monitors.

A collector publishes a batch and moves its cursors when the broker has confirmed (RabbitMQ) or accepted it (Redis). A
monitor acknowledges a batch after the store has committed it; if it dies before, the next monitor gets the batch
(:mod:`celery_trace.transports.intake`). So delivery is at-least-once, and the records' keys make repeats harmless.

Nothing is pickled: a batch is compressed lines of JSON in a raw body with its own content type.
"""

from __future__ import annotations

import logging
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import kombu

from celery_trace.clock import Clock, SystemClock
from celery_trace.errors import TraceError, Unavailable
from celery_trace.model import AnyRecord, Stats, decode, encode, new_id
from celery_trace.settings import Settings
from celery_trace.transports import BrokerOptions, TransportUnavailable, WrittenBatch
from celery_trace.transports.intake import LEASE_S, MOST_MESSAGE_BYTES, Intake, Taken, open_intake

if TYPE_CHECKING:
    from celery import Celery
    from kombu.transport.virtual import Channel

logger = logging.getLogger("celery_trace")

QUEUE = "celery_trace.records"
#: The queue for batches that can't be read or that the store keeps refusing.
SET_ASIDE_QUEUE = "celery_trace.set_aside"
CONTENT_TYPE = "application/x-celery-trace-1"

#: Most batches that wait at the broker; beyond that, hosts keep theirs in the spool.
MOST_WAITING = 1000
#: Most batches that are set aside.
MOST_SET_ASIDE = 100
#: Backoff after the store or the broker refused, seconds: doubles up to the second number.
BACK_OFF_S = (0.5, 15.0)
#: Attempts with a batch that makes the store fail for an unknown reason, before it is set aside.
ATTEMPTS = 3
#: Time limit of connecting, publishing and confirming each, seconds.
TIMEOUT_S = 5.0


class BatchStore(Protocol):
    """What this transport needs of a store."""

    def write(self, records: Sequence[AnyRecord]) -> WrittenBatch:
        """Write a batch."""


class HasStore(Protocol):
    """Provides the store, which may come and go."""

    @property
    def store(self) -> BatchStore | None:
        """The store, or None. May raise ``Unavailable``."""


def records_queue(name: str = QUEUE, most: int = MOST_WAITING) -> kombu.Queue:
    """A durable, bounded queue: RabbitMQ refuses (does not confirm) messages beyond its length."""
    return kombu.Queue(
        name,
        kombu.Exchange("", type="direct"),
        routing_key=name,
        durable=True,
        auto_delete=False,
        queue_arguments={"x-max-length": most, "x-overflow": "reject-publish"},
    )


def connect(broker: BrokerOptions) -> kombu.Connection:
    """
    A connection to a broker.

    Raises:
        TransportUnavailable: No broker is configured.
    """
    if not broker.get("hostname"):
        raise TransportUnavailable(
            "Can't reach the broker", "none is configured", "Start the collector from the worker, or with -A proj."
        )
    options = dict(broker.get("transport_options") or {})
    # Publishing must fail fast instead of hanging: the records are safe in the spool.
    url = str(broker["hostname"])
    if url.startswith(("amqp", "pyamqp")):
        options.setdefault("confirm_publish", True)
        options.setdefault("read_timeout", TIMEOUT_S)
        options.setdefault("write_timeout", TIMEOUT_S)
    else:
        options.setdefault("socket_timeout", TIMEOUT_S)
        options.setdefault("socket_connect_timeout", TIMEOUT_S)
    return kombu.Connection(
        url,
        ssl=broker.get("ssl") or False,
        transport_options=options,
        alternates=list(broker.get("failover") or []),
        connect_timeout=TIMEOUT_S,
    )


#: Limits of a batch in decompressed bytes and lines, as any publisher can send one. A collector's has 2 MiB, and a
#: single record at most 8 MiB. They limit a transaction too.
MOST_BATCH_BYTES = 16 * 1024 * 1024
MOST_BATCH_LINES = 100_000


class CorruptBatch(TraceError, ValueError):
    """A message that is not a valid batch; the text has the reason."""


def pack_batch(records: Sequence[AnyRecord]) -> bytes:
    """A batch as a message body: compressed lines of JSON; zlib adds a checksum."""
    return zlib.compress(b"\n".join(encode(record) for record in records), 1)


def inflate(body: bytes) -> bytes:
    """
    The lines of a message's body, at most :data:`MOST_BATCH_BYTES`.

    Raises:
        CorruptBatch: The body is not valid.
    """
    if len(body) > MOST_MESSAGE_BYTES:
        raise CorruptBatch(f"it is a message of more than {MOST_MESSAGE_BYTES} bytes")
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(body, MOST_BATCH_BYTES)
    except (zlib.error, TypeError) as error:
        raise CorruptBatch(f"it can't be decompressed: {error}") from None
    if inflater.unconsumed_tail:
        raise CorruptBatch(f"it is more than {MOST_BATCH_BYTES} bytes")
    if not inflater.eof:
        raise CorruptBatch("it is incomplete")
    return data


def read_lines(data: bytes) -> tuple[list[AnyRecord], list[tuple[bytes, str]]]:
    """
    The records of a batch, and its unreadable lines with the reasons.

    Raises:
        CorruptBatch: No line is a record, or there are too many lines.
    """
    lines = data.split(b"\n", MOST_BATCH_LINES)
    if len(lines) > MOST_BATCH_LINES:
        raise CorruptBatch(f"it has more than {MOST_BATCH_LINES} lines")
    records: list[AnyRecord] = []
    wrong: list[tuple[bytes, str]] = []
    for line in lines:
        try:
            records.append(decode(line))
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            wrong.append((line, str(error)))
    if wrong and not records:
        raise CorruptBatch(f"no line of it is a record: {wrong[0][1]}")
    return records, wrong


class BrokerTransport:
    """
    The collector's end.

    Args:
        open_connection: Opens a connection; called again after one was lost.
        queue: The queue's name.
    """

    name = "broker"

    def __init__(self, open_connection: Callable[[], kombu.Connection], queue: str = QUEUE) -> None:
        self._open = open_connection
        self._queue_name = queue
        self._connection: kombu.Connection | None = None
        self._producer: kombu.Producer | None = None
        self._queue: kombu.Queue | None = None

    def destination(self) -> str:
        """Nothing: the monitor has the store."""
        return ""

    def maintain(self, *, idle: bool) -> None:
        """Nothing: the monitor has the store."""

    def send(self, records: Sequence[AnyRecord]) -> list[tuple[AnyRecord, str]]:
        """Publish a batch; returns when the broker has it."""
        try:
            self._connect()
            self._check_length()
            assert self._producer is not None
            self._producer.publish(
                pack_batch(records),
                routing_key=self._queue_name,
                exchange="",
                content_type=CONTENT_TYPE,
                content_encoding="binary",
                delivery_mode="persistent",
                mandatory=True,
                timeout=TIMEOUT_S,
            )
        except TransportUnavailable:
            raise
        except Exception as error:  # kombu's transports raise different errors; all mean "not now"
            self.close()
            raise TransportUnavailable(
                "Can't publish records to the broker",
                f"{type(error).__name__}: {error}",
                "They wait in the spool and are retried.",
            ) from error
        return []

    def _connect(self) -> None:
        if self._connection is not None and self._connection.connected:
            return
        self.close()
        connection = self._open()
        try:
            connection.connect()
            channel = connection.default_channel
            self._queue = records_queue(self._queue_name)(channel)
            self._queue.queue_declare()
            self._producer = kombu.Producer(channel, serializer=None, auto_declare=False)
        except Exception:
            connection.release()
            raise
        self._connection = connection

    def _check_length(self) -> None:
        """Check the queue's length, as Redis has no bounded queues; RabbitMQ refuses by itself."""
        assert self._connection is not None
        if self._connection.transport.driver_type != "redis":
            return
        assert self._queue is not None
        waiting = self._queue.queue_declare().message_count
        if waiting >= MOST_WAITING:
            raise TransportUnavailable(
                "Can't publish records to the broker",
                f"{waiting} batches wait there already",
                "Start a monitor to read them. Until then records wait in the spool.",
            )

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                logger.debug("The broker connection could not be closed: %s", error)


class BrokerConsumer:
    """
    The monitor's end: a thread that writes batches into the store and acknowledges each after its commit.

    While the store or the broker is unavailable it retries with backoff; the batches stay at the broker.

    Args:
        app: The Celery app whose broker is read.
        facts: Has the store as ``store``.
        settings: The monitor's settings; ``trace_dir`` identifies this reader in the statistics.
        clock: Timestamps the statistics.
        queue: The queue's name.
        lease_s: On Redis, how long after a monitor was killed its batches go to the next one.
    """

    def __init__(
        self,
        app: Celery,
        facts: HasStore,
        settings: Settings,
        *,
        clock: Clock | None = None,
        queue: str = QUEUE,
        lease_s: float = LEASE_S,
    ) -> None:
        self._app = app
        self._facts = facts
        self._clock = clock or SystemClock()
        self._queue_name = queue
        self._lease_s = lease_s
        self._name = f"{socket.gethostname()}.{new_id()}"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._account = f"consumer:{socket.gethostname()}:{settings.folder.name}:{int(self._clock.now_s() * 1000)}"
        #: ``batches`` and ``records`` written, ``set_aside`` batches, ``corrupt`` lines, ``refused`` records, and
        #: ``dropped`` lines, for which the queue of set-aside batches was full.
        self.counters: Counter[str] = Counter()
        self._logged: dict[str, int] = {}
        self._failed_with = ""

    def start(self) -> None:
        """Start the thread; returns at once."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="celery-trace broker consumer", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 15.0) -> None:
        """End after the batch that is being written; unwritten batches go back to the broker."""
        thread, self._thread = self._thread, None
        self._ended.set()
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        pause_s = BACK_OFF_S[0]
        while not self._ended.is_set():
            try:
                with self._app.connection_for_read().clone(connect_timeout=TIMEOUT_S) as connection:
                    self._consume(connection)
                pause_s = BACK_OFF_S[0]
            except Exception as error:  # kombu's transports raise different errors
                if pause_s == BACK_OFF_S[0]:
                    logger.warning("celery-trace: the broker can't be read (%s: %s).", type(error).__name__, error)
                self._ended.wait(pause_s)
                pause_s = min(pause_s * 2, BACK_OFF_S[1])

    def _consume(self, connection: kombu.Connection) -> None:
        connection.connect()
        channel = connection.default_channel
        queue = records_queue(self._queue_name)(channel)
        queue.queue_declare()
        with open_intake(connection, queue, name=self._name, lease_s=self._lease_s) as intake:
            while not self._ended.is_set():
                taken = intake.take(self._ended.is_set)
                if taken and not self._ended.is_set():
                    self._take(channel, intake, taken)

    def _take(self, channel: Channel, intake: Intake, messages: Sequence[Taken]) -> None:
        """Write batches in one transaction, or in several if they are large; then acknowledge them."""
        batches: list[tuple[Taken, list[AnyRecord]]] = []
        together_bytes = 0
        for message in messages:
            try:
                if message.refused is not None:
                    raise CorruptBatch(message.refused.text)
                data = inflate(message.body)
                if together_bytes + len(data) > MOST_BATCH_BYTES:
                    self._store(channel, intake, batches)
                    batches, together_bytes = [], 0
                records, wrong = read_lines(data)
            except CorruptBatch as error:
                self._set_aside(channel, intake, message, str(error))
                continue
            if wrong:  # a newer host may send records that this monitor does not know
                self._set_lines_aside(channel, [line for line, _ in wrong], wrong[0][1])
                records.append(self._stats())
            batches.append((message, records))
            together_bytes += len(data)
        self._store(channel, intake, batches)

    def _store(self, channel: Channel, intake: Intake, batches: Sequence[tuple[Taken, list[AnyRecord]]]) -> None:
        if not batches:
            return
        together = [record for _, records in batches for record in records]
        if self._write(channel, intake, together, 1 if len(batches) > 1 else ATTEMPTS):
            for message, records in batches:
                self._acknowledge(message, records)
            return
        for message, records in batches:  # find the one that can't be written
            if self._write(channel, intake, records, ATTEMPTS):
                self._acknowledge(message, records)
            elif not self._ended.is_set():
                self._set_aside(channel, intake, message, self._failed_with)

    def _acknowledge(self, message: Taken, records: Sequence[AnyRecord]) -> None:
        self.counters["batches"] += 1
        self.counters["records"] += len(records)
        message.ack()

    def _write(self, channel: Channel, intake: Intake, records: Sequence[AnyRecord], attempts: int) -> bool:
        """
        Retry until written, however long the store is unavailable. Records with refused data are set aside.

        Returns:
            False if the thread is to end, or if the store failed ``attempts`` times for an unexpected reason.
        """
        pause_s, failed = BACK_OFF_S[0], 0
        while not self._ended.is_set():
            try:
                store = self._facts.store
                if store is not None:
                    refused = store.write(records).refused
                    break
            except Unavailable as error:
                if pause_s == BACK_OFF_S[0]:
                    logger.warning("celery-trace: %s Records wait at the broker.", error)
            except Exception as error:
                self._failed_with = f"{type(error).__name__}: {error}"
                failed += 1
                if failed >= attempts:
                    return False
            intake.renew()
            self._ended.wait(pause_s)
            pause_s = min(pause_s * 2, BACK_OFF_S[1])
        else:
            return False
        if refused:
            self.counters["refused"] += len(refused)
            self._set_lines_aside(channel, [encode(record) for record, _ in refused], refused[0][1])
            return self._write(channel, intake, [self._stats()], attempts)
        return True

    def _set_aside(self, channel: Channel, intake: Intake, message: Taken, why: str) -> None:
        """Move an unreadable message to another queue, so that it is not delivered forever."""
        self.counters["set_aside"] += 1
        self.counters["corrupt"] += 1
        self._publish_aside(channel, message.body, 1, why)
        self._write(channel, intake, [self._stats()], ATTEMPTS)
        message.ack()

    def _set_lines_aside(self, channel: Channel, lines: Sequence[bytes], why: str) -> None:
        """Set single lines of a batch aside, as a batch; its other lines are written."""
        self.counters["corrupt"] += len(lines)
        self._publish_aside(channel, zlib.compress(b"\n".join(lines), 1), len(lines), why)

    def _publish_aside(self, channel: Channel, body: bytes, lines: int, why: str) -> None:
        """Publish unreadable lines to the set-aside queue; if that is full, drop, count and log them."""
        queue = records_queue(SET_ASIDE_QUEUE, MOST_SET_ASIDE)(channel)
        if queue.queue_declare().message_count < MOST_SET_ASIDE:
            kombu.Producer(channel, auto_declare=False).publish(
                body, routing_key=SET_ASIDE_QUEUE, exchange="", content_type=CONTENT_TYPE,
                content_encoding="binary", delivery_mode="persistent", headers={"why": why[:500]},
            )  # fmt: skip
            self._log_aside("Records were set aside in %s: %s.", SET_ASIDE_QUEUE, why)
        else:
            self.counters["dropped"] += lines
            self._log_aside(
                "Unreadable records were dropped, %d so far: there are already %d messages in %s. The last: %s.",
                self.counters["dropped"], MOST_SET_ASIDE, SET_ASIDE_QUEUE, why,
            )  # fmt: skip

    def _log_aside(self, text: str, *values: object) -> None:
        """Log each kind of line once a minute, as any publisher could fill the log otherwise."""
        minute = int(self._clock.monotonic_s() // 60)
        if self._logged.get(text) != minute:
            self._logged[text] = minute
            logger.warning(f"celery-trace: {text}", *values)

    def _stats(self) -> Stats:
        """Statistics for the store: unreadable and dropped records."""
        self.counters["accounts"] += 1
        return Stats(
            process=self._account,
            seq=self.counters["accounts"],
            at_s=self._clock.now_s(),
            counters={"corrupt:lines": self.counters["corrupt"], "dropped:set_aside": self.counters["dropped"]},
        )
