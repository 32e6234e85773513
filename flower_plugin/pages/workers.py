"""Memory of workers: each process over time, runs, retained memory by name, overhead."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.heap import forecasting
from celery_trace.heap.forecasting import WARM_UP_S
from celery_trace.intervals import SAMPLE_CHANGE, SAMPLE_GAP_S, SAMPLE_IDLE_S, SAMPLE_S
from celery_trace.model import MemoryState, ProcessRecord, ProcessView, RunningView, RunSpan, Sample, WorkerView
from celery_trace.queries import Queries
from celery_trace.text.format import duration, percent
from flower_plugin.pages.incidents import COSTLY
from flower_plugin.pages.limits import limits_of, of_process
from flower_plugin.pages.page import RANGES, Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.timemarks import Mark, ended_text, marks_of
from flower_plugin.rendering import colours

MOST_POINTS = 300
#: The store thins out a longer series to about so many samples, one for each slice of the processes' lifetime.
MOST_STORED_POINTS = 1000
#: Lines of the plot; living processes come first.
MOST_PROCESSES = 12
#: Workers of the list. It is sorted by name, so a lower limit would always leave out the same ones.
MOST_WORKERS = 1000
MOST_NAMES = 8
MOST_NAME_PROCESSES = 200
#: Roles of a worker's main process; its start is a restart of the worker.
MAIN_ROLES = frozenset({"main", "solo", "threads", "green"})


def thinned(samples: Sequence[Sample], most: int = MOST_POINTS) -> list[Sample]:
    """
    At most ``most`` samples of one process: for each time slice the one with the most resident memory.

    Peaks must not be lost, since they are what kills a worker.
    """
    if len(samples) <= most:
        return list(samples)
    first, last = samples[0].at_s, samples[-1].at_s
    width_s = (last - first) / most or 1.0
    kept: dict[int, Sample] = {}
    for sample in samples:
        slot = int((sample.at_s - first) / width_s)
        best = kept.get(slot)
        if best is None or sample.memory.rss_bytes > best.memory.rss_bytes:
            kept[slot] = sample
    return [kept[slot] for slot in sorted(kept)]


def silent_from_s(rows: Sequence[Sample], longest_s: float) -> list[float]:
    """The times of the last samples before gaps longer than that, oldest first."""
    return [one.at_s for one, following in pairwise(rows) if following.at_s - one.at_s > longest_s]


class MemoryLine(Struct, kw_only=True):
    """
    One process over time, for the script. All lists have the same length; None means unknown.

    Attributes:
        at: Times, seconds since the epoch.
        name: The running task, request or block.
    """

    label: str
    uid: str = ""
    at: list[float] = []
    rss: list[int | None] = []
    uss: list[int | None] = []
    fds: list[int | None] = []
    threads: list[int | None] = []
    name: list[str] = []

    def add(self, at_s: float, memory: MemoryState | None, name: str) -> None:
        """Add a point, or a gap if ``memory`` is None."""
        self.at.append(at_s)
        self.rss.append(memory.rss_bytes if memory is not None else None)
        self.uss.append(memory.uss_bytes if memory is not None else None)
        self.fds.append(memory.fds if memory is not None else None)
        self.threads.append(memory.threads if memory is not None else None)
        self.name.append(name)

    @property
    def greatest(self) -> int:
        """Most resident bytes."""
        return max((rss or 0 for rss in self.rss), default=0)


class LaneRun(Struct, frozen=True, array_like=True):
    """A bar of a lane: from, until, the place of its name among the names of the plot, and the path of its run."""

    from_s: float
    until_s: float
    name: int
    path: str


class LaneName(Struct, frozen=True, array_like=True):
    """A name in the lanes, with the number of its color."""

    name: str
    colour: int


class MemoryPlot(Struct, frozen=True, kw_only=True):
    """
    A worker's processes over time, living ones first; marks of events; the lowest limit of any process, bytes.

    ``lanes`` are the runs of the lines' processes.
    """

    lines: list[MemoryLine] = []
    lanes: list[list[LaneRun]] = []
    names: list[LaneName] = []
    marks: list[Mark] = []
    limit: float | None = None


def series(samples: Iterable[Sample], worker: WorkerView | None, starts: Iterable[ProcessRecord] = ()) -> MemoryPlot:
    """The plot of a worker, without its limit."""
    by_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.process].append(sample)
    views = {process.uid: process for process in worker.processes} if worker is not None else {}
    ordered = {uid: sorted(rows, key=lambda row: row.at_s) for uid, rows in by_process.items()}
    lived_s = sum(rows[-1].at_s - rows[0].at_s for rows in ordered.values())
    longest_s = max(SAMPLE_GAP_S, 3 * lived_s / MOST_STORED_POINTS)
    lines = [_line(uid, rows, _label(uid, views.get(uid)), longest_s) for uid, rows in ordered.items()]
    ended = {uid for uid, view in views.items() if view.ended_at is not None}
    lines.sort(key=lambda line: (line.uid in ended, -line.greatest))
    shown = [
        ProcessRecord(
            uid=view.uid, host="", pid=view.pid, started_at_s=view.started_at, ended_at_s=view.ended_at,
            ended_how=view.ended_how,
        )
        for view in views.values()
        if view.uid in by_process and view.role not in MAIN_ROLES
    ]  # fmt: skip
    return MemoryPlot(lines=lines[:MOST_PROCESSES], marks=marks_of(shown, starts))


def _label(uid: str, view: ProcessView | None) -> str:
    return f"{view.role} {view.pid}" if view is not None else uid[:8]


def with_lanes(plot: MemoryPlot, spans: Iterable[RunSpan], running: Iterable[RunningView]) -> MemoryPlot:
    """The plot with a lane for each line: the single runs of its process, and the runs in progress."""
    found = [
        (span.process, span.name, span.started_at, span.started_at + span.duration_s, _path_of(span)) for span in spans
    ] + [(run.process, run.name, run.since, run.at, f"/{run.path}") for run in running]
    by_frequency = [name for name, _ in Counter(name for _, name, *_ in found).most_common()]
    places = {name: place for place, name in enumerate(by_frequency)}
    lanes: dict[str, list[LaneRun]] = defaultdict(list)
    for process, name, from_s, until_s, path in found:
        lanes[process].append(LaneRun(from_s, max(from_s, until_s), places[name], path))
    names = [LaneName(name, colours.of_name(name)) for name in by_frequency]
    return replace(plot, lanes=[lanes[line.uid] for line in plot.lines], names=names if any(lanes.values()) else [])


def _path_of(span: RunSpan) -> str:
    return f"/runs/{span.kind}/{quote(span.name, safe='')}?run={quote(span.run, safe='')}"


def _line(uid: str, rows: Sequence[Sample], label: str, longest_s: float) -> MemoryLine:
    """One process: at most :data:`MOST_POINTS` samples, with a gap in each silent period."""
    line = MemoryLine(label=label, uid=uid)
    silences = silent_from_s(rows, longest_s)
    for row in thinned(rows):
        if line.at and silences and silences[0] < row.at_s:
            line.add(max(silences[0], line.at[-1]) + 1.0, None, "")
        silences = [at_s for at_s in silences if at_s >= row.at_s]
        line.add(row.at_s, row.memory, row.name)
    return line


class NoSamples(Struct, frozen=True):
    """Why there is nothing to plot, and when the first sample is due, seconds since the epoch."""

    why: str
    due_s: float | None = None


def no_samples(worker: WorkerView, now_s: float) -> NoSamples:
    """Why a worker has no sample in the time range."""
    living = [process for process in worker.processes if process.ended_at is None]
    if living and all(process.mode == "off" for process in living):
        return NoSamples("Memory is not measured: trace_memory is off in these processes.")
    never = [process for process in worker.processes if process.at is None]
    if len(never) == len(worker.processes):
        if not living:
            return NoSamples(f"No samples: all processes ended within {duration(SAMPLE_S)} of their start.")
        due_s = min(process.started_at for process in living) + SAMPLE_S
        if due_s > now_s:
            return NoSamples("No samples yet. The first is taken", due_s)
        return NoSamples(f"No samples yet. The first is taken {duration(SAMPLE_S)} after the start of a process.")
    return NoSamples(
        f"No samples in this time range. Samples are taken when memory changes by {percent(SAMPLE_CHANGE)}, otherwise "
        f"every {duration(SAMPLE_IDLE_S)}. Choose a longer time range."
    )


class Recycling(Struct, frozen=True):
    """
    How a worker's children ended.

    Children that exited normally were recycled, or stopped with their worker; ``life_s`` and ``bytes_at_end`` are
    their mean lifetime and mean resident memory at the end. The others were killed by a hard time limit, a signal or
    the OOM killer.
    """

    exited: int
    killed: int
    life_s: float | None
    bytes_at_end: float | None


def recycling(worker: WorkerView, since_s: float | None) -> Recycling:
    """How the children ended since then."""
    ended = [
        process
        for process in worker.processes
        if process.role == "child" and process.ended_at is not None and process.ended_at >= (since_s or 0.0)
    ]
    exited = [process for process in ended if process.ended_how != "killed"]
    lives = [(process.ended_at or process.started_at) - process.started_at for process in exited]
    sizes = [process.memory.rss_bytes for process in exited if process.memory is not None]
    return Recycling(
        exited=len(exited),
        killed=len(ended) - len(exited),
        life_s=sum(lives) / len(lives) if lives else None,
        bytes_at_end=sum(sizes) / len(sizes) if sizes else None,
    )


def retained_by_name(kept: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int, float]]:
    """
    Retained memory by name.

    Args:
        kept: ``(kind, name, bytes)``, greatest first.

    Returns:
        ``(kind, name, bytes, share)``, greatest first, without names that retain nothing.
    """
    grown = [row for row in kept if row[2] > 0]
    total = sum(row[2] for row in grown)
    return [(kind, name, value, value / total) for kind, name, value in grown[:MOST_NAMES]]


def _chosen(workers: Sequence[WorkerView], wanted: str) -> WorkerView | None:
    """The worker with this name or host; the first one if no name is given."""
    if not wanted:
        return workers[0] if workers else None
    return next((worker for worker in workers if wanted in (worker.name, worker.host)), None)


def _plot(queries: Queries, visit: Visit, worker: WorkerView, since_s: float | None) -> MemoryPlot:
    samples = queries.samples(worker=worker.name, since_s=since_s)
    starts = queries.starts(worker=worker.name, since_s=since_s)
    plot = series(samples, worker, [main for main in starts if since_s is None or main.started_at_s >= since_s])
    known = limits_of(queries, visit)
    living = [process for process in worker.processes if process.ended_at is None]
    limits = [limit.bytes for process in living for limit in of_process(process, worker.name, known)]
    uids = {line.uid for line in plot.lines}
    running = [run for run in queries.running().rows if run.process in uids]
    plot = with_lanes(plot, queries.spans(uids, since_s=since_s), running)
    return replace(plot, limit=min(limits, default=None))


def _of_worker(queries: Queries, visit: Visit, worker: WorkerView, since_s: float | None) -> Context:
    """The context of the chosen worker."""
    plot = _plot(queries, visit, worker, since_s)
    uids = [process.uid for process in worker.processes[:MOST_NAME_PROCESSES]]
    return {
        "plots": plot,
        "settled": queries.settled([one.uid for one in worker.processes if one.ended_at is None], WARM_UP_S),
        "ended": Counter(ended_text(one.ended_how) for one in worker.processes if one.ended_at is not None),
        "no_samples": None if plot.lines else no_samples(worker, visit.now_s),
        "by_name": retained_by_name(queries.kept_by_name(since_s=since_s, processes=uids)),
        "forecasts": [one for one in queries.forecasts() if one.worker == (worker.name or worker.host)],
        "proposal": queries.proposal(worker),
        "recycled": recycling(worker, since_s),
    }


#: The same without a worker.
_OF_NONE: Context = {
    "plots": MemoryPlot(), "settled": {}, "ended": {}, "no_samples": None, "by_name": [], "forecasts": [],
    "proposal": None, "recycled": None,
}  # fmt: skip


def memory(queries: Queries, visit: Visit) -> Context:
    """All workers, and the chosen one (by default the first live one) over time."""
    since_s = visit.since_s("hour")
    workers = queries.workers(since_s=since_s, limit=MOST_WORKERS).rows
    workers.sort(key=lambda worker: (not worker.alive, -worker.rss_bytes, worker.name))
    wanted = visit.word("worker")
    chosen = _chosen(workers, wanted)
    return {
        **(_of_worker(queries, visit, chosen, since_s) if chosen is not None else _OF_NONE),
        "workers": workers,
        "chosen": chosen,
        "unknown": wanted if wanted and chosen is None else "",
        "ended_text": ended_text,
        "forecast": forecasting,
        "budget": visit.settings.memory_budget,
        "costly": COSTLY,
        "warm_up_s": WARM_UP_S,
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "hour"),
    }


PAGE = MonitorPage(
    path=r"/trace/workers",
    name="trace_workers",
    title="Memory",
    template="trace/workers.html",
    tab="memory",
    context=memory,
    place=NavPlace.BAR,
)
