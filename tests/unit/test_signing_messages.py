"""Messages to the live shell: what is believed and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_trace.clock import FakeClock
from celery_trace.control.signing import (
    MESSAGE_LIMIT_BYTES,
    TOLERANCE_S,
    VALID_S,
    MessageRefused,
    RefusalLimit,
    ReplayCache,
    load_key,
    sign,
    verify,
)
from celery_trace.settings import SettingError, Settings

KEY = b"a key that only the monitor and the workers hold"


def command(now_s: float = 1000.0, **values: object) -> bytes:
    given_ = {"kind": "command", "target": "process-1", "action": "run", "body": '{"code":"1+1"}', "now_s": now_s}
    return sign(KEY, **(given_ | values))[0]  # type: ignore[arg-type]


def why(data: bytes, now_s: float = 1000.0, **values: object) -> str:
    given_ = {"kind": "command", "target": "process-1", "replays": ReplayCache()}
    with pytest.raises(MessageRefused) as refused:
        verify(KEY, data, now_s=now_s, **(given_ | values))  # type: ignore[arg-type]
    return refused.value.code


def changed(data: bytes, **values: object) -> bytes:
    return json.dumps(json.loads(data) | values).encode()


def test_a_signed_message_is_believed_with_all_its_claims() -> None:
    data, nonce = sign(
        KEY,
        kind="command",
        target="p",
        action="run",
        now_s=5.0,
        body="x",
        failure="f",
        session="s",
        sequence=3,
        user="u",
    )
    message = verify(KEY, data, kind="command", target="p", now_s=5.0, replays=ReplayCache())
    claims = message.claims
    assert (message.body, claims.nonce, claims.failure, claims.session) == ("x", nonce, "f", "s")
    assert (claims.sequence, claims.user) == (3, "u")


def test_a_message_without_a_signature_is_refused() -> None:
    assert why(changed(command(), mac="")) == "unsigned"


def test_a_message_signed_with_another_key_is_refused() -> None:
    data, _nonce = sign(b"another key entirely", kind="command", target="process-1", action="run", now_s=1000.0)
    assert why(data) == "forged"


@pytest.mark.parametrize("mac", ["0" * 64, "x", "é", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_made_up_signature_is_refused(mac: str) -> None:
    assert why(changed(command(), mac=mac)) == "forged"


def test_claims_that_were_altered_are_refused() -> None:
    envelope = json.loads(command())
    envelope["claims"] = envelope["claims"].replace("process-1", "process-2")
    assert why(json.dumps(envelope).encode(), target="process-2") == "forged"


def test_code_that_was_altered_is_refused() -> None:
    assert why(changed(command(), body='{"code":"2+2"}')) == "altered"


def test_a_message_for_another_process_is_refused() -> None:
    assert why(command(target="process-2")) == "wrong_target"


@pytest.mark.parametrize("kind", ["reply", "order"])
def test_a_message_of_one_kind_is_none_of_another(kind: str) -> None:
    assert why(command(kind=kind)) == "forged"


def test_a_message_is_believed_once() -> None:
    data, replays = command(), ReplayCache()
    verify(KEY, data, kind="command", target="process-1", now_s=1000.0, replays=replays)
    assert why(data, replays=replays) == "replayed"


def test_a_late_message_is_refused_and_one_within_the_tolerance_is_not() -> None:
    data = command()
    assert why(data, now_s=1000.0 + VALID_S + TOLERANCE_S + 1) == "late"
    verify(KEY, data, kind="command", target="process-1", now_s=1000.0 + VALID_S + TOLERANCE_S - 1)


def test_a_message_from_the_future_is_refused() -> None:
    assert why(command(now_s=1000.0 + TOLERANCE_S + 1)) == "early"


@pytest.mark.parametrize("valid_s", [1e9, float("inf")])
def test_a_message_that_would_be_valid_for_ever_is_refused(valid_s: float) -> None:
    assert why(command(valid_s=valid_s)) == "malformed"


def test_a_message_over_the_size_limit_is_refused_unread() -> None:
    assert why(command(body="x" * MESSAGE_LIMIT_BYTES)) == "too_big"


class Bomb:
    def __reduce__(self) -> object:
        return (os.abort, ())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_opened(protocol: int) -> None:
    assert why(pickle.dumps(Bomb(), protocol)) == "malformed"


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_whatever_the_bytes_are_the_answer_is_a_refusal(data: bytes) -> None:
    assert why(data) in {"malformed", "unsigned", "forged"}


@settings(max_examples=100)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_no_single_byte_can_be_changed(position: int, value: int) -> None:
    data = bytearray(command())
    position %= len(data)
    if data[position] == value:
        return
    before = verify(KEY, bytes(data), kind="command", target="process-1", now_s=1000.0)
    data[position] = value
    try:
        after = verify(KEY, bytes(data), kind="command", target="process-1", now_s=1000.0)
    except MessageRefused:
        return
    # JSON has several spellings of one text (an escape, a space): the meaning must be untouched.
    assert after == before


def test_nested_json_does_not_exhaust_the_stack() -> None:
    assert why(b"[" * 100_000) == "malformed"


def test_a_full_replay_cache_refuses_rather_than_forgets() -> None:
    replays = ReplayCache(limit=2)
    assert replays.admit("a", 10.0, 0.0)
    assert replays.admit("b", 20.0, 0.0)
    assert not replays.admit("c", 30.0, 5.0)
    assert not replays.admit("a", 10.0, 5.0)
    assert replays.admit("c", 30.0, 15.0)
    assert len(replays) == 2


def test_a_flood_of_refusals_is_logged_for_a_while_and_then_only_counted() -> None:
    clock = FakeClock()
    limit = RefusalLimit(clock, per_minute=3)
    assert [limit.admit() for _ in range(5)] == [True, True, True, False, False]
    clock.advance(61)
    assert limit.admit()


def test_the_key_file_is_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    settings = Settings(dir=str(tmp_path / "trace"))
    key = load_key(settings)
    path = tmp_path / "trace" / "shell.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_key(settings) == key
    assert len(key) == 64
    assert {one.name for one in path.parent.iterdir()} == {path.name, ".gitignore"}, "no draft is left"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k" * 40)
    path.chmod(0o640)
    with pytest.raises(SettingError, match="can be read by others"):
        load_key(Settings(shell_key=f"file:{path}"))
    path.chmod(0o600)
    assert load_key(Settings(shell_key=f"file:{path}")) == b"k" * 40


@pytest.mark.parametrize("key", ["short", "file:/nowhere/at/all"])
def test_a_key_that_is_too_short_or_not_there_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingError) as error:
        load_key(Settings(shell_key=key))
    assert "short" not in str(error.value).replace("too short", "")


def test_a_literal_key_is_used_as_it_is() -> None:
    assert load_key(Settings(shell_key="literal-secret-of-some-length")) == b"literal-secret-of-some-length"
