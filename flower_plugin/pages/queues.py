"""Queues: how many messages wait, for how long, behind what, and which were run twice; and beat's schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

from celery_trace.alerting.rules.missed_schedule import overdue_s
from celery_trace.model import Consuming, QueueSample, QueueView, ScheduleView
from celery_trace.queries import Queries
from flower_plugin.pages.page import RANGES, Context, MonitorPage, NavPlace, Visit
from flower_plugin.rendering import badges

MOST_QUEUES = 200
MOST_TASKS = 100
MOST_SCHEDULES = 200
#: Lines of the plot, those of the queues with most messages.
MOST_LINES = 8
#: An entry that is this late is marked, seconds; the rule ``missed_schedule`` has a threshold of its own.
LATE_S = 60.0

#: What was counted of messages, in words.
PROBLEMS = {
    "header_refused": "messages with a time of publishing that is no time; their wait is unknown",
    "clock_ahead": "messages from a clock that is ahead; they count as published when they were received",
    "left_out": "messages of more than 500 pairs of queue and task in five minutes; they are not counted",
}


class QueueLine(Struct, kw_only=True):
    """A queue over time, for the script; the waits have times of their own, five minutes apart."""

    label: str
    at: list[float]
    depth: list[int | None]
    oldest_age_s: list[float | None]
    reserved: list[int]
    running: list[int]
    wait_at: list[float]
    wait_s: list[float | None]


def _line(queries: Queries, name: str, samples: Iterable[QueueSample], since_s: float) -> QueueLine:
    rows = list(samples)
    waits = queries.wait_series(queue=name, since_s=since_s)
    return QueueLine(
        label=name,
        at=[row.at_s for row in rows],
        depth=[row.depth for row in rows],
        oldest_age_s=[row.oldest_age_s if row.depth else 0.0 for row in rows],
        reserved=[row.reserved for row in rows],
        running=[row.running for row in rows],
        wait_at=[float(at_s) for at_s, _, _ in waits],
        wait_s=[wait_s for _, wait_s, _ in waits],
    )


def together(samples: Iterable[QueueSample], value: Callable[[QueueSample], int]) -> list[tuple[float, float]]:
    """
    The sum over all queues, oldest first: ``(time, sum)``.

    A queue that has not changed has no sample; its last one counts.
    """
    latest: dict[str, int] = {}
    points: dict[float, float] = {}
    for sample in samples:
        latest[sample.queue] = value(sample)
        points[sample.at_s] = float(sum(latest.values()))
    return list(points.items())


def _words_of(entry: ScheduleView, now_s: float) -> tuple[str, str]:
    """The state of an entry and its color: published, late, or published twice."""
    if entry.processes > 1:
        return "doubled", "danger"
    if overdue_s(entry, now_s) > LATE_S:
        return "missed", "danger"
    return ("published", "success") if entry.published else ("due", "muted")


def _busiest(rows: Iterable[QueueView]) -> list[QueueView]:
    return sorted(rows, key=lambda row: (-(row.depth or 0), -row.started, row.name))


def queues(queries: Queries, visit: Visit) -> Context:
    """All queues, or one of them; with tasks, workers, runs started twice and the schedule."""
    since_s = visit.since_s("hour") or 0.0
    chosen = visit.word("queue")
    rows = [row for row in queries.queue_views(since_s=since_s, limit=MOST_QUEUES).rows if chosen in ("", row.name)]
    rows = _busiest(rows)
    series: dict[str, list[QueueSample]] = defaultdict(list)
    for sample in queries.queue_series(queue=chosen or None, since_s=since_s):
        series[sample.queue].append(sample)
    lines = [_line(queries, row.name, series.get(row.name, ()), since_s) for row in rows[:MOST_LINES]]
    states = [state for state in queries.consuming() if chosen in ("", state.queue)]
    schedule = queries.schedules() if not chosen else []
    return {
        "rows": rows,
        "trends": {
            name: badges.sparkline(together(found, lambda one: one.depth or 0), "Waiting", shown=str)
            for name, found in series.items()
        },
        "chosen": chosen,
        "filtered": bool(chosen),
        "plot": {"lines": [line for line in lines if line.at or line.wait_at]},
        "tasks": queries.task_flows(queue=chosen or None, since_s=since_s)[:MOST_TASKS],
        "behind": _behind(states, {row.name for row in rows if row.depth}),
        "repeated": [run for run in queries.repeated_runs(since_s=since_s) if chosen in ("", run.queue)][:50],
        "risks": [risk for risk in queries.redelivery_risks(since_s=since_s) if chosen in ("", risk.queue)],
        "schedule": [(entry, *_words_of(entry, visit.now_s)) for entry in schedule[:MOST_SCHEDULES]],
        "problems": [(number, PROBLEMS.get(kind, kind)) for kind, number in queries.flow_problems().items()],
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "hour"),
    }


def _behind(states: Iterable[Consuming], waiting: set[str]) -> list[Consuming]:
    """The workers with reserved or scheduled messages, those with most first, and those that take no waiting ones."""
    shown = [
        state if state.queue in waiting else msgspec.structs.replace(state, idle_because="", idle_since_s=None)
        for state in states
    ]
    held = [state for state in shown if state.reserved or state.scheduled or state.idle_because]
    return sorted(held, key=lambda state: (-state.reserved, -state.scheduled, state.worker))[:50]


PAGE = MonitorPage(
    path=r"/trace/queues",
    name="trace_queues",
    title="Queues",
    template="trace/queues.html",
    tab="queues",
    context=queues,
    place=NavPlace.BAR,
)
