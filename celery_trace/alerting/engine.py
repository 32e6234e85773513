"""
Alert states: evaluates the rules and moves each alert from state to state.

The monitor calls :meth:`AlertEngine.evaluate` every few seconds. Each call reads the facts, evaluates the rules, moves
each alert one step and delivers what is due. All relevant state is in the store (alerts and the delivery log), so a
restart neither loses an alert nor notifies twice.

States are those of Prometheus: *pending* until a value was over its threshold for ``for``, then *firing*, then
*resolved* once it stayed under the lower threshold for ``hold``. For notifications see
:mod:`celery_trace.alerting.delivery`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec.structs import replace

from celery_trace.alerting import channels as channels_module
from celery_trace.alerting import rules as rules_module
from celery_trace.alerting.channels import Channel
from celery_trace.alerting.delivery import DeliveryStore, Dispatcher
from celery_trace.alerting.facts import AlertQueries, FactReader
from celery_trace.alerting.rules import Reading, Rule, StoredRules
from celery_trace.clock import Clock
from celery_trace.guard import report
from celery_trace.model import AlertView, Delivery, stable_id
from celery_trace.settings import SettingError, Settings

logger = logging.getLogger("celery_trace.alerts")

_SAVE_EVERY_S = 60.0  # a value that only drifts is written this often, so that pages do not reload each time


class AlertStore(DeliveryStore, Protocol):
    """The part of the store that the engine writes."""

    def save_alert(self, alert: AlertView) -> object:
        """Write an alert's current state."""


def alert_id(rule: Rule, subject: str) -> str:
    """The id of the alert that a rule raises about a subject, the same after a restart."""
    return stable_id("alert", rule.name, subject)


def advance(
    alert: AlertView | None, reading: Reading | None, rule: Rule, *, now_s: float, clear_since_s: float | None
) -> tuple[AlertView | None, float | None]:
    """
    Move one alert one step.

    Args:
        alert: Its current state; None if there never was one.
        reading: The rule's reading; None if it has none for the subject.
        clear_since_s: Since when a firing alert's value has been low enough to end; None if it is not.

    Returns:
        The alert afterwards (the same object when nothing changed) and the new ``clear_since_s``.
    """
    over = reading is not None and reading.value > rule.above
    if alert is None or alert.state == "resolved":
        return (_began(alert, reading, rule, now_s) if reading is not None and over else alert), None
    if reading is not None:
        alert = _updated(alert, reading, rule)
    if alert.state == "pending":
        if not over:
            return replace(alert, state="resolved", resolved_at=now_s), None
        if now_s - alert.since >= rule.for_s:
            return replace(alert, state="firing", fired_at=now_s, count=alert.count + 1), None
        return alert, None
    if reading is not None and reading.value > rule.clear_below:
        return alert, None
    since_s = now_s if clear_since_s is None else clear_since_s
    if now_s - since_s >= rule.hold_s:
        return replace(alert, state="resolved", resolved_at=now_s), None
    return alert, since_s


def _began(before: AlertView | None, reading: Reading, rule: Rule, now_s: float) -> AlertView:
    """An alert that starts now; ``before`` is the previous one that ended, if any."""
    fires = rule.for_s <= 0
    return AlertView(
        id=alert_id(rule, reading.subject),
        rule=rule.name,
        subject=reading.subject,
        state="firing" if fires else "pending",
        severity=rule.severity,
        text=reading.text,
        value=reading.value,
        threshold=rule.above,
        since=now_s,
        fired_at=now_s if fires else None,
        resolved_at=None,
        silenced_until=before.silenced_until if before else None,
        link=reading.link,
        count=(before.count if before else 0) + fires,
    )


def _updated(alert: AlertView, reading: Reading, rule: Rule) -> AlertView:
    fresh = (reading.text, reading.value, reading.link, rule.above, rule.severity)
    if fresh == (alert.text, alert.value, alert.link, alert.threshold, alert.severity):
        return alert
    return replace(
        alert, text=reading.text, value=reading.value, link=reading.link, threshold=rule.above, severity=rule.severity
    )


class AlertEngine:
    """
    Evaluates the rules, keeps the states and delivers.

    Thread-safe; :meth:`evaluate`, and all that writes, blocks on the store and on channels.

    Args:
        store: Takes alerts and deliveries.
        queries: :class:`celery_trace.queries.Queries` over the same store.
        channels: Instead of those of the settings.
        base_url: The monitor's address with its prefix, without a path of ours; messages link to it when it is known.

    Raises:
        SettingError: ``trace_alert_rules`` or ``trace_alert_channels`` is not usable.
    """

    def __init__(
        self,
        store: AlertStore,
        queries: AlertQueries,
        settings: Settings,
        clock: Clock,
        *,
        channels: Sequence[Channel] | None = None,
        base_url: str = "",
    ) -> None:
        self._configured = settings.alert_rules
        self.rules = rules_module.configured(self._configured)
        self._stored: StoredRules | None = None
        self.channels: list[Channel] = list(
            channels_module.channels(settings.alert_channels) if channels is None else channels
        )
        self._store = store
        self._queries = queries
        self._clock = clock
        self._states = threading.Lock()  # over read-change-write of alerts
        self._turn = threading.Lock()  # one evaluation at a time
        self._clear_since_s: dict[str, float] = {}
        self._saved_at_s: dict[str, float] = {}
        self._dispatcher = Dispatcher(store, queries, self.channels, self.rules, base_url)
        self._facts = FactReader(queries)

    @property
    def channel_labels(self) -> list[str]:
        """The channels as they may be shown; :meth:`test` takes one of them."""
        return [channel.label for channel in self.channels]

    # --- what the monitor calls ------------------------------------------------------------------------

    def evaluate(self) -> list[AlertView]:
        """
        One round: read, decide, save, deliver. A call while another one runs returns the stored state at once.

        Returns:
            The alerts that are pending or firing, and those that ended in this round.

        Raises:
            StoreUnavailable: The store does not answer; the next round catches up.
        """
        if not self._turn.acquire(blocking=False):
            return [alert for alert in self._facts.alerts() if alert.state != "resolved"]
        try:
            now_s = self._clock.now_s()
            self._take_rules()
            readings = self._readings(now_s)
            with self._states:
                before = {alert.id: alert for alert in self._facts.alerts()}
                after = self._advance_all(before, readings, now_s)
            self._dispatcher.deliver(after, now_s)
            return [
                alert
                for alert in after
                if alert.state != "resolved" or (alert.resolved_at == now_s and alert.fired_at is not None)
            ]
        finally:
            self._turn.release()

    def _take_rules(self) -> None:
        """Rules set in any monitor on this store are used from the next round on."""
        stored = self._queries.alert_rules()
        if stored == self._stored:
            return
        self._stored = stored
        try:
            self.rules = rules_module.in_force(self._configured, stored)
        except SettingError as error:
            logger.warning("The alert rules set in the monitor are invalid, so the configured ones are used: %s", error)
            self.rules = rules_module.configured(self._configured)
        self._dispatcher.use(self.rules)

    def acknowledge(self, id: str, user: str) -> AlertView | None:
        """Acknowledge an alert: it is not repeated until it fires again. None if there is no such alert."""
        return self._change(id, lambda alert, now_s: replace(alert, acknowledged_by=user, acknowledged_at=now_s))

    def silence(self, id: str, seconds: float, user: str) -> AlertView | None:
        """Silence an alert, even if it fires again; 0 seconds end a silence. None if there is no such alert."""
        logger.info("Alert %s silenced for %.0f s by %s", id, seconds, user or "an unnamed user")
        return self._change(
            id, lambda alert, now_s: replace(alert, silenced_until=now_s + seconds if seconds > 0 else None)
        )

    def test(self, channel: str) -> Delivery:
        """
        Send a test message through one channel, now.

        Args:
            channel: Its label, one of :attr:`channel_labels`.

        Raises:
            KeyError: No channel has this label.
        """
        return self._dispatcher.test(channel, self._clock.now_s())

    def _change(self, id: str, change: Callable[[AlertView, float], AlertView]) -> AlertView | None:
        with self._states:
            alert = self._queries.alert(id)
            if alert is None:
                return None
            alert = change(alert, self._clock.now_s())
            self._store.save_alert(alert)
            return alert

    # --- readings --------------------------------------------------------------------------------------

    def _readings(self, now_s: float) -> list[tuple[Rule, list[Reading] | None]]:
        facts = self._facts.read(self.rules, now_s)
        readings: list[tuple[Rule, list[Reading] | None]] = []
        for rule in self.rules:
            try:
                readings.append((rule, rules_module.evaluate(rule, facts)))
            except Exception as error:  # an error in one rule must not stop the others
                report(f"alert rule {rule.name}", error)
                readings.append((rule, None))
        return readings

    # --- states ----------------------------------------------------------------------------------------

    def _advance_all(
        self, before: dict[str, AlertView], readings: Iterable[tuple[Rule, list[Reading] | None]], now_s: float
    ) -> list[AlertView]:
        after = dict(before)
        visited: set[str] = set()
        for rule, found in readings:
            of_rule = {id for id, alert in before.items() if alert.rule == rule.name}
            if found is None:  # the rule could not be evaluated: its alerts stay as they are
                visited |= of_rule
                continue
            by_id = {alert_id(rule, reading.subject): reading for reading in found}
            for id in {*by_id, *(id for id in of_rule if before[id].state != "resolved")}:
                visited.add(id)
                alert = self._advanced(id, before, by_id.get(id), rule, now_s)
                if alert is not None:
                    after[id] = alert
        for id, alert in before.items():  # their rule is not configured any more
            if id not in visited and alert.state != "resolved":
                after[id] = replace(alert, state="resolved", resolved_at=now_s)
        for id, alert in after.items():
            self._save(before.get(id), alert, now_s)
        return list(after.values())

    def _advanced(
        self, id: str, before: dict[str, AlertView], reading: Reading | None, rule: Rule, now_s: float
    ) -> AlertView | None:
        """One alert after this round; if it ended too long ago to be in ``before``, it is added there."""
        if id not in before and reading is not None and reading.value > rule.above:
            ended_long_ago = self._queries.alert(id)
            if ended_long_ago is not None:
                before[id] = ended_long_ago
        alert, clear_since_s = advance(
            before.get(id), reading, rule, now_s=now_s, clear_since_s=self._clear_since_s.pop(id, None)
        )
        if clear_since_s is not None:
            self._clear_since_s[id] = clear_since_s
        return alert

    def _save(self, before: AlertView | None, alert: AlertView, now_s: float) -> None:
        if before is alert or before == alert:
            return
        same_state = before is not None and (before.state, before.severity) == (alert.state, alert.severity)
        if same_state and now_s - self._saved_at_s.get(alert.id, 0.0) < _SAVE_EVERY_S:
            return
        self._store.save_alert(alert)
        self._saved_at_s[alert.id] = now_s
