"""
Adds up the messages that this process publishes and consumes, per queue, task and five minutes.

A worker's main process receives the messages and is told by its pool when their runs begin, so all waits are measured
there: a run in a child costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.model import AnyRecord, Flow, Histogram
from celery_trace.runtime.ticker import Ticker

#: Pairs of queue and task in five minutes; further ones are only counted.
MOST_PAIRS: Final = 500
MOST_NAME: Final = 255


class _Totals:
    """The messages of one task in one queue, in the current five minutes."""

    __slots__ = (
        "acks_late", "bucket_s", "dirty", "ends_s", "eta_max_s", "published", "received", "redelivered", "reserved",
        "started", "transfers", "wait_max_s", "waits",
    )  # fmt: skip

    def __init__(self, bucket_s: int) -> None:
        self.bucket_s = bucket_s
        self.ends_s = bucket_s + Flow.BUCKET_S
        self.dirty = False
        self.published = self.received = self.started = self.redelivered = 0
        self.waits = [0] * Histogram.BUCKETS
        self.transfers = [0] * Histogram.BUCKETS
        self.reserved = [0] * Histogram.BUCKETS
        self.wait_max_s = self.eta_max_s = 0.0
        self.acks_late = False


class MessageFlow:
    """
    The messages of one process. Any thread may call its methods.

    Args:
        process: The uid of the process.
        write: Takes the records.
        clock: Decides which five minutes it is.
        ticker: Is woken by a message.
    """

    def __init__(self, process: str, write: Callable[[AnyRecord], None], clock: Clock, ticker: Ticker) -> None:
        self._process = process
        self._write = write
        self._clock = clock
        self._ticker = ticker
        self._totals: dict[tuple[str, str], _Totals] = {}
        self._seq = 0
        self._lock = os_threads.rlock()  # re-entrant: a finalizer may publish
        self.dirty = False
        #: ``flow:header_refused``, ``flow:clock_ahead`` and ``flow:left_out``, where they are not 0.
        self.counters: Counter[str] = Counter()

    def published(self, queue: str, name: str) -> None:
        """A message was published."""
        with self._lock:
            totals = self._of(queue, name)
            if totals is not None:
                totals.published += 1

    def received(self, queue: str, name: str, transfer_s: float | None, eta_s: float) -> None:
        """
        A message was received.

        Args:
            queue: The queue it came from.
            name: The task.
            transfer_s: How long it was in the broker, seconds; None if unknown.
            eta_s: How long it is going to be held for its ETA, seconds.
        """
        with self._lock:
            totals = self._of(queue, name)
            if totals is not None:
                totals.received += 1
                totals.eta_max_s = max(totals.eta_max_s, eta_s)
                if transfer_s is not None:
                    totals.transfers[Histogram.bucket(transfer_s)] += 1

    def started(
        self, queue: str, name: str, wait_s: float | None, reserved_s: float | None, *, redelivered: bool, late: bool
    ) -> None:
        """
        A run has begun.

        Args:
            queue: The queue of its message.
            name: The task.
            wait_s: Since it was published, or since its ETA, seconds; None if unknown.
            reserved_s: The part of it in the worker, seconds; None if unknown.
            redelivered: Whether the message was delivered before.
            late: Whether it is acknowledged after its run.
        """
        with self._lock:
            totals = self._of(queue, name)
            if totals is not None:
                totals.started += 1
                totals.redelivered += redelivered
                totals.acks_late = late
                if reserved_s is not None:
                    totals.reserved[Histogram.bucket(reserved_s)] += 1
                if wait_s is not None and not redelivered:
                    totals.waits[Histogram.bucket(wait_s)] += 1
                    totals.wait_max_s = max(totals.wait_max_s, wait_s)

    def count(self, problem: str) -> None:
        """Count a header that could not be used as it is."""
        with self._lock:
            self.counters[f"flow:{problem}"] += 1

    def flush(self) -> None:
        """Write what has changed, and forget what belongs to earlier periods."""
        with self._lock:
            self.dirty = False
            bucket_s = self._bucket_s()
            for (queue, name), totals in list(self._totals.items()):
                if totals.dirty:
                    self._write_totals(queue, name, totals)
                if totals.bucket_s != bucket_s:
                    del self._totals[queue, name]

    def _bucket_s(self) -> int:
        return int(self._clock.now_s()) // Flow.BUCKET_S * Flow.BUCKET_S

    def _of(self, queue: str, name: str) -> _Totals | None:
        """The totals of the current five minutes; None if there are too many pairs."""
        totals = self._totals.get((queue, name))
        if totals is None or not totals.bucket_s <= self._clock.now_s() < totals.ends_s:
            totals = self._new_totals(queue[:MOST_NAME], name[:MOST_NAME])
            if totals is None:
                return None
        totals.dirty = self.dirty = True
        if self._ticker.asleep:
            self._ticker.wake()
        return totals

    def _new_totals(self, queue: str, name: str) -> _Totals | None:
        bucket_s = self._bucket_s()
        totals = self._totals.get((queue, name))
        if totals is not None and totals.bucket_s == bucket_s:  # a name that was cut
            return totals
        if totals is not None and totals.dirty:
            self._write_totals(queue, name, totals)
        elif totals is None and len(self._totals) >= MOST_PAIRS:
            self.counters["flow:left_out"] += 1
            return None
        totals = self._totals[queue, name] = _Totals(bucket_s)
        return totals

    def _write_totals(self, queue: str, name: str, totals: _Totals) -> None:
        totals.dirty = False
        self._seq += 1
        self._write(
            Flow(
                process=self._process,
                queue=queue,
                name=name,
                bucket_s=totals.bucket_s,
                seq=self._seq,
                published=totals.published,
                received=totals.received,
                started=totals.started,
                redelivered=totals.redelivered,
                waits=_histogram(totals.waits),
                transfers=_histogram(totals.transfers),
                reserved=_histogram(totals.reserved),
                wait_max_s=totals.wait_max_s,
                eta_max_s=totals.eta_max_s,
                acks_late=totals.acks_late,
            )
        )


def _histogram(counts: list[int]) -> Histogram:
    """A copy without the zeros at its end."""
    used = len(counts)
    while used and not counts[used - 1]:
        used -= 1
    return Histogram(counts[:used])
