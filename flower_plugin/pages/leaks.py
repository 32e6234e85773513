"""Leaks: the table, and one leak with its evidence."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from celery_trace.heap import forecasting
from celery_trace.heap.run_counts import PROCESS_RUN_S
from celery_trace.model import Leak, ProcessRecord, Rollup, Verdict, Window
from celery_trace.queries import Queries
from celery_trace.queries.filters import LeakFilter
from celery_trace.text.format import percent, plural
from flower_plugin.auth.roles import UserRole
from flower_plugin.auth.values import without_data
from flower_plugin.pages.page import RANGES, Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.runs import scatter
from flower_plugin.pages.timemarks import Mark, marks_of
from flower_plugin.problems import NotFound
from flower_plugin.rendering.source import one_line, source_lines

#: The resource of a native leak.
RESOURCES = {"fds": "descriptors", "threads": "threads", "children": "child processes", "": "native memory"}
#: Sort orders of the table; the default is by urgency.
SORTS = ("per_run", "total", "runs", "seen", "name")

MOST_ROWS = 300
MOST_LINES_IN_PLOT = 8
MOST_POINTS = 300
#: The line of other processes is shown from this share of the total.
LEAST_SHARE = 0.01
#: Single runs in the scatter plot.
MOST_RUNS = 200


def _filter(visit: Visit) -> LeakFilter:
    return LeakFilter(
        kind=visit.word("kind"),
        name=visit.word("name"),
        verdict=visit.word("verdict", tuple(Verdict)),
        worker=visit.word("worker"),
        queue=visit.word("queue"),
        since_s=visit.since_s(),
        search=visit.word("search"),
    )


def table(queries: Queries, visit: Visit) -> Context:
    """The leak table, filtered by the query string."""
    wanted = _filter(visit)
    sort = visit.word("sort", SORTS)
    page = queries.leaks(**wanted, sort=sort or None, limit=MOST_ROWS, cursor=visit.word("cursor") or None)
    rows = page.rows
    return {
        "rows": rows,
        "next": page.next,
        "filtered": any(wanted.values()),
        "sort": sort,
        "ranges": RANGES,
        "verdicts": list(Verdict),
        "queues": queries.queues(),
        "names": sorted({leak.name for leak in rows}),
        "any_process": bool(rows) or bool(queries.workers(limit=1).rows),
    }


class GrowthLine(Struct, frozen=True):
    """Retained memory of one process, or of all, over time: points of time and bytes."""

    label: str
    points: list[tuple[float, float]]


class GrowthPlot(Struct, frozen=True):
    """Retained memory over time: lines, the greatest growth first, and marks of events."""

    lines: list[GrowthLine]
    marks: list[Mark]


def growth(
    leak: Leak,
    windows: Iterable[Window],
    rollups: Iterable[Rollup],
    processes: Mapping[str, ProcessRecord],
    starts: Iterable[ProcessRecord] = (),
    now_s: float = math.inf,
) -> GrowthPlot:
    """
    Retained memory over time.

    The lines of the processes and "other processes" add up to "all processes" at each time, and that ends at the row's
    total. "Other processes" are those without a line of their own; what they retain rises with the runs of the name.

    Args:
        leak: The row.
        windows: The leak's evidence. A process's line goes from its start through each window and rises by the runs
            since the previous window times the bytes per run; steady windows add nothing.
        rollups: Rollups of all processes of one name, in any order. They give the times of the runs.
        processes: By uid.
        starts: Main processes of workers, for the marks of restarts and deploys.
        now_s: The point of the current rollup is at this time, not in the future.
    """
    by_process: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        by_process[window.process].append(window)
    shown = [processes[uid] for uid in by_process if uid in processes]
    lines = [
        GrowthLine(f"pid {process.pid}", [(process.started_at_s, 0.0), *_points(by_process[process.uid], leak)])
        for process in shown
    ]
    lines.sort(key=lambda line: -line.points[-1][1])
    course = _course(leak, sorted(rollups, key=lambda row: row.bucket_s), lines, now_s)
    if not course:
        return GrowthPlot(lines[:MOST_LINES_IN_PLOT], marks_of(shown, starts))
    lines = lines[: MOST_LINES_IN_PLOT - 2]
    rest = max(0.0, leak.kept_bytes_total - sum(line.points[-1][1] for line in lines))
    times = {at_s for at_s, _ in course}.union(at_s for line in lines for at_s, _ in line.points)
    others = [(at_s, rest * _at(course, at_s)) for at_s in _thinned(sorted(times))]
    total = [(at_s, kept + sum(_at(line.points, at_s) for line in lines)) for at_s, kept in others]
    if rest > LEAST_SHARE * leak.kept_bytes_total:
        lines.append(GrowthLine("other processes", others))
    return GrowthPlot([GrowthLine("all processes", total), *lines], marks_of(shown, starts))


def _at(points: Sequence[tuple[float, float]], at_s: float) -> float:
    """The value of a line at a time: 0 before its first point, its last value after the last one."""
    after = bisect.bisect_right(points, at_s, key=lambda point: point[0])
    if after in (0, len(points)):
        return points[-1][1] if after else 0.0
    (from_s, low), (until_s, high) = points[after - 1], points[after]
    return low + (high - low) * (at_s - from_s) / (until_s - from_s)


def _points(windows: Sequence[Window], leak: Leak) -> list[tuple[float, float]]:
    """Retained bytes of a process after each window, or the series of the latest window that has one."""
    sampled = [window for window in windows if window.growth]
    if sampled:
        return list(max(sampled, key=lambda window: window.at_s).growth)
    points: list[tuple[float, float]] = []
    kept, ran = 0.0, 0
    for window in sorted(windows, key=lambda window: (window.at_s, window.run_number)):
        rate = _rate(window, leak) if window.verdict is not Verdict.STEADY else 0.0
        kept += max(0.0, (window.run_number - ran) * rate)
        points.append((window.at_s, kept))
        ran = max(ran, window.run_number)
    return points


def _rate(window: Window, leak: Leak) -> float:
    """Retained bytes per run at the leak's line in a window."""
    of_site = (site.bytes for site in window.sites if (site.file, site.line) == (leak.file, leak.line))
    return float(next(of_site, window.kept_bytes_per_run))


def _course(
    leak: Leak, rollups: Sequence[Rollup], lines: Sequence[GrowthLine], now_s: float
) -> list[tuple[float, float]]:
    """The share of the total that was retained by each time, as far as the runs of the name show it; 1 at the end."""
    rows = [row for row in rollups if row.runs and row.bucket_s + Rollup.BUCKET_S > leak.first_seen]
    if not rows or leak.kept_bytes_total <= 0:
        return []
    runs = sum(row.runs for row in rows)
    before = max(0.0, 1 - max(leak.kept_bytes_per_run, 0) * runs / leak.kept_bytes_total)
    began_s = min((line.points[0][0] for line in lines), default=0.0)
    first_s = float(rows[0].bucket_s)
    points = [(min(max(first_s, began_s), first_s + Rollup.BUCKET_S), before)]
    ran = 0
    for row in rows:
        ran += row.runs
        at_s = max(points[-1][0], min(float(row.bucket_s + Rollup.BUCKET_S), now_s))
        points.append((at_s, before + (1 - before) * ran / runs))
    return points


def _thinned(times: Sequence[float]) -> Sequence[float]:
    step = len(times) // MOST_POINTS + 1
    return times if step == 1 else [*times[:-1:step], times[-1]]


def _first_s(
    windows: Iterable[Window], rollups: Iterable[Rollup], processes: Mapping[str, ProcessRecord]
) -> float | None:
    """The earliest time of the plot."""
    times = [process.started_at_s for process in processes.values()]
    times += [float(row.bucket_s) for row in rollups] + [window.at_s for window in windows]
    return min(times, default=None)


def sentence(leak: Leak) -> str:
    """The verdict as a sentence without markup."""
    what = {
        Verdict.LEAKING: "leaks",
        Verdict.GROWING: "grows",
        Verdict.SUSPECT: "may leak",
        Verdict.STEADY: "is steady",
        Verdict.TOO_FEW_RUNS: "has too few runs for a verdict",
    }[Verdict(leak.verdict)]
    if leak.native:
        return f"{leak.name} {what} ({RESOURCES.get(leak.resource, leak.resource)})"
    return f"{leak.name} {what}"


def evidence(leak: Leak) -> str:
    """The reason of the verdict as a sentence: ``Memory of 212 of 220 runs is still alive, in 2 processes``."""
    if not leak.why:
        return ""
    sure = leak.confidence
    confidence = f" It grows with {confidence_text(sure)} confidence." if sure else ""
    return f"{leak.why[:1].upper()}{leak.why[1:]}, in {plural(leak.processes, 'process', 'processes')}.{confidence}"


def confidence_text(share: float) -> str:
    """``97.5 %``; a confidence is never 100 %."""
    return "more than 99.9 %" if share > 0.999 else percent(share)


def leak(queries: Queries, visit: Visit, identifier: str) -> Context:
    """
    One leak with its evidence.

    Raises:
        NotFound: No leak has this id.
    """
    found: Leak | None = queries.leak(identifier)
    if found is None:
        raise NotFound(
            "Leak not found.",
            "It may have been pruned, or the line may have moved since the link was created.",
            ("trace_leaks", "All leaks"),
        )
    if not visit.may(UserRole.LOCALS):
        found = without_data(found)
    windows: Sequence[Window] = sorted(queries.leak_windows(identifier), key=lambda window: -window.at_s)
    single = queries.runs(kind=found.kind, name=found.name, limit=MOST_RUNS).rows
    rollups = queries.rollups(kind=found.kind, name=found.name, since_s=visit.now_s - 7 * 86_400)
    uids = sorted({window.process for window in windows})
    processes = queries.processes(uids)
    starts = queries.starts(since_s=_first_s(windows, rollups, processes))
    context_lines = visit.paths.own_source(found.file, found.line, found.code)
    if not context_lines and found.code:
        context_lines = [(found.line, found.code)]
    return {
        "title": f"{found.name} · leak",
        "leak": found,
        "sentence": sentence(found),
        "source": source_lines(context_lines, found.line),
        "traceback": [(line, one_line(line.code)) for line in found.traceback],
        "evidence": evidence(found),
        "windows": windows[:100],
        "processes": processes,
        "plot": growth(found, windows, rollups, processes, starts, visit.now_s),
        "samples": found.samples,
        "runs": single[:8],
        "scatter": scatter(single),
        "types": sorted(found.types, key=lambda row: -row.bytes),
        "process_run": f"{PROCESS_RUN_S:.0f} s",
        "forecasts": [
            one
            for one in queries.forecasts()
            if any((share.kind, share.name) == (found.kind, found.name) for share in one.shares)
        ][:3],
        "forecast": forecasting,
    }


LIST = MonitorPage(
    path=r"/trace/leaks",
    name="trace_leaks",
    title="Leaks",
    template="trace/leaks.html",
    tab="leaks",
    context=table,
    place=NavPlace.BAR,
)
ONE = MonitorPage(
    path=r"/trace/leaks/([^/]+)",
    name="trace_leak",
    title="Leak",
    template="trace/leak.html",
    tab="leaks",
    context=leak,
)
