"""Overview: what needs attention now, ranked and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.alerting import rules
from celery_trace.heap import forecasting
from celery_trace.model import AlertView, FailureGroup, Forecast, Leak, ProcessView, StatsView, Verdict, WorkerView
from celery_trace.queries import Queries
from celery_trace.stores.lineage import sentence
from celery_trace.text.format import about, clip, count, percent, plural, size
from flower_plugin.auth.roles import Role
from flower_plugin.pages.failures import exception_text
from flower_plugin.pages.limits import Limit, limits_of, of_process
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.rendering import badges
from flower_plugin.rendering.wording import Paths

MOST_ITEMS = 20
#: Workers that are looked at; the list is by name, so fewer would leave out the same ones each time.
MOST_WORKERS = 1000
#: Links that several items may have, each with something else to say.
_SHARED = frozenset({"/alerts", "/statistics", "/workers", "/leaks", "/failures"})
DAY_S = 86_400.0
#: From this share of a limit a process is near it; so many workers are named.
NEAR = 0.8
MOST_NEAR = 5
#: What stays open or alive where no memory does, in words.
RESOURCES = {
    "fds": "descriptors stay open",
    "threads": "threads stay alive",
    "children": "child processes stay",
    "": "native memory",
}
#: Beyond this share of its processes' time, and beyond what it was allowed, measuring is itself worth a line.
COSTLY = 0.03


class Item(Struct, frozen=True, kw_only=True):
    """
    Something that needs attention.

    ``weight`` ranks, greatest first; ``trend`` is markup, or makes it when the item is shown; ``link`` is a path
    below ``/trace``; ``alert`` says how the alert about it stands, and is empty where there is none.
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


def _of_alert(alert: AlertView) -> Item:
    first = alert.text.split(" ", 1)[0]
    # A sentence begins with a capital, the name of a task as it is.
    what = alert.text[:1].upper() + alert.text[1:] if first.isalpha() else alert.text
    told = f"acknowledged by {alert.acknowledged_by}" if alert.acknowledged_by else "alert is on"
    return Item(
        weight=_SEVERITY_WEIGHT.get(alert.severity, 1000) - (500 if alert.acknowledged_by else 0),
        tone="danger" if alert.severity != "info" and not alert.acknowledged_by else "warning",
        what=what,
        detail=f"{told[:1].upper()}{told[1:]} · rule {alert.rule}",
        link=f"/{alert.link.lstrip('/')}" if alert.link else "/alerts",
        at_s=alert.fired_at or alert.since,
        alert=told,
    )


def leaks_by_name(leaks: list[Leak]) -> list[list[Leak]]:
    """The leaking lines of each task, request or block together; the line that keeps most comes first."""
    names: dict[tuple[str, str], list[Leak]] = {}
    for leak in leaks:
        names.setdefault((leak.kind, leak.name), []).append(leak)
    return [
        sorted(lines, key=lambda leak: (leak.verdict != Verdict.LEAKING, -leak.kept_bytes_per_run))
        for lines in names.values()
    ]


def _of_leaks(lines: list[Leak], paths: Paths) -> Item:
    leak = lines[0]
    leaking = leak.verdict == Verdict.LEAKING
    verb = "leaks" if leaking else "keeps growing:"
    no_line = "outside Python's heap" if leak.native else "line not found yet"
    where = f"{paths.short(leak.file)}:{leak.line}" if leak.file else no_line
    return Item(
        weight=(700 if leaking else 400) + min(leak.kept_bytes_per_run / 1e5, 100),
        tone="danger" if leaking else "warning",
        what=f"{leak.name} {verb} {size(leak.kept_bytes_per_run)} a run"
        if leak.kept_bytes_per_run > 0
        else f"{leak.name} {'leaks' if leaking else 'keeps growing'}: {RESOURCES.get(leak.resource, leak.resource)}",
        detail=(
            leak.note
            if leak.native and leak.note
            else (f"held by {holder}, allocated at " if (holder := rules.holder_of(leak.retained_by)) else "")
            + f"{where}, {size(leak.kept_bytes_total)} so far in "
            f"{plural(leak.processes, 'process', 'processes')}"
        )
        + (f", and at {plural(len(lines) - 1, 'further line')}" if len(lines) > 1 else ""),
        link=f"/leaks/{leak.id}",
        at_s=leak.last_seen,
        trend=lambda: badges.sparkline(leak.samples, "Kept"),
        code=leak.code.strip(),
    )


def _of_group(group: FailureGroup, shows_values: bool) -> Item:
    kind, message = exception_text(group.exception, group.outcome)
    lost = group.outcome in ("lost", "time_limit")
    words = {"regressed": "is back", "new": "is new"}.get(group.state, "goes on")
    weight = {"regressed": 650, "new": 550}.get(group.state, 150) + (150 if lost else 0) + min(group.count, 99)
    return Item(
        weight=weight,
        tone="danger" if lost or group.state == "regressed" else "warning",
        what=f"{group.name}: {kind}"
        if not lost
        else f"{group.name} was killed ({str(group.outcome).replace('_', ' ')})",
        detail=(f"{clip(message, 120)} · " if message and shows_values else "")
        + f"{words}, {plural(group.count, 'time')}",
        link=f"/failures/{group.latest_id}",
        at_s=group.last_seen,
        trend=lambda: badges.bars(group.trend, "Failures"),
    )


def _nearest(worker: WorkerView, known: Sequence[Limit]) -> tuple[float, ProcessView, Limit] | None:
    """The process of a worker that stands nearest to a limit, as (share of it, process, limit)."""
    found = [
        (process.memory.rss_bytes / limit.bytes, process, limit)
        for process in worker.processes
        if process.ended_at is None and process.memory is not None
        for limit in of_process(process, worker.name, known)
    ]
    return max(found, key=lambda row: row[0], default=None)


def _of_forecasts(queries: Queries, forecasts: Iterable[Forecast], now_s: float) -> list[Item]:
    """Workers with a process that grows and reaches its limit within a day: the soonest of each."""
    soonest: dict[str, Forecast] = {}
    for forecast in forecasts:
        if forecast.seconds < DAY_S:
            soonest.setdefault(forecast.worker, forecast)
    items = []
    for worker, forecast in list(soonest.items())[:MOST_NEAR]:
        used = f"{size(forecast.used_bytes)} now, {size(forecast.bytes_per_hour)} more an hour"
        items.append(
            Item(
                weight=520 + 100 * max(0.0, 1 - forecast.seconds / DAY_S),
                tone="warning",
                what=f"{worker} {forecasting.sentence(forecast)}",
                detail=f"pid {forecast.pid}, {used}; the limit is {forecasting.meaning(forecast)}",
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
    """Workers whose greatest process is near a limit, the nearest first."""
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
        soon = f", reached in {about(left.seconds)} at this pace" if left is not None else ""
        items.append(
            Item(
                weight=(480 if share < 1 else 620) + min(share, 2) * 20,
                tone="danger" if share >= 1 else "warning",
                what=f"{worker.name or worker.host} "
                + ("is beyond its limit" if share >= 1 else "is near its limit")
                + f": {size(process.memory.rss_bytes)} of {size(limit.bytes)}",
                detail=f"pid {process.pid}"
                + (f", running {process.running}" if process.running else "")
                + f"; the limit is {limit.what}{soon}",
                link=f"/workers?worker={quote(worker.name or worker.host, safe='')}",
                at_s=process.at,
                trend=lambda uid=process.uid: _spark(queries, uid, now_s),  # type: ignore[misc]
            )
        )
    return items


def _of_worker(worker: WorkerView) -> Item | None:
    # A worker that was stopped in order says so in each of its processes; only silence without a word is news.
    if worker.alive or all(process.ended_how == "exit" for process in worker.processes):
        return None
    killed = sum(process.ended_how == "killed" for process in worker.processes)
    return Item(
        weight=300 + killed,
        tone="warning",
        what=f"{'' if worker.role in rules.NO_WORKERS else 'Worker '}{worker.name or worker.host} is silent",
        detail=f"{plural(killed, 'process', 'processes')} of it ended by a kill" if killed else "It wrote no goodbye",
        link=f"/workers?worker={quote(worker.name or worker.host, safe='')}",
        at_s=worker.last_seen,
    )


def _of_stats(stats: StatsView, budget: float, since_s: float) -> list[Item]:
    items = [
        Item(
            weight=610,
            tone="danger",
            what="The store was lost and made again",
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
                what=f"{plural(dropped, 'record')} could not be kept",
                detail="The spool was full. See Statistics for which, and the store for why.",
                link="/statistics",
            )
        )
    if stats.corrupt_lines:
        items.append(
            Item(
                weight=250,
                tone="warning",
                what=f"{plural(stats.corrupt_lines, 'line')} of the spool could not be read",
                detail="They were set aside; the rest went on.",
                link="/statistics",
            )
        )
    if stats.overhead_ratio > max(COSTLY, budget):
        items.append(
            Item(
                weight=240,
                tone="warning",
                what=f"Measuring takes {percent(stats.overhead_ratio)} of the processes' time",
                detail="trace_memory_budget bounds it in the mode auto.",
                link="/statistics",
            )
        )
    return items


def merged(items: list[Item]) -> list[Item]:
    """
    Most urgent first; an alert and the fact that it speaks of are one item.

    The fact says it shorter, so its words stand, at the alert's rank and with a word on the alert.
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


#: Name, value, what it is of, link below ``/trace``, colour.
Figure = tuple[str, str, str, str, str]


def _grow(names: int) -> str:
    return f"{'name' if names == 1 else 'names'} whose runs keep memory, last 24 hours"


def _of_alerts(
    firing: list[AlertView], leaks: list[list[Leak]], groups: list[FailureGroup], visit: Visit
) -> list[Item]:
    """Firing alerts, each with the link of the item about the same thing, so that the two become one."""
    first_line = {f"/leaks/{line.id}": f"/leaks/{lines[0].id}" for lines in leaks for line in lines}
    latest = {group.fingerprint[:8]: f"/failures/{group.latest_id}" for group in groups}
    items = []
    for alert in firing:
        item = _of_alert(visit.alert(alert))
        link = first_line.get(item.link, item.link)
        if alert.rule == "new_failure":
            # It leads to the failure that was the latest then; its subject ends with the group, "(1a2b3c4d)".
            link = latest.get(alert.subject.rpartition("(")[2][:-1], link)
        items.append(replace(item, link=link))
    return items


def _figures(queries: Queries, leaks: int, workers: list[WorkerView], stats: StatsView, since_s: float) -> list[Figure]:
    alive = [worker for worker in workers if worker.alive]
    others = sum(worker.role in rules.NO_WORKERS for worker in alive)
    failed = queries.failed_since(since_s)
    resident = f"resident in {plural(len(alive) - others, 'worker')}"
    return [
        ("Leaks", count(leaks), _grow(leaks), "/leaks", "danger" if leaks else "success"),
        ("Failures", count(failed), "last 24 hours", "/failures?range=day", "danger" if failed else "success"),
        (
            "Memory",
            size(sum(worker.rss_bytes for worker in alive)),
            resident + (f" and {plural(others, 'other')}" if others else ""),
            "/workers",
            "active",
        ),
        ("Cost", percent(stats.overhead_ratio), "of the processes' time goes to measuring", "/statistics", "active"),
    ]


def overview(queries: Queries, visit: Visit) -> Context:
    """Everything that needs attention, most urgent first, and four figures."""
    day = visit.now_s - DAY_S
    rows = queries.leaks(limit=100, since_s=day).rows
    leaks = leaks_by_name([leak for leak in rows if leak.verdict in (Verdict.LEAKING, Verdict.GROWING)])
    groups = queries.groups(since_s=day, state="open", limit=100).rows
    workers = queries.workers(since_s=day, limit=MOST_WORKERS).rows
    stats = queries.stats()
    items = merged(
        [
            *_of_alerts(queries.alerts(state="firing", limit=50).rows, leaks, groups, visit),
            *(_of_leaks(lines, visit.paths) for lines in leaks),
            *(_of_group(group, visit.may(Role.LOCALS)) for group in groups),
            *_of_forecasts(queries, queries.forecasts(), visit.now_s),
            *_near_limits(queries, workers, limits_of(queries, visit), visit.now_s),
            *(item for worker in workers if (item := _of_worker(worker)) is not None),
            *_of_stats(stats, visit.settings.memory_budget, day),
        ]
    )
    shown = [replace(item, trend=item.trend() if callable(item.trend) else item.trend) for item in items[:MOST_ITEMS]]
    return {
        "items": shown,
        "more": max(0, len(items) - MOST_ITEMS),
        "new_here": not workers and not stats.records.get("process", 0) and not stats.records.get("processes", 0),
        "figures": _figures(queries, len(leaks), workers, stats, day),
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
