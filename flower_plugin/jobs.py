"""What goes on beside the pages: alerts, pruning, the collector, the broker's queue, garbage. All off the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tornado.ioloop import PeriodicCallback

from celery_trace.collector import CollectorProcess
from celery_trace.errors import Unavailable
from celery_trace.guard import report
from celery_trace.stores import leak_rows
from celery_trace.transports.broker import BrokerConsumer
from flower_plugin.context import MonitorContext
from flower_plugin.garbage import TIDY_EVERY_S, GarbageRounds
from flower_plugin.web.live import LiveFeed

logger = logging.getLogger("celery_trace.monitor")

ALERTS_EVERY_S = 3.0
PRUNE_EVERY_S = 60.0
#: How long the monitor gives space back after pruning, in steps between which others write, seconds.
GIVE_BACK_S = 2.0
LIVE_EVERY_S = 1.0
WATCH_EVERY_S = 1.0


class Job:
    """
    A blocking call at intervals in a thread; it never overlaps itself and never ends because it failed once.

    A store that is down makes each call fail: that is said once, and once more when it is over.
    """

    def __init__(self, context: MonitorContext, name: str, every_s: float, call: Callable[[], object]) -> None:
        self.name = name
        self._context = context
        self._call = call
        self._running = threading.Lock()
        self._timer = PeriodicCallback(self._tick, every_s * 1000, jitter=0.1)
        self._failing = False

    def start(self) -> None:
        """Begin, on the loop."""
        self._timer.start()

    def stop(self) -> None:
        """No further calls."""
        self._timer.stop()

    async def _tick(self) -> None:
        if not self._running.locked():
            await self._context.loop.run_in_executor(self._context.threads, self.once)

    def once(self) -> None:
        """One call, now, in this thread."""
        if not self._running.acquire(blocking=False):
            return
        try:
            self._call()
            if self._failing:
                self._failing = False
                logger.info("%s works again.", self.name)
        except Unavailable as error:  # such as a store that is down
            if not self._failing:
                logger.warning("%s: %s", self.name, error)
            self._failing = True
        except Exception as error:
            report(self.name, error)
            self._failing = True
        finally:
            self._running.release()


class Jobs:
    """The monitor's jobs. Collector and broker queue are started in a thread, so a slow one delays no page."""

    def __init__(self, context: MonitorContext, feed: LiveFeed) -> None:
        self._context = context
        self._collector: CollectorProcess | None = None
        self._consumer: BrokerConsumer | None = None
        self._garbage = GarbageRounds(context.clock)
        self._jobs = [
            Job(context, "Alerts", ALERTS_EVERY_S, self._evaluate),
            Job(context, "Pruning", PRUNE_EVERY_S, self._prune),
            Job(context, "Live pages", LIVE_EVERY_S, feed.look),
            Job(context, "Watching the collector", WATCH_EVERY_S, self._watch_collector),
            Job(context, "Garbage", TIDY_EVERY_S, self._garbage.tidy),
        ]
        if context.settings.transport == "broker":  # with another transport the collector does it
            self._jobs.append(Job(context, "Runs of leaks", leak_rows.COUNT_ON_EVERY_S, self._count_leaks))
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
        """Begin all of them."""
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
        """End all of them; twice is harmless."""
        self._stopped = True
        for job in self._jobs:
            job.stop()
        if self._consumer is not None:
            self._consumer.stop()
        if self._collector is not None:
            self._collector.stop()
        self._consumer = self._collector = None
        self._garbage.close()
