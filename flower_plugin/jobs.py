"""What goes on beside the pages: alerts, pruning, the collector, the broker's queue, garbage. All off the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tornado.ioloop import PeriodicCallback

from celery_trace.errors import Unavailable
from celery_trace.guard import report
from flower_plugin.garbage import TIDY_EVERY_S, GarbageRounds

if TYPE_CHECKING:
    from flower_plugin.app import MonitorApplication

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

    def __init__(self, app: MonitorApplication, name: str, every_s: float, call: Callable[[], Any]) -> None:
        self.name = name
        self._app = app
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
            await self._app.io_loop.run_in_executor(self._app.threads, self.once)

    def once(self) -> None:
        """One call, now, in this thread."""
        if not self._running.acquire(blocking=False):
            return
        try:
            self._call()
            if self._failing:
                self._failing = False
                logger.info("%s works again.", self.name)
        except Exception as error:
            if isinstance(error, Unavailable):  # the store is down, and it says so itself
                if not self._failing:
                    logger.warning("%s: %s", self.name, error)
            else:
                report(self.name, error)
            self._failing = True
        finally:
            self._running.release()


class Jobs:
    """The monitor's jobs. Collector and broker queue are started in a thread, so a slow one delays no page."""

    def __init__(self, app: MonitorApplication) -> None:
        self._app = app
        self._engine: Any = None
        self._collector: Any = None
        self._consumer: Any = None
        self._garbage = GarbageRounds(app.clock)
        self._jobs = [
            Job(app, "Alerts", ALERTS_EVERY_S, self._evaluate),
            Job(app, "Pruning", PRUNE_EVERY_S, self._prune),
            Job(app, "Live pages", LIVE_EVERY_S, app.live.look),
            Job(app, "Watching the collector", WATCH_EVERY_S, self._watch_collector),
            Job(app, "Garbage", TIDY_EVERY_S, self._garbage.tidy),
        ]
        if app.trace_settings.transport == "broker":  # with another transport the collector does it
            from celery_trace.stores.leak_rows import COUNT_ON_EVERY_S

            self._jobs.append(Job(app, "Runs of leaks", COUNT_ON_EVERY_S, self._count_leaks))
        self._stopped = False

    @property
    def engine(self) -> Any:
        """
        The alert engine.

        Raises:
            StoreUnavailable: There is no store to evaluate.
        """
        if self._engine is None:
            # Apprise takes 36 MB once used, so a monitor that never alerts must not import it at its start.
            from celery_trace.alerting.engine import AlertEngine

            facts = self._app.facts
            self._engine = AlertEngine(
                facts.store,
                facts.queries,
                self._app.trace_settings,
                self._app.clock,
                base_url=self._app.public_address,
            )
        return self._engine

    def _evaluate(self) -> None:
        self.engine.evaluate()

    def _prune(self) -> None:
        store = self._app.facts.store
        store.prune(self._app.trace_settings, self._app.clock.now_s())
        store.give_back(most_s=GIVE_BACK_S)

    def _count_leaks(self) -> None:
        from celery_trace.stores import leak_rows

        leak_rows.update_run_counts(self._app.facts.store)

    def start(self) -> None:
        """Begin all of them."""
        for job in self._jobs:
            job.start()
        self._app.threads.submit(self._start_processes)

    def _watch_collector(self) -> None:
        if self._collector is not None:
            self._collector.watch()

    def _start_processes(self) -> None:
        settings = self._app.trace_settings
        try:
            if settings.collector and not self._stopped:
                from celery_trace.collector import CollectorProcess

                self._collector = CollectorProcess(settings, app=self._app.capp)
                self._collector.start()
        except Exception as error:
            report("starting the collector", error)
        try:
            if settings.transport == "broker" and not self._stopped:
                from celery_trace.transports.broker import BrokerConsumer

                self._consumer = BrokerConsumer(self._app.capp, self._app.facts, settings)
                self._consumer.start()
        except Exception as error:
            report("reading the broker's queue", error)

    def stop(self) -> None:
        """End all of them; twice is harmless."""
        self._stopped = True
        for job in self._jobs:
            job.stop()
        for part in (self._consumer, self._collector):
            if part is not None:
                part.stop()
        self._consumer = self._collector = None
        self._garbage.close()
