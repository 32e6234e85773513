"""The live shell over a real broker: a keeper, a client, and what passes between them."""

from __future__ import annotations

import contextvars
import gc
import json
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.control.channel import QUEUE_EXPIRES_S, command_address, reply_address
from celery_trace.model import AuditEntry, Kept, TaskContext
from celery_trace.shell.live.client import LiveSession
from celery_trace.shell.session import CODE_LIMIT, Done, SessionGone, ShellError
from tests.support.shells import LiveProcess, Said, answer, create_error, outer, say
from tests.support.waiting import wait_until


@pytest.fixture
def live(tmp_path: Path, own_broker_url: str) -> Iterator[LiveProcess]:
    process = LiveProcess(tmp_path, own_broker_url)
    yield process
    process.close()


class Gate:
    """Holds a command up until the test lets it go on; long enough for the seed example."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    def __len__(self) -> int:
        return 1


def test_the_failures_context_is_there_as_it_was(live: LiveProcess) -> None:
    payload = {"order": object()}
    kept = live.fail(call=lambda: outer(payload), task=TaskContext(queue="slow"))
    with live.session(kept) as session:
        assert session.mode == "live"
        assert [frame.function for frame in session.frames][:3] == ["create_error", "outer", "<lambda>"]
        assert answer(session, "context_data is trace.context_data, a + c + d") == "(True, 21)"
        assert answer(session, "trace.frames[1].locals.above") == "['outer']"
        assert answer(session, "trace.exception") == "ZeroDivisionError('division by zero')"
        assert answer(session, "trace.task.queue") == "'slow'"
        assert answer(session, "id(context_data['order'])") == str(id(payload["order"]))
        assert any("process that failed" in notice for notice in session.notices)


def test_a_session_knows_the_leaks_of_its_task(live: LiveProcess) -> None:
    with live.session(live.fail(), leaks=[{"line": 7, "verdict": "leaking"}]) as session:
        assert answer(session, "trace.leaks[0].line") == "7"


def test_changing_an_object_changes_that_object(live: LiveProcess) -> None:
    values = ["before"]
    with live.session(live.fail(call=lambda: create_error(values))) as session:
        say(session, "context_data.append('after')")
    assert values == ["before", "after"]


def test_the_context_variables_are_those_of_the_failure(live: LiveProcess) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")

    def work() -> None:
        tenant.set("acme")
        variable = tenant  # noqa: F841 - a local of the failing frame
        live.kept_record = live.fail()  # type: ignore[attr-defined]

    contextvars.copy_context().run(work)
    with live.session(live.kept_record) as session:  # type: ignore[attr-defined]
        say(session, "import tests.wiring.test_shell_live as here, contextvars")
        code = "[value for variable, value in contextvars.copy_context().items() if variable.name == 'tenant']"
        assert answer(session, code) == "['acme']"


def test_output_arrives_while_the_command_runs(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        heard: list[tuple[str, bool]] = []
        say(session, "import threading; gate = threading.Event(); trace.frames[0].globals['GATES'].append(gate)")

        def on_event(event: Any) -> None:
            heard.append((event.text, GATES[-1].is_set()))
            GATES[-1].set()

        done = session.run("print('first'); opened = gate.wait(30); print('second')", on_event)
        assert done.ok
        assert heard == [("first\n", False), ("second\n", True)]


GATES: list[threading.Event] = []
create_error.__globals__["GATES"] = GATES


def test_a_loop_is_interrupted(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        timer = threading.Timer(0.3, session.interrupt)
        timer.start()
        done, said = say(session, "while True: pass\n")
        timer.join()
        assert not done.ok
        assert said.of("error") == "KeyboardInterrupt\n"
        assert answer(session, "1 + 1") == "2"


@pytest.fixture
def interrupts_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interrupt may land in a finaliser or a callback of the collector, where Python can only print it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)
    kept = list(gc.callbacks)
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = kept


@pytest.mark.usefixtures("interrupts_anywhere")
def test_many_interrupts_at_any_moment_leave_the_session_usable(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        stop = threading.Event()

        def disturb() -> None:
            while not stop.wait(0.002):
                session.interrupt()

        thread = threading.Thread(target=disturb)
        thread.start()
        for _ in range(100):
            say(session, "for number in range(200): print(number)\n")
        stop.set()
        thread.join()
        assert answer(session, "1 + 1") == "2"


def test_a_command_over_its_time_is_stopped(tmp_path: Path, own_broker_url: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("celery_trace.shell.live.host.LiveHost.__init__.__kwdefaults__", {"command_limit_s": 0.5})
    live = LiveProcess(tmp_path, own_broker_url)
    with live.session(live.fail()) as session:
        done, said = say(session, "while True: pass\n")
        assert not done.ok
        assert "a command may take 0.5 s" in said.of("notice")
        assert "KeyboardInterrupt" in said.of("error")
        assert answer(session, "2 + 2") == "4"
    live.close()


def test_a_command_that_cannot_be_stopped_ends_its_session_alone(
    tmp_path: Path, own_broker_url: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("celery_trace.shell.live.host.LiveHost.__init__.__kwdefaults__", {"command_limit_s": 0.2})
    monkeypatch.setattr("celery_trace.shell.live.host.GIVE_UP_S", 0.5)
    live = LiveProcess(tmp_path, own_broker_url)
    kept = live.fail()
    with live.session(kept) as session:
        say(session, "import threading; gate = threading.Event(); trace.frames[0].globals['GATES'].append(gate)")
        stubborn = "while not gate.is_set():\n    try: gate.wait(0.01)\n    except BaseException: pass\n\n"
        with pytest.raises(SessionGone, match="can't be interrupted"):
            say(session, stubborn)
        with live.session(kept) as another:
            assert answer(another, "1 + 1") == "2"
        GATES[-1].set()
    live.close()


def test_one_command_at_a_time_and_the_second_is_told(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        say(session, "import threading; gate = threading.Event(); trace.frames[0].globals['GATES'].append(gate)")
        first: list[Done] = []
        thread = threading.Thread(target=lambda: first.append(say(session, "gate.wait(30)")[0]))
        thread.start()
        wait_until(lambda: session._running.locked(), "the first command runs")
        with pytest.raises(ShellError, match="Another command"):
            session.run("1", Said())
        assert session.complete("tra", 3) == []
        GATES[-1].set()
        thread.join(30)
        assert first[0].ok


def test_two_people_may_stand_in_different_frames(live: LiveProcess) -> None:
    kept = live.fail()
    with live.session(kept, "ann") as ann, live.session(kept, "bob") as bob:
        bob.select_frame(1)
        say(bob, "mine = 1")
        assert answer(ann, "trace.frame.function") == "'create_error'"
        assert answer(bob, "trace.frame.function") == "'outer'"
        assert "NameError" in say(ann, "mine")[1].of("error")
        with pytest.raises(ShellError, match="no frame 99"):
            bob.select_frame(99)


def test_completion_comes_from_the_process(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        assert session.complete("trace.con", 9) == ["context_data"]


def test_await_works_and_its_loop_stays_for_the_session(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        say(
            session,
            "import asyncio\ntask = asyncio.ensure_future(asyncio.sleep(0, 'later'))" + "\nawait asyncio.sleep(0)",
        )
        assert answer(session, "await task") == "'later'"


def test_code_over_the_limit_is_refused_on_both_sides(live: LiveProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with live.session(live.fail()) as session:
        with pytest.raises(ShellError, match="at most"):
            session.run("1" * (CODE_LIMIT + 1), Said())
        monkeypatch.setattr("celery_trace.shell.live.client.CODE_LIMIT", 10 * CODE_LIMIT)
        with pytest.raises(ShellError, match="too_big"):
            session.run("1" * (CODE_LIMIT + 1), Said())
    assert live.keeper.counters["live:refused:too_big"] == 1


def test_every_command_is_in_the_audit_log_and_a_record(live: LiveProcess, tmp_path: Path) -> None:
    kept = live.fail()
    with live.session(kept, "ann@example.org") as session:
        say(session, "secret_word = 1")
    path = tmp_path / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["command"] for line in lines] == ["open", "secret_word = 1"]
    assert {line["user"] for line in lines} == {"ann@example.org"}
    assert {line["failure"] for line in lines} == {kept.failure}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.command for one in live.records if isinstance(one, AuditEntry)] == ["open", "secret_word = 1"]


def test_what_somebody_else_types_in_the_session_stands_under_their_name(live: LiveProcess) -> None:
    with live.session(live.fail(), "ann") as session:
        session.run("1", Said(), user="bob")
        session.interrupt(user="cem")
        answer(session, "2")

    def who() -> list[tuple[str, str]]:
        return [(one.user, one.command) for one in live.records if isinstance(one, AuditEntry)]

    wait_until(lambda: ("ann", "2") in who(), "all is written down")
    assert who() == [("ann", "open"), ("bob", "1"), ("cem", "interrupt"), ("ann", "2")]


def test_when_the_process_lets_go_the_session_learns_why(live: LiveProcess) -> None:
    kept, _stays = live.fail(), live.fail()
    with live.session(kept) as session:
        assert live.client().drop(kept, "ann")
        wait_until(lambda: session.gone, "the goodbye arrives")
        assert "no longer kept (dropped)" in session.gone
        with pytest.raises(SessionGone):
            say(session, "1")
    assert live.kept(kept.failure).gone == "dropped"
    assert not live.client().drop(kept, "ann")


def test_a_process_that_ends_says_goodbye_at_once(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        started_s = time.perf_counter()
        live.keeper.close("recycled")
        took_s = time.perf_counter() - started_s
        wait_until(lambda: session.gone, "the goodbye arrives")
        assert "the process ends (recycled)" in session.gone
        assert took_s < 3


def test_a_process_that_is_gone_is_noticed_and_its_queue_removed(live: LiveProcess) -> None:
    kept = live.fail()
    nobody = Kept(process="nobody", failure=kept.failure, at_s=0, until_s=0, address="")
    with pytest.raises(SessionGone, match="has not replied"):
        live.client().open(nobody, kept.failure, "ann", timeout_s=1.0)
    with live.connect() as connection:
        assert connection.channel().client.keys("celery-trace.live.nobody") == []


def test_what_is_said_after_the_session_has_closed_stays_nowhere_for_ever(live: LiveProcess) -> None:
    gate = threading.Event()
    kept = live.fail(call=lambda: create_error(Gate(gate)))
    session = live.client().open(kept, kept.failure, "ann", timeout_s=30.0)
    said = Said()

    def run() -> None:
        with pytest.raises(SessionGone):
            session.run("print('early'); context_data.gate.wait(60); print('late')", said)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: "early" in said.of(), "the command runs")
    session.close()
    thread.join(30)
    wait_until(lambda: not session._thread.is_alive(), "nobody hears the replies any more")
    gate.set()
    with live.connect() as connection:
        client, address = connection.channel().client, reply_address(session.id)
        wait_until(lambda: client.llen(address) > 0, "the rest of the output waits for nobody")
        wait_until(lambda: client.pttl(address) > 0, "and goes away by itself")
        orphan = LiveSession(live.connect, live.key, live.client()._clock, "gone", kept.failure, "ann")
        orphan._open = True
        orphan.close()
        assert 0 < client.pttl(command_address("gone")) <= QUEUE_EXPIRES_S * 1000


def test_a_broker_that_is_away_is_told_as_such(tmp_path: Path, live: LiveProcess) -> None:
    kept = live.fail()
    away = LiveProcess(tmp_path, "redis://127.0.0.1:1/0")
    with pytest.raises(ShellError, match="broker"):
        away.client().open(kept, kept.failure, "ann", timeout_s=1.0)


def test_a_failure_that_is_not_kept_cannot_be_opened(live: LiveProcess) -> None:
    kept = live.fail()
    other = Kept(process=live.process.uid, failure="elsewhere", at_s=0, until_s=0, address="")
    with pytest.raises(ShellError, match="unknown_failure"):
        live.client().open(other, "elsewhere", "ann", timeout_s=30.0)
    assert live.keeper.counters["live:refused:unknown_failure"] == 1
    assert live.kept(kept.failure).gone == ""
