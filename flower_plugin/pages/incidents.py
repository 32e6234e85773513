"""
What needs attention now: one incident for each fault, with everything that is known of it.

An incident is a fact of the store: a leak, a group of failures, a run that is stuck, a worker near a limit. An alert
about the same subject, and the forecast of a process that grows by a leak, belong to its incident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    Outcome,
    ProcessView,
    RunningView,
    StatsView,
    Verdict,
    WorkerView,
)
from celery_trace.queries import Queries
from celery_trace.stores.lineage import sentence
from celery_trace.text import roles
from celery_trace.text.code_owner import innermost_own
from celery_trace.text.format import about, clip, duration, percent, plural, size
from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.failures import exception_text
from flower_plugin.pages.limits import Limit, limits_of, of_process
from flower_plugin.pages.page import Visit
from flower_plugin.rendering import badges
from flower_plugin.rendering.markup import Paths

DAY_S = 86_400.0
#: A process is near a limit from this share of it; at most so many workers are listed.
NEAR = 0.8
MOST_NEAR = 5
#: A leak is the cause of a forecast from this share of the growth.
CAUSE = 0.25
#: Tracing overhead above this share, and above the budget, needs attention.
COSTLY = 0.03
#: Size of a curve, pixels.
WIDE, HIGH = 180, 44

#: What is left open by a run, and what to do about it, by resource.
_RESOURCES = {
    "fds": ("descriptors open", "Close in each run what it opens."),
    "threads": ("threads alive", "End the threads that a run starts."),
    "children": ("child processes", "End the processes that a run starts."),
}


class Incident(Struct, frozen=True, kw_only=True):
    """
    Something that needs attention.

    Attributes:
        weight: Ranks; the greatest is the most urgent.
        tone: The color, ``danger`` or ``warning``.
        what: What happens, in a sentence without a full stop.
        detail: Further facts.
        advice: What to do next.
        links: ``(label, path)``; a path is below ``/trace``. The first is that of the whole incident.
        trend: Markup, or a function that makes it when the incident is shown.
        alert: The state of the alert about it, empty if there is none.
        subjects: What it is about: an alert about one of these belongs to it.
    """

    weight: float
    tone: str
    what: str
    detail: str
    links: tuple[tuple[str, str], ...]
    advice: str = ""
    at_s: float | None = None
    trend: str | Callable[[], str] = ""
    code: str = ""
    alert: str = ""
    subjects: frozenset[str] = frozenset()

    @property
    def link(self) -> str:
        """The path of the whole incident."""
        return self.links[0][1]

    def shown(self) -> Incident:
        """The same with its trend as markup."""
        return replace(self, trend=self.trend() if callable(self.trend) else self.trend)


# --- alerts -----------------------------------------------------------------------------------------------

_SEVERITY_WEIGHT = {"critical": 1100, "warning": 1000, "info": 600}
#: What an alert about a worker is about, by rule.
_OF_WORKERS = {"worker_silent": "end", "process_memory": "memory", "process_limit": "memory"}


def _subject_of(alert: AlertView) -> str:
    """What an alert is about, as :attr:`Incident.subjects` names it."""
    if alert.rule == "new_failure":
        # Its link is to the failure that was the latest then. Its subject ends with the group, "(1a2b3c4d)".
        return f"group {alert.subject.rpartition('(')[2][:-1]}"
    if alert.rule in {"failure_rate", "lost"}:
        return f"{'killed' if alert.rule == 'lost' else 'failing'} {alert.subject}"
    of_worker = _OF_WORKERS.get(alert.rule)
    return f"{of_worker} of {alert.link.lstrip('/')}" if of_worker else alert.link


def _memory_of(worker: str) -> str:
    return f"memory of {_of_worker(worker).lstrip('/')}"


def _state_of(alert: AlertView) -> str:
    return f"acknowledged by {alert.acknowledged_by}" if alert.acknowledged_by else "firing"


def _weight_of(alert: AlertView) -> float:
    return _SEVERITY_WEIGHT.get(alert.severity, 1000) - (500 if alert.acknowledged_by else 0)


def _of_alert(alert: AlertView) -> Incident:
    first = alert.text.split(" ", 1)[0]
    # Capitalize a sentence, but not the name of a task.
    what = alert.text[:1].upper() + alert.text[1:] if first.isalpha() else alert.text
    return Incident(
        weight=_weight_of(alert),
        tone="danger" if alert.severity != "info" and not alert.acknowledged_by else "warning",
        what=what.rstrip("."),
        detail=f"Rule {alert.rule}",
        links=(("Open", f"/{alert.link.lstrip('/')}" if alert.link else "/alerts"),),
        at_s=alert.fired_at or alert.since,
        alert=_state_of(alert),
    )


def with_alerts(incidents: Iterable[Incident], alerts: Iterable[AlertView]) -> list[Incident]:
    """
    Most urgent first. An alert raises the incident that is about its subject; without one it is an incident itself.

    The incident's text is kept: it has more to say.
    """
    found = sorted(incidents, key=lambda one: -one.weight)
    for alert in alerts:
        subject = _subject_of(alert)
        place = next((at for at, one in enumerate(found) if subject in one.subjects), None)
        if place is None:
            found.append(_of_alert(alert))
            continue
        one = found[place]
        tone = "danger" if alert.severity != "info" and not alert.acknowledged_by else one.tone
        found[place] = replace(
            one, weight=max(one.weight, _weight_of(alert)), tone=tone, alert=one.alert or _state_of(alert)
        )
    return sorted(found, key=lambda one: -one.weight)


# --- leaks ------------------------------------------------------------------------------------------------


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


def of_leak(lines: list[Leak], paths: Paths, cause_of: Forecast | None = None) -> Incident:
    """
    The leak of one name.

    Args:
        lines: Its lines, the worst first.
        paths: Shortens names of files.
        cause_of: The soonest forecast of a process that grows by this leak.
    """
    leak = lines[0]
    leaking = leak.verdict == Verdict.LEAKING
    address = f"/leaks/{leak.id}"
    of_name = f"{leak.kind}/{quote(leak.name, safe='')}"
    forecast = f"; at this rate {_reaches(cause_of)}" if cause_of is not None else ""
    line = (("Line", address),) if leak.file else (("Evidence", address),)
    return Incident(
        weight=(700 if leaking else 400) + min(leak.kept_bytes_per_run / 1e5, 100) + (50 if cause_of else 0),
        tone="danger" if leaking else "warning",
        what=f"{_what_is_kept(leak, paths)}{forecast}",
        detail=_detail_of(leak, len(lines), paths),
        advice=_advice_on(leak),
        links=(*line, ("Flame graph", f"/flame/{of_name}?measure=memory"), *_runs_of(leak)),
        at_s=leak.last_seen,
        trend=lambda: badges.sparkline(leak.samples, "Retained", WIDE, HIGH),
        code=leak.code.strip(),
        subjects=frozenset(
            [f"leaks/{line.id}" for line in lines] + ([_memory_of(cause_of.worker)] if cause_of is not None else [])
        ),
    )


def _runs_of(leak: Leak) -> tuple[tuple[str, str], ...]:
    if leak.kind == Kind.PROCESS:
        return (("Memory", "/workers"),)
    return (("Runs", f"/runs/{leak.kind}/{quote(leak.name, safe='')}"),)


def _what_is_kept(leak: Leak, paths: Paths) -> str:
    """``resize keeps 19.6 KiB each run in proj.SEEN (list) (proj.py:7)``."""
    name = leak.name if leak.kind != Kind.PROCESS else f"The {roles.of_leak(leak.role)}"
    line = f"{paths.short(leak.file)}:{leak.line}"
    place = f" ({line})" if leak.file else ""
    if leak.kept_bytes_per_run <= 0 and leak.resource in _RESOURCES:
        return f"{name} leaves {_RESOURCES[leak.resource][0]} after its runs{place}"
    holder = rules.holder_of(leak.retained_by).partition(" (")[0]
    if holder:
        where = f" in {holder}{place}"
    else:
        where = " in native memory" if leak.native and not leak.file else f", allocated at {line}" if leak.file else ""
    verb = "keeps" if leak.verdict == Verdict.LEAKING else "grows by"
    return f"{name} {verb} {_rate(leak)}{where}"


def _rate(leak: Leak) -> str:
    """Retained bytes per run; per second for memory of the process, which has no runs."""
    if leak.kind == Kind.PROCESS:
        return f"{size(leak.kept_bytes_per_run / PROCESS_RUN_S)} per second"
    return f"{size(leak.kept_bytes_per_run)} each run"


def _detail_of(leak: Leak, lines: int, paths: Paths) -> str:
    facts = [f"{size(leak.kept_bytes_total)} kept in {plural(leak.processes, 'process', 'processes')} so far"]
    if leak.native and leak.note:
        facts.append(leak.note)
    elif not leak.file:
        facts.append("native memory" if leak.native else "line not known yet")
    if leak.began_with:
        facts.append(f"since release {leak.began_with}")
    if lines > 1:
        facts.append(f"and {plural(lines - 1, 'more line')}")
    return paths.in_text(", ".join(facts))


def _advice_on(leak: Leak) -> str:
    if leak.resource in _RESOURCES:
        return _RESOURCES[leak.resource][1]
    if leak.verdict != Verdict.LEAKING and leak.waits_for:
        return f"Not certain yet: the verdict waits for {leak.waits_for}."
    if holder := rules.holder_of(leak.retained_by).partition(" (")[0]:
        return f"Remove from {holder} what each run adds, or give it a limit."
    return "See what allocates it, and by which calls."


# --- failures ---------------------------------------------------------------------------------------------


def of_groups(groups: Sequence[FailureGroup], shows_values: bool) -> Iterator[Incident]:
    """Failures by group. An alert about all failures of a name belongs to its most frequent group."""
    most: dict[tuple[str, str], FailureGroup] = {}
    for group in groups:
        best = most.get((group.kind, group.name))
        if best is None or group.count > best.count:
            most[group.kind, group.name] = group
    for group in groups:
        yield _of_group(group, shows_values, is_most=most[group.kind, group.name] is group)


def _of_group(group: FailureGroup, shows_values: bool, *, is_most: bool) -> Incident:
    kind, message = exception_text(group.exception, group.outcome)
    killed = group.outcome in (Outcome.LOST, Outcome.TIME_LIMIT)
    state = group.state if group.state in ("regressed", "new") else "ongoing"
    weight = {"regressed": 650, "new": 550}.get(group.state, 150) + (150 if killed else 0) + min(group.count, 99)
    address = f"/failures/{group.latest_id}"
    subjects = {f"group {group.fingerprint[:8]}"}
    if is_most:
        subjects.add(f"failing {group.kind} {group.name}")
    if killed:
        subjects.add(f"killed {group.kind} {group.name}")
    what = {Outcome.LOST: "was killed while it ran", Outcome.TIME_LIMIT: "was killed by its time limit"}
    return Incident(
        weight=weight,
        tone="danger" if killed or group.state == "regressed" else "warning",
        what=f"{group.name} {what[group.outcome]}" if killed else f"{group.name} fails with {kind}",
        detail=(f"{clip(message, 120)} · " if message and shows_values else "")
        + f"{state}, {plural(group.count, 'time')}",
        advice="See where it was when it was killed." if killed else "Look at the values at the line that failed.",
        links=(
            ("Line", address),
            *((("Shell", f"{address}#console-title"),) if shows_values and not killed else ()),
            ("All of this group", f"/failures/all?fingerprint={quote(group.fingerprint, safe='')}"),
        ),
        at_s=group.last_seen,
        trend=lambda: badges.bars(group.trend, "Failures", WIDE, HIGH),
        subjects=frozenset(subjects),
    )


# --- runs, workers and limits -----------------------------------------------------------------------------


def of_stuck(run: RunningView, paths: Paths) -> Incident:
    """A run that makes no progress."""
    line = innermost_own(run.stack, paths.is_users)
    place = f" at {paths.short(line.file)}:{line.line}" if line is not None else ""
    waits = run.waiting_for or "what it waits for is not known"
    return Incident(
        weight=1050,
        tone="danger",
        what=f"{run.name} is stuck{place} for {duration(run.stalled_s)}: {waits}",
        detail=f"On {run.worker or run.hostname}, pid {run.pid}, running for {duration(run.elapsed_s)}",
        advice="See what it does now.",
        links=(("Stack", f"/{run.path}"), ("All that runs", "/running")),
        at_s=run.since,
        code=line.code if line is not None else "",
        subjects=frozenset([run.path]),
    )


def _of_worker(name: str) -> str:
    return f"/workers?worker={quote(name, safe='')}"


def _reaches(forecast: Forecast) -> str:
    return f"{forecasting.who(forecast)} {forecasting.in_short(forecast)}"


def soonest(forecasts: Iterable[Forecast]) -> list[Forecast]:
    """The soonest forecast of each worker with a process that reaches its limit within a day."""
    found: dict[str, Forecast] = {}
    for forecast in forecasts:
        if forecast.seconds < DAY_S:
            found.setdefault(forecast.worker, forecast)
    return list(found.values())


def is_cause(lines: Sequence[Leak], forecast: Forecast) -> bool:
    """Whether a leak is what a process grows by."""
    leak = lines[0]
    return any((share.kind, share.name) == (leak.kind, leak.name) and share.share >= CAUSE for share in forecast.shares)


def of_forecast(forecast: Forecast, queries: Queries, now_s: float) -> Incident:
    """A process that grows, by nothing that is known to leak."""
    used = f"{size(forecast.used_bytes)} now, growing {size(forecast.bytes_per_hour)} per hour"
    link = _of_worker(forecast.worker)
    return Incident(
        weight=520 + 100 * max(0.0, 1 - forecast.seconds / DAY_S),
        tone="warning",
        what=_reaches(forecast),
        detail=f"Pid {forecast.pid}, {used}; limit: {forecasting.meaning(forecast)}",
        advice="See which task’s memory grows.",
        links=(("Memory", link),),
        at_s=forecast.at,
        trend=lambda: _spark(queries, forecast.process, now_s),
        subjects=frozenset([_memory_of(forecast.worker)]),
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


def _series(queries: Queries, uid: str, now_s: float) -> list[tuple[float, float]]:
    samples = queries.samples(process=uid, since_s=now_s - 3600)
    return [(sample.at_s, float(sample.memory.rss_bytes)) for sample in samples]


def _spark(queries: Queries, uid: str, now_s: float) -> str:
    return badges.sparkline(_series(queries, uid, now_s), "Resident memory", WIDE, HIGH)


def near_limits(
    queries: Queries, workers: Iterable[WorkerView], known: list[Limit], now_s: float
) -> Iterator[Incident]:
    """Workers with a process near a limit, the nearest first."""
    near = [
        (*nearest, worker)
        for worker in workers
        if worker.alive and (nearest := _nearest(worker, known)) is not None and nearest[0] >= NEAR
    ]
    near.sort(key=lambda row: -row[0])
    for share, process, limit, worker in near[:MOST_NEAR]:
        assert process.memory is not None
        growth = forecasting.growth_of(_series(queries, process.uid, now_s), process.started_at)
        left = forecasting.left_of(growth, limit.bytes, now_s) if growth is not None else None
        soon = f", reached in {about(left.seconds)} at the current rate" if left is not None else ""
        link = _of_worker(worker.name or worker.host)
        yield Incident(
            weight=(480 if share < 1 else 620) + min(share, 2) * 20,
            tone="danger" if share >= 1 else "warning",
            what=f"{worker.name or worker.host} "
            + ("exceeds its limit" if share >= 1 else "is near its limit")
            + f": {size(process.memory.rss_bytes)} of {size(limit.bytes)}",
            detail=f"Pid {process.pid}"
            + (f", running {process.running}" if process.running else "")
            + f"; limit: {limit.what}{soon}",
            advice="See which task’s memory grows.",
            links=(("Memory", link),),
            at_s=process.at,
            trend=lambda uid=process.uid: _spark(queries, uid, now_s),  # type: ignore[misc]
            subjects=frozenset([_memory_of(worker.name or worker.host)]),
        )


def of_worker(worker: WorkerView) -> Incident | None:
    """A worker that was killed or is silent."""
    if worker.state not in ("killed", "silent"):
        return None
    killed = sum(process.ended_how == "killed" for process in worker.processes)
    link = _of_worker(worker.name or worker.host)
    return Incident(
        weight=300 + killed,
        tone="warning",
        what=f"{'' if worker.role in rules.NO_WORKERS else 'Worker '}{worker.name or worker.host} "
        + ("was killed" if worker.state == "killed" else "is silent"),
        detail=f"{plural(killed, 'process', 'processes')} killed" if killed else "It did not exit normally",
        advice="See its log and its host’s, and start it again.",
        links=(("Memory", link), ("Failures", f"/failures/all?worker={quote(worker.name, safe='')}")),
        at_s=worker.last_seen,
        subjects=frozenset([f"end of {link.lstrip('/')}"]),
    )


def of_stats(stats: StatsView, budget: float, since_s: float) -> Iterator[Incident]:
    """What celery-trace itself lost, or costs."""
    links = (("Statistics", "/statistics"),)
    for lost in stats.lost_stores[:1]:
        if lost.at >= since_s:
            yield Incident(
                weight=610, tone="danger", what="The store was lost and recreated", detail=sentence(lost), links=links,
                at_s=lost.at,
            )  # fmt: skip
    dropped = sum(stats.dropped.values())
    if dropped:
        yield Incident(
            weight=600,
            tone="danger",
            what=f"{plural(dropped, 'record')} dropped",
            detail="The spool was full",
            advice="Check the store: records wait in the spool while it does not answer.",
            links=links,
        )
    if stats.corrupt_lines:
        yield Incident(
            weight=250,
            tone="warning",
            what=f"{plural(stats.corrupt_lines, 'spool line')} unreadable",
            detail="They were set aside. All other records were read",
            links=links,
        )
    if stats.overhead_ratio > max(COSTLY, budget):
        yield Incident(
            weight=240,
            tone="warning",
            what=f"Tracing overhead is {percent(stats.overhead_ratio)} of process time",
            detail="trace_memory_budget limits it if trace_memory is auto",
            links=links,
        )


def incidents(
    queries: Queries,
    visit: Visit,
    leaks: list[list[Leak]],
    workers: list[WorkerView],
    running: Iterable[RunningView],
    stats: StatsView,
) -> list[Incident]:
    """
    All of them, most urgent first.

    Args:
        leaks: Leaking lines by name, see :func:`leaks_by_name`.
        workers: Those of the last day.
        running: What runs now.
    """
    day_s = visit.now_s - DAY_S
    groups = queries.groups(since_s=day_s, state="open", limit=100).rows
    forecasts = soonest(queries.forecasts())
    causes = {id(lines): [one for one in forecasts if is_cause(lines, one)] for lines in leaks}
    explained = {one.process for found in causes.values() for one in found}
    alerts = [visit.alert(alert) for alert in queries.alerts(state="firing", limit=50).rows]
    found = [
        *(of_leak(lines, visit.paths, next(iter(causes[id(lines)]), None)) for lines in leaks),
        *of_groups(groups, visit.may(UserRole.LOCALS)),
        *(of_stuck(run, visit.paths) for run in running if run.stuck),
        *[of_forecast(one, queries, visit.now_s) for one in forecasts if one.process not in explained][:MOST_NEAR],
        *near_limits(queries, workers, limits_of(queries, visit), visit.now_s),
        *(one for worker in workers if (one := of_worker(worker)) is not None),
        *of_stats(stats, visit.settings.memory_budget, day_s),
    ]
    return with_alerts(_one_for_each_worker(found), alerts)


def _one_for_each_worker(found: Iterable[Incident]) -> Iterator[Incident]:
    """Without incidents about the memory of a worker of which a more urgent one says why it grows."""
    seen: set[str] = set()
    for one in sorted(found, key=lambda one: -one.weight):
        of_memory = {subject for subject in one.subjects if subject.startswith("memory of ")}
        if of_memory and of_memory <= seen:
            continue
        seen |= of_memory
        yield one
