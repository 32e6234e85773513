"""Statistics: records stored and dropped, overhead, settings."""

from __future__ import annotations

from celery_trace.model import StatsView
from celery_trace.queries import Queries
from celery_trace.stores import lineage, sizes
from celery_trace.text.format import percent, size
from flower_plugin.pages.incidents import COSTLY
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit

_SINGULAR = {"processes": "process", "stats": "stats"}
#: Labels of kinds of records that need one.
_KINDS = {
    "audit": "audit log entry",
    "consuming": "state of a queue",
    "flow": "counts of messages",
    "heap": "heap profile",
    "queue": "queue sample",
    "run": "single run",
    "sample": "memory sample",
    "schedule": "entry of a schedule",
    "start": "start of a message",
    "stats": "internal statistics",
    "window": "leak evidence",
}
#: Celery events that are missing on Flower's pages, by reason.
_EVENTS = {
    "skipped": "Events: skipped, arrived too fast",
    "refused": "Events: refused, not valid Celery events",
    "field_left_out": "Events: invalid fields dropped",
}


def _singular(table: str) -> str:
    return _SINGULAR.get(table, table if table.endswith("ss") else table.removesuffix("s"))


def _counters_text(counters: object) -> str:
    """A collector's counters, ``delivered 109, adopted 1``, without those that are zero."""
    if not isinstance(counters, dict):
        return str(counters)
    named = {key.rpartition(":")[2]: (key, value) for key, value in counters.items()}
    texts = [
        f"{key.replace('spool:', 'waiting ').replace('collector:', '').replace(':', ' ')} {value:,}"
        if isinstance(value, int)
        else f"{short} {value}"
        for short, (key, value) in named.items()
        if value
    ]
    return ", ".join(texts) or "no activity yet"


def statistics(queries: Queries, visit: Visit) -> Context:
    """The context of the page."""
    stats: StatsView = queries.stats()
    # The store counts by table name (plural), processes by record kind (singular).
    held = {_singular(table): number for table, number in stats.records.items()}
    kinds = sorted({*held, *stats.written, *stats.dropped})
    settings = visit.settings
    budget = settings.memory_budget
    return {
        "budget": budget,
        "overhead_tone": "success" if stats.overhead_ratio <= max(COSTLY, budget) else "warning",
        "stats": stats,
        "kinds": [
            (_KINDS.get(kind, kind), held.get(kind, 0), stats.written.get(kind, 0), stats.dropped.get(kind, 0))
            for kind in kinds
        ],
        "collectors": [(host, _counters_text(counters)) for host, counters in sorted(stats.collector.items())],
        "store_size": sizes.sentences(stats.size, visit.now_s) if stats.size is not None else [],
        "lost_stores": [(lost.at, lineage.sentence(lost)) for lost in stats.lost_stores],
        "lost": sum(stats.dropped.values()),
        "events": [(text, visit.monitor.events.get(fate, 0)) for fate, text in _EVENTS.items()],
        "chosen": [
            ("trace_memory", settings.memory, "memory tracing mode"),
            (
                "trace_memory_budget",
                percent(settings.memory_budget),
                "maximum overhead of memory tracing",
            ),
            ("trace_failures", "on" if settings.failures else "off", "whether failures are captured"),
            ("trace_shell", settings.shell, "shell mode"),
            ("trace_transport", settings.transport, "how the collector delivers records"),
            ("trace_retention_days", f"{settings.retention_days:g}", "maximum age of records, in days"),
            ("trace_retention_runs", f"{settings.retention_runs:,}", "maximum number of single runs"),
            ("trace_retention_failures", f"{settings.retention_failures:,}", "maximum number of failures"),
            (
                "trace_retention_bytes",
                size(settings.retention_bytes) if settings.retention_bytes else "no limit",
                "maximum size of failures",
            ),
        ],
    }


PAGE = MonitorPage(
    path=r"/trace/statistics",
    name="trace_statistics",
    title="Statistics",
    template="trace/statistics.html",
    tab="statistics",
    context=statistics,
    place=NavPlace.MORE,
)
