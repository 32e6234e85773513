"""
Delivers alerts: to which channel, when, and with which retries.

The store's delivery log has an entry for each alert and attempt. So there is no queue of due deliveries: what was not
delivered to a channel is due, after a failure, after a restart and after a silence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from celery_trace.alerting import rules as rules_module
from celery_trace.alerting.channels import Channel, DeliveryFailed, Message
from celery_trace.alerting.facts import AlertQueries
from celery_trace.alerting.rules import Rule
from celery_trace.guard import report
from celery_trace.model import AlertView, Delivery, new_id

logger = logging.getLogger("celery_trace.alerts")

#: Alerts of one rule in quick succession go into one message: after one was sent, the next waits this long.
GROUP_S = 30.0

#: Deliveries are retried for this long after the alert has ended.
LATE_S = 86_400.0

#: Backoff after the first, second … consecutive failure of a channel, seconds; the last one repeats.
BACK_OFF_S = (5.0, 15.0, 60.0, 300.0, 900.0)

_MOST_LINES = 20  # alerts listed in one message


class DeliveryStore(Protocol):
    """The part of the store that holds the delivery log."""

    def save_delivery(self, delivery: Delivery) -> object:
        """Keep one attempt."""


class _Sent(NamedTuple):
    """The delivery log of one alert on one channel."""

    ok_at_s: float = 0.0
    tried_at_s: float = 0.0


class _Health:
    """The state of a channel; consecutive failures delay its next attempt (backoff)."""

    def __init__(self) -> None:
        self.failures = 0
        self.not_before_s = 0.0

    def failed(self, now_s: float) -> None:
        self.not_before_s = now_s + BACK_OFF_S[min(self.failures, len(BACK_OFF_S) - 1)]
        self.failures += 1

    def worked(self) -> None:
        self.failures = 0
        self.not_before_s = 0.0


class Dispatcher:
    """
    Delivers alerts through channels and keeps the log. Called by one thread at a time, except :meth:`test`.

    Args:
        base_url: The monitor's address without a path of ours, for links in messages; may be empty.
    """

    def __init__(
        self,
        store: DeliveryStore,
        queries: AlertQueries,
        channels: Sequence[Channel],
        rules: Iterable[Rule],
        base_url: str,
    ) -> None:
        self._store = store
        self._queries = queries
        self._channels = list(channels)
        self.use(rules)
        self._base_url = base_url.rstrip("/")
        self._sent: dict[tuple[str, str], _Sent] = {}
        self._known_log: set[str] = set()  # alerts with a delivery log that was read
        self._witnessed: set[str] = set()  # alerts that were seen firing
        self._grouped_at_s: dict[tuple[str, str], float] = {}
        self._health = {channel.label: _Health() for channel in self._channels}

    def use(self, rules: Iterable[Rule]) -> None:
        """Use these rules from now on."""
        self._rules = {rule.name: rule for rule in rules}

    def test(self, label: str, now_s: float) -> Delivery:
        """
        Send a test message through one channel and log how it went.

        Raises:
            KeyError: No channel has this label.
        """
        by_label = {channel.label: channel for channel in self._channels}
        message = Message(
            state="test",
            rule="test",
            severity="info",
            title="celery-trace: test message",
            body="This channel works: alerts of celery-trace arrive here.",
            at=now_s,
        )
        error = _attempt(by_label[label], message)
        delivery = Delivery(id=new_id(), alert="test", channel=label, at=now_s, ok=not error, error=error)
        self._store.save_delivery(delivery)
        return delivery

    def deliver(self, alerts: Sequence[AlertView], now_s: float) -> None:
        """
        Send what is due of these alerts, on each channel separately; a channel that failed has a backoff.

        Args:
            alerts: All active ones, and those that ended recently.

        Raises:
            StoreUnavailable: The delivery log can't be read or written; what was sent may be sent again.
        """
        self._witnessed.update(alert.id for alert in alerts if alert.state == "firing")
        work = [(channel, message) for channel in self._channels for message in self._due(channel, alerts, now_s)]
        if not work:
            return
        by_channel: dict[str, list[tuple[Channel, Message]]] = {}
        for channel, message in work:
            by_channel.setdefault(channel.label, []).append((channel, message))
        if len(by_channel) == 1:
            self._send_all(work, now_s)
            return
        # A channel that hangs until its timeout must not delay the others.
        with ThreadPoolExecutor(len(by_channel), thread_name_prefix="celery-trace-alerts") as pool:
            for outcome in [pool.submit(self._send_all, messages, now_s) for messages in by_channel.values()]:
                outcome.result()

    def _send_all(self, work: Iterable[tuple[Channel, Message]], now_s: float) -> None:
        for channel, message in work:
            health = self._health[channel.label]
            if health.not_before_s > now_s:
                return  # it has just failed; the rest stays due
            error = _attempt(channel, message)
            for alert in message.alerts:
                sent = self._sent.get((alert.id, channel.label), _Sent())
                self._sent[alert.id, channel.label] = _Sent(sent.ok_at_s if error else now_s, now_s)
                self._store.save_delivery(
                    Delivery(
                        id=new_id(),
                        alert=alert.id,
                        channel=channel.label,
                        at=now_s,
                        ok=not error,
                        error=error,
                        attempt=health.failures + 1,
                    )
                )
            if error:
                health.failed(now_s)
                logger.warning(
                    "celery-trace: channel %s did not accept an alert (attempt %d): %s. Next attempt in %.0f s.",
                    channel.label,
                    health.failures,
                    error,
                    health.not_before_s - now_s,
                )
            else:
                health.worked()
                self._grouped_at_s[channel.label, message.rule] = now_s

    def _due(self, channel: Channel, alerts: Iterable[AlertView], now_s: float) -> list[Message]:
        """The messages that a channel is to get now, one for each rule and state."""
        if self._health[channel.label].not_before_s > now_s:
            return []
        rules = self._rules
        groups: dict[tuple[str, str], list[AlertView]] = {}
        for alert in alerts:
            rule = rules.get(alert.rule)
            if rule is None or alert.fired_at is None or alert.state == "pending":
                continue
            if alert.state == "resolved" and now_s - (alert.resolved_at or 0.0) > LATE_S:
                continue
            if now_s - self._grouped_at_s.get((channel.label, rule.name), -GROUP_S) < GROUP_S:
                continue
            state = self._announcement(alert, rule, channel.label, now_s)
            if state:
                groups.setdefault((rule.name, state), []).append(alert)
        return [self._message(rules[name], state, found, now_s) for (name, state), found in groups.items()]

    def _announcement(self, alert: AlertView, rule: Rule, label: str, now_s: float) -> str:
        """What is due on a channel for an alert: ``firing``, ``resolved`` or nothing."""
        if alert.fired_at is None or (alert.silenced_until or 0.0) > now_s:
            return ""
        if alert.id not in self._known_log:
            self._read_log(alert.id)
        sent = self._sent.get((alert.id, label), _Sent())
        notified = sent.ok_at_s >= alert.fired_at
        happens = rules_module.kind_of(rule).happens
        due = ""
        if alert.state == "firing":
            again = now_s - sent.ok_at_s >= rule.repeat_s > 0 and not alert.acknowledged_by
            due = "firing" if (not notified and not alert.acknowledged_by) or (notified and again) else ""
        elif notified:
            due = "" if happens or sent.ok_at_s >= (alert.resolved_at or 0.0) else "resolved"
        elif alert.id in self._witnessed or sent.tried_at_s >= alert.fired_at:
            # It fired and resolved while this channel was down. Once silenced or acknowledged, it is known already.
            suppressed = alert.acknowledged_by or (alert.silenced_until or 0.0) >= (alert.resolved_at or 0.0)
            due = "" if suppressed else "firing" if happens else "resolved"
        if due:
            # Another monitor on the same store may have delivered it.
            self._read_log(alert.id)
            if self._sent.get((alert.id, label), _Sent()).ok_at_s > sent.ok_at_s:
                return ""
        return due

    def _read_log(self, id: str) -> None:
        for delivery in self._queries.deliveries(alert_id=id).rows:
            sent = self._sent.get((id, delivery.channel), _Sent())
            self._sent[id, delivery.channel] = _Sent(
                max(sent.ok_at_s, delivery.at if delivery.ok else 0.0), max(sent.tried_at_s, delivery.at)
            )
        self._known_log.add(id)

    def _message(self, rule: Rule, state: str, alerts: Sequence[AlertView], now_s: float) -> Message:
        ordered = sorted(alerts, key=lambda alert: -alert.value)
        lines = []
        for alert in ordered[:_MOST_LINES]:
            over = " (over by now)" if state == "firing" and alert.state == "resolved" else ""
            link = f"\n  {self._base_url}/trace/{alert.link}" if self._base_url and alert.link else ""
            lines.append(f"{alert.text}{over}{link}")
        if len(ordered) > _MOST_LINES:
            lines.append(f"… and {len(ordered) - _MOST_LINES} more.")
        what = ordered[0].subject if len(ordered) == 1 else f"{len(ordered)} alerts"
        word = "resolved" if state == "resolved" else rule.severity
        title = " ".join(f"[{word}] {rule.name}: {what}".split())
        return Message(
            state=state,
            rule=rule.name,
            severity=rule.severity,
            title=title if len(title) <= 200 else title[:199] + "…",
            body="\n".join(lines),
            at=now_s,
            alerts=list(ordered),
        )


def _attempt(channel: Channel, message: Message) -> str:
    """Send once. Returns the reason of a failure, or an empty text."""
    try:
        channel.send(message)
    except DeliveryFailed as error:
        return str(error) or "the channel gave no reason"
    except Exception as error:  # an error in a channel must not stop the others
        report(f"alert channel {channel.label}", error)
        return f"{type(error).__name__} inside the channel; see the monitor's log"
    return ""
