"""What somebody tries who can publish on the broker: everything is refused, counted, logged and audited."""

from __future__ import annotations

import json
import logging
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Producer

from celery_trace.control.channel import command_address, reply_address
from celery_trace.control.signing import MESSAGE_LIMIT_BYTES, sign
from celery_trace.model import AuditEntry, Kept
from celery_trace.shell.live.client import LiveSession
from celery_trace.shell.session import CODE_LIMIT, ShellError
from tests.support.shells import LiveProcess, answer, outer, say
from tests.support.waiting import wait_until


@pytest.fixture
def live(tmp_path: Path, own_broker_url: str) -> Iterator[LiveProcess]:
    process = LiveProcess(tmp_path, own_broker_url)
    yield process
    process.close()


class Attacker:
    """Has the broker, and not the key."""

    def __init__(self, broker_url: str) -> None:
        self.connection = Connection(broker_url)
        self.channel = self.connection.channel()

    def publish(self, address: str, body: Any, **values: Any) -> None:
        options = {"content_type": "application/octet-stream", "content_encoding": "binary"} | values
        Producer(self.channel, auto_declare=False).publish(body, exchange="", routing_key=address, **options)

    def read(self, address: str) -> list[bytes]:
        """What waits in a queue, without taking it."""
        return list(self.channel.client.lrange(address, 0, -1))


@pytest.fixture
def attacker(live: LiveProcess) -> Iterator[Attacker]:
    attacker = Attacker(live.broker_url)
    yield attacker
    attacker.connection.release()


def forged(live: LiveProcess, kept: Kept, *, key: bytes | None = None, **values: Any) -> bytes:
    given: dict[str, Any] = {
        "kind": "command",
        "target": live.process.uid,
        "action": "open",
        "failure": kept.failure,
        "session": "attacker1",
        "now_s": time.time(),
    }
    return sign(live.key if key is None else key, **(given | values))[0]


def refusals(live: LiveProcess) -> dict[str, int]:
    return {name.rpartition(":")[2]: count for name, count in live.keeper.counters.items() if name.count(":") == 2}


def expect(live: LiveProcess, why: str, count: int = 1) -> None:
    wait_until(
        lambda: refusals(live).get(why, 0) >= count, f"it is refused as {why}", explain=lambda: str(refusals(live))
    )


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("/tmp/celery-trace-pickle-was-opened",))


def test_messages_without_the_key_are_refused_counted_logged_and_audited(
    live: LiveProcess, attacker: Attacker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "celery_trace.shell")
    kept = live.fail()
    address = command_address(live.process.uid)
    with live.session(kept) as session:
        good = json.loads(forged(live, kept))
        attempts = {
            "unsigned": json.dumps(good | {"mac": ""}).encode(),
            "forged": forged(live, kept, key=b"a key that somebody guessed"),
            "altered": json.dumps(good | {"body": '{"code": "__import__(\\"os\\")"}'}).encode(),
            "wrong_target": forged(live, kept, target="another-process"),
            "late": forged(live, kept, now_s=1000.0),
            "early": forged(live, kept, now_s=9e9),
            "malformed": b"\x00\xff{[",
            "too_big": b" " * (MESSAGE_LIMIT_BYTES + 1),
        }
        for data in attempts.values():
            attacker.publish(address, data)
        attacker.publish(address, forged(live, kept, kind="reply"))
        attacker.publish(address, forged(live, kept, kind="order"))
        for why in attempts:
            expect(live, why, 3 if why == "forged" else 1)
        assert answer(session, "1 + 1") == "2"
    assert refusals(live) == dict.fromkeys(attempts, 1) | {"forged": 3}
    assert live.keeper.counters["live:refused"] == 10
    assert len([line for line in caplog.messages if "was refused" in line]) == 10
    refused = {
        name: [
            line["verdict"].split(": ")[1]
            for line in map(json.loads, (tmp_path / name).read_text().splitlines())
            if line["verdict"].startswith("refused")
        ]
        for name in ("audit.jsonl", "strangers.jsonl")
    }
    assert sorted(refused["strangers.jsonl"]) == ["forged", "forged", "forged", "malformed", "too_big", "unsigned"]
    assert sorted(refused["audit.jsonl"]) == ["altered", "early", "late", "wrong_target"]
    assert len([one for one in live.records if isinstance(one, AuditEntry) and one.verdict != "done"]) == 10


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json", "application/x-yaml"])
def test_a_pickle_is_never_opened_whatever_it_calls_itself(
    live: LiveProcess, attacker: Attacker, content_type: str
) -> None:
    kept = live.fail()
    with live.session(kept) as session:
        body = pickle.dumps(Bomb())
        attacker.publish(command_address(live.process.uid), body, content_type=content_type)
        attacker.publish(reply_address(session.id), body, content_type=content_type)
        expect(live, "malformed")
        wait_until(lambda: session.refused == 1, "the client refuses it too")
        assert answer(session, "1 + 1") == "2"
    assert not Path("/tmp/celery-trace-pickle-was-opened").exists()


def recorded(live: LiveProcess, attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that the client publishes from here on, as a listener on the broker sees it."""
    from celery_trace.shell.live import client

    seen: list[bytes] = []
    publish = client.publish

    def listening(channel: Any, address: str, data: bytes) -> None:
        seen.append(data)
        publish(channel, address, data)

    monkeypatch.setattr(client, "publish", listening)
    return seen


def test_a_command_that_was_overheard_cannot_be_replayed(
    live: LiveProcess, attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = recorded(live, attacker, monkeypatch)
    with live.session(live.fail()) as session:
        say(session, "trace.frames[0].locals['count'] = trace.frames[0].locals.get('count', 0) + 1")
        for data in list(seen):
            attacker.publish(command_address(live.process.uid), data)
        expect(live, "replayed", len(seen))
        assert answer(session, "trace.frames[0].locals['count']") == "1"


def test_nor_after_the_thread_that_heard_it_has_ended_and_the_same_task_has_failed_again(
    live: LiveProcess, attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = recorded(live, attacker, monkeypatch)
    count: list[int] = []
    with live.session(live.fail("same", lambda: outer(count))) as session:
        say(session, "context_data.append(1)")
    live.keeper.drop_all()
    wait_until(lambda: not live.keeper.listening, "the thread ends when nothing is kept")
    live.fail("same", lambda: outer(count))  # a task that was delivered again fails under the same id
    for data in list(seen):
        attacker.publish(command_address(live.process.uid), data)
    expect(live, "replayed", len(seen))
    assert count == [1]


def test_an_overheard_command_means_nothing_to_another_process(
    live: LiveProcess, attacker: Attacker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = recorded(live, attacker, monkeypatch)
    other = LiveProcess(tmp_path, live.broker_url)
    kept = live.fail("same")
    other.fail("same")
    with live.session(kept):
        attacker.publish(command_address(other.process.uid), seen[0])
        expect(other, "wrong_target")
    other.close()


def test_commands_out_of_order_are_refused(live: LiveProcess, attacker: Attacker) -> None:
    kept = live.fail()
    with live.session(kept) as session:
        say(session, "1")
        stale = forged(live, kept, action="run", session=session.id, sequence=1, body='{"code":"2"}')
        attacker.publish(command_address(live.process.uid), stale)
        expect(live, "out_of_order")
        again = forged(live, kept, action="open", session=session.id)
        attacker.publish(command_address(live.process.uid), again)
        expect(live, "out_of_order", 2)
        assert answer(session, "1 + 1") == "2"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"action": "run", "sequence": 1, "body": '{"code":"1"}'}, "unknown_session"),
        ({"failure": "../../etc/passwd"}, "unknown_failure"),
        ({"session": "../x"}, "malformed"),
        ({"session": "*"}, "malformed"),
        ({"session": "a" * 1000}, "malformed"),
        ({"session": ""}, "malformed"),
        ({"body": "[1]"}, "malformed"),
        ({"body": '{"code": 5}'}, "malformed"),
        ({"action": "eval"}, "unknown_session"),
    ],
)
def test_even_the_key_opens_only_what_there_is(
    live: LiveProcess, attacker: Attacker, values: dict[str, Any], why: str
) -> None:
    kept = live.fail()
    attacker.publish(command_address(live.process.uid), forged(live, kept, **values))
    expect(live, why)


def test_a_session_belongs_to_its_failure(live: LiveProcess, attacker: Attacker) -> None:
    kept, other = live.fail(), live.fail()
    with live.session(kept) as session:
        stolen = forged(live, other, action="run", session=session.id, sequence=9, body='{"code":"1"}')
        attacker.publish(command_address(live.process.uid), stolen)
        expect(live, "unknown_session")
        unknown = forged(live, kept, action="eval", session=session.id, sequence=9)
        attacker.publish(command_address(live.process.uid), unknown)
        expect(live, "unknown_action")


def test_code_over_the_limit_is_refused_with_a_good_signature_too(live: LiveProcess, attacker: Attacker) -> None:
    kept = live.fail()
    with live.session(kept) as session:
        body = json.dumps({"code": "1" * (CODE_LIMIT + 1)})
        large = forged(live, kept, action="run", session=session.id, sequence=9, body=body)
        attacker.publish(command_address(live.process.uid), large)
        expect(live, "too_big")


def test_sessions_are_bounded(live: LiveProcess) -> None:
    kept = live.fail()
    opened: list[LiveSession] = []
    try:
        for _ in range(8):
            opened.append(live.client().open(kept, kept.failure, "ann", timeout_s=30.0))
        with pytest.raises(ShellError, match="too_many"):
            live.client().open(kept, kept.failure, "ann", timeout_s=30.0)
    finally:
        for session in opened:
            session.close()


def test_replies_are_believed_as_little_as_commands(live: LiveProcess, attacker: Attacker) -> None:
    with live.session(live.fail()) as session:
        address = reply_address(session.id)
        body = '{"pieces":[{"kind":"result","text":"lies"}],"done":true}'
        now_s = time.time()
        for key, values in (
            (b"a key that somebody guessed", {}),
            (live.key, {"target": "another-session"}),
            (live.key, {"kind": "command"}),
            (live.key, {"now_s": 1000.0}),
            (live.key, {"sequence": 0}),
            (live.key, {"sequence": 10**6, "body": "[]"}),
        ):
            given = {"kind": "reply", "target": session.id, "action": "events", "now_s": now_s, "body": body}
            attacker.publish(address, sign(key, **(given | values))[0])  # type: ignore[arg-type]
        attacker.publish(address, b"\xff\x00")
        wait_until(lambda: session.refused == 7, "all are refused", explain=lambda: str(session.refused))
        assert answer(session, "'truth'") == "'truth'"


def test_a_flood_without_the_key_neither_fills_the_log_nor_stops_a_session(
    live: LiveProcess, attacker: Attacker, tmp_path: Path
) -> None:
    begun_s = time.monotonic()
    with live.session(live.fail()) as session:
        for _ in range(500):
            attacker.publish(command_address(live.process.uid), b"{}")
        assert answer(session, "1 + 1") == "2"
        expect(live, "malformed", 500)
    minutes = time.monotonic() // 60 - begun_s // 60 + 1
    assert 20 <= len((tmp_path / "strangers.jsonl").read_text().splitlines()) <= 20 * minutes
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2  # what the session itself did


def test_an_output_flood_is_cut_and_the_session_goes_on(live: LiveProcess) -> None:
    with live.session(live.fail()) as session:
        done, said = say(session, "while True: print('x' * 1000)\n")
        assert not done.ok
        assert len(said.of("output")) <= 256 * 1024
        assert "cut at" in said.of("notice")
        assert answer(session, "1 + 1") == "2"


def test_the_audit_log_follows_no_link(live: LiveProcess, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "audit.jsonl").symlink_to(elsewhere)
    with live.session(live.fail()) as session:
        assert answer(session, "1 + 1") == "2"
    assert not elsewhere.exists()
