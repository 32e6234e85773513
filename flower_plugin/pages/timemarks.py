"""What stands across the plots of memory: deploys, restarts, and the starts and ends of processes."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from celery_trace.model import ProcessRecord

#: Starts within this time are one deploy or one restart of the installation, seconds.
TOGETHER_S = 120.0
#: More marks than this would be a fence.
MOST_MARKS = 60


class Mark(Struct, frozen=True):
    """Something that happened; ``kind`` is ``deploy``, ``restart``, ``killed``, ``start`` or ``end``."""

    at: float
    text: str
    kind: str


def ended_words(how: str) -> str:
    """How a process ended, in a word: one that said goodbye ended, the others were killed."""
    return "ended" if how in ("", "exit") else how


def marks_of(processes: Iterable[ProcessRecord], starts: Iterable[ProcessRecord]) -> list[Mark]:
    """
    The marks of a plot, by time.

    Args:
        processes: Those that the plot has lines of.
        starts: Main processes of workers; their starts are restarts, and deploys where the release is another one
            than that worker had before.
    """
    marks: list[Mark] = []
    for process in processes:
        marks.append(Mark(process.started_at_s, f"pid {process.pid} started", "start"))
        if process.ended_at_s is not None:
            how = ended_words(process.ended_how)
            kind = "killed" if how == "killed" else "end"
            marks.append(Mark(process.ended_at_s, f"pid {process.pid} {how}", kind))
    marks = marks[-MOST_MARKS:] + _starts(sorted(starts, key=lambda process: process.started_at_s))
    return sorted(marks, key=lambda mark: mark.at)


def _starts(mains: list[ProcessRecord]) -> list[Mark]:
    runs: dict[str, str] = {}
    together: list[tuple[float, str, list[str]]] = []
    for main in mains:
        before = runs.get(main.worker)
        # The first that is known of a worker tells nothing of what ran before it.
        deployed = main.release if before is not None and main.release != before else ""
        runs[main.worker] = main.release
        last = together[-1] if together else None
        if last is not None and last[1] == deployed and main.started_at_s - last[0] < TOGETHER_S:
            last[2].append(main.worker)
        else:
            together.append((main.started_at_s, deployed, [main.worker]))
    return [
        Mark(
            at=at_s,
            text=(f"{release} deployed: " if release else "")
            + (workers[0] if len(workers) == 1 else f"{workers[0]} and {len(workers) - 1} more")
            + " started",
            kind="deploy" if release else "restart",
        )
        for at_s, release, workers in together[-MOST_MARKS:]
    ]
