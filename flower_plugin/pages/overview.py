"""Overview: what needs attention now, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.alerting import rules
from celery_trace.heap import forecasting
from celery_trace.heap.run_counts import PROCESS_RUN_S
from celery_trace.model import (
    AlertView,
    FailureGroup,
    Forecast,
    Kind,
    Leak,
    ProcessView,
    Rollup,
    RunningView,
    StatsView,
    Verdict,
    WorkerView,
)
from celery_trace.queries import Queries
from celery_trace.stores.lineage import sentence
from celery_trace.text.code_owner import innermost_own
from celery_trace.text.format import about, clip, count, duration, percent, plural, size
from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.failures import exception_text
from flower_plugin.pages.limits import Limit, limits_of, of_process
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.queues import together
from flower_plugin.rendering import badges
from flower_plugin.rendering.markup import Paths

MOST_ITEMS = 20
#: Workers that are read. The list is sorted by name, so a lower limit would always leave out the same ones.
MOST_WORKERS = 1000
#: Links that several unrelated items may have.
_SHARED = frozenset({"/alerts", "/statistics", "/workers", "/leaks", "/failures"})
DAY_S = 86_400.0
HOUR_S = 3600.0
#: A process is near a limit from this share of it; at most so many workers are listed.
NEAR = 0.8
MOST_NEAR = 5
#: What leaks, if not memory.
RESOURCES = {
    "fds": "descriptors stay open",
    "threads": "threads stay alive",
    "children": "child processes stay",
    "": "native memory",
}
#: Tracing overhead above this share, and above the budget, needs attention.
COSTLY = 0.03


class Item(Struct, frozen=True, kw_only=True):
    """
    Something that needs attention.

    ``weight`` ranks, greatest first. ``trend`` is markup, or a function that makes it when the item is shown. ``link``
    is a path below ``/trace``. ``alert`` is the state of the alert about it, empty if there is none.
    """

    weight: float
    tone: str
    what: str
    detail: str
    link: str
    at_s: float | None = None
    trend: str | Callable[[], str] = ""
    code: str = ""
    alert: str = ""


_SEVERITY_WEIGHT = {"critical": 1100, "warning": 1000, "info": 600}


def _alert_item(alert: AlertView) -> Item:
    first = alert.text.split(" ", 1)[0]
    # Capitalize a sentence, but not the name of a task.
    what = alert.text[:1].upper() + alert.text[1:] if first.isalpha() else alert.text
    state = f"acknowledged by {alert.acknowledged_by}" if alert.acknowledged_by else "firing"
    return Item(
        weight=_SEVERITY_WEIGHT.get(alert.severity, 1000) - (500 if alert.acknowledged_by else 0),
        tone="danger" if alert.severity != "info" and not alert.acknowledged_by else "warning",
        what=what,
        detail=f"{state[:1].upper()}{state[1:]} · rule {alert.rule}",
        link=f"/{alert.link.lstrip('/')}" if alert.link else "/alerts",
        at_s=alert.fired_at or alert.since,
        alert=state,
    )


def leaks_by_name(leaks: list[Leak]) -> list[list[Leak]]:
    """
    The leaking lines of each task, request or block; the line that retains most first.

    What grows inside a bounded holder needs no attention.
    """
    names: dict[tuple[str, str], list[Leak]] = {}
    for leak in leaks:
        if leak.verdict == Verdict.LEAKING or not leak.bounded:
            names.setdefault((leak.kind, leak.name), []).append(leak)
    return [
        sorted(lines, key=lambda leak: (leak.verdict != Verdict.LEAKING, -leak.kept_bytes_per_run))
        for lines in names.values()
    ]


def _leak_item(lines: list[Leak], paths: Paths) -> Item:
    leak = lines[0]
    leaking = leak.verdict == Verdict.LEAKING
    verb = "leaks" if leaking else "grows by"
    no_line = "native memory" if leak.native else "line not known yet"
    where = f"{paths.short(leak.file)}:{leak.line}" if leak.file else no_line
    return Item(
        weight=(700 if leaking else 400) + min(leak.kept_bytes_per_run / 1e5, 100),
        tone="danger" if leaking else "warning",
        what=f"{leak.name} {verb} {_rate(leak)}"
        if leak.kept_bytes_per_run > 0
        else f"{leak.name} {'leaks' if leaking else 'grows'}: {RESOURCES.get(leak.resource, leak.resource)}",
        detail=(
            leak.note
            if leak.native and leak.note
            else (f"held by {holder}, allocated at " if (holder := rules.holder_of(leak.retained_by)) else "")
            + f"{where}, {size(leak.kept_bytes_total)} in "
            f"{plural(leak.processes, 'process', 'processes')}"
        )
        + (f", and {plural(len(lines) - 1, 'more line')}" if len(lines) > 1 else ""),
        link=f"/leaks/{leak.id}",
        at_s=leak.last_seen,
        trend=lambda: badges.sparkline(leak.samples, "Retained"),
        code=leak.code.strip(),
    )


def _rate(leak: Leak) -> str:
    """Retained bytes per run; per second for memory of the process, which has no runs."""
    if leak.kind == Kind.PROCESS:
        return f"{size(leak.kept_bytes_per_run / PROCESS_RUN_S)} per second"
    return f"{size(leak.kept_bytes_per_run)} per run"


def _group_item(group: FailureGroup, shows_values: bool) -> Item:
    kind, message = exception_text(group.exception, group.outcome)
    lost = group.outcome in ("lost", "time_limit")
    state = group.state if group.state in ("regressed", "new") else "ongoing"
    weight = {"regressed": 650, "new": 550}.get(group.state, 150) + (150 if lost else 0) + min(group.count, 99)
    return Item(
        weight=weight,
        tone="danger" if lost or group.state == "regressed" else "warning",
        what=f"{group.name}: {kind}"
        if not lost
        else f"{group.name} was killed ({str(group.outcome).replace('_', ' ')})",
        detail=(f"{clip(message, 120)} · " if message and shows_values else "")
        + f"{state}, {plural(group.count, 'time')}",
        link=f"/failures/{group.latest_id}",
        at_s=group.last_seen,
        trend=lambda: badges.bars(group.trend, "Failures"),
    )


def _stuck_item(run: RunningView, paths: Paths) -> Item:
    line = innermost_own(run.stack, paths.is_users)
    place = f", at {paths.short(line.file)}:{line.line}" if line is not None else ""
    return Item(
        weight=1050,
        tone="danger",
        what=f"{run.name} is stuck",
        detail=f"{run.waiting_for or 'What it waits for is not known'}{place}; "
        f"on {run.worker or run.hostname}, pid {run.pid}, for {duration(run.stalled_s)}",
        link=f"/{run.path}",
        at_s=run.since,
        code=line.code if line is not None else "",
    )


def _nearest(worker: WorkerView, known: Sequence[Limit]) -> tuple[float, ProcessView, Limit] | None:
    """The process of a worker that is nearest to a limit, as (share of it, process, limit)."""
    found = [
        (process.memory.rss_bytes / limit.bytes, process, limit)
        for process in worker.processes
        if process.ended_at is None and process.memory is not None
        for limit in of_process(process, worker.name, known)
    ]
    return max(found, key=lambda row: row[0], default=None)


def _forecast_items(queries: Queries, forecasts: Iterable[Forecast], now_s: float) -> list[Item]:
    """The soonest forecast of each worker with a process that reaches its limit within a day."""
    soonest: dict[str, Forecast] = {}
    for forecast in forecasts:
        if forecast.seconds < DAY_S:
            soonest.setdefault(forecast.worker, forecast)
    items = []
    for worker, forecast in list(soonest.items())[:MOST_NEAR]:
        used = f"{size(forecast.used_bytes)} now, growing {size(forecast.bytes_per_hour)} per hour"
        items.append(
            Item(
                weight=520 + 100 * max(0.0, 1 - forecast.seconds / DAY_S),
                tone="warning",
                what=f"{worker} {forecasting.sentence(forecast)}",
                detail=f"pid {forecast.pid}, {used}; limit: {forecasting.meaning(forecast)}",
                link=f"/workers?worker={quote(worker, safe='')}",
                at_s=forecast.at,
                trend=lambda uid=forecast.process: _spark(queries, uid, now_s),  # type: ignore[misc]
            )
        )
    return items


def _series(queries: Queries, uid: str, now_s: float) -> list[tuple[float, float]]:
    samples = queries.samples(process=uid, since_s=now_s - 3600)
    return [(sample.at_s, float(sample.memory.rss_bytes)) for sample in samples]


def _spark(queries: Queries, uid: str, now_s: float) -> str:
    return badges.sparkline(_series(queries, uid, now_s), "Resident memory")


def _near_limits(queries: Queries, workers: Iterable[WorkerView], known: list[Limit], now_s: float) -> list[Item]:
    """Workers with a process near a limit, the nearest first."""
    near = [
        (*nearest, worker)
        for worker in workers
        if worker.alive and (nearest := _nearest(worker, known)) is not None and nearest[0] >= NEAR
    ]
    near.sort(key=lambda row: -row[0])
    items = []
    for share, process, limit, worker in near[:MOST_NEAR]:
        assert process.memory is not None
        growth = forecasting.growth_of(_series(queries, process.uid, now_s), process.started_at)
        left = forecasting.left_of(growth, limit.bytes, now_s) if growth is not None else None
        soon = f", reached in {about(left.seconds)} at the current rate" if left is not None else ""
        items.append(
            Item(
                weight=(480 if share < 1 else 620) + min(share, 2) * 20,
                tone="danger" if share >= 1 else "warning",
                what=f"{worker.name or worker.host} "
                + ("exceeds its limit" if share >= 1 else "is near its limit")
                + f": {size(process.memory.rss_bytes)} of {size(limit.bytes)}",
                detail=f"pid {process.pid}"
                + (f", running {process.running}" if process.running else "")
                + f"; limit: {limit.what}{soon}",
                link=f"/workers?worker={quote(worker.name or worker.host, safe='')}",
                at_s=process.at,
                trend=lambda uid=process.uid: _spark(queries, uid, now_s),  # type: ignore[misc]
            )
        )
    return items


def _worker_item(worker: WorkerView) -> Item | None:
    if worker.state not in ("killed", "silent"):
        return None
    killed = sum(process.ended_how == "killed" for process in worker.processes)
    return Item(
        weight=300 + killed,
        tone="warning",
        what=f"{'' if worker.role in rules.NO_WORKERS else 'Worker '}{worker.name or worker.host} "
        + ("was killed" if worker.state == "killed" else "is silent"),
        detail=f"{plural(killed, 'process', 'processes')} killed" if killed else "It did not exit normally",
        link=f"/workers?worker={quote(worker.name or worker.host, safe='')}",
        at_s=worker.last_seen,
    )


def _stats_items(stats: StatsView, budget: float, since_s: float) -> list[Item]:
    items = [
        Item(
            weight=610,
            tone="danger",
            what="The store was lost and recreated",
            detail=sentence(lost),
            link="/statistics",
            at_s=lost.at,
        )
        for lost in stats.lost_stores[:1]
        if lost.at >= since_s
    ]
    dropped = sum(stats.dropped.values())
    if dropped:
        items.append(
            Item(
                weight=600,
                tone="danger",
                what=f"{plural(dropped, 'record')} dropped",
                detail="The spool was full. See Statistics for details, and check the store.",
                link="/statistics",
            )
        )
    if stats.corrupt_lines:
        items.append(
            Item(
                weight=250,
                tone="warning",
                what=f"{plural(stats.corrupt_lines, 'spool line')} unreadable",
                detail="They were set aside. All other records were read.",
                link="/statistics",
            )
        )
    if stats.overhead_ratio > max(COSTLY, budget):
        items.append(
            Item(
                weight=240,
                tone="warning",
                what=f"Tracing overhead is {percent(stats.overhead_ratio)} of process time",
                detail="trace_memory_budget limits it if trace_memory is auto.",
                link="/statistics",
            )
        )
    return items


def merged(items: list[Item]) -> list[Item]:
    """
    Most urgent first; an alert and the item with the same link become one.

    The item's text is shorter and is kept, with the alert's rank and state.
    """
    found: dict[str, Item] = {}
    for item in sorted(items, key=lambda item: -item.weight):
        first = found.get(item.link)
        if first is None or item.link in _SHARED:
            found[item.link if first is None else f"{item.link}#{len(found)}"] = item
        else:
            fact, other = (item, first) if first.alert and not item.alert else (first, item)
            found[item.link] = replace(
                fact,
                weight=first.weight,
                tone="danger" if "danger" in (first.tone, item.tone) else fact.tone,
                alert=fact.alert or other.alert,
                trend=fact.trend or other.trend,
                code=fact.code or other.code,
            )
    return list(found.values())


#: Label, value, note, link below ``/trace``, color.
Figure = tuple[str, str, str, str, str]


def _leaking_names(names: int) -> str:
    return f"leaking or growing {'name' if names == 1 else 'names'}, last 24 hours"


def _alert_items(
    firing: list[AlertView], leaks: list[list[Leak]], groups: list[FailureGroup], visit: Visit
) -> list[Item]:
    """Firing alerts, each with the link of the item about the same subject, so that :func:`merged` joins them."""
    first_line = {f"/leaks/{line.id}": f"/leaks/{lines[0].id}" for lines in leaks for line in lines}
    latest = {group.fingerprint[:8]: f"/failures/{group.latest_id}" for group in groups}
    items = []
    for alert in firing:
        item = _alert_item(visit.alert(alert))
        link = first_line.get(item.link, item.link)
        if alert.rule == "new_failure":
            # It links to the failure that was the latest then. Its subject ends with the group, "(1a2b3c4d)".
            link = latest.get(alert.subject.rpartition("(")[2][:-1], link)
        items.append(replace(item, link=link))
    return items


def _figures(queries: Queries, leaks: int, workers: list[WorkerView], stats: StatsView, since_s: float) -> list[Figure]:
    alive = [worker for worker in workers if worker.alive]
    others = sum(worker.role in rules.NO_WORKERS for worker in alive)
    failed = queries.failed_since(since_s)
    resident = f"resident in {plural(len(alive) - others, 'worker')}"
    return [
        ("Leaks", count(leaks), _leaking_names(leaks), "/leaks", "danger" if leaks else "success"),
        ("Failures", count(failed), "last 24 hours", "/failures?range=day", "danger" if failed else "success"),
        (
            "Memory",
            size(sum(worker.rss_bytes for worker in alive)),
            resident + (f" and {plural(others, 'other')}" if others else ""),
            "/workers",
            "active",
        ),
        ("Overhead", percent(stats.overhead_ratio), "of process time", "/statistics", "active"),
    ]


class Strip(Struct, frozen=True):
    """One quantity over the last hour; ``plot`` is markup."""

    label: str
    value: str
    note: str
    plot: str
    link: str


def strips(queries: Queries, now_s: float) -> list[Strip]:
    """Throughput, waiting, running and failing over the last hour; empty if nothing has run or waited."""
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
    waiting = together(samples, lambda sample: sample.depth or 0)
    running = together(samples, lambda sample: sample.running)
    states = queries.consuming()
    return [
        Strip("Throughput", f"{60 * ran / (now_s - first_s):,.1f}", "runs per minute",
              badges.bars([(at_s, row[0]) for at_s, row in runs.items()], "Runs"), "/runs"),
        Strip("Waiting", count(int(waiting[-1][1])) if waiting else "–", "messages in queues",
              badges.sparkline(waiting, "Waiting", shown="{:,.0f}".format), "/queues"),
        Strip("Running", count(sum(state.running for state in states)), "runs now",
              badges.sparkline(running, "Running", shown="{:,.0f}".format), "/workers"),
        Strip("Failing", percent(failed / ran if ran else 0), f"of {plural(ran, 'run')}",
              badges.bars([(at_s, row[1]) for at_s, row in runs.items()], "Failed"), "/failures"),
    ]  # fmt: skip


def overview(queries: Queries, visit: Visit) -> Context:
    """What needs attention, most urgent first, four figures, and the last hour."""
    day = visit.now_s - DAY_S
    rows = queries.leaks(limit=100, since_s=day).rows
    leaks = leaks_by_name([leak for leak in rows if leak.verdict in (Verdict.LEAKING, Verdict.GROWING)])
    groups = queries.groups(since_s=day, state="open", limit=100).rows
    workers = queries.workers(since_s=day, limit=MOST_WORKERS).rows
    stats = queries.stats()
    items = merged(
        [
            *_alert_items(queries.alerts(state="firing", limit=50).rows, leaks, groups, visit),
            *(_leak_item(lines, visit.paths) for lines in leaks),
            *(_group_item(group, visit.may(UserRole.LOCALS)) for group in groups),
            *(_stuck_item(run, visit.paths) for run in queries.running().rows if run.stuck),
            *_forecast_items(queries, queries.forecasts(), visit.now_s),
            *_near_limits(queries, workers, limits_of(queries, visit), visit.now_s),
            *(item for worker in workers if (item := _worker_item(worker)) is not None),
            *_stats_items(stats, visit.settings.memory_budget, day),
        ]
    )
    shown = [replace(item, trend=item.trend() if callable(item.trend) else item.trend) for item in items[:MOST_ITEMS]]
    return {
        "items": shown,
        "more": max(0, len(items) - MOST_ITEMS),
        "new_here": not workers and not stats.records.get("process", 0) and not stats.records.get("processes", 0),
        "figures": _figures(queries, len(leaks), workers, stats, day),
        "strips": strips(queries, visit.now_s),
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
