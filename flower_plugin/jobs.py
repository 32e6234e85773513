"""Background jobs: alerts, pruning, the collector, the broker's queue, garbage collection. All off the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tornado.ioloop import PeriodicCallback

from celery_trace.collector import CollectorProcess
from celery_trace.errors import Unavailable
from celery_trace.guard import report
from celery_trace.model import Consuming, QueueSample
from celery_trace.stores import leak_rows
from celery_trace.transports.broker import BrokerConsumer
from flower_plugin.context import MonitorContext
from flower_plugin.garbage import COLLECT_EVERY_S, GarbageCollection
from flower_plugin.incoming.queues import QueueReader, QueueReading
from flower_plugin.web.live import LiveFeed

logger = logging.getLogger("celery_trace.monitor")

ALERTS_EVERY_S = 3.0
PRUNE_EVERY_S = 60.0
#: Maximum time for freeing disk space after pruning, in steps between which others can write, seconds.
GIVE_BACK_S = 2.0
LIVE_EVERY_S = 1.0
WATCH_EVERY_S = 1.0
QUEUES_EVERY_S = 10.0
#: An unchanged queue is written this often, seconds; its names are looked up as often.
QUEUES_AGAIN_S = 60.0


class Job:
    """
    A periodic blocking call in a thread. Calls never overlap, and a failure does not end the job.

    While the store is down each call fails; the first failure and the recovery are logged.
    """

    def __init__(self, context: MonitorContext, name: str, every_s: float, call: Callable[[], object]) -> None:
        self.name = name
        self._context = context
        self._call = call
        self._running = threading.Lock()
        self._timer = PeriodicCallback(self._tick, every_s * 1000, jitter=0.1)
        self._failing = False

    def start(self) -> None:
        """Start the timer, on the loop."""
        self._timer.start()

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.stop()

    async def _tick(self) -> None:
        if not self._running.locked():
            await self._context.loop.run_in_executor(self._context.threads, self.once)

    def once(self) -> None:
        """One call in this thread."""
        if not self._running.acquire(blocking=False):
            return
        try:
            self._call()
            if self._failing:
                self._failing = False
                logger.info("%s recovered.", self.name)
        except Unavailable as error:  # such as the store being down
            if not self._failing:
                logger.warning("%s: %s", self.name, error)
            self._failing = True
        except Exception as error:
            report(self.name, error)
            self._failing = True
        finally:
            self._running.release()


class QueueWatch:
    """Reads the broker's queues, and writes them to the store where they have changed."""

    def __init__(self, context: MonitorContext) -> None:
        self._context = context
        self._reader = QueueReader(context.capp)
        self._written: dict[str, QueueSample] = {}
        self._names: list[str] = []
        self._named_s = 0.0

    def look(self) -> None:
        """
        Read all queues once.

        Raises:
            Unavailable: The broker or the store does not answer.
        """
        queries, now_s = self._context.queries, self._context.clock.now_s()
        if now_s - self._named_s >= QUEUES_AGAIN_S or not self._names:
            self._names, self._named_s = sorted({*self._reader.configured(), *queries.queue_names()}), now_s
        readings = self._reader.read(self._names, now_s)
        states = queries.consuming()
        samples = [_sample(name, reading, states, now_s) for name, reading in readings.items()]
        changed = [sample for sample in samples if self._is_new(sample)]
        if changed:
            self._context.store.write(changed)
            self._written.update({sample.queue: sample for sample in changed})

    def _is_new(self, sample: QueueSample) -> bool:
        known = self._written.get(sample.queue)
        if known is None or sample.at_s - known.at_s >= QUEUES_AGAIN_S or sample.oldest_age_s is not None:
            return True
        return (known.depth, known.consumers, known.running, known.reserved, known.oldest_age_s) != (
            sample.depth, sample.consumers, sample.running, sample.reserved, None,
        )  # fmt: skip

    def close(self) -> None:
        """Close the connection to the broker."""
        self._reader.close()


def _sample(name: str, reading: QueueReading, states: list[Consuming], now_s: float) -> QueueSample:
    of_it = [state for state in states if state.queue == name]
    return QueueSample(
        queue=name,
        at_s=now_s,
        depth=reading.depth,
        consumers=reading.consumers,
        oldest_age_s=reading.oldest_age_s,
        running=sum(state.running for state in of_it),
        reserved=sum(state.reserved for state in of_it),
    )


class Jobs:
    """The monitor's jobs. The collector and the consumer start in a thread, so a slow start delays no page."""

    def __init__(self, context: MonitorContext, feed: LiveFeed) -> None:
        self._context = context
        self._collector: CollectorProcess | None = None
        self._consumer: BrokerConsumer | None = None
        self._garbage = GarbageCollection(context.clock)
        self._queues = QueueWatch(context)
        self._jobs = [
            Job(context, "Alerts", ALERTS_EVERY_S, self._evaluate),
            Job(context, "Pruning", PRUNE_EVERY_S, self._prune),
            Job(context, "Queues", QUEUES_EVERY_S, self._queues.look),
            Job(context, "Live pages", LIVE_EVERY_S, feed.check),
            Job(context, "Watching the collector", WATCH_EVERY_S, self._watch_collector),
            Job(context, "Garbage collection", COLLECT_EVERY_S, self._garbage.collect),
        ]
        if context.settings.transport == "broker":  # with the other transport the collector does this
            self._jobs.append(Job(context, "Run counts of leaks", leak_rows.COUNT_ON_EVERY_S, self._count_leaks))
        self._stopped = False

    def _evaluate(self) -> None:
        self._context.engine.evaluate()

    def _prune(self) -> None:
        store = self._context.store
        store.prune(self._context.settings, self._context.clock.now_s())
        store.give_back(most_s=GIVE_BACK_S)

    def _count_leaks(self) -> None:
        leak_rows.update_run_counts(self._context.store)

    def start(self) -> None:
        """Start all jobs."""
        for job in self._jobs:
            job.start()
        self._context.threads.submit(self._start_processes)

    def _watch_collector(self) -> None:
        if self._collector is not None:
            self._collector.watch()

    def _start_processes(self) -> None:
        context = self._context
        try:
            if context.settings.collector and not self._stopped:
                self._collector = CollectorProcess(context.settings, app=context.capp)
                self._collector.start()
        except Exception as error:
            report("starting the collector", error)
        try:
            if context.settings.transport == "broker" and not self._stopped:
                self._consumer = BrokerConsumer(context.capp, context.access, context.settings)
                self._consumer.start()
        except Exception as error:
            report("reading the broker's queue", error)

    def stop(self) -> None:
        """Stop all jobs. Idempotent."""
        self._stopped = True
        self._context.retries.close()
        for job in self._jobs:
            job.stop()
        if self._consumer is not None:
            self._consumer.stop()
        if self._collector is not None:
            self._collector.stop()
        self._consumer = self._collector = None
        self._garbage.close()
        self._queues.close()
