"""The attempts of one message, from several sources."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from celery_trace.cli.renderers.attempts import attempts, by_task
from celery_trace.cli.renderers.style import Style
from celery_trace.model import ExceptionInfo, FailureSummary, Kill, Kind, MessageStart, Outcome, Run
from celery_trace.model.attempts import Attempt
from celery_trace.queries.attempts import together
from tests.unit.test_timeline import failure as make_failure

NOW_S = 1_000_000.0


def failed(retries: int, at_s: float, outcome: Outcome = Outcome.RETRIED, **more: Any) -> FailureSummary:
    return replace(make_failure("t", at_s, outcome, retries=retries), **more)


def started(retries: int, at_s: float, ended_s: float | None = None, **more: Any) -> MessageStart:
    known = {"process": "p", "worker": "w@h", "queue": "q", "name": "shop.pay", "task_id": "t"} | more
    return MessageStart(retries=retries, started_at_s=at_s, ended_at_s=ended_s, **known)


def single(retries: int, at_s: float, state: str = "SUCCESS", duration_s: float = 5.0) -> Run:
    return Run(
        id=f"run-{retries}", process="p", kind=Kind.TASK, name="shop.pay", task_id="t", retries=retries,
        started_at_s=at_s, duration_s=duration_s, state=state,
    )  # fmt: skip


def shown(found: list[Attempt]) -> list[tuple[int, str]]:
    return [(one.retries, one.outcome) for one in found]


def test_retries_and_the_success_after_them_are_attempts_of_one_message() -> None:
    rows = [failed(1, NOW_S - 50), failed(0, NOW_S - 100)]
    found = together(rows, [single(2, NOW_S - 10)], [], [], lambda _: None)
    assert shown(found) == [(0, "retried"), (1, "retried"), (2, "succeeded")]
    assert [one.failure for one in found] == [rows[1].id, rows[0].id, ""]
    assert found[2].run == "run-2"


def test_several_records_of_one_execution_are_one_attempt() -> None:
    rows = [failed(0, NOW_S - 90, Outcome.FAILED)]
    runs, starts = [single(0, NOW_S - 100, "FAILURE", 10.0)], [started(0, NOW_S - 100, NOW_S - 90)]
    (one,) = together(rows, runs, starts, [], lambda _: None)
    assert (one.outcome, one.started_at, one.ended_at, one.failure) == ("failed", NOW_S - 100, NOW_S - 90, rows[0].id)


def test_a_message_that_killed_processes_has_an_attempt_for_each_delivery() -> None:
    row = failed(0, NOW_S - 10, Outcome.LOST, kills=3)
    kills = [Kill(at_s=at_s, pid=pid, process="p", worker="w@h") for at_s, pid in ((NOW_S - 100, 1), (NOW_S - 50, 2))]
    kills.append(Kill(at_s=NOW_S - 10, pid=3, process="p", worker="w@h"))

    class Detail:
        killed = kills

    starts = [started(0, NOW_S - 120), started(0, NOW_S - 60, redelivered=True)]
    found = together([row], [], starts, [], lambda _: Detail())  # type: ignore[arg-type, return-value]
    assert shown(found) == [(0, "lost")] * 3
    assert [(one.started_at, one.ended_at) for one in found] == [
        (NOW_S - 120, NOW_S - 100), (NOW_S - 60, NOW_S - 50), (None, NOW_S - 10),
    ]  # fmt: skip
    assert [one.redelivered for one in found] == [False, True, False]


def test_a_message_that_was_started_again_while_it_ran_has_two_attempts() -> None:
    starts = [started(0, NOW_S - 100, NOW_S - 10, succeeded=True), started(0, NOW_S - 50, redelivered=True)]
    assert shown(together([], [], starts, [], lambda _: None)) == [(0, "succeeded"), (0, "unknown")]


def test_one_attempt_is_no_list_and_several_are_printed_with_their_outcomes() -> None:
    style = Style(now_s=NOW_S)
    assert attempts([Attempt(retries=0)], style) == ""
    text = attempts(
        [Attempt(retries=0, outcome="retried", failure="f-0"), Attempt(retries=1, outcome="succeeded")], style
    )
    first, second = text.splitlines()[-2:]
    assert first.split()[:2] == ["1", "retried"]
    assert first.endswith("f-0")
    assert second.split()[:2] == ["2", "succeeded"]


def test_a_list_has_one_line_for_each_task_with_the_outcomes_of_its_attempts() -> None:
    error = ExceptionInfo("ValueError", "builtins", "no")
    rows = [failed(1, NOW_S, Outcome.FAILED, exception=error), failed(0, NOW_S - 9), make_failure("u", NOW_S - 20)]
    (latest, outcomes), (other, alone) = by_task(rows)
    assert (latest.task_id, latest.retries, outcomes) == ("t", 1, "retried, failed")
    assert (other.task_id, alone) == ("u", "")
