"""Each shipped rule over facts made by hand, and what the configuration refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.alerting.rules import KINDS, SHIPPED, Facts, Rule, configured, describe, evaluate
from celery_trace.model import (
    ExceptionInfo,
    FailureGroup,
    FailureSummary,
    Forecast,
    Kind,
    MemoryState,
    Outcome,
    ProcessView,
    Role,
    Rollup,
    Verdict,
    WorkerView,
)
from celery_trace.settings import SettingError
from celery_trace.text.format import moment
from tests.support.alerting import leak

NOW_S = 1_700_000_000.0
MIB = 1024 * 1024


def rule(kind: str, **values: Any) -> Rule:
    return configured([{"rule": kind, **values}])[0]


def process(pid: int, rss_bytes: int, **more: Any) -> ProcessView:
    values: dict[str, Any] = {
        "uid": f"u{pid}",
        "pid": pid,
        "role": Role.CHILD,
        "started_at": NOW_S - 1000,
        "ended_at": None,
        "ended_how": "",
        "memory": MemoryState(rss_bytes=rss_bytes),
        "at": NOW_S,
    }
    return ProcessView(**{**values, **more})


def worker(*processes: ProcessView, **more: Any) -> WorkerView:
    values: dict[str, Any] = {
        "name": "w1@host",
        "host": "host",
        "role": "child",
        "alive": True,
        "rss_bytes": 1,
        "last_seen": NOW_S,
        "overhead_ratio": 0.0,
        "processes": list(processes),
    }
    return WorkerView(**{**values, **more})


def group(**more: Any) -> FailureGroup:
    values: dict[str, Any] = {
        "fingerprint": "f00",
        "kind": "task",
        "name": "shop.pay",
        "exception": ExceptionInfo("ValueError", "builtins", "no\nmoney"),
        "outcome": Outcome.FAILED,
        "count": 2,
        "first_seen": NOW_S - 10,
        "last_seen": NOW_S - 1,
        "latest_id": "abc",
        "state": "new",
    }
    return FailureGroup(**{**values, **more})


def loss(**more: Any) -> FailureSummary:
    values: dict[str, Any] = {
        "id": "lost1",
        "kind": "task",
        "name": "shop.pay",
        "task_id": "t1",
        "retries": 0,
        "outcome": Outcome.LOST,
        "exception": None,
        "fingerprint": "f01",
        "count": 1,
        "worker": "w1@host",
        "pid": 42,
        "hostname": "host",
        "at": NOW_S - 5,
        "live": False,
    }
    return FailureSummary(**{**values, **more})


def rollup(runs: int, failed: int, *, ago_s: float = 0, name: str = "shop.pay") -> Rollup:
    bucket_s = int(NOW_S - ago_s) // 300 * 300
    return Rollup(process="p", kind=Kind.TASK, name=name, bucket_s=bucket_s, seq=1, runs=runs, failed=failed)


# --- what each rule reads


def forecast(**values: Any) -> Forecast:
    known: dict[str, Any] = {
        "worker": "w1@host", "process": "u1", "pid": 1, "limit": "child", "limit_bytes": 400 * MIB,
        "used_bytes": 300 * MIB, "bytes_per_hour": 50 * MIB, "at": NOW_S, "seconds": 7200.0, "earliest_s": 7000.0,
        "latest_s": 9000.0,
    }  # fmt: skip
    return Forecast(**known | values)


def test_a_limit_is_told_by_what_will_be_used_when_the_window_ends() -> None:
    soon, later = forecast(), forecast(worker="w2@host", bytes_per_hour=10 * MIB)
    facts = Facts(now_s=NOW_S, forecasts=[soon, later])
    first, second = evaluate(rule("process_limit", window="4h"), facts)
    assert (first.subject, first.value) == ("w1@host (child)", 500 / 400)
    assert (second.subject, second.value) == ("w2@host (child)", 340 / 400)
    assert first.text == "pid 1 of w1@host reaches its limit of 400.0 MiB in 2 h; now 300.0 MiB."
    assert first.link == "workers?worker=w1%40host"
    shared = forecast(limit="container")
    (reading,) = evaluate(rule("process_limit", names="w1*"), Facts(now_s=NOW_S, forecasts=[shared, later]))
    assert reading.text.startswith("w1@host reaches its container's limit of 400.0 MiB in 2 h")


def test_a_leaks_alert_says_with_which_release_it_began() -> None:
    leaked = leak(5000, began_with="1.8.2", began_at=NOW_S)
    (reading,) = evaluate(rule("leak"), Facts(now_s=NOW_S, leaks=[leaked]))
    assert f"It began with release 1.8.2, {moment(NOW_S)}." in reading.text


def test_a_leak_is_read_with_its_amount_and_its_place() -> None:
    facts = Facts(now_s=NOW_S, leaks=[leak(5000, retained_by=["shop (module)", "_cache: dict[7]", "Order × 7"])])
    (reading,) = evaluate(rule("leak"), facts)
    assert reading.value == 5000
    assert reading.subject == "task shop.leak at /srv/shop.py:7"
    assert "4.9 KiB each run at /srv/shop.py:7 over 100 runs, held by shop._cache (dict)" in reading.text


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.LEAKING])
def test_a_verdict_other_than_leaking_is_not_read(verdict: Verdict) -> None:
    assert evaluate(rule("leak"), Facts(now_s=NOW_S, leaks=[leak(5000, verdict=verdict)])) == []


def test_a_leak_seen_over_too_few_runs_is_not_read() -> None:
    facts = Facts(now_s=NOW_S, leaks=[leak(5000, runs=49)])
    assert evaluate(rule("leak", runs=50), facts) == []
    assert len(evaluate(rule("leak", runs=49), facts)) == 1


def test_a_leaked_descriptor_weighs_enough_to_fire_the_shipped_rule() -> None:
    leaked = leak(0, resource="fds", native=True, file="", line=0, kept_blocks_per_run=1.0)
    (reading,) = evaluate(rule("leak"), Facts(now_s=NOW_S, leaks=[leaked]))
    assert reading.value > rule("leak").above
    assert "keeps 1 descriptors" in reading.text


def test_the_greatest_process_speaks_for_its_worker() -> None:
    facts = Facts(
        now_s=NOW_S,
        workers=[worker(process(1, 100 * MIB), process(2, 900 * MIB, running="shop.pay"), process(3, 800 * MIB))],
    )
    (reading,) = evaluate(rule("process_memory", above="500 MiB"), facts)
    assert (reading.subject, reading.value) == ("w1@host", 900 * MIB)
    assert "Process 2 of w1@host holds 900.0 MiB, running shop.pay; threshold 500.0 MiB, and 1 more" in reading.text


def test_a_process_that_ended_holds_nothing() -> None:
    facts = Facts(now_s=NOW_S, workers=[worker(process(1, 900 * MIB, ended_at=NOW_S), process(2, 1, memory=None))])
    assert evaluate(rule("process_memory", above=1), facts) == []


def test_the_failure_rate_is_over_the_window_and_enough_runs() -> None:
    facts = Facts(now_s=NOW_S, rollups=[rollup(30, 6), rollup(10, 4, ago_s=300), rollup(1000, 0, ago_s=7200)])
    (reading,) = evaluate(rule("failure_rate", window="15m"), facts)
    assert reading.value == pytest.approx(10 / 40)
    assert "10 of 40 runs of task shop.pay failed in the last 15 min (25 %; threshold 20 %)" in reading.text
    assert evaluate(rule("failure_rate", runs=41), facts) == []


def test_a_name_without_a_failure_is_not_read() -> None:
    assert evaluate(rule("failure_rate"), Facts(now_s=NOW_S, rollups=[rollup(100, 0)])) == []


def test_a_new_group_is_read_while_it_is_new() -> None:
    (reading,) = evaluate(rule("new_failure"), Facts(now_s=NOW_S, groups=[group()]))
    assert reading.text == "New failure in task shop.pay: ValueError: no money (twice)."
    old = group(first_seen=NOW_S - 901)
    assert evaluate(rule("new_failure"), Facts(now_s=NOW_S, groups=[old])) == []


@pytest.mark.parametrize("state", ["ongoing", "resolved"])
def test_a_known_group_is_not_news(state: str) -> None:
    assert evaluate(rule("new_failure"), Facts(now_s=NOW_S, groups=[group(state=state)])) == []


def test_a_resolved_group_that_comes_back_is_news() -> None:
    back = group(state="regressed", first_seen=1.0)
    (reading,) = evaluate(rule("new_failure"), Facts(now_s=NOW_S, groups=[back]))
    assert reading.text.startswith("A resolved failure is back in task shop.pay")


def test_a_revoked_run_is_no_failure_to_be_told_of() -> None:
    revoked = group(outcome=Outcome.REVOKED, exception=None)
    assert evaluate(rule("new_failure"), Facts(now_s=NOW_S, groups=[revoked])) == []


def test_a_killed_run_is_told_of_once_by_the_rule_lost() -> None:
    killed = group(outcome=Outcome.LOST, exception=None)
    facts = Facts(now_s=NOW_S, groups=[killed], losses=[loss()])
    assert evaluate(rule("new_failure"), facts) == []
    assert len(evaluate(rule("lost"), facts)) == 1


def test_lost_runs_are_counted_by_name() -> None:
    losses = [loss(), loss(id="lost2", at=NOW_S - 1, pid=43), loss(id="lost3", name="shop.mail", at=NOW_S - 899)]
    facts = Facts(now_s=NOW_S, losses=[*losses, loss(at=NOW_S - 901), loss(outcome=Outcome.FAILED)])
    pay, mail = evaluate(rule("lost"), facts)
    assert (pay.value, pay.link, mail.value) == (2, "failures/lost2", 1)
    assert "killed while it ran (twice in 15 min), last on w1@host, pid 43" in pay.text


def test_dropped_records_are_read() -> None:
    assert evaluate(rule("spool_dropping"), Facts(now_s=NOW_S)) == []
    (reading,) = evaluate(rule("spool_dropping"), Facts(now_s=NOW_S, dropped_records=9))
    assert reading.value == 9


def main(**more: Any) -> ProcessView:
    return process(9, 1, **{"role": Role.MAIN, **more})


@pytest.mark.parametrize(
    ("changes", "fires"),
    [
        ({"last_seen": NOW_S - 1000}, True),
        ({"last_seen": NOW_S - 800}, False),
        ({"last_seen": NOW_S - 90_000}, False),  # gone for good
        ({"last_seen": NOW_S - 1000, "role": "web"}, False),
        ({"last_seen": NOW_S - 1000, "role": "script"}, False),
        ({"last_seen": NOW_S - 1000, "role": "beat"}, False),
    ],
)
def test_a_worker_that_is_silent_is_read(changes: dict[str, Any], fires: bool) -> None:
    silent = rule("worker_silent")
    readings = evaluate(silent, Facts(now_s=NOW_S, workers=[worker(main(), process(1, 1), **changes)]))
    assert any(reading.value > silent.above for reading in readings) is fires


@pytest.mark.parametrize(("how", "fires"), [("exit", False), ("recycled", False), ("killed", True)])
def test_a_worker_that_said_goodbye_is_not_silent_and_one_that_was_killed_is_at_once(how: str, fires: bool) -> None:
    silent = rule("worker_silent")
    child = process(1, 1, ended_at=NOW_S - 500, ended_how="killed")  # by a time limit, long ago
    ended = worker(child, main(ended_at=NOW_S - 2, ended_how=how), last_seen=NOW_S - 2)
    readings = evaluate(silent, Facts(now_s=NOW_S, workers=[ended]))
    assert any(reading.value > silent.above for reading in readings) is fires


def test_a_worker_that_is_back_after_a_kill_is_well() -> None:
    killed = main(started_at=NOW_S - 900, ended_at=NOW_S - 60, ended_how="killed")
    silent = rule("worker_silent")
    readings = evaluate(silent, Facts(now_s=NOW_S, workers=[worker(killed, main(started_at=NOW_S - 50))]))
    assert all(reading.value <= silent.above for reading in readings)


def test_a_silence_shorter_than_an_idle_workers_pause_is_refused() -> None:
    with pytest.raises(SettingError, match=r"worker_silent is '2m', but it must be more than 5 min"):
        rule("worker_silent", above="2m")


def test_names_narrow_a_rule() -> None:
    facts = Facts(now_s=NOW_S, leaks=[leak(5000, name="shop.a"), leak(5000, name="mail.b")])
    readings = evaluate(rule("leak", names=["shop.*"]), facts)
    assert [reading.subject for reading in readings] == ["task shop.a at /srv/shop.py:7"]


@pytest.mark.parametrize("hostile", ["a\nb\x1b[2J\u202ec\x00", "<b>" * 5000, "\u2028" * 10])
def test_what_a_task_wrote_reaches_an_alert_as_one_printable_line(hostile: str) -> None:
    facts = Facts(
        now_s=NOW_S,
        leaks=[leak(5000, name=hostile, retained_by=[hostile])],
        groups=[group(name=hostile, exception=ExceptionInfo(hostile, "", hostile))],
        losses=[loss(name=hostile, worker=hostile)],
        rollups=[rollup(100, 100, name=hostile)],
        workers=[worker(process(1, 2**40, running=hostile), name=hostile, last_seen=NOW_S - 5000)],
    )
    for kind in KINDS:
        for reading in evaluate(kind.shipped, facts):
            assert reading.subject.isprintable()
            assert reading.text.isprintable()
            assert len(reading.subject) <= 200
            assert len(reading.text) <= 600


def test_long_subjects_that_begin_alike_stay_apart() -> None:
    facts = Facts(now_s=NOW_S, leaks=[leak(5000, name="shop." + "x" * 500 + end) for end in ("a", "b")])
    assert len({reading.subject for reading in evaluate(rule("leak"), facts)}) == 2


# --- the contract of a rule


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_rule_has_nothing_to_say_about_nothing(kind: Any) -> None:
    assert evaluate(kind.shipped, Facts(now_s=NOW_S)) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_shipped_rule_is_what_its_name_alone_configures(kind: Any) -> None:
    assert configured([{"rule": kind.name}]) == (kind.shipped,)
    assert describe(kind.shipped)["unit"] == kind.unit.name


def test_without_configuration_the_shipped_rules_hold() -> None:
    assert configured(None) == SHIPPED
    assert configured([{"rule": "shipped"}]) == SHIPPED
    more = configured([{"rule": "shipped"}, {"rule": "leak", "name": "big", "above": "1 MiB"}])
    assert more[:-1] == SHIPPED
    assert more[-1].above == MIB
    assert configured([]) == ()


# --- configuration


def test_values_are_read_in_the_units_that_people_write() -> None:
    made = rule(
        "process_memory", above="1.5 GiB", severity="critical", repeat="2h", hold="90", clear="75%", names="w1@*",
        **{"for": "5m"},
    )  # fmt: skip
    assert (made.above, made.for_s, made.repeat_s, made.hold_s) == (1.5 * 1024**3, 300, 7200, 90)
    assert (made.clear_below, made.names, made.severity) == (1.5 * 1024**3 * 0.75, ("w1@*",), "critical")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"rule": "leeks"}, "unknown rule 'leeks'. Did you mean 'leak'? Rules are: leak, process_memory"),
        ({"rule": None}, "unknown rule None. Rules are:"),
        (
            {"rule": "leak", "abov": 1},
            "unknown key 'abov' for the rule leak. Did you mean 'above'? Keys are: rule, above",
        ),
        ({"rule": "leak", "above": "many"}, "'above' of the rule leak is 'many', but it must be a size"),
        ({"rule": "leak", "above": -1}, "is -1, but it must be a size"),
        ({"rule": "leak", "above": True}, "is True, but it must be a size"),
        ({"rule": "failure_rate", "above": 20}, "is 20, but it must be a share"),
        ({"rule": "failure_rate", "above": "120%"}, "must be a share"),
        ({"rule": "lost", "above": 1.5}, "must be a whole number"),
        ({"rule": "leak", "for": "soon"}, "'for' of the rule leak is 'soon', but it must be a time"),
        ({"rule": "leak", "repeat": "400d"}, "must be a time"),
        ({"rule": "leak", "severity": "loud"}, "must be one of info, warning, critical"),
        ({"rule": "leak", "name": "two words"}, "must be a short name"),
        ({"rule": "leak", "names": []}, "must be a pattern"),
        ({"rule": "leak", "names": [1]}, "must be a pattern"),
        ({"rule": "leak", "runs": float("nan")}, "must be a whole number"),
        ({"rule": "shipped", "above": 1}, "takes no other key"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        configured([{"rule": "lost"}, entry])
    assert str(refused.value).startswith("trace_alert_rules[2]")
    assert says in str(refused.value)


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match=r"2 are named 'leak'.*give each its own 'name'"):
        configured([{"rule": "leak"}, {"rule": "leak", "above": 5}])


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.lists(st.text()))


@given(st.dictionaries(st.sampled_from(["above", "for", "hold", "clear", "runs", "names", "name", "window"]), scalars))
def test_any_value_is_either_checked_or_refused(values: dict[str, Any]) -> None:
    try:
        made = rule("leak", **values)
    except SettingError:
        return
    assert made.above >= 0
    assert made.for_s >= 0
    assert 0 <= made.clear <= 1
    evaluate(made, Facts(now_s=NOW_S, leaks=[leak(5000)]))
