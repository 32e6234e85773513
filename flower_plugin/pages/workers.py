"""Memory of workers: each process over time, runs, retained memory by name, overhead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.heap import forecasting
from celery_trace.intervals import SAMPLE_CHANGE, SAMPLE_GAP_S, SAMPLE_IDLE_S, SAMPLE_S, SAMPLES_IN_A_ROW_S
from celery_trace.model import MemoryState, ProcessRecord, ProcessView, Sample, WorkerView
from celery_trace.queries import Queries
from celery_trace.text.format import duration, percent
from flower_plugin.pages.limits import limits_of, of_process
from flower_plugin.pages.page import RANGES, Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.timemarks import Mark, ended_text, marks_of

MOST_POINTS = 300
#: The store thins out a longer series to about so many samples, one for each slice of the processes' lifetime.
MOST_STORED_POINTS = 1000
MOST_PROCESSES = 24
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


class MemoryPlot(Struct, frozen=True, kw_only=True):
    """
    A worker's processes over time, the largest first; marks of events; the lowest limit of any process, bytes.

    Samples that are at most ``in_a_row_s`` apart are connected.
    """

    lines: list[MemoryLine] = []
    marks: list[Mark] = []
    limit: float | None = None
    in_a_row_s: float = SAMPLES_IN_A_ROW_S


def series(samples: Iterable[Sample], worker: WorkerView | None, starts: Iterable[ProcessRecord] = ()) -> MemoryPlot:
    """The plot of a worker, without its limit."""
    by_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.process].append(sample)
    views = {process.uid: process for process in worker.processes} if worker is not None else {}
    ordered = {uid: sorted(rows, key=lambda row: row.at_s) for uid, rows in by_process.items()}
    lived_s = sum(rows[-1].at_s - rows[0].at_s for rows in ordered.values())
    longest_s = max(SAMPLE_GAP_S, 3 * lived_s / MOST_STORED_POINTS)
    lines = [_line(rows, _label(uid, views.get(uid)), longest_s) for uid, rows in ordered.items()]
    lines.sort(key=lambda line: -line.greatest)
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


def _line(rows: Sequence[Sample], label: str, longest_s: float) -> MemoryLine:
    """One process: at most :data:`MOST_POINTS` samples, with a gap in each silent period."""
    line = MemoryLine(label=label)
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
    return replace(plot, limit=min(limits, default=None))


def _of_worker(queries: Queries, visit: Visit, worker: WorkerView, since_s: float | None) -> Context:
    """The context of the chosen worker."""
    plot = _plot(queries, visit, worker, since_s)
    uids = [process.uid for process in worker.processes[:MOST_NAME_PROCESSES]]
    return {
        "plots": plot,
        "no_samples": None if plot.lines else no_samples(worker, visit.now_s),
        "by_name": retained_by_name(queries.kept_by_name(since_s=since_s, processes=uids)),
        "forecasts": [one for one in queries.forecasts() if one.worker == (worker.name or worker.host)],
        "proposal": queries.proposal(worker),
        "recycled": recycling(worker, since_s),
    }


#: The same without a worker.
_OF_NONE: Context = {
    "plots": MemoryPlot(), "no_samples": None, "by_name": [], "forecasts": [], "proposal": None, "recycled": None,
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
