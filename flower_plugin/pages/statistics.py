"""Statistics: what was kept and what was not, and what measuring costs."""

from __future__ import annotations

from celery_trace.model import StatsView
from celery_trace.queries import Queries
from celery_trace.stores import lineage, sizes
from celery_trace.text.format import percent, size
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit

_SINGULAR = {"processes": "process", "stats": "stats"}
#: What the records are called in the reader's words, where the name says little.
_KINDS = {
    "audit": "audited command",
    "rollup": "totals of a name",
    "run": "single run",
    "sample": "memory sample",
    "stats": "own account",
    "window": "step of an investigation",
}
#: Events of Celery that Flower's own pages miss, by what became of them.
_EVENTS = {
    "skipped": "Events skipped because they came too fast",
    "refused": "Events refused because no worker of Celery sends such",
    "field_left_out": "Fields left out of events because they were not what they should be",
}


def _singular(table: str) -> str:
    return _SINGULAR.get(table, table if table.endswith("ss") else table.removesuffix("s"))


def _in_words(account: object) -> str:
    """A collector's counters, ``handed on 109, adopted 1``; those that stand at zero are left out."""
    if not isinstance(account, dict):
        return str(account)
    words = {"delivered": "handed on"}
    named = {key.rpartition(":")[2]: (key, value) for key, value in account.items()}
    told = [
        f"{words.get(short, key.replace('spool:', 'waiting ').replace('collector:', '').replace(':', ' '))} {value:,}"
        if isinstance(value, int)
        else f"{short} {value}"
        for short, (key, value) in named.items()
        if value
    ]
    return ", ".join(told) or "nothing yet"


def statistics(queries: Queries, visit: Visit) -> Context:
    """The product's account of itself, with the settings that explain it."""
    stats: StatsView = queries.stats()
    # The store counts its tables, in the plural; processes count their records.
    held = {_singular(table): number for table, number in stats.records.items()}
    kinds = sorted({*held, *stats.written, *stats.dropped})
    settings = visit.settings
    return {
        "stats": stats,
        "kinds": [
            (_KINDS.get(kind, kind), held.get(kind, 0), stats.written.get(kind, 0), stats.dropped.get(kind, 0))
            for kind in kinds
        ],
        "collectors": [(host, _in_words(account)) for host, account in sorted(stats.collector.items())],
        "store_size": sizes.sentences(stats.size, visit.now_s) if stats.size is not None else [],
        "lost_stores": [(lost.at, lineage.sentence(lost)) for lost in stats.lost_stores],
        "lost": sum(stats.dropped.values()),
        "events": [(words, visit.monitor.events.get(fate, 0)) for fate, words in _EVENTS.items()],
        "chosen": [
            ("trace_memory", settings.memory, "how memory is measured"),
            (
                "trace_memory_budget",
                percent(settings.memory_budget),
                "share of a process's time that measuring may take",
            ),
            ("trace_failures", "on" if settings.failures else "off", "capture of failures"),
            ("trace_shell", settings.shell, "what the shell may open"),
            ("trace_transport", settings.transport, "how the collector hands records on"),
            ("trace_retention_days", f"{settings.retention_days:g}", "age at which records are pruned"),
            ("trace_retention_runs", f"{settings.retention_runs:,}", "most single runs that are kept"),
            ("trace_retention_failures", f"{settings.retention_failures:,}", "most failures that are kept"),
            (
                "trace_retention_bytes",
                size(settings.retention_bytes) if settings.retention_bytes else "no bound",
                "most bytes that failures take",
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
