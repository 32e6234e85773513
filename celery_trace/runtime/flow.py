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
from celery_trace.runtime.messages import FlowCounts
from celery_trace.runtime.ticker import Ticker

#: Pairs of queue and task in five minutes; further ones are only counted.
MOST_PAIRS: Final = 500
MOST_NAME: Final = 255


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
        self._totals: dict[tuple[str, str], FlowCounts] = {}
        self._seq = 0
        self._lock = os_threads.rlock()  # re-entrant: a finalizer may publish
        #: ``flow:header_refused``, ``flow:clock_ahead`` and ``flow:left_out``, where they are not 0.
        self.counters: Counter[str] = Counter()

    def published(self, queue: str, name: str) -> None:
        """A message was published."""
        totals = self.counts(queue, name)
        if totals is not None:
            totals.publish()

    def received(self, queue: str, name: str, transfer_s: float | None, eta_s: float) -> None:
        """
        A message was received.

        Args:
            queue: The queue it came from.
            name: The task.
            transfer_s: How long it was in the broker, seconds; None if unknown.
            eta_s: How long it is going to be held for its ETA, seconds.
        """
        totals = self.counts(queue, name)
        if totals is not None:
            totals.receive(transfer_s, eta_s)

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
        totals = self.counts(queue, name)
        if totals is not None:
            totals.start(wait_s, reserved_s, redelivered, late)

    def count(self, problem: str) -> None:
        """Count a header that could not be used as it is."""
        with self._lock:
            self.counters[f"flow:{problem}"] += 1

    def flush(self) -> None:
        """Write what has changed, and forget what belongs to earlier periods."""
        with self._lock:
            bucket_s = self._bucket_s()
            for (queue, name), totals in list(self._totals.items()):
                if totals.dirty:
                    self._write_totals(queue, name, totals)
                if totals.bucket_s != bucket_s:
                    del self._totals[queue, name]

    def _bucket_s(self) -> int:
        return int(self._clock.now_s()) // Flow.BUCKET_S * Flow.BUCKET_S

    @property
    def dirty(self) -> bool:
        """Whether something was added that is not written yet."""
        return any(totals.dirty for totals in list(self._totals.values()))

    def counts(self, queue: str, name: str) -> FlowCounts | None:
        """The counts of the current five minutes; None if there are too many pairs."""
        totals = self._totals.get((queue, name))
        if totals is None or not totals.bucket_s <= self._clock.now_s() < totals.ends_s:
            with self._lock:
                totals = self._new_totals(queue[:MOST_NAME], name[:MOST_NAME])
        if self._ticker.asleep:
            self._ticker.wake()
        return totals

    def _new_totals(self, queue: str, name: str) -> FlowCounts | None:
        bucket_s = self._bucket_s()
        totals = self._totals.get((queue, name))
        if totals is not None and totals.bucket_s == bucket_s:  # a name that was cut
            return totals
        if totals is not None and totals.dirty:
            self._write_totals(queue, name, totals)
        elif totals is None and len(self._totals) >= MOST_PAIRS:
            self.counters["flow:left_out"] += 1
            return None
        totals = self._totals[queue, name] = FlowCounts(queue, bucket_s, Flow.BUCKET_S)
        return totals

    def _write_totals(self, queue: str, name: str, totals: FlowCounts) -> None:
        totals.dirty = False  # before the read: what is added now sets it again
        waits, transfers, reserved = totals.histograms()
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
                waits=Histogram(waits),
                transfers=Histogram(transfers),
                reserved=Histogram(reserved),
                wait_max_s=totals.wait_max_s,
                eta_max_s=totals.eta_max_s,
                acks_late=totals.acks_late,
            )
        )
