"""Reads from the store what the active rules need, and nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from msgspec.structs import replace

from celery_trace.alerting.rules import Facts, Rule, StoredRules, kind_of
from celery_trace.alerting.rules.spool_dropping import SPOOL
from celery_trace.model import (
    AlertView,
    Consuming,
    Delivery,
    FailureGroup,
    FailureSummary,
    Forecast,
    Leak,
    Outcome,
    Page,
    QueueView,
    RedeliveryRisk,
    RepeatedRun,
    Rollup,
    RunningView,
    ScheduleView,
    StalledProcess,
    StatsView,
    WorkerView,
)

_MOST_ROWS = 2000  # of one kind of fact in one evaluation; the greatest or latest come first
_MOST_RESOLVED = 200  # ended alerts that may still have deliveries due


Row = TypeVar("Row")


class AlertQueries(Protocol):
    """What alerting reads from the store; :class:`celery_trace.queries.Queries` has it."""

    def leaks(self, *, verdict: str | None = None, limit: int = 100, cursor: str | None = None) -> Page[Leak]:
        """Leaks with that verdict."""

    def workers(self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None) -> Page[WorkerView]:
        """Workers with their processes."""

    def forecasts(self) -> list[Forecast]:
        """Forecasts of processes that will reach a limit."""

    def groups(
        self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None, trends: bool = True
    ) -> Page[FailureGroup]:
        """Groups of failures."""

    def failures(
        self, *, outcome: str | None = None, since_s: float | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[FailureSummary]:
        """Failures with that outcome."""

    def rollups(self, *, since_s: float | None = None) -> list[Rollup]:
        """Sums of all runs."""

    def queue_views(
        self, *, since_s: float | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[QueueView]:
        """Queues with their waits and depth."""

    def depth_changes(self, *, since_s: float) -> dict[str, int]:
        """By how many messages each queue has grown."""

    def repeated_runs(self, *, since_s: float) -> list[RepeatedRun]:
        """Messages that ran more than once."""

    def redelivery_risks(self, *, since_s: float | None = None) -> list[RedeliveryRisk]:
        """Tasks with messages that are held for long."""

    def schedules(self, *, since_s: float | None = None) -> list[ScheduleView]:
        """Entries of beat's schedule."""

    def running(self) -> Page[RunningView]:
        """Runs in progress."""

    def consuming(self) -> list[Consuming]:
        """The state of each queue in each worker that consumes it."""

    def stalled_processes(self) -> list[StalledProcess]:
        """Main processes and beats that are blocked."""

    def stats(self) -> StatsView:
        """What was written and dropped."""

    def alerts(self, *, state: str | None = None, limit: int = 100, cursor: str | None = None) -> Page[AlertView]:
        """Alerts in that state."""

    def alert(self, id: str) -> AlertView | None:
        """One alert."""

    def alert_rules(self) -> StoredRules | None:
        """The rules that were set in the monitor."""

    def deliveries(self, alert_id: str | None = None, *, limit: int = 100, cursor: str | None = None) -> Page[Delivery]:
        """Attempts to deliver an alert."""


class FactReader:
    """Facts for the rules of one engine."""

    def __init__(self, queries: AlertQueries) -> None:
        self._queries = queries
        self._drops: deque[tuple[float, int]] = deque()
        # Each fact of `Facts`, by the time now and how far back the rules look.
        self._read: dict[str, Callable[[float, float], object]] = {
            "leaks": lambda _now_s, _window_s: every_row(queries.leaks, verdict="leaking"),
            "workers": lambda _now_s, _window_s: every_row(queries.workers),
            "forecasts": lambda _now_s, _window_s: queries.forecasts(),
            "groups": lambda now_s, window_s: every_row(queries.groups, since_s=now_s - window_s, trends=False),
            "losses": lambda now_s, window_s: every_row(
                queries.failures, outcome=Outcome.LOST.value, since_s=now_s - window_s
            ),
            "rollups": lambda now_s, window_s: list(queries.rollups(since_s=now_s - window_s - Rollup.BUCKET_S)),
            "dropped_records": self._dropped,
            "queues": lambda now_s, window_s: every_row(queries.queue_views, since_s=now_s - window_s),
            "depth_changes": lambda now_s, window_s: queries.depth_changes(since_s=now_s - window_s),
            "repeated_runs": lambda now_s, window_s: queries.repeated_runs(since_s=now_s - window_s),
            "redelivery_risks": lambda _now_s, _window_s: queries.redelivery_risks(),
            "schedules": lambda now_s, window_s: queries.schedules(since_s=now_s - window_s),
            "stalled": lambda _now_s, _window_s: queries.stalled_processes(),
            "consuming": lambda _now_s, _window_s: queries.consuming(),
            "running": lambda _now_s, _window_s: queries.running().rows,
        }

    def read(self, rules: Iterable[Rule], now_s: float) -> Facts:
        """The facts that these rules need, each for the longest window of its rules."""
        windows_s: dict[str, float] = {}
        for rule in rules:
            for fact in kind_of(rule).needs:
                windows_s[fact] = max(windows_s.get(fact, 0.0), rule.window_s)
        found = {fact: self._read[fact](now_s, window_s) for fact, window_s in windows_s.items()}
        return replace(Facts(now_s=now_s), **found)

    def alerts(self) -> list[AlertView]:
        """All active alerts, and the latest of the resolved ones."""
        active = [alert for state in ("firing", "pending") for alert in every_row(self._queries.alerts, state=state)]
        return active + every_row(self._queries.alerts, state="resolved", most=_MOST_RESOLVED)

    def _dropped(self, now_s: float, window_s: float) -> int:
        """How many records were dropped within the window; the store only has the total."""
        total = sum(self._queries.stats().dropped.values())
        if not self._drops:
            # After a restart, what an alert has reported is not new; the rest of the total is.
            reported = [alert for alert in self.alerts() if alert.subject == SPOOL and alert.fired_at is not None]
            still = sum(int(alert.value) for alert in reported if alert.state == "firing")
            self._drops.append((now_s, max(0, total - still) if reported else 0))
        if total < self._drops[-1][1]:  # processes were pruned with their counts
            self._drops.clear()
        self._drops.append((now_s, total))
        while len(self._drops) > 1 and self._drops[1][0] <= now_s - window_s:
            self._drops.popleft()
        return total - self._drops[0][1]


def every_row(query: Callable[..., Page[Row]], *, most: int = _MOST_ROWS, **given: object) -> list[Row]:
    """The rows of all pages, ``most`` at most."""
    rows: list[Row] = []
    cursor: str | None = None
    while len(rows) < most:
        page = query(**given, limit=min(500, most), cursor=cursor)
        rows.extend(page.rows)
        cursor = page.next
        if cursor is None:
            break
    return rows
