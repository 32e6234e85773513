"""Overview: what needs attention now, ranked, and the last hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from celery_trace.alerting import rules
from celery_trace.model import Kind, ProcessRecord, QueueSample, Rollup, RunningView, Verdict, WorkerView
from celery_trace.queries import Queries
from celery_trace.text.format import count, duration, percent, plural, size
from flower_plugin.pages.incidents import DAY_S, incidents, leaks_by_name
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.queues import together
from flower_plugin.rendering import badges

MOST_INCIDENTS = 20
#: Workers that are read. The list is sorted by name, so a lower limit would always leave out the same ones.
MOST_WORKERS = 1000
HOUR_S = 3600.0
#: Queues that the strip names, those with most messages.
MOST_QUEUES = 2
#: A worker is not counted after the last sign of it and so many seconds, if its end is not known.
SIGN_S = 900.0


class Figure(Struct, frozen=True):
    """
    A figure. ``link`` is below ``/trace``; ``tone`` is the color of its edge.

    ``danger`` needs attention, ``success`` does not; without a tone a figure is neither.
    """

    label: str
    value: str
    note: str
    link: str
    tone: str = ""


def _kinds_of(workers: Iterable[WorkerView]) -> str:
    """``2 workers and 1 web process``."""
    alive = [worker for worker in workers if worker.alive]
    web = sum(process.ended_at is None for worker in alive if worker.role == "web" for process in worker.processes)
    others = sum(worker.role in rules.NO_WORKERS and worker.role != "web" for worker in alive)
    texts = [plural(sum(worker.role not in rules.NO_WORKERS for worker in alive), "worker")]
    texts += [plural(web, "web process", "web processes")] if web else []
    texts += [plural(others, "other")] if others else []
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _memory(workers: Iterable[WorkerView]) -> tuple[int, str]:
    """
    The memory of all living processes, and what it is: PSS counts shared pages once.

    Where one process has no PSS, it is their resident memory, which counts shared pages in each of them.
    """
    measured = [worker for worker in workers if worker.alive and worker.rss_processes]
    shares = [worker.pss_bytes for worker in measured if worker.pss_bytes is not None]
    if len(shares) == len(measured):
        return sum(shares), "in"
    return sum(worker.rss_bytes for worker in measured), "resident in"


def _figures(queries: Queries, leaks: int, workers: list[WorkerView], since_s: float) -> list[Figure]:
    failed = queries.failed_since(since_s)
    memory, words = _memory(workers)
    names = f"leaking or growing {'name' if leaks == 1 else 'names'}, last 24 hours"
    return [
        Figure("Leaks", count(leaks), names, "/leaks", "danger" if leaks else "success"),
        Figure("Failures", count(failed), "last 24 hours", "/failures?range=day", "danger" if failed else "success"),
        Figure("Memory", size(memory), f"{words} {_kinds_of(workers)}", "/workers"),
    ]


class Strip(Struct, frozen=True):
    """One quantity over the last hour; ``plot`` is markup."""

    label: str
    value: str
    note: str
    plot: str
    link: str


def _waiting(samples: Sequence[QueueSample]) -> Strip:
    """The messages in all queues, with the depth and the age of the longest ones."""
    latest = {sample.queue: sample for sample in samples}
    longest = sorted(latest.values(), key=lambda sample: -(sample.depth or 0))
    texts = [
        f"{sample.queue} {count(sample.depth)}"
        + (f", oldest {duration(sample.oldest_age_s)}" if sample.oldest_age_s is not None else "")
        for sample in longest[:MOST_QUEUES]
        if sample.depth
    ]
    waiting = together(samples, lambda sample: sample.depth or 0)
    return Strip(
        "Waiting", count(int(waiting[-1][1])) if waiting else "–", "; ".join(texts) or "messages in queues",
        badges.sparkline(waiting, "Waiting", shown="{:,.0f}".format), "/queues",
    )  # fmt: skip


def _workers(workers: Iterable[WorkerView], mains: Iterable[ProcessRecord], now_s: float) -> Strip:
    """The workers alive now, and how many were over the last hour."""
    since_s = now_s - HOUR_S
    workers = [worker for worker in workers if worker.role not in rules.NO_WORKERS]
    seen_s = {process.uid: worker.last_seen for worker in workers for process in worker.processes}
    changes = []
    for main in mains:
        ended_s = main.ended_at_s or (
            None if now_s - seen_s.get(main.uid, 0.0) < SIGN_S else seen_s.get(main.uid, main.started_at_s)
        )
        changes.append((max(main.started_at_s, since_s), 1))
        if ended_s is not None:
            changes.append((max(ended_s, since_s), -1))
    level, points = 0, [(since_s, 0.0)]
    for at_s, change in sorted(changes):
        points.append((at_s, float(level)))
        level += change
        points.append((at_s, float(level)))
    points.append((now_s, float(level)))
    alive = sum(worker.alive for worker in workers)
    gone = [worker.state for worker in workers if worker.state in ("killed", "silent")]
    note = ", ".join(f"{gone.count(state)} {state}" for state in sorted(set(gone))) or "workers alive"
    return Strip("Workers", count(alive), note, badges.sparkline(points, "Workers", shown="{:,.0f}".format), "/workers")


def _per_minute(runs: Mapping[int, Sequence[int]], workers: Iterable[WorkerView], now_s: float) -> float:
    """The rate of the last five to ten minutes, or since the oldest living process began."""
    since_s = float(int(now_s) // Rollup.BUCKET_S * Rollup.BUCKET_S - Rollup.BUCKET_S)
    ran = sum(row[0] for at_s, row in runs.items() if at_s >= since_s)
    started = [one.started_at for worker in workers for one in worker.processes if one.ended_at is None]
    return 60 * ran / max(1.0, now_s - max(since_s, min(started, default=since_s)))


def strips(
    queries: Queries, workers: Iterable[WorkerView], running: Sequence[RunningView], now_s: float
) -> list[Strip]:
    """Throughput, waiting, running, failing and workers over the last hour; empty if nothing has run or waited."""
    since_s = now_s - HOUR_S
    rollups = queries.rollups(kind=Kind.TASK, since_s=since_s)
    first_s = int(since_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
    runs = {first_s + at_s: [0, 0] for at_s in range(0, int(HOUR_S) + Rollup.BUCKET_S, Rollup.BUCKET_S)}
    for row in rollups:
        if row.bucket_s in runs:
            runs[row.bucket_s][0] += row.runs
            runs[row.bucket_s][1] += row.failed
    samples = queries.queue_series(since_s=since_s)
    if not rollups and not samples:
        return []
    ran, failed = sum(row[0] for row in runs.values()), sum(row[1] for row in runs.values())
    workers = list(workers)
    tasks = [run for run in running if run.kind == Kind.TASK]
    stuck = sum(run.stuck for run in tasks)
    reserved = sum(state.reserved for state in queries.consuming())
    busy = f"{stuck} stuck" if stuck else f"{count(reserved)} reserved" if reserved else "runs now"
    return [
        Strip("Throughput", f"{_per_minute(runs, workers, now_s):,.1f}", "runs per minute",
              badges.bars([(at_s, row[0]) for at_s, row in runs.items()], "Runs"), "/runs"),
        _waiting(samples),
        Strip("Running", count(len(tasks)), busy,
              badges.sparkline(together(samples, lambda sample: sample.running), "Running", shown="{:,.0f}".format),
              "/running"),
        Strip("Failing", percent(failed / ran if ran else 0), f"of {plural(ran, 'run')}",
              badges.bars([(at_s, row[1]) for at_s, row in runs.items()], "Failed"), "/failures"),
        _workers(workers, queries.starts(since_s=since_s), now_s),
    ]  # fmt: skip


def overview(queries: Queries, visit: Visit) -> Context:
    """What needs attention, most urgent first, three figures, and the last hour."""
    day_s = visit.now_s - DAY_S
    rows = queries.leaks(limit=100, since_s=day_s).rows
    leaks = leaks_by_name([leak for leak in rows if leak.verdict in (Verdict.LEAKING, Verdict.GROWING)])
    workers = queries.workers(since_s=day_s, limit=MOST_WORKERS).rows
    running = queries.running().rows
    stats = queries.stats()
    found = incidents(queries, visit, leaks, workers, running, stats)
    return {
        "incidents": [one.shown() for one in found[:MOST_INCIDENTS]],
        "more": max(0, len(found) - MOST_INCIDENTS),
        "new_here": not workers and not stats.records.get("process", 0) and not stats.records.get("processes", 0),
        "figures": _figures(queries, len(leaks), workers, day_s),
        "strips": strips(queries, workers, running, visit.now_s),
    }


PAGE = MonitorPage(
    path=r"/trace/?",
    name="trace",
    title="Overview",
    template="trace/overview.html",
    tab="trace",
    context=overview,
    place=NavPlace.BAR,
)
