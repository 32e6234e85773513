"""Records for a killed process: its end, and the runs that were in progress."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec.structs import replace

from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.model import AnyRecord, Failure, Kind, Outcome, ProcessRecord, failure_id, kill_of, stable_id
from celery_trace.process import blackbox
from celery_trace.process.blackbox import Running

_KILLED: Final = "The process was killed. Its black box shows what it was doing."
_CRASHED: Final = "The process crashed: {}. The stack is where it crashed."


def adopt(process: ProcessRecord | None, box: Path, now_s: float, source: SourceLines) -> list[AnyRecord]:
    """
    The records for a killed process.

    Args:
        process: From the head of its spool files, if one is left.
        box: Its black box; may be missing.
        now_s: When its death was noticed, seconds since the epoch.
        source: Reads the source lines that were running.

    Returns:
        The process with its end, and a failure for each run in progress. A second call gives the same keys.
    """
    reading = blackbox.read(box, noticed_at_s=now_s)
    if process is None and reading is not None:
        process = reading.process
    if process is None:
        return []
    records: list[AnyRecord] = [replace(process, ended_at_s=now_s, ended_how="killed")]
    # Several where threads or greenlets share a process.
    for run, seen in reading.runs if reading is not None else ():
        sample = seen and replace(seen, stack=source.lines(seen.stack, process.started_at_s))
        at_s = sample.at_s if sample is not None else now_s
        records.append(
            Failure(
                id=failure_id(run.task_id, run.retries) if run.task_id else _id_without_task(process, run),
                process=process.uid,
                kind=Kind(run.kind),
                name=run.name,
                task_id=run.task_id,
                retries=run.retries,
                outcome=Outcome.LOST,
                witness="box",
                fingerprint=fingerprint(Kind(run.kind), run.name, None, None, Outcome.LOST),
                worker=process.worker,
                pid=process.pid,
                hostname=process.host,
                at_s=at_s,
                duration_s=max(0.0, now_s - run.started_at_s) if run.started_at_s else None,
                last_sample=sample,
                note=_CRASHED.format(sample.crash) if sample and sample.crash else _KILLED,
                kills=[kill_of(process, process.pid, at_s)],
            )
        )
    return records


def _id_without_task(process: ProcessRecord, run: Running) -> str:
    """An id for a request or a block, which has no task id: its start and thread identify it."""
    return stable_id("lost", process.uid, run.name, repr(run.started_at_s), str(run.thread))
