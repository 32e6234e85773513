"""The engine's states, pages and memory, with a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.alerting.engine import advance
from celery_trace.alerting.rules import Reading, Rule, StoredRules
from celery_trace.clock import FakeClock
from celery_trace.guard import own_errors
from tests.support.alerting import MemoryChannel, MemoryStore, engine, leak


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def channel() -> MemoryChannel:
    return MemoryChannel()


def test_a_value_over_its_threshold_fires_and_is_delivered(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    store.facts["leaks"] = [leak(5000)]
    (alert,) = engine(store, clock, channel).evaluate()
    assert (alert.state, alert.rule, alert.value, alert.threshold, alert.count) == ("firing", "leak", 5000, 1000, 1)
    assert alert.link == "leaks/shop.leak:7"
    (message,) = channel.messages
    assert message.title == "[warning] leak: task shop.leak at /srv/shop.py:7"
    assert "keeps 4.9 KiB each run at /srv/shop.py:7" in message.body
    assert "http://monitor.test/trace/leaks/shop.leak:7" in message.body
    assert [(d.ok, d.channel, d.attempt) for d in store.log] == [(True, "memory://one", 1)]


def test_a_value_that_is_not_over_long_enough_never_pages(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, channel, rules=({"rule": "leak", "above": 1000, "for": "1m"},))
    store.facts["leaks"] = [leak(5000)]
    assert [alert.state for alert in alerts.evaluate()] == ["pending"]
    clock.advance(30)
    store.facts["leaks"] = []
    assert alerts.evaluate() == []
    clock.advance(31)
    alerts.evaluate()
    assert channel.messages == []
    (alert,) = store.alerts_by_id.values()
    assert (alert.state, alert.fired_at, alert.count) == ("resolved", None, 0)


def test_for_is_counted_from_the_first_time_over(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel, rules=({"rule": "leak", "above": 1000, "for": "1m"},))
    store.facts["leaks"] = [leak(5000)]
    alerts.evaluate()
    clock.advance(59)
    assert [alert.state for alert in alerts.evaluate()] == ["pending"]
    clock.advance(1)
    assert [alert.state for alert in alerts.evaluate()] == ["firing"]
    assert channel.heard == [("firing", 1)]


def test_a_flapping_leak_pages_once(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    for round_number in range(100):
        store.facts["leaks"] = [leak(1500)] if round_number % 2 else []
        alerts.evaluate()
        clock.advance(60)
    assert channel.heard == [("firing", 1)]
    (alert,) = store.alerts_by_id.values()
    assert (alert.state, alert.count) == ("firing", 1)


def test_between_the_two_thresholds_nothing_changes(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(900)]
    assert alerts.evaluate() == []  # not over 1000: does not fire
    store.facts["leaks"] = [leak(1001)]
    alerts.evaluate()
    store.facts["leaks"] = [leak(900)]
    for _ in range(20):
        clock.advance(120)
        assert [alert.state for alert in alerts.evaluate()] == ["firing"]  # over 800: does not end


def test_what_stays_low_ends_and_says_so_once(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(5000)]
    alerts.evaluate()
    store.facts["leaks"] = []
    clock.advance(60)
    alerts.evaluate()
    clock.advance(599)
    assert [alert.state for alert in alerts.evaluate()] == ["firing"]
    clock.advance(1)
    (alert,) = alerts.evaluate()
    assert (alert.state, alert.resolved_at) == ("resolved", clock.now_s())
    clock.advance(60)
    assert alerts.evaluate() == []
    assert channel.heard == [("firing", 1), ("resolved", 1)]
    assert channel.messages[1].title.startswith("[resolved] leak:")


def test_what_fires_anew_pages_anew_and_counts(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    for _ in range(3):
        store.facts["leaks"] = [leak(5000)]
        alerts.evaluate()
        clock.advance(3600)
        store.facts["leaks"] = []
        alerts.evaluate()
        clock.advance(3600)
        alerts.evaluate()
        clock.advance(3600)
    assert channel.heard == [("firing", 1), ("resolved", 1)] * 3
    (alert,) = store.alerts_by_id.values()
    assert alert.count == 3


def test_what_goes_on_is_repeated_until_somebody_acknowledges(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(5000)]
    (alert,) = alerts.evaluate()
    clock.advance(4 * 3600 - 1)
    alerts.evaluate()
    assert channel.heard == [("firing", 1)]
    clock.advance(1)
    alerts.evaluate()
    assert channel.heard == [("firing", 1)] * 2
    acknowledged = alerts.acknowledge(alert.id, "ada")
    assert acknowledged is not None
    assert (acknowledged.acknowledged_by, acknowledged.acknowledged_at) == ("ada", clock.now_s())
    clock.advance(24 * 3600)
    assert alerts.evaluate()[0].acknowledged_by == "ada"
    assert channel.heard == [("firing", 1)] * 2


def test_an_acknowledgement_ends_with_the_episode(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(5000)]
    (alert,) = alerts.evaluate()
    alerts.acknowledge(alert.id, "ada")
    store.facts["leaks"] = []
    alerts.evaluate()
    clock.advance(700)
    alerts.evaluate()
    store.facts["leaks"] = [leak(5000)]
    clock.advance(60)
    (alert,) = alerts.evaluate()
    assert (alert.acknowledged_by, alert.acknowledged_at) == ("", None)
    assert channel.heard == [("firing", 1), ("resolved", 1), ("firing", 1)]


def test_a_silenced_alert_says_nothing_until_the_silence_ends(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    quiet = engine(store, clock)  # no channel yet: only the state is made
    store.facts["leaks"] = [leak(5000)]
    (alert,) = quiet.evaluate()
    quiet.silence(alert.id, 3600, "ada")
    alerts = engine(store, clock, channel)
    alerts.evaluate()
    clock.advance(3599)
    alerts.evaluate()
    assert channel.messages == []
    clock.advance(1)
    alerts.evaluate()
    assert channel.heard == [("firing", 1)]


def test_what_came_and_went_in_silence_stays_unsaid(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, rules=({"rule": "leak", "above": 1000, "hold": 0},))
    store.facts["leaks"] = [leak(5000)]
    (alert,) = alerts.evaluate()
    alerts.silence(alert.id, 600, "ada")
    alerts = engine(store, clock, channel, rules=({"rule": "leak", "above": 1000, "hold": 0},))
    alerts.evaluate()
    store.facts["leaks"] = []
    clock.advance(60)
    alerts.evaluate()
    clock.advance(3600)
    alerts.evaluate()
    assert channel.messages == []


def test_zero_seconds_end_a_silence(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(5000)]
    (alert,) = alerts.evaluate()
    alerts.silence(alert.id, 3600, "ada")
    silenced = alerts.silence(alert.id, 0, "ada")
    assert silenced is not None
    assert silenced.silenced_until is None


def test_an_unknown_alert_is_nobody(store: MemoryStore, clock: FakeClock) -> None:
    alerts = engine(store, clock)
    assert alerts.acknowledge("nothing", "ada") is None
    assert alerts.silence("nothing", 60, "ada") is None
    with pytest.raises(KeyError):
        alerts.test("nothing")


def test_a_restart_neither_forgets_nor_pages_again(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    store.facts["leaks"] = [leak(5000)]
    engine(store, clock, channel).evaluate()
    clock.advance(60)
    (alert,) = engine(store, clock, channel).evaluate()
    assert alert.count == 1
    assert channel.heard == [("firing", 1)]
    clock.advance(4 * 3600)
    engine(store, clock, channel).evaluate()
    assert channel.heard == [("firing", 1)] * 2


def test_a_crash_between_state_and_delivery_is_made_up_for(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    store.facts["leaks"] = [leak(5000)]
    engine(store, clock).evaluate()  # the state was saved, nothing was sent
    clock.advance(5)
    engine(store, clock, channel).evaluate()
    assert channel.heard == [("firing", 1)]


def test_alerts_that_come_together_go_as_one_message(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(2000 + line, line=line) for line in range(1, 51)]
    alerts.evaluate()
    assert channel.heard == [("firing", 50)]
    assert channel.messages[0].title == "[warning] leak: 50 alerts"
    assert "… and 30 more." in channel.messages[0].body
    store.facts["leaks"] += [leak(3000, line=line) for line in (60, 61)]
    clock.advance(5)
    alerts.evaluate()
    store.facts["leaks"] += [leak(3000, line=62)]
    clock.advance(5)
    alerts.evaluate()
    assert channel.heard == [("firing", 50)]
    clock.advance(25)
    alerts.evaluate()
    assert channel.heard == [("firing", 50), ("firing", 3)]


def test_a_channel_that_is_down_is_tried_with_growing_pauses_and_gets_it_in_the_end(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    other = MemoryChannel("memory://two")
    alerts = engine(store, clock, channel, other)
    channel.broken = "no route"
    store.facts["leaks"] = [leak(5000)]
    tries = []
    for second in range(600):
        before = channel.tried
        alerts.evaluate()
        if channel.tried > before:
            tries.append(second)
        clock.advance(1)
    assert tries == [0, 5, 20, 80, 380]
    assert other.heard == [("firing", 1)]
    assert [(d.ok, d.attempt, d.error) for d in store.log if d.channel == "memory://one"] == [
        (False, attempt, "no route") for attempt in (1, 2, 3, 4, 5)
    ]
    channel.broken = ""
    clock.advance(900)
    alerts.evaluate()
    assert channel.heard == [("firing", 1)]
    assert store.log[-1].ok
    assert store.log[-1].attempt == 6


def test_what_ended_while_a_channel_was_down_is_still_told(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    rules = ({"rule": "leak", "above": 1000, "hold": 0},)
    alerts = engine(store, clock, channel, rules=rules)
    channel.broken = "no route"
    store.facts["leaks"] = [leak(5000)]
    alerts.evaluate()
    store.facts["leaks"] = []
    clock.advance(60)
    alerts.evaluate()
    channel.broken = ""
    clock.advance(3600)
    engine(store, clock, channel, rules=rules).evaluate()  # also over a restart
    assert channel.heard == [("resolved", 1)]


def test_a_channel_that_raises_anything_does_not_stop_the_round(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    class Wild(MemoryChannel):
        def send(self, message: Any) -> None:
            raise ZeroDivisionError("secret-token-in-here")

    alerts = engine(store, clock, Wild("memory://wild"), channel)
    store.facts["leaks"] = [leak(5000)]
    alerts.evaluate()
    assert channel.heard == [("firing", 1)]
    (failed,) = [delivery for delivery in store.log if not delivery.ok]
    assert "ZeroDivisionError" in failed.error
    assert "secret" not in failed.error
    own_errors.clear()


def test_a_rule_that_chokes_leaves_its_alerts_and_the_others_alone(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    rules = ({"rule": "leak", "above": 1000, "hold": 0}, {"rule": "worker_silent", "hold": 0})
    alerts = engine(store, clock, channel, rules=rules)
    store.facts["leaks"] = [leak(5000)]
    alerts.evaluate()
    store.facts["leaks"] = []
    store.facts["workers"] = [object()]  # nothing that the rule could read
    clock.advance(60)
    assert [alert.state for alert in alerts.evaluate()] == ["resolved"]
    assert own_errors["alert rule worker_silent"] == 1
    own_errors.clear()


def test_an_alert_whose_rule_is_gone_ends_without_a_word(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    store.facts["leaks"] = [leak(5000)]
    engine(store, clock, channel).evaluate()
    clock.advance(60)
    engine(store, clock, channel, rules=({"rule": "lost"},)).evaluate()
    assert [alert.state for alert in store.alerts_by_id.values()] == ["resolved"]
    assert channel.heard == [("firing", 1)]


def test_a_value_that_drifts_is_not_saved_each_round(store: MemoryStore, clock: FakeClock) -> None:
    alerts = engine(store, clock)
    for second in range(120):
        store.facts["leaks"] = [leak(5000 + second)]
        (alert,) = alerts.evaluate()
        assert alert.value == 5000 + second
        clock.advance(1)
    assert store.saves == 2


def test_drops_are_counted_within_the_window_and_from_where_the_last_alert_stood(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    rules = ({"rule": "spool_dropping", "window": "10m"},)
    alerts = engine(store, clock, channel, rules=rules)
    assert alerts.evaluate() == []
    clock.advance(60)
    store.dropped = {"rollup": 3, "run": 4}
    (alert,) = alerts.evaluate()
    assert (alert.state, alert.value) == ("firing", 7)
    clock.advance(60)
    again = engine(store, clock, channel, rules=rules)
    (alert,) = again.evaluate()
    assert (alert.state, alert.value) == ("firing", 7)
    clock.advance(601)
    (alert,) = again.evaluate()
    assert alert.state == "resolved"
    clock.advance(60)
    assert engine(store, clock, channel, rules=rules).evaluate() == []  # told, over, and the sum still stands at 7
    assert channel.heard == [("firing", 1), ("resolved", 1)]


def test_a_test_message_is_sent_and_logged(store: MemoryStore, clock: FakeClock, channel: MemoryChannel) -> None:
    alerts = engine(store, clock, channel)
    assert alerts.channel_labels == ["memory://one"]
    assert alerts.test("memory://one").ok
    channel.broken = "closed for today"
    failed = alerts.test("memory://one")
    assert (failed.ok, failed.error, failed.alert) == (False, "closed for today", "test")
    assert [delivery.ok for delivery in store.log] == [True, False]
    assert channel.messages[0].state == "test"


@given(st.lists(st.tuples(st.floats(0, 300), st.one_of(st.none(), st.floats(0, 20))), max_size=60))
def test_whatever_the_values_do_states_only_move_along_their_path(steps: list[tuple[float, float | None]]) -> None:
    """From resolved to pending to firing to resolved; firing only after ``for``, resolved only after ``hold``."""
    rule = Rule(rule="leak", name="leak", above=10, clear=0.5, for_s=60, hold_s=120)
    now_s = 1000.0
    alert, clear_since_s = None, None
    for wait_s, value in steps:
        now_s += wait_s
        before = alert
        reading = None if value is None else Reading("x", value, "text")
        alert, clear_since_s = advance(alert, reading, rule, now_s=now_s, clear_since_s=clear_since_s)
        was = before.state if before else "resolved"
        now = alert.state if alert else "resolved"
        assert (was, now) in {
            ("resolved", "resolved"), ("resolved", "pending"), ("pending", "pending"), ("pending", "resolved"),
            ("pending", "firing"), ("firing", "firing"), ("firing", "resolved"),
        }  # fmt: skip
        if alert is None:
            continue
        if (was, now) == ("pending", "firing"):
            assert now_s - alert.since >= rule.for_s
            assert value is not None
            assert value > rule.above
        if (was, now) == ("firing", "resolved"):
            assert value is None or value <= rule.clear_below
            assert alert.fired_at is not None


def test_rules_set_in_the_monitor_hold_from_the_next_round_and_go_back(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel
) -> None:
    alerts = engine(store, clock, channel)
    store.facts["leaks"] = [leak(5000)]
    store.stored_rules = StoredRules([{"rule": "leak", "above": "1 MiB"}], "ada", 1.0)
    assert alerts.evaluate() == []
    store.stored_rules = None
    assert [alert.state for alert in alerts.evaluate()] == ["firing"]
    assert channel.heard == [("firing", 1)]


def test_rules_of_the_monitor_that_cannot_be_used_give_way_to_the_configured_ones(
    store: MemoryStore, clock: FakeClock, channel: MemoryChannel, caplog: pytest.LogCaptureFixture
) -> None:
    store.facts["leaks"] = [leak(5000)]
    store.stored_rules = StoredRules([{"rule": "of a newer version"}], "ada", 1.0)
    assert [alert.rule for alert in engine(store, clock, channel).evaluate()] == ["leak"]
    assert "are invalid" in caplog.text
