"""Runs: all names, and the durations, memory and outliers of one name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from celery_trace.model import Histogram, Measure, Rollup, Run
from celery_trace.queries import Queries
from flower_plugin.pages.flames import chosen, flame
from flower_plugin.pages.page import RANGES, Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.searching import asked
from flower_plugin.problems import NotFound

MOST_RUNS = 500


class NameTotals(Struct, frozen=True, kw_only=True):
    """The sum of the rollups of one name. Durations in seconds."""

    runs: int = 0
    failed: int = 0
    retried: int = 0
    duration_s: float = 0.0
    longest_s: float = 0.0
    rss_max_bytes: int = 0
    percentiles: dict[int, float] = {}


def totals(rollups: Iterable[Rollup]) -> NameTotals:
    """Add up rollups of one name."""
    rows = list(rollups)
    durations = Histogram.together(row.durations for row in rows)
    found = {share: durations.percentile_s(share / 100) for share in (50, 95, 99)}
    return NameTotals(
        runs=sum(row.runs for row in rows),
        failed=sum(row.failed for row in rows),
        retried=sum(row.retried for row in rows),
        duration_s=sum(row.duration_s for row in rows),
        longest_s=max((row.duration_max_s for row in rows), default=0.0),
        rss_max_bytes=max((row.rss_max_bytes for row in rows), default=0),
        percentiles={share: value for share, value in found.items() if value is not None},
    )


def timeline(rollups: Iterable[Rollup]) -> dict[str, list[float]]:
    """Runs, failures and mean duration per five minutes, oldest first, over all processes."""
    by_bucket: dict[int, list[float]] = {}
    for row in rollups:
        bucket = by_bucket.setdefault(row.bucket_s, [0, 0, 0.0])
        bucket[0] += row.runs
        bucket[1] += row.failed
        bucket[2] += row.duration_s
    ordered = sorted(by_bucket.items())
    return {
        "at": [float(at_s) for at_s, _ in ordered],
        "runs": [row[0] for _, row in ordered],
        "failed": [row[1] for _, row in ordered],
        "mean_s": [row[2] / row[0] if row[0] else 0.0 for _, row in ordered],
    }


def scatter(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Single runs for the plot, oldest first."""
    ordered = sorted(runs, key=lambda run: run.started_at_s)
    return {
        "at": [run.started_at_s for run in ordered],
        "duration_s": [run.duration_s for run in ordered],
        "kept": [run.kept_bytes for run in ordered],
        "rss": [run.memory.rss_bytes if run.memory else None for run in ordered],
        "why": [run.why for run in ordered],
        "id": [run.id for run in ordered],
    }


def names(queries: Queries, visit: Visit) -> Context:
    """All names, most runs first."""
    wanted = asked(visit, "names")
    rows = [] if wanted.problem else queries.names(query=wanted.query)
    rows.sort(key=lambda row: -int(row[2]))
    return {
        "rows": rows[:500],
        "more": max(0, len(rows) - 500),
        "asked": wanted,
        "views": queries.saved_views(visit.user.name, "names"),
        "sort": "",
        "sorts": (),
        "filtered": bool(wanted.query),
    }


def runs(queries: Queries, visit: Visit, kind: str, name: str) -> Context:
    """
    One name.

    Raises:
        NotFound: No run of this name is known.
    """
    since_s = visit.since_s("day")
    rollups: list[Rollup] = list(queries.rollups(kind=kind, name=name, since_s=since_s))
    single: list[Run] = list(queries.runs(kind=kind, name=name, since_s=since_s, limit=MOST_RUNS).rows)
    if not rollups and not single and not any((row[0], row[1]) == (kind, name) for row in queries.names()):
        raise NotFound(
            "No runs with this name.",
            "It may not have run since tracing was enabled, or its records were pruned.",
            ("trace_runs", "All names"),
        )
    opened = None
    if wanted := visit.word("run"):
        opened = next((run for run in single if run.id == wanted), None) or queries.run(wanted)
        if opened is None or (opened.kind, opened.name) != (kind, name):
            raise NotFound("Run not found.", "It may have been pruned.", ("trace_runs", "All names"))
    added = totals(rollups)
    return {
        "opened": opened,
        "opened_failures": queries.failures(task_id=opened.task_id, limit=5).rows if opened and opened.task_id else [],
        "attempts": queries.attempts(opened.task_id) if opened else [],
        "opened_process": queries.processes([opened.process]).get(opened.process) if opened else None,
        "title": f"{name} · runs",
        "kind": kind,
        "name": name,
        "totals": added,
        "timeline": timeline(rollups),
        "scatter": {**scatter(single), "percentiles": {f"p{at}": value for at, value in added.percentiles.items()}},
        "runs": sorted(single, key=lambda run: -run.duration_s)[:100],
        "leaks": queries.leaks(kind=kind, name=name, limit=10).rows,
        "groups": queries.groups(kind=kind, name=name, limit=10).rows,
        "need": queries.need(kind, name, since_s=since_s),
        "flame": flame(queries, visit, kind, name, chosen(queries, visit, kind, name), since_s=since_s),
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "day"),
        "measure": visit.word("measure", [str(one) for one in Measure]),
    }


NAMES = MonitorPage(
    path=r"/trace/runs",
    name="trace_runs",
    title="Runs",
    template="trace/run_names.html",
    tab="runs",
    context=names,
    place=NavPlace.MORE,
)
ONE = MonitorPage(
    path=r"/trace/runs/(task|request|block)/(.+)",
    name="trace_runs_of",
    title="Runs",
    template="trace/runs.html",
    tab="runs",
    context=runs,
)
