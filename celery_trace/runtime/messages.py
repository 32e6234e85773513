"""
What is known of a message that a worker consumes, and the counts of its task: the fast path of a main process.

``_messages.c`` has the same in C, and handles the usual message without a call of Python (:class:`Quick`). This module
replaces it where there is no extension module; the tests run both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from celery_trace import os_threads
from celery_trace.model import Histogram

if TYPE_CHECKING:
    import weakref
    from collections.abc import Mapping

#: What :meth:`Quick.accepted` returns: nothing was done; everything; all but to compare it with earlier runs.
IN_PYTHON, DONE, NOTE_START = 0, 1, 2


class PlainFlowCounts:
    """
    The messages of one task in one queue, in one period. Any thread may call its methods.

    Args:
        queue: The name of the queue.
        bucket_s: When the period begins, seconds since the epoch.
        lasts_s: How long it lasts.
    """

    def __init__(self, queue: str, bucket_s: int, lasts_s: float) -> None:
        self.queue = queue
        self.bucket_s = bucket_s
        self.ends_s = bucket_s + lasts_s
        #: Whether something was added that is not written yet.
        self.dirty = False
        self.published = self.received = self.started = self.redelivered = 0
        self.wait_max_s = self.eta_max_s = 0.0
        self.acks_late = False
        self._waits = [0] * Histogram.BUCKETS
        self._transfers = [0] * Histogram.BUCKETS
        self._reserved = [0] * Histogram.BUCKETS
        self._lock = os_threads.rlock()  # re-entrant: a finalizer may publish

    def publish(self) -> None:
        """A message was published."""
        with self._lock:
            self.published += 1
            self.dirty = True

    def receive(self, transfer_s: float | None, eta_s: float) -> None:
        """A message was received; see :meth:`MessageFlow.received`."""
        with self._lock:
            self.received += 1
            self.eta_max_s = max(self.eta_max_s, eta_s)
            if transfer_s is not None:
                self._transfers[Histogram.bucket(transfer_s)] += 1
            self.dirty = True

    def start(self, wait_s: float | None, reserved_s: float | None, redelivered: bool, late: bool) -> None:
        """A run has begun; see :meth:`MessageFlow.started`."""
        with self._lock:
            self.started += 1
            self.redelivered += redelivered
            self.acks_late = late
            if reserved_s is not None:
                self._reserved[Histogram.bucket(reserved_s)] += 1
            if wait_s is not None and not redelivered:
                self._waits[Histogram.bucket(wait_s)] += 1
                self.wait_max_s = max(self.wait_max_s, wait_s)
            self.dirty = True

    def histograms(self) -> tuple[list[int], list[int], list[int]]:
        """The waits, transfers and times in the worker, each without the zeros at its end."""
        with self._lock:
            return _used(self._waits), _used(self._transfers), _used(self._reserved)


def _used(counts: list[int]) -> list[int]:
    used = len(counts)
    while used and not counts[used - 1]:
        used -= 1
    return counts[:used]


class PlainMessage:
    """
    What is known of a received message; an attribute of its request.

    Once its run has begun, ``request`` refers to that weakly, and ``written`` says whether there is a record of the
    start.
    """

    __slots__ = (
        "late", "name", "owner", "queue", "received_s", "redelivered", "request", "retries", "started_s",
        "waits_since_s", "written",
    )  # fmt: skip

    owner: object
    queue: str
    name: str
    received_s: float
    waits_since_s: float | None
    retries: int
    redelivered: bool
    late: bool
    started_s: float
    request: weakref.ref[object]
    written: bool


class QuickMessages(Protocol):
    """Handles the usual messages: without an ETA, with a plain header or none, of a known task and queue."""

    #: Whether a message need not wake the ticker.
    on: bool

    def learn(
        self, consumer: object, tags: object, tag_count: int, route: tuple[object, ...], counts: FlowCounts
    ) -> None:
        """
        Remember where messages are counted that come this way.

        Args:
            consumer: The worker's consumer.
            tags: The consumer tags of its queues. While they are these, and so many, all routes are right.
            tag_count: Their number.
            route: The consumer tag, the exchange, the routing key, and the task's name.
            counts: Where.
        """

    def received(self, consumer: object, request: object) -> bool:
        """A message was received. False if nothing was done."""

    def accepted(self, request: object) -> int:
        """Its run begins: :data:`IN_PYTHON`, :data:`DONE` or :data:`NOTE_START`."""


if TYPE_CHECKING:
    FlowCounts = PlainFlowCounts
    Message = PlainMessage
else:
    try:
        from celery_trace.runtime._messages import FlowCounts, Message
    except ImportError:  # no extension module for this interpreter
        FlowCounts, Message = PlainFlowCounts, PlainMessage


def quick_messages(
    owner: object, started: dict[str, Message], ended: Mapping[str, object], most: int, header: str, oldest_s: float
) -> QuickMessages | None:
    """
    Handles the usual messages in C; None if there is no extension module.

    Args:
        owner: A mark of its messages.
        started: Gets each message whose run begins, by the task's id, unless the id is in it or in ``ended``.
        ended: Runs that have ended.
        most: The most in ``started``, and the most routes.
        header: The name of the header with the time of publishing.
        oldest_s: A header that is older than so many seconds is left to Python.
    """
    if Message is PlainMessage:
        return None
    from celery_trace.runtime._messages import Quick  # type: ignore[import-not-found]

    quick: QuickMessages = Quick(owner, started, ended, most, header, oldest_s)
    return quick
