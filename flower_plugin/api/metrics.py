"""Our series on Flower's ``/metrics``. Task ids and pids are never labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_trace.model import AlertView, FailureGroup, Leak, QueueView, RunningView, StatsView, Verdict, WorkerView
from celery_trace.queries import Queries
from celery_trace.stores import StoreUnavailable
from flower_plugin.auth.roles import UserRole
from flower_plugin.web.handlers import TraceHandler

#: Maximum rows of each kind, so that a store with a million groups can still be scraped.
MOST_ROWS = 1000
#: The latency of queues is that of the runs of this time, seconds: an autoscaler has to see that it has fallen.
LATENCY_OVER_S = 300.0


class Snapshot(Struct, frozen=True, kw_only=True):
    """The data behind the metrics."""

    leaks: list[Leak] = []
    groups: list[FailureGroup] = []
    workers: list[WorkerView] = []
    alerts: list[AlertView] = []
    queues: list[QueueView] = []
    stats: StatsView | None = None
    running: list[RunningView] = []
    #: The monitor's counts of skipped, refused and modified Celery events.
    events: Mapping[str, int] = {}


def take(queries: Queries, events: Mapping[str, int], now_s: float) -> Snapshot:
    """Read the data as of ``now_s``. Blocks."""
    return Snapshot(
        events=events,
        leaks=queries.leaks(limit=MOST_ROWS).rows,
        groups=queries.groups(limit=MOST_ROWS).rows,
        workers=queries.workers(limit=MOST_ROWS).rows,
        alerts=queries.alerts(limit=MOST_ROWS).rows,
        queues=queries.queue_views(since_s=now_s - LATENCY_OVER_S, limit=MOST_ROWS).rows,
        stats=queries.stats(),
        running=queries.running().rows,
    )


def families(snapshot: Snapshot, *, store_up: bool = True) -> Iterable[Metric]:
    """The series, for the Prometheus client."""
    up = GaugeMetricFamily("celery_trace_store_up", "Whether the monitor can reach its store")
    up.add_metric([], float(store_up))
    yield up
    events = CounterMetricFamily(
        "celery_trace_events", "Celery events missing on Flower's pages, by reason", labels=["fate"]
    )
    for fate, count in snapshot.events.items():
        events.add_metric([fate], count)
    yield events
    yield _kept(snapshot.leaks)
    yield _resident(snapshot.workers)
    yield _failures(snapshot.groups)
    yield _alerts(snapshot.alerts)
    yield from _queues(snapshot.queues)
    yield _stuck(snapshot.running)
    yield _running(snapshot.running)
    if snapshot.stats is not None:
        yield from _stats_families(snapshot.stats)


def _kept(leaks: Iterable[Leak]) -> Metric:
    kept = GaugeMetricFamily(
        "celery_trace_task_kept_bytes",
        "Retained bytes per run, summed over the growing allocation sites of the task",
        labels=["kind", "task"],
    )
    by_task: dict[tuple[str, ...], float] = defaultdict(float)
    for leak in leaks:
        if leak.verdict in (Verdict.LEAKING, Verdict.GROWING) and leak.kept_bytes_per_run > 0:
            by_task[leak.kind, leak.name] += leak.kept_bytes_per_run
    return _filled(kept, by_task)


def _resident(workers: Iterable[WorkerView]) -> Metric:
    resident = GaugeMetricFamily(
        "celery_trace_process_resident_memory_bytes", "Resident memory of a worker's processes", labels=["worker"]
    )
    by_worker: dict[tuple[str, ...], float] = defaultdict(float)
    for worker in workers:
        if worker.alive:
            by_worker[worker.name or worker.host,] += worker.rss_bytes
    return _filled(resident, by_worker)


def _failures(groups: Iterable[FailureGroup]) -> Metric:
    failures = CounterMetricFamily(
        "celery_trace_task_failures", "Failures in the store", labels=["task", "exception", "outcome"]
    )
    by_failure: dict[tuple[str, ...], float] = defaultdict(float)
    for group in groups:
        exception = group.exception.type if group.exception else ""
        by_failure[group.name, exception, str(group.outcome)] += group.count
    return _filled(failures, by_failure)


def _alerts(alerts: Iterable[AlertView]) -> Metric:
    states = GaugeMetricFamily("celery_trace_alerts", "Alerts by rule and state", labels=["rule", "state"])
    by_state: dict[tuple[str, ...], float] = defaultdict(float)
    for alert in alerts:
        by_state[alert.rule, alert.state] += 1
    return _filled(states, by_state)


def _queues(queues: Iterable[QueueView]) -> Iterable[Metric]:
    latency = GaugeMetricFamily(
        "celery_trace_queue_latency_seconds",
        "Wait of a queue's messages: the p95 of the last minutes, or the age of the oldest if that is longer",
        labels=["queue"],
    )
    depth = GaugeMetricFamily("celery_trace_queue_depth", "Messages that wait in a queue", labels=["queue"])
    latencies: dict[tuple[str, ...], float] = {}
    depths: dict[tuple[str, ...], float] = {}
    for queue in queues:
        if queue.depth is not None:
            depths[queue.name,] = float(queue.depth)
        # Of a queue that nobody consumes no message is started, and its latency is the age of the oldest.
        waits = [wait_s for wait_s in (queue.wait_p95_s, queue.oldest_age_s) if wait_s is not None]
        if waits or queue.depth == 0:
            latencies[queue.name,] = max(waits, default=0.0)
    yield _filled(latency, latencies)
    yield _filled(depth, depths)


def _stuck(running: Iterable[RunningView]) -> Metric:
    """A task that runs and is not stuck has a series too, of 0, so that an alert over it can be resolved."""
    stuck = GaugeMetricFamily("celery_trace_stuck", "Runs of the task that are stuck", labels=["task"])
    by_task: dict[tuple[str, ...], float] = defaultdict(float)
    for run in running:
        by_task[run.name,] += run.stuck
    return _filled(stuck, by_task)


def _running(runs: Iterable[RunningView]) -> Metric:
    running = GaugeMetricFamily("celery_trace_running", "Runs in progress", labels=["task"])
    by_task: dict[tuple[str, ...], float] = defaultdict(float)
    for run in runs:
        by_task[run.name,] += 1
    return _filled(running, by_task)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily | GaugeMetricFamily:
    """The family with a series for each combination of labels, sorted."""
    for labels, value in sorted(values.items()):
        family.add_metric(list(labels), value)
    return family


def _stats_families(stats: StatsView) -> Iterable[Metric]:
    records = CounterMetricFamily(
        "celery_trace_records", "Records by result, as counted by traced processes", labels=["fate"]
    )
    fates = {
        "written": sum(stats.written.values()),
        "dropped": sum(stats.dropped.values()),
        "cut": sum(stats.cut.values()),
        "corrupt": stats.corrupt_lines,
    }
    for fate, number in fates.items():
        records.add_metric([fate], number)
    yield records
    yield GaugeMetricFamily("celery_trace_spool_bytes", "Bytes waiting in the spool", value=stats.spool_bytes)
    yield GaugeMetricFamily(
        "celery_trace_overhead_ratio", "Share of process time used by tracing", value=stats.overhead_ratio
    )


class _Families(Collector):  # type: ignore[misc]
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def render(snapshot: Snapshot, *, store_up: bool = True) -> bytes:
    """Our series in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(list(families(snapshot, store_up=store_up))))
    return bytes(generate_latest(registry))


class MetricsHandler(TraceHandler):
    """``/metrics``: Flower's series and ours."""

    role = UserRole.LOOK
    for_people = False

    async def get(self) -> None:
        """While the store is down, Flower's series are still exported and ``celery_trace_store_up`` is 0."""
        self.application.purge_offline_worker_metrics()

        events, now_s = self.context.events.counts, self.context.clock.now_s()

        def read() -> bytes:
            try:
                return render(take(self.context.queries, events, now_s))
            except StoreUnavailable:
                return render(Snapshot(events=events), store_up=False)

        ours = await self.off_loop(read)
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(generate_latest(REGISTRY) + ours)
