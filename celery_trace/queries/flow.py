"""Messages in queues: waits, depth, runs started twice, and schedules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from celery_trace.intervals import SILENT_S
from celery_trace.model import (
    Consuming,
    Flow,
    Histogram,
    MessageStart,
    Page,
    QueueSample,
    QueueView,
    RedeliveryRisk,
    RepeatedRun,
    ScheduleView,
    TaskFlow,
)
from celery_trace.queries.base import QueryBase
from celery_trace.queries.runs import RunQueries
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.mapping import TableOf

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow, AnySelect

_flows = tables.flows
_consuming = tables.consuming
_samples = tables.queue_samples
_starts = tables.starts
_schedules = tables.schedules
_processes = tables.processes

#: The time that lists and pages are about if none is chosen, seconds.
RECENT_S = 3600.0
#: A worker that has not written a queue's state for so long no longer counts, seconds. It writes every minute.
CONSUMING_S = 180.0
#: A reading of the broker that is older than this says nothing about now, seconds.
READING_S = 120.0
#: Rows of one answer, the newest.
MOST_FLOWS = 20_000
MOST_QUEUES = 500
MOST_STARTS = 2000
MOST_POINTS = 1000
#: Messages of a task below which its p99 says little.
LEAST_RUNS = 20
#: From this share of the visibility timeout on, a task is at risk of a second delivery.
AT_RISK = 0.5


R = TypeVar("R", bound=Struct)


class _Sum(NamedTuple):
    """Added-up rows of a queue, or of a task in it."""

    rows: list[Flow]
    published: int

    @property
    def received(self) -> int:
        return sum(row.received for row in self.rows)

    @property
    def started(self) -> int:
        return sum(row.started for row in self.rows)

    @property
    def wait_max_s(self) -> float:
        return max((row.wait_max_s for row in self.rows), default=0.0)

    def wait_s(self, share: float) -> float | None:
        """A percentile of the waits; a bucket's upper bound, but not more than the longest wait."""
        found = Histogram.together(row.waits for row in self.rows).percentile_s(share)
        return min(found, self.wait_max_s) if found is not None else None


class FlowQueries(QueryBase):
    """Queues, and the messages in them."""

    def queue_views(
        self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[QueueView]:
        """
        The queues that were used or read since then (by default within an hour), by name.

        ``published`` is what publishers have counted; where they don't record, it is what workers have received and
        what has been added to the queue.
        """
        since_s = self._now_s() - RECENT_S if since_s is None else since_s
        flows = {queue: one for (queue, _), one in self._sums(since_s, by_task=False).items()}
        series: dict[str, list[QueueSample]] = defaultdict(list)
        for sample in self._ends_of_series(since_s):
            series[sample.queue].append(sample)
        consumed: dict[str, int] = defaultdict(int)
        for state in self.consuming():
            consumed[state.queue] += 1
        names = sorted({*flows, *series, *consumed} - {""})
        if cursor:
            names = [name for name in names if name > cursor]
        limit = max(1, min(limit, MOST_QUEUES))
        views = [
            self._queue(name, flows.get(name, _Sum([], 0)), series.get(name, []), consumed.get(name, 0))
            for name in names[:limit]
        ]
        return Page("queues", views, names[limit - 1] if len(names) > limit else None)

    def _queue(self, name: str, flow: _Sum, series: Sequence[QueueSample], consumed: int) -> QueueView:
        latest = series[-1] if series and self._now_s() - series[-1].at_s < READING_S else None
        depth = latest.depth if latest is not None else None
        grown = (series[-1].depth or 0) - (series[0].depth or 0) if series else 0
        return QueueView(
            name=name,
            depth=depth,
            oldest_age_s=latest.oldest_age_s if latest is not None else None,
            wait_p50_s=flow.wait_s(0.5),
            wait_p95_s=flow.wait_s(0.95),
            published=max(flow.published, flow.received + max(0, grown)),
            started=flow.started,
            consumers=latest.consumers if latest is not None and latest.consumers is not None else consumed,
        )

    def task_flows(self, *, queue: str | None = None, since_s: float | None = None) -> list[TaskFlow]:
        """Messages by queue and task, the most started first."""
        sums = self._sums(self._now_s() - RECENT_S if since_s is None else since_s, by_task=True, queue=queue)
        found = [
            TaskFlow(
                queue=queue_name,
                name=name,
                published=max(one.published, one.received),
                received=one.received,
                started=one.started,
                redelivered=sum(row.redelivered for row in one.rows),
                wait_p50_s=one.wait_s(0.5),
                wait_p95_s=one.wait_s(0.95),
                transfer_p95_s=Histogram.together(row.transfers for row in one.rows).percentile_s(0.95),
                reserved_p95_s=Histogram.together(row.reserved for row in one.rows).percentile_s(0.95),
                wait_max_s=one.wait_max_s,
                eta_max_s=max((row.eta_max_s for row in one.rows), default=0.0),
                acks_late=any(row.acks_late for row in one.rows),
            )
            for (queue_name, name), one in sums.items()
        ]
        return sorted(found, key=lambda flow: (-flow.started, -flow.published, flow.queue, flow.name))

    def wait_series(self, *, queue: str | None = None, since_s: float) -> list[tuple[int, float | None, int]]:
        """Per five minutes, oldest first: when they began, the p95 of the waits (seconds), and started runs."""
        by_bucket: dict[int, list[Flow]] = defaultdict(list)
        for row in self._flows(since_s, queue):
            by_bucket[row.bucket_s].append(row)
        sums = [(bucket_s, _Sum(rows, 0)) for bucket_s, rows in sorted(by_bucket.items())]
        return [(bucket_s, one.wait_s(0.95), one.started) for bucket_s, one in sums]

    def _sums(self, since_s: float, *, by_task: bool, queue: str | None = None) -> dict[tuple[str, str], _Sum]:
        """By queue and task; without tasks the name is empty."""
        columns = (_flows.c.queue, _flows.c.name) if by_task else (_flows.c.queue,)
        first_s = int(since_s) // Flow.BUCKET_S * Flow.BUCKET_S
        wanted = sa.select(*columns, sa.func.sum(_flows.c.published).label("published"))
        wanted = wanted.where(_flows.c.bucket_s >= first_s).group_by(*columns)
        if queue:
            wanted = wanted.where(_flows.c.queue == queue)
        rows: dict[tuple[str, str], list[Flow]] = defaultdict(list)
        for row in self._flows(since_s, queue):
            rows[row.queue, row.name if by_task else ""].append(row)
        with self.store.reading() as connection:
            published = {
                (found.queue, found.name if by_task else ""): int(found.published)
                for found in connection.execute(wanted)
            }
        return {key: _Sum(rows[key], count) for key, count in published.items()}

    def _flows(self, since_s: float, queue: str | None) -> list[Flow]:
        """The rows of consumers; those of processes that only publish are many, and are summed by the database."""
        first_s = int(since_s) // Flow.BUCKET_S * Flow.BUCKET_S
        consumers = sa.or_(_flows.c.received > 0, _flows.c.started > 0)
        wanted = sa.select(_flows).where(_flows.c.bucket_s >= first_s, consumers)
        if queue:
            wanted = wanted.where(_flows.c.queue == queue)
        newest = wanted.order_by(_flows.c.bucket_s.desc(), _flows.c.id).limit(MOST_FLOWS)
        return self._rows(rows_of.FLOWS, newest)

    def _rows(self, rows: TableOf[R], wanted: AnySelect) -> list[R]:
        with self.store.reading() as connection:
            return rows.records(connection.execute(wanted))

    # --- depth

    def consuming(self) -> list[Consuming]:
        """The latest state of each queue in each living worker that consumes it, by queue and worker."""
        wanted = sa.select(_consuming).where(
            _consuming.c.gone.is_(False), _consuming.c.at_s > self._now_s() - CONSUMING_S
        )
        ended = sa.select(_processes.c.uid).where(
            _processes.c.uid == _consuming.c.process, _processes.c.ended_at_s.is_not(None)
        )
        wanted = wanted.where(~ended.exists()).order_by(_consuming.c.queue, _consuming.c.worker).limit(MOST_STARTS)
        return self._rows(rows_of.CONSUMING, wanted)

    def queue_names(self) -> list[str]:
        """The queues that workers have consumed within a day, or that were published to within the hour."""
        now_s = self._now_s()
        consumed = sa.select(_consuming.c.queue).where(_consuming.c.at_s > now_s - 86_400.0).distinct()
        used = sa.select(_flows.c.queue).where(_flows.c.bucket_s > now_s - RECENT_S).distinct()
        with self.store.reading() as connection:
            found = {
                *connection.execute(consumed.limit(MOST_QUEUES)).scalars(),
                *connection.execute(used.limit(MOST_QUEUES)).scalars(),
            }
        return sorted(found - {""})

    def queue_series(self, *, queue: str | None = None, since_s: float) -> list[QueueSample]:
        """Readings of one queue, or of all, oldest first; the newest :data:`MOST_POINTS` of each answer."""
        wanted = sa.select(_samples).where(_samples.c.at_s >= since_s)
        if queue:
            wanted = wanted.where(_samples.c.queue == queue)
        most = MOST_POINTS if queue else 20 * MOST_POINTS
        newest = wanted.order_by(_samples.c.at_s.desc(), _samples.c.id).limit(most)
        return self._rows(rows_of.QUEUE_SAMPLES, newest)[::-1]

    def depth_changes(self, *, since_s: float) -> dict[str, int]:
        """By how many messages each queue has grown since then; negative if it has become shorter."""
        ends: dict[str, list[int]] = defaultdict(list)
        for sample in self._ends_of_series(since_s):
            if sample.depth is not None:
                ends[sample.queue].append(sample.depth)
        return {queue: depths[-1] - depths[0] for queue, depths in ends.items()}

    def _ends_of_series(self, since_s: float) -> list[QueueSample]:
        """The first and the last reading of each queue, oldest first."""
        ends = (
            sa.select(_samples.c.queue, sa.func.min(_samples.c.at_s).label("first"),
                      sa.func.max(_samples.c.at_s).label("last"))
            .where(_samples.c.at_s >= since_s)
            .group_by(_samples.c.queue)
            .limit(MOST_QUEUES)
            .subquery()
        )  # fmt: skip
        wanted = sa.select(_samples).join(
            ends,
            sa.and_(
                _samples.c.queue == ends.c.queue,
                sa.or_(_samples.c.at_s == ends.c.first, _samples.c.at_s == ends.c.last),
            ),
        )
        return self._rows(rows_of.QUEUE_SAMPLES, wanted.order_by(_samples.c.at_s))

    # --- runs started twice

    def repeated_runs(self, *, since_s: float) -> list[RepeatedRun]:
        """Messages that were started again while they ran, or after they had succeeded; the latest first."""
        recent = sa.select(_starts.c.task_id).where(_starts.c.started_at_s >= since_s)
        newest = recent.order_by(_starts.c.started_at_s.desc()).limit(MOST_STARTS).subquery()
        wanted = sa.select(_starts).where(_starts.c.task_id.in_(sa.select(newest.c.task_id)))
        together: dict[tuple[str, int], list[MessageStart]] = defaultdict(list)
        starts: list[MessageStart] = self._rows(rows_of.STARTS, wanted.order_by(_starts.c.started_at_s, _starts.c.id))
        processes = RunQueries(self.store).processes({start.process for start in starts})
        for start in starts:
            process = processes.get(start.process)
            if start.ended_at_s is None and process is not None and process.ended_at_s is not None:
                start = replace(start, ended_at_s=process.ended_at_s)  # noqa: PLW2901 - its worker was killed
            together[start.task_id, start.retries].append(start)
        found = [run for starts in together.values() if (run := _repeated(starts)) is not None]
        return sorted((run for run in found if run.at >= since_s), key=lambda run: -run.at)

    def redelivery_risks(self, *, since_s: float | None = None) -> list[RedeliveryRisk]:
        """
        Tasks with messages that stay unacknowledged for a large part of the visibility timeout, the worst first.

        A message is acknowledged when its run begins, with ``acks_late`` when it ends; one with an ETA is held until
        then by the worker that received it.
        """
        timeouts: dict[str, float] = {}
        for state in self.consuming():
            if state.visibility_timeout_s:
                known = timeouts.get(state.queue, state.visibility_timeout_s)
                timeouts[state.queue] = min(known, state.visibility_timeout_s)
        if not timeouts:
            return []
        since_s = self._now_s() - RECENT_S if since_s is None else since_s
        found: list[RedeliveryRisk] = []
        durations = self._p99s(since_s)
        for flow in self.task_flows(since_s=since_s):
            timeout_s = timeouts.get(flow.queue)
            if timeout_s is None:
                continue
            held = [(flow.eta_max_s, "its longest ETA")]
            if flow.acks_late and flow.name in durations:
                held.append((durations[flow.name], "the p99 of its duration, with acks_late"))
            held_s, why = max(held)
            if held_s > AT_RISK * timeout_s:
                found.append(
                    RedeliveryRisk(
                        queue=flow.queue, name=flow.name, held_s=held_s, why=why, visibility_timeout_s=timeout_s
                    )
                )
        return sorted(found, key=lambda risk: -risk.share)

    def _p99s(self, since_s: float) -> dict[str, float]:
        histograms: dict[str, list[Histogram]] = defaultdict(list)
        longest: dict[str, float] = defaultdict(float)
        for rollup in RunQueries(self.store).rollups(kind="task", since_s=since_s):
            histograms[rollup.name].append(rollup.durations)
            longest[rollup.name] = max(longest[rollup.name], rollup.duration_max_s)
        found: dict[str, float] = {}
        for name, given in histograms.items():
            whole = Histogram.together(given)
            p99_s = whole.percentile_s(0.99)
            if p99_s is not None and sum(whole.counts) >= LEAST_RUNS:
                found[name] = min(p99_s, longest[name])
        return found

    # --- schedules

    def schedules(self, *, since_s: float | None = None) -> list[ScheduleView]:
        """The entries of the schedulers seen since then (by default within a day), by name."""
        now_s = self._now_s()
        since_s = now_s - 86_400.0 if since_s is None else since_s
        columns = (_processes.c.ended_at_s, _processes.c.seen_at_s)
        wanted = (
            sa.select(_schedules, *columns)
            .join(_processes, _processes.c.uid == _schedules.c.process, isouter=True)
            .where(_schedules.c.at_s >= since_s)
            .order_by(_schedules.c.entry, _schedules.c.at_s)
            .limit(MOST_STARTS)
        )
        together: dict[str, list[AnyRow]] = defaultdict(list)
        with self.store.reading() as connection:
            for row in connection.execute(wanted):
                together[row.entry].append(row)
        return [view for rows in together.values() if (view := _schedule(rows, now_s)) is not None]

    def flow_problems(self) -> dict[str, int]:
        """Headers and messages that were not used as they are, by kind."""
        table = tables.tallies
        wanted = sa.select(table).where(table.c.id >= "stat:flow:", table.c.id < "stat:flow;")
        with self.store.reading() as connection:
            return {row.id.removeprefix("stat:flow:"): row.value for row in connection.execute(wanted) if row.value}


def _repeated(starts: Iterable[MessageStart]) -> RepeatedRun | None:
    """
    The starts of one try of one message, oldest first, as one repeated run; None if it was started again only because
    the run before had ended without success.
    """
    starts = list(starts)
    repeated = overlapping = False
    for earlier, later in pairwise(starts):
        overlaps = earlier.ended_at_s is None or earlier.ended_at_s > later.started_at_s
        overlapping |= overlaps
        repeated |= overlaps or earlier.succeeded
    if not repeated:
        return None
    last = starts[-1]
    return RepeatedRun(
        task_id=last.task_id,
        name=last.name,
        queue=last.queue,
        workers=sorted({start.worker for start in starts}),
        starts=[start.started_at_s for start in starts],
        overlapping=overlapping,
    )


def _schedule(rows: Sequence[AnyRow], now_s: float) -> ScheduleView | None:
    """An entry over all schedulers; None if the latest one has removed it."""
    latest = rows[-1]
    if latest.gone:
        return None
    living = [row for row in rows if row.ended_at_s is None and now_s - (row.seen_at_s or row.at_s) < SILENT_S]
    recent_s = now_s - max(2 * latest.interval_s, 60.0)
    published = [row.published_at_s for row in rows if row.published_at_s is not None]
    return ScheduleView(
        entry=latest.entry,
        task=latest.task,
        every=latest.every,
        due_at=max((row.due_at_s for row in rows if row.due_at_s is not None and not row.gone), default=None),
        interval_s=latest.interval_s,
        published_at=max(published, default=None),
        published=sum(row.published for row in rows),
        missed=sum(row.missed for row in rows),
        failed=sum(row.failed for row in rows),
        processes=sum(row.published_at_s is not None and row.published_at_s >= recent_s for row in living),
    )
