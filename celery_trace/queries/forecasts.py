"""Forecasts: which processes reach their limit, when, and because of which tasks."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from celery_trace.heap import forecasting
from celery_trace.heap.forecasting import WARM_UP_S, WINDOW_S, Growth, Series
from celery_trace.model import Forecast, GrowthShare, ProcessView, Role, Rollup, Sample, Verdict, WorkerView
from celery_trace.queries.base import QueryBase
from celery_trace.queries.runs import RunQueries
from celery_trace.stores import tables
from celery_trace.stores.statements import chunks
from celery_trace.stores.store import Store

_rollups = tables.rollups
_leaks = tables.leaks

#: Processes of a forecast, those nearest to their limit, and how long the answer is cached, seconds.
MOST_PROCESSES = 60
HOLDS_S = 30.0
#: Names that a growth is attributed to, and the smallest share of each.
MOST_SHARES = 5
LEAST_SHARE = 0.01
_MAIN = frozenset({Role.MAIN, Role.SOLO, Role.THREADS, Role.GREEN})


class _Candidate(NamedTuple):
    """A living process with a limit."""

    worker: WorkerView
    process: ProcessView
    limit: str
    limit_bytes: int
    used_bytes: int


class ForecastQueries(QueryBase):
    """When limits are reached."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._answer: tuple[float, list[Forecast]] = (-HOLDS_S, [])
        self._one_at_a_time = threading.Lock()

    def forecasts(self) -> list[Forecast]:
        """
        Forecasts of reaching a limit, the soonest first; one for each process and limit.

        Only the :data:`MOST_PROCESSES` processes that have used most of their limit are checked. The answer is cached
        for :data:`HOLDS_S`, as pages, alerts and commands ask for the same one.
        """
        with self._one_at_a_time:
            now_s = self._now_s()
            if not 0 <= now_s - self._answer[0] < HOLDS_S:
                self._answer = now_s, self._forecasts(now_s)
            return self._answer[1]

    def _forecasts(self, now_s: float) -> list[Forecast]:
        workers = RunQueries(self.store).workers(limit=1000).rows
        found = sorted(_candidates(workers), key=lambda one: -one.used_bytes / one.limit_bytes)
        grown: list[tuple[_Candidate, Growth, forecasting.Left]] = []
        series: dict[str, list[Sample]] = {}
        for candidate in found[:MOST_PROCESSES]:
            samples = self._samples_of(candidate.process, now_s, series)
            growth = forecasting.growth_of(_series(samples, candidate.limit), candidate.process.started_at)
            left = forecasting.left_of(growth, candidate.limit_bytes, now_s) if growth is not None else None
            if growth is None or left is None:
                continue
            if candidate.limit == "machine" and not self._grows_itself(candidate, now_s, series):
                continue  # other programs use the machine's memory too
            grown.append((candidate, growth, left))
        rates = self._rates() if grown else {}
        forecasts = [self._forecast(*one, rates, now_s) for one in grown]
        return sorted(forecasts, key=lambda forecast: forecast.seconds)

    def _samples_of(self, process: ProcessView, now_s: float, known: dict[str, list[Sample]]) -> list[Sample]:
        if process.uid not in known:
            since_s = max(now_s - WINDOW_S, process.started_at + WARM_UP_S)
            known[process.uid] = RunQueries(self.store).samples(
                process=process.uid, since_s=since_s, most=2 * forecasting.MOST_POINTS
            )
        return known[process.uid]

    def _grows_itself(self, candidate: _Candidate, now_s: float, known: dict[str, list[Sample]]) -> bool:
        living = [process for process in candidate.worker.processes if process.ended_at is None]
        living.sort(key=lambda process: -(process.memory.rss_bytes if process.memory else 0))
        return any(
            forecasting.growth_of(_series(self._samples_of(process, now_s, known), "child"), process.started_at)
            for process in living[:8]
        )

    def _rates(self) -> dict[tuple[str, str], float]:
        """Bytes that a run of each name leaks."""
        wanted = sa.select(_leaks.c.kind, _leaks.c.name, sa.func.sum(_leaks.c.kept_bytes_per_run).label("rate"))
        verdicts = [str(Verdict.LEAKING), str(Verdict.GROWING)]
        wanted = wanted.where(_leaks.c.verdict.in_(verdicts)).group_by(_leaks.c.kind, _leaks.c.name)
        with self.store.reading() as connection:
            return {(row.kind, row.name): float(row.rate) for row in connection.execute(wanted)}

    def _forecast(
        self,
        candidate: _Candidate,
        growth: Growth,
        left: forecasting.Left,
        rates: dict[tuple[str, str], float],
        now_s: float,
    ) -> Forecast:
        worker, process = candidate.worker, candidate.process
        of_it = [process] if candidate.limit == "child" else worker.processes
        runs = self._runs([one.uid for one in of_it], growth.since_s, growth.until_s)
        shares = [
            GrowthShare(kind, name, round(rate * runs[kind, name]), min(1.0, rate * runs[kind, name] / growth.bytes))
            for (kind, name), rate in rates.items()
            if (kind, name) in runs
        ]
        shares = sorted((row for row in shares if row.share >= LEAST_SHARE), key=lambda row: -row.bytes)
        return Forecast(
            worker=worker.name or worker.host,
            process=process.uid,
            pid=process.pid,
            limit=candidate.limit,
            limit_bytes=candidate.limit_bytes,
            used_bytes=candidate.used_bytes,
            bytes_per_hour=round(growth.trend.slope * 3600),
            at=now_s,
            seconds=left.seconds,
            earliest_s=left.earliest_s,
            latest_s=left.latest_s,
            shares=shares[:MOST_SHARES],
        )

    def _runs(self, uids: Sequence[str], since_s: float, until_s: float) -> dict[tuple[str, str], float]:
        """Runs of each name in these processes; five-minute buckets at both ends count in proportion."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        first_s = int(since_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
        with self.store.reading() as connection:
            for part in chunks(uids):
                wanted = sa.select(_rollups.c.kind, _rollups.c.name, _rollups.c.bucket_s, _rollups.c.runs).where(
                    _rollups.c.process.in_(part), _rollups.c.bucket_s >= first_s, _rollups.c.bucket_s <= until_s
                )
                for row in connection.execute(wanted):
                    begins_s, ends_s = row.bucket_s, min(row.bucket_s + Rollup.BUCKET_S, max(until_s, since_s + 1))
                    within = (ends_s - max(begins_s, since_s)) / max(1.0, ends_s - begins_s)
                    found[row.kind, row.name] += row.runs * max(0.0, min(1.0, within))
        return found


def _candidates(workers: Iterable[WorkerView]) -> Iterable[_Candidate]:
    for worker in workers:
        if not worker.alive:
            continue
        for process in worker.processes:
            memory = process.memory
            if process.ended_at is not None or memory is None:
                continue
            if memory.child_limit_bytes:
                yield _Candidate(worker, process, "child", memory.child_limit_bytes, memory.rss_bytes)
            if memory.room is not None and memory.room.limit_bytes > 0 and process.role in _MAIN:
                yield _Candidate(worker, process, memory.room.of, memory.room.limit_bytes, memory.room.used_bytes)


def _series(samples: Iterable[Sample], limit: str) -> Series:
    """The memory that counts against a limit: a child's own, or that of the container or machine."""
    if limit == "child":
        return [(sample.at_s, float(sample.memory.rss_bytes)) for sample in samples]
    return [
        (sample.at_s, float(sample.memory.room.used_bytes))
        for sample in samples
        if sample.memory.room is not None and sample.memory.room.of == limit
    ]
