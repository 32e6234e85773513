"""Workers with their processes, forecasts, and proposed limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, TableColumn, table, wrapped
from celery_trace.heap import forecasting
from celery_trace.heap.needs import Proposal
from celery_trace.model import Forecast, MemoryState, ProcessView, WorkerView
from celery_trace.text import roles
from celery_trace.text.escape import escaped
from celery_trace.text.format import NONE, percent, size

_STATE_COLOURS = {"alive": "green", "stopped": "dim", "killed": "red"}


def workers(rows: Iterable[WorkerView], style: Style) -> str:
    """Workers, with their living processes below each; ended ones are counted."""
    return table(
        [
            TableColumn("WORKER", elastic=True), TableColumn("STATE"), TableColumn("ROLE", spare=True),
            TableColumn("RSS", right=True),
            TableColumn("USS", right=True), TableColumn("FDS", right=True, spare=True), TableColumn("RUNS", right=True),
            TableColumn("OVERHEAD", right=True, spare=True), TableColumn("SEEN", right=True),
            TableColumn("RUNNING", elastic=True),
        ],
        (line for worker in rows for line in _lines(worker, style)),
        style,
        "No worker has reported. Start one with: CELERY_TRACE=1 celery -A proj worker -E",
    )  # fmt: skip


def _lines(worker: WorkerView, style: Style) -> Iterator[Sequence[Cell]]:
    yield [
        (escaped(worker.name), "bold"), (worker.state, _STATE_COLOURS.get(worker.state, "yellow")),
        roles.of_worker(worker.role),
        size(worker.rss_bytes), "", "", "", percent(worker.overhead_ratio), style.ago(worker.last_seen), "",
    ]  # fmt: skip
    for process in worker.processes:
        if process.ended_at is None:
            yield _line(process, style)
    ended = [process for process in worker.processes if process.ended_at is not None]
    if ended:
        yield [f"  {_ended(ended)}", *[""] * 9]


def _line(process: ProcessView, style: Style) -> Sequence[Cell]:
    memory = process.memory or MemoryState()
    return [
        f"  pid {process.pid}", "", roles.of_process(process.role), size(memory.rss_bytes if process.memory else None),
        size(memory.uss_bytes), memory.fds if memory.fds is not None else NONE, process.runs,
        percent(process.overhead_ratio), style.ago(process.at), process.running,
    ]  # fmt: skip


def _ended(processes: Sequence[ProcessView]) -> str:
    """How processes ended: ``3 ended: 2 by exit, 1 killed``."""
    ways = Counter("by exit" if process.ended_how in {"", "exit"} else process.ended_how for process in processes)
    return f"{len(processes)} ended: " + ", ".join(f"{count} {how}" for how, count in sorted(ways.items()))


def forecasts(found: Iterable[Forecast], proposals: Iterable[tuple[str, Proposal]], style: Style) -> str:
    """Forecasts and proposed limits, shown below the table."""
    lines = [
        style.paint(
            wrapped(
                f"{escaped(forecasting.who(one))} {escaped(forecasting.sentence(one))}. Now {size(one.used_bytes)}, "
                f"growing by {size(one.bytes_per_hour)} per hour.",
                style,
            ),
            "yellow",
        )
        for one in found
    ]
    for worker, proposal in proposals:
        lines.append(
            wrapped(
                f"{escaped(worker)} needs --max-memory-per-child {proposal.child_kib} -c {proposal.concurrency} "
                f"and a container with {size(proposal.container_bytes)}. {escaped(proposal.how)}.",
                style,
            )
        )
    return "".join(f"\n{line}\n" for line in lines)
