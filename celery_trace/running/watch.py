"""Watches the black boxes of a spool folder's living processes for changes in what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.model import SNAPSHOT_AGAIN_S, Kind, LastSample, Line, ProcessRecord, RunningRun, RunningSnapshot
from celery_trace.process import blackbox
from celery_trace.process.blackbox import BoxReading, Running
from celery_trace.process.movement import ThreadSample
from celery_trace.running import outside
from celery_trace.running.mains import MainWatch
from celery_trace.running.stalls import Stalls, blind_sample

#: Only of runs that have lasted so long it is examined what they wait for, seconds.
LASTS_S: Final = 2.0
#: Change of a process's resident size, as a share, that makes a snapshot worth sending.
_RSS_CHANGE: Final = 0.05

_RunKey = tuple[str, str, float, int]  # process, task, start, thread


class _Seen(Struct):
    """What was seen of a run before: its stack without the innermost line, since when, and the stack with code."""

    signature: tuple[object, ...]
    since_s: float
    sampled_at_s: float
    stack: list[Line]
    queue: str = ""
    moves: ThreadSample | None = None


class RunningWatch:
    """
    Reads the boxes, and makes a snapshot when something has changed.

    Args:
        folder: The spool folder.
        place: The key of the snapshots.
        clock: Their time.
        source: Reads the lines of the stacks.
        stalls: Judges which runs make no progress.
    """

    def __init__(self, folder: Path, place: str, clock: Clock, source: SourceLines, stalls: Stalls) -> None:
        self._folder = folder
        self._place = place
        self._clock = clock
        self._source = source
        self._stalls = stalls
        self._mains = MainWatch(stalls.stuck_s, stalls.procfs, stalls.redactor)
        self._seen: dict[_RunKey, _Seen] = {}
        self._sent: RunningSnapshot | None = None
        #: The queue on which requests for stacks are taken.
        self.address = ""

    def look(
        self, living: Iterable[str], process_of: Callable[[str], ProcessRecord | None] = lambda _uid: None
    ) -> RunningSnapshot | None:
        """
        Read the boxes of living processes.

        Args:
            living: Their uids.
            process_of: Reads the record of a process without a box.

        Returns:
            A snapshot if it differs from the last one that was sent. The caller calls :meth:`sent` when it has been
            delivered.
        """
        now_s = self._clock.now_s()
        runs: list[RunningRun] = []
        ended: dict[str, int] = {}
        processes: dict[str, ProcessRecord | None] = {}
        seen: dict[_RunKey, _Seen] = {}
        for uid in sorted(living):
            reading = blackbox.read(self._folder / f"{uid}.box", noticed_at_s=now_s)
            processes[uid] = reading.process if reading is not None else None
            ended[uid] = reading.ended if reading is not None else 0
            if reading is None:
                continue
            runs += [self._run(reading, run, sample, now_s, seen) for run, sample in reading.runs]
        self._seen = seen
        self._stalls.next_round()
        snapshot = RunningSnapshot(
            place=self._place,
            at_s=now_s,
            address=self.address,
            runs=runs,
            ended=ended,
            stuck_s=self._stalls.stuck_s,
            stalled=self._mains.look(processes, process_of, now_s),
        )
        return snapshot if self._is_news(snapshot) else None

    def sent(self, snapshot: RunningSnapshot) -> None:
        """A snapshot was delivered."""
        self._sent = snapshot

    def _run(
        self,
        reading: BoxReading,
        run: Running,
        sample: LastSample | None,
        now_s: float,
        seen: dict[_RunKey, _Seen],
    ) -> RunningRun:
        process = reading.process
        key = (process.uid, run.task_id, run.started_at_s, run.thread)
        shown = _from_outside(reading, run, sample, now_s) or sample
        state = seen[key] = self._state(self._seen.get(key), run, shown, process.started_at_s)
        memory = sample.memory if sample is not None else None
        found = RunningRun(
            process=process.uid,
            kind=Kind(run.kind),
            name=run.name,
            task_id=run.task_id,
            retries=run.retries,
            queue=state.queue,
            worker=process.worker,
            hostname=process.host,
            pid=process.pid,
            role=process.role,
            thread=run.thread,
            started_at_s=run.started_at_s,
            rss_bytes=memory.rss_bytes if memory is not None else 0,
            stack=state.stack,
            sampled_at_s=state.sampled_at_s,
            unmoved_since_s=state.since_s,
        )
        if now_s - run.started_at_s < LASTS_S:
            return found
        seen_at_s = sample.at_s if sample is not None else run.started_at_s
        moves = state.moves or (blind_sample(process, run.started_at_s) if sample is None else None)
        since_s, words = self._stalls.judge(
            key, process, moves, state.stack, seen_at_s, now_s, self._keeper(reading, moves)
        )
        return replace(found, stalled_since_s=since_s, waiting_for=words)

    def _keeper(self, reading: BoxReading, moves: ThreadSample | None) -> tuple[str, list[Line]] | None:
        """The run that keeps the thread of a suspended one, and its stack when it was sampled last."""
        number = moves.behind if moves is not None else 0
        run = next((run for run, _ in reading.runs if number and run.thread == number), None)
        if run is None:
            return None
        known = self._seen.get((reading.process.uid, run.task_id, run.started_at_s, run.thread))
        return run.name, known.stack if known is not None else []

    def _state(self, before: _Seen | None, run: Running, sample: LastSample | None, loaded_at_s: float) -> _Seen:
        """The run's stack, with code, and since when it has not moved."""
        queue = run.queue or (before.queue if before is not None else "")
        moves = run.moves or (before.moves if before is not None else None)
        if sample is None or not sample.stack:
            return before or _Seen((), run.started_at_s, 0.0, [], queue)
        signature = (sample.stack[0].function, sample.stack[0].file, *sample.stack[1:])
        since_s = before.since_s if before is not None and before.signature == signature else sample.at_s
        if before is not None and _is_same(before.stack, sample.stack):
            stack = before.stack
        else:
            stack = self._source.lines(sample.stack, loaded_at_s)
        return _Seen(signature, since_s, sample.at_s, stack, queue, moves)

    def _is_news(self, now: RunningSnapshot) -> bool:
        before = self._sent
        if before is None:
            return True  # the store may have one of an earlier collector, with runs
        if (now.address, now.ended, now.stalled) != (before.address, before.ended, before.stalled):
            return True
        if len(now.runs) != len(before.runs) or any(map(_has_changed, before.runs, now.runs)):
            return True
        return bool(now.ended) and now.at_s - before.at_s >= SNAPSHOT_AGAIN_S


def _from_outside(reading: BoxReading, run: Running, sample: LastSample | None, now_s: float) -> LastSample | None:
    """The stack of a run from outside, once its process takes no samples, as in C code; None if it can't be read."""
    if now_s - (sample.at_s if sample is not None else run.started_at_s) < LASTS_S:
        return None
    stack = outside.read_run(reading, run, sample)
    memory = sample.memory if sample is not None else None
    return LastSample(at_s=now_s, age_s=0.0, stack=stack, memory=memory) if stack else None


def _is_same(stack: list[Line], sampled: list[Line]) -> bool:
    return len(stack) == len(sampled) and all(
        (one.file, one.line, one.function) == (other.file, other.line, other.function)
        for one, other in zip(stack, sampled, strict=True)
    )


def _has_changed(before: RunningRun, now: RunningRun) -> bool:
    """Whether anything but the time of the sample, or a little memory, has changed."""
    grown = abs(now.rss_bytes - before.rss_bytes)
    steady = replace(now, sampled_at_s=before.sampled_at_s, rss_bytes=before.rss_bytes)
    return steady != before or grown > _RSS_CHANGE * before.rss_bytes
