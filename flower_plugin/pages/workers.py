"""Workers' memory: each process over time, what ran, where memory stayed, and what measuring costs."""

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
from flower_plugin.pages.timemarks import Mark, ended_words, marks_of

MOST_POINTS = 300
#: The store thins a longer series to about so many samples, one for each slice of the time that processes lived.
MOST_STORED_POINTS = 1000
MOST_PROCESSES = 24
#: Workers of the list. It is by name, so fewer would leave out the same ones each time.
MOST_WORKERS = 1000
MOST_BLAMED = 8
MOST_BLAMED_PROCESSES = 200
#: Roles of a worker's first process; its start is a restart of the worker.
MAIN_ROLES = frozenset({"main", "solo", "threads", "green"})


def thinned(samples: Sequence[Sample], most: int = MOST_POINTS) -> list[Sample]:
    """
    At most ``most`` samples of one process: of each slice of time the one with the most resident memory.

    A peak is what kills a worker, so thinning must not lose it.
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
    """When a process fell silent for longer than that: the times of its last samples before; oldest first."""
    return [one.at_s for one, following in pairwise(rows) if following.at_s - one.at_s > longest_s]


class MemoryLine(Struct, kw_only=True):
    """
    One process over time, for the script. All lists are equally long; None stands where nothing is known.

    Attributes:
        at: Times, seconds since the epoch.
        name: What ran.
    """

    label: str
    at: list[float] = []
    rss: list[int | None] = []
    uss: list[int | None] = []
    fds: list[int | None] = []
    threads: list[int | None] = []
    name: list[str] = []

    def add(self, at_s: float, memory: MemoryState | None, name: str) -> None:
        """A point; without a memory a gap."""
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
    A worker's processes over time, the greatest first; what happened meanwhile; the least limit of any, bytes.

    Samples that are at most ``in_a_row_s`` apart stand in a row.
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
    """One process: at most :data:`MOST_POINTS` samples, and a gap after each silence."""
    line = MemoryLine(label=label)
    silences = silent_from_s(rows, longest_s)
    for row in thinned(rows):
        if line.at and silences and silences[0] < row.at_s:
            line.add(max(silences[0], line.at[-1]) + 1.0, None, "")
        silences = [at_s for at_s in silences if at_s >= row.at_s]
        line.add(row.at_s, row.memory, row.name)
    return line


class Silence(Struct, frozen=True):
    """Why there is nothing to plot, in a sentence; and when the first sample is due, seconds since the epoch."""

    why: str
    due_s: float | None = None


def silence(worker: WorkerView, now_s: float) -> Silence:
    """Why a worker has no sample within the time."""
    living = [process for process in worker.processes if process.ended_at is None]
    if living and all(process.mode == "off" for process in living):
        return Silence("Memory is not measured here: trace_memory is off in its processes.")
    never = [process for process in worker.processes if process.at is None]
    if len(never) == len(worker.processes):
        first = f"the first comes {duration(SAMPLE_S)} after the start of a process"
        if not living:
            return Silence(f"No sample: {first}, and these ended before.")
        due_s = min(process.started_at for process in living) + SAMPLE_S
        return Silence(f"No sample yet: {first}", due_s if due_s > now_s else None)
    return Silence(
        f"No sample within this time. One is written whenever memory changes by {percent(SAMPLE_CHANGE)}, and every "
        f"{duration(SAMPLE_IDLE_S)} otherwise: a longer time shows the ones before."
    )


class Recycling(Struct, frozen=True):
    """
    How a worker's children came to their ends.

    Those that said goodbye were recycled, or stopped with their worker: of them the mean life in seconds and the mean
    of resident bytes at the end. Those that did not were killed: by a hard time limit, a signal or for want of memory.
    """

    in_order: int
    killed: int
    life_s: float | None
    bytes_at_end: float | None


def recycling(worker: WorkerView, since_s: float | None) -> Recycling:
    """What became of the children that ended since then."""
    ended = [
        process
        for process in worker.processes
        if process.role == "child" and process.ended_at is not None and process.ended_at >= (since_s or 0.0)
    ]
    in_order = [process for process in ended if process.ended_how != "killed"]
    lives = [(process.ended_at or process.started_at) - process.started_at for process in in_order]
    sizes = [process.memory.rss_bytes for process in in_order if process.memory is not None]
    return Recycling(
        in_order=len(in_order),
        killed=len(ended) - len(in_order),
        life_s=sum(lives) / len(lives) if lives else None,
        bytes_at_end=sum(sizes) / len(sizes) if sizes else None,
    )


def blame(kept: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int, float]]:
    """
    Which names the kept memory comes from.

    Args:
        kept: ``(kind, name, bytes)``, greatest first.

    Returns:
        ``(kind, name, bytes, share)``, greatest first; only what grew.
    """
    grown = [row for row in kept if row[2] > 0]
    total = sum(row[2] for row in grown)
    return [(kind, name, value, value / total) for kind, name, value in grown[:MOST_BLAMED]]


def _chosen(workers: Sequence[WorkerView], wanted: str) -> WorkerView | None:
    """The worker of this name or on this host; without a wish the first."""
    if not wanted:
        return workers[0] if workers else None
    return next((worker for worker in workers if wanted in (worker.name, worker.host)), None)


def _plot(queries: Queries, visit: Visit, worker: WorkerView, since_s: float | None) -> MemoryPlot:
    samples = queries.samples(worker=worker.name, since_s=since_s)
    starts = queries.starts(worker=worker.name, since_s=since_s)
    plot = series(samples, worker, [main for main in starts if since_s is None or main.started_at_s >= since_s])
    known = limits_of(queries, visit)
    living = [process for process in worker.processes if process.ended_at is None]
    hold = [limit.bytes for process in living for limit in of_process(process, worker.name, known)]
    return replace(plot, limit=min(hold, default=None))


def _of_worker(queries: Queries, visit: Visit, worker: WorkerView, since_s: float | None) -> Context:
    """What the page shows of the chosen worker alone."""
    plot = _plot(queries, visit, worker, since_s)
    of_it = [process.uid for process in worker.processes[:MOST_BLAMED_PROCESSES]]
    return {
        "plots": plot,
        "silence": None if plot.lines else silence(worker, visit.now_s),
        "blamed": blame(queries.kept_by_name(since_s=since_s, processes=of_it)),
        "forecasts": [one for one in queries.forecasts() if one.worker == (worker.name or worker.host)],
        "proposal": queries.proposal(worker),
        "recycled": recycling(worker, since_s),
    }


#: The same where no worker is chosen.
_OF_NONE: Context = {
    "plots": MemoryPlot(), "silence": None, "blamed": [], "forecasts": [], "proposal": None, "recycled": None,
}  # fmt: skip


def memory(queries: Queries, visit: Visit) -> Context:
    """All workers, and the chosen one (the first alive by default) over time."""
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
        "ended_words": ended_words,
        "forecast": forecasting,
        "ranges": RANGES,
        "range": visit.word("range", tuple(RANGES), "hour"),
    }


PAGE = MonitorPage(
    path=r"/trace/workers",
    name="trace_workers",
    title="Workers’ memory",
    template="trace/workers.html",
    tab="memory",
    context=memory,
    place=NavPlace.BAR,
    entry="Memory",
)
