"""What the tests of alerts share: a store in memory, a channel that remembers, and facts that are quickly made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_trace.alerting.channels import DeliveryFailed, Message
from celery_trace.alerting.engine import AlertEngine
from celery_trace.alerting.rules import StoredRules
from celery_trace.clock import FakeClock
from celery_trace.model import AlertView, Delivery, Leak, Page, Rollup, StatsView, Verdict
from celery_trace.settings import Settings


class MemoryStore:
    """Alerts and deliveries in two dictionaries, and facts that a test sets; both store and queries."""

    def __init__(self) -> None:
        self.alerts_by_id: dict[str, AlertView] = {}
        self.log: list[Delivery] = []
        self.facts: dict[str, list[Any]] = {}
        self.dropped: dict[str, int] = {}
        self.saves = 0
        self.stored_rules: StoredRules | None = None

    def save_alert(self, alert: AlertView) -> None:
        self.saves += 1
        self.alerts_by_id[alert.id] = alert

    def save_delivery(self, delivery: Delivery) -> None:
        self.log.append(delivery)

    def alert(self, id: str) -> AlertView | None:
        return self.alerts_by_id.get(id)

    def alert_rules(self) -> StoredRules | None:
        return self.stored_rules

    def alerts(self, *, state: str | None = None, limit: int = 100, cursor: str | None = None) -> Page:
        del cursor
        rows = [alert for alert in self.alerts_by_id.values() if state in (None, alert.state)]
        return Page("alerts", rows[:limit])

    def deliveries(self, alert_id: str | None = None, *, limit: int = 100, cursor: str | None = None) -> Page:
        del cursor
        rows = [delivery for delivery in reversed(self.log) if alert_id in (None, delivery.alert)]
        return Page("deliveries", rows[:limit])

    def _page(noun: str) -> Callable[..., Page]:  # type: ignore[misc]
        def page(self: MemoryStore, **_: Any) -> Page:
            return Page(noun, list(self.facts.get(noun, [])))

        return page

    leaks, groups, failures, workers = _page("leaks"), _page("groups"), _page("failures"), _page("workers")

    def rollups(self, **_: Any) -> list[Rollup]:
        return list(self.facts.get("rollups", []))

    def stats(self) -> StatsView:
        return StatsView(
            records={}, written={}, dropped=dict(self.dropped), cut={}, own_errors={}, live={}, overhead_ratio=0.0,
            spool_bytes=0, spool_records=0, corrupt_lines=0,
        )  # fmt: skip


class MemoryChannel:
    """Remembers what it was given; ``broken`` makes it fail."""

    def __init__(self, label: str = "memory://one") -> None:
        self.label = label
        self.messages: list[Message] = []
        self.tried = 0
        self.broken = ""

    def send(self, message: Message) -> None:
        self.tried += 1
        if self.broken:
            raise DeliveryFailed(self.broken)
        self.messages.append(message)

    @property
    def heard(self) -> list[tuple[str, int]]:
        return [(message.state, len(message.alerts)) for message in self.messages]


def leak(kept_bytes_per_run: int, *, name: str = "shop.leak", line: int = 7, **more: Any) -> Leak:
    values: dict[str, Any] = {
        "id": f"{name}:{line}",
        "kind": "task",
        "name": name,
        "verdict": Verdict.LEAKING,
        "native": False,
        "file": "/srv/shop.py",
        "line": line,
        "function": "leak",
        "code": "_cache.append(x)",
        "kept_bytes_per_run": kept_bytes_per_run,
        "kept_blocks_per_run": 12.0,
        "kept_bytes_total": kept_bytes_per_run * 100,
        "runs": 100,
        "processes": 1,
        "first_seen": 1.0,
        "last_seen": 2.0,
    }
    return Leak(**{**values, **more})


def engine(
    store: MemoryStore, clock: FakeClock, *channels: MemoryChannel, rules: tuple[dict[str, Any], ...] | None = None
) -> AlertEngine:
    rules = ({"rule": "leak", "above": 1000, "hold": 600, "repeat": "4h"},) if rules is None else rules
    return AlertEngine(
        store, store, Settings(alert_rules=rules), clock, channels=channels, base_url="http://monitor.test/"
    )
