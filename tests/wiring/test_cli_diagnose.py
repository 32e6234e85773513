"""``celery trace diagnose``: what is known about a task, how, what can't be known, and what needs attention."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_trace.cli.diagnosis import system, task
from celery_trace.commands import trace
from celery_trace.model import ExceptionInfo, Kill, MessageStart, Outcome, TaskContext
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store
from tests.support import store_records as make

Diagnose = Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(trace_dir=str(tmp_path / "trace"))
    yield app
    app.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")))
    yield opened
    opened.close()


@pytest.fixture
def say(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(task, "ANSWER_S", 0.05)

    def say(*words: str) -> str:
        context = CLIContext(app=app, no_color=True, workdir=None)
        result = CliRunner().invoke(trace, ["diagnose", *words], obj=context)
        assert result.exit_code == 0, result.output
        return result.stdout

    return say


@pytest.fixture
def diagnose(say: Callable[..., str]) -> Diagnose:
    return lambda *words: json.loads(say(*words, "--format", "json"))


def facts(answer: Any, about: str) -> list[str]:
    return [fact["what"] for fact in answer["known"] if fact["about"] == about]


def reasons(answer: Any) -> dict[str, str]:
    return {gap["about"]: gap["why"] for gap in answer["unknown"]}


def test_of_a_task_without_a_trace_it_says_what_it_cannot_know(diagnose: Diagnose, store: Store) -> None:
    answer = diagnose("nobody")
    assert answer["known"] == []
    assert answer["summary"].startswith("Nothing is known about this task")
    why = reasons(answer)
    assert set(why) == {"published", "received", "started", "ended", "workflow", "running", "result"}
    assert "no worker answered within" in why["running"]
    assert "the backend has none" in why["result"]
    assert "rows older than 14 days are removed" in why["started"]


def test_tries_retries_and_their_errors_are_facts_with_their_source(diagnose: Diagnose, store: Store) -> None:
    now_s = time.time()
    store.write(
        [
            make.process(),
            make.failure("t", retries=0, outcome=Outcome.RETRIED, at_s=now_s - 50, pid=11),
            make.failure(
                "t", retries=1, at_s=now_s - 20, pid=12, exception=ExceptionInfo("KeyError", "builtins", "'x'")
            ),
            make.run("r", task_id="t", retries=1, started_at_s=now_s - 21, why="outlier", state="FAILURE"),
        ]
    )
    answer = diagnose("t")
    assert answer["summary"] == "Try 1 of shop.charge failed on w1@h1, pid 12: KeyError: 'x'"
    assert facts(answer, "ended") == [
        "Try 0 of shop.charge ended with a retry on w1@h1, pid 11: ValueError: no such card",
        "Try 1 of shop.charge failed on w1@h1, pid 12: KeyError: 'x'",
    ]
    assert facts(answer, "tries") == ["2 tries of one message ended badly: 0 retried, 1 failed"]
    assert "Try 1 of shop.charge ran for 500 ms on w1@h1, pid 11, state FAILURE" in facts(answer, "started")
    assert all(fact["how"] for fact in answer["known"])
    times = [fact["at"] for fact in answer["known"] if fact["at"] is not None]
    assert times == sorted(times)
    assert facts(answer, "workflow") == ["It has no parent and no group"]
    assert not {"received", "started", "ended", "workflow"} & set(reasons(answer))


def test_a_message_that_kills_its_processes_is_counted(diagnose: Diagnose, store: Store) -> None:
    kills = [Kill(at_s=float(at), pid=at, process="p1") for at in (1, 2, 3)]
    store.write(
        [make.process(), make.failure("t", outcome=Outcome.LOST, exception=None, kills=kills, at_s=time.time())]
    )
    answer = diagnose("t")
    assert "was lost: its process was killed" in answer["summary"]
    assert facts(answer, "tries") == ["Its message has killed 3 processes: it was delivered again after each"]


def test_what_runs_says_where_it_is_and_what_it_waits_for(diagnose: Diagnose, store: Store) -> None:
    now_s = time.time()
    began: dict[str, Any] = {"started_at_s": now_s - 40, "stalled_since_s": now_s - 35, "waiting_for": "in time.sleep"}
    store.write([make.snapshot(make.running_run("t1", **began), make.running_run("t2"), at_s=now_s)])
    answer = diagnose("t1")
    assert answer["summary"].startswith("It is stuck: in time.sleep, at ")
    assert facts(answer, "started") == ["Try 0 of shop.charge has started on w1@h1, pid 7"]
    assert "started" not in reasons(answer)
    assert not facts(diagnose("t3"), "running")


def test_a_message_that_was_started_twice_says_so(diagnose: Diagnose, store: Store) -> None:
    now_s = time.time()
    common: dict[str, Any] = {"queue": "celery", "name": "shop.charge", "task_id": "t1"}
    store.write(
        [
            MessageStart(process="p1", worker="w1@h1", started_at_s=now_s - 60, **common),
            MessageStart(process="p2", worker="w2@h1", started_at_s=now_s - 30, redelivered=True, **common),
        ]
    )
    assert facts(diagnose("t1"), "tries") == [
        "Its message was started twice, again while it still ran, by w1@h1, w2@h1"
    ]


def test_the_place_in_a_workflow_and_what_else_of_it_failed(diagnose: Diagnose, store: Store) -> None:
    now_s = time.time()

    def member(id: str, parent: str, group: str = "") -> Any:
        return make.failure(id, at_s=now_s, task=TaskContext(root_id="root", parent_id=parent, group_id=group))

    store.write([make.process(), member("t", "root", "g"), member("u", "root", "g"), member("v", "t")])
    answer = diagnose("t")
    assert sorted(facts(answer, "workflow")) == [
        "1 failure of other tasks of its group: shop.charge failed",
        "1 failure of other tasks that it sent: shop.charge failed",
        "2 failures of other tasks of its workflow: shop.charge failed, shop.charge failed",
        "It belongs to group g; whether that is the header of a chord is not recorded",
        "Its parent is task root",
        "Its workflow began with root",
    ]
    root = diagnose("root")
    assert any(what.startswith("2 failures of other tasks that it sent") for what in facts(root, "workflow"))


def test_the_result_backend_is_asked_for_the_state_and_not_for_the_result(
    say: Callable[..., str], diagnose: Diagnose, store: Store, app: Celery
) -> None:
    store.write([make.process(), make.failure("with-result", outcome=Outcome.RETRIED, at_s=time.time())])
    app.backend.store_result("with-result", "the secret answer", "SUCCESS")
    answer = diagnose("with-result")
    assert answer["summary"].startswith("The result backend has the state SUCCESS since ")
    assert "secret" not in say("with-result")


def test_a_source_that_fails_or_hangs_costs_only_its_answer(
    diagnose: Diagnose, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: task.Asked) -> Iterator[task.Fact]:
        raise OSError("no such socket")
        yield

    monkeypatch.setattr(task, "SOURCES", (breaks, *task.SOURCES))
    assert reasons(diagnose("t"))["breaks"] == "breaks failed: OSError: no such socket"
    with pytest.raises(TimeoutError, match="no answer within 10 ms"):
        task.within(0.01, lambda: time.sleep(0.2))


def test_the_text_says_where_each_fact_is_from(say: Callable[..., str], store: Store) -> None:
    store.write([make.process(), make.failure("t\x1b[31m", at_s=time.time())])
    text = say("t\x1b[31m")
    assert "Task t\\x1b[31m: Try 0 of shop.charge failed on w1@h1" in text
    assert "    from: failure " in text
    assert "\nUnknown\n" in text
    assert "  when and by whom it was published: only workers record\n" in text


# --- the system


def test_what_needs_attention_is_in_order_with_its_source(
    say: Callable[..., str], diagnose: Diagnose, store: Store
) -> None:
    now_s = time.time()
    store.write(
        [
            make.process(started_at_s=now_s - 3600, role="main"),
            make.sample(now_s - 3000, 100),
            *(make.failure(f"t{number}", at_s=now_s - number) for number in range(3)),
        ]
    )
    concerns = diagnose()["concerns"]
    severities = [concern["severity"] for concern in concerns]
    assert severities == sorted(severities, key=("critical", "warning", "info").index)
    assert any("Worker w1@h1 has been silent for" in concern["what"] for concern in concerns)
    assert any(concern["what"].startswith("collector: none has run") for concern in concerns)
    [group] = [concern for concern in concerns if concern["how"].startswith("the most frequent groups")]
    assert group["what"] == "task shop.charge failed: ValueError, 3 times so far"
    assert group["next"] == "celery trace failures --fingerprint fp-value"
    assert all(concern["how"] for concern in concerns)
    assert say().startswith("1. critical  ")


def test_a_check_that_fails_is_a_concern_and_the_others_go_on(
    diagnose: Diagnose, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: system.System) -> Iterator[Any]:
        raise OSError("gone")
        yield

    monkeypatch.setattr(system, "CHECKS", (breaks,))
    [concern] = diagnose()["concerns"]
    assert concern["what"] == "breaks can't be checked: OSError: gone"


def test_nothing_to_do_is_said(say: Callable[..., str], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CHECKS", ())
    assert say() == "Nothing needs attention.\n"


def test_without_a_store_the_rest_is_still_said(diagnose: Diagnose) -> None:
    concerns = diagnose()["concerns"]
    assert any(concern["what"].startswith("store: ") for concern in concerns), concerns
