"""The shell in a terminal, with a person made of lines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from celery_trace.cli import terminal
from celery_trace.clock import SystemClock
from celery_trace.control.audit import AuditLog
from celery_trace.model import AuditEntry, Failure, Kept, Node, Page, ShellLine, ShellView
from celery_trace.settings import Settings
from celery_trace.shell.sandbox.recreated import open_session
from tests.support.shells import SEED, LiveProcess, captured
from tests.support.waiting import wait_until


class Store:
    """Queries and transcript of a small store."""

    def __init__(self, failure: Failure, kept: Kept | None = None) -> None:
        self.failure, self.kept_ = failure, kept
        self.shells: list[ShellView] = []
        self.lines: list[ShellLine] = []
        self.ended: list[str] = []
        self.audit: list[AuditEntry] = []

    def failure_record(self, id_: str) -> Failure | None:
        return self.failure if id_ == self.failure.id else None

    def leaks(self, **_filters: Any) -> Page:
        return Page("leaks", [])

    def kept(self, _id: str) -> Kept | None:
        return self.kept_

    def add_shell(self, shell: ShellView) -> None:
        self.shells.append(shell)

    def add_shell_line(self, shell_id: str, line: ShellLine) -> None:
        assert shell_id == self.shells[0].id
        self.lines.append(line)

    def end_shell(self, shell_id: str, at_s: float, users: list[str]) -> None:
        self.ended.append(shell_id)

    def write(self, records: list[AuditEntry]) -> None:
        self.audit.extend(records)


def typed(
    store: Store, text: str, folder: Path, *, id_: str = "", connect: Any = None, **values: Any
) -> tuple[int, str]:
    out = io.StringIO()
    settings = values.pop("settings", None) or Settings(dir=str(folder))
    status = terminal.run(
        id_ or store.failure.id,
        queries=store,
        store=store,
        settings=settings,
        connect=connect,
        user="ann",
        stdin=io.StringIO(text),
        stdout=out,
        **values,
    )
    return status, out.getvalue()


def test_commands_from_a_pipe_are_answered(tmp_path: Path) -> None:
    store = Store(SEED)
    status, said = typed(store, "trace.context_data\nfor i in range(2):\n    print(i + a)\n\na * 2\n", tmp_path)
    assert status == 0
    assert [line for line in said.splitlines() if not line.startswith("#")] == ["'Hello'", "5", "6", "10"]
    assert "In create_error, /srv/shop/tasks.py:7" in said


@pytest.mark.parametrize("word", ["exit", "quit", "exit()"])
def test_exit_leaves_and_what_follows_is_not_run(tmp_path: Path, word: str) -> None:
    status, said = typed(Store(SEED), f"a\n{word}\nprint('after')\n", tmp_path)
    assert status == 0
    assert "after" not in said


def test_the_last_commands_error_is_the_exit_status(tmp_path: Path) -> None:
    status, said = typed(Store(SEED), "1 / 0\n", tmp_path)
    assert status == 1
    assert "ZeroDivisionError" in said


def test_a_block_at_the_end_of_the_input_is_complete(tmp_path: Path) -> None:
    assert "7" in typed(Store(SEED), "if a:\n    print(7)", tmp_path)[1]


def test_the_transcript_and_the_audit_log_hold_what_was_typed_and_said(tmp_path: Path) -> None:
    store = Store(SEED)
    typed(store, "a\n# look at this\n1 / 0\n", tmp_path)
    assert [(line.kind, line.text.splitlines()[-1]) for line in store.lines] == [
        ("input", "a"),
        ("output", "5"),
        ("remark", "look at this"),
        ("input", "1 / 0"),
        ("error", "ZeroDivisionError: division by zero"),
    ]
    assert [line.seq for line in store.lines] == [1, 2, 3, 4, 5]
    assert store.ended == [store.shells[0].id]
    assert store.shells[0].users == ["ann"]
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(entry["command"], entry["user"], entry["where"]) for entry in entries] == [
        ("a", "ann", "terminal"),
        ("1 / 0", "ann", "terminal"),
    ]
    assert len(store.audit) == 2


def test_terminal_escapes_in_output_are_shown_and_never_sent(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202eabc\x9b31m"
    store = Store(captured([Node("str", "plain", evil)], {"evil": 0}))
    said = typed(store, "print(evil)\nevil\nraise ValueError(evil)\n", tmp_path)[1]
    for character in ("\x1b", "\x07", "\u202e", "\x9b"):
        assert character not in said
    assert "\\x1b]0;owned" in said


def test_an_unknown_failure_says_what_to_do(tmp_path: Path) -> None:
    status, said = typed(Store(SEED), "1\n", tmp_path, id_="../../etc/passwd\x1b[2J")
    assert status == 1
    assert "There is no failure" in said
    assert "\x1b" not in said


@pytest.fixture
def live(tmp_path: Path, own_broker_url: str) -> Iterator[LiveProcess]:
    process = LiveProcess(tmp_path, own_broker_url)
    yield process
    process.close()


def test_where_the_process_lives_the_shell_is_live(live: LiveProcess, tmp_path: Path) -> None:
    kept = live.fail(SEED.id)
    store = Store(SEED, kept)
    status, said = typed(store, "a + c + d\n", tmp_path, settings=live.settings, connect=live.connect)
    assert (status, store.shells[0].mode) == (0, "live")
    assert "21" in said
    recreated = Store(SEED, kept)
    typed(recreated, "a\n", tmp_path, settings=live.settings, connect=live.connect, live=False)
    assert recreated.shells[0].mode == "recreated"


def test_when_the_process_ends_the_shell_goes_on_recreated(live: LiveProcess, tmp_path: Path) -> None:
    store = Store(SEED, live.fail(SEED.id))

    class Lines(io.StringIO):
        def readline(self, *_: Any) -> str:  # type: ignore[override]
            line = super().readline()
            if line.startswith("a * 1000"):
                live.keeper.close("recycled")
            return line

    out = io.StringIO()
    status = terminal.run(
        SEED.id,
        queries=store,
        store=store,
        settings=live.settings,
        connect=live.connect,
        user="ann",
        stdin=Lines("c\na * 1000\na * 2000\n"),
        stdout=out,
    )
    said = out.getvalue()
    assert status == 0, said
    assert "the process ends (recycled). From here on the shell is recreated from the capture." in said
    assert "10000" in said
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (last_words,) = [one["verdict"] for one in audit if one["where"] == "terminal" and one["command"] == "a * 1000"]
    assert "the session ended" in last_words
    assert "event" in [line.kind for line in store.lines]


def test_a_process_that_does_not_answer_is_said_and_the_shell_is_recreated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: LiveProcess
) -> None:
    monkeypatch.setattr(
        "celery_trace.shell.live.client.LiveClient.open.__kwdefaults__", {"leaks": (), "timeout_s": 1.0}
    )
    store = Store(SEED, Kept(process="dead", failure=SEED.id, at_s=0, until_s=0, address=""))
    status, said = typed(store, "a\n", tmp_path, settings=live.settings, connect=live.connect)
    assert status == 0
    assert "This shell is recreated from the capture." in said
    assert store.shells[0].mode == "recreated"


class PressedTwice(terminal.Terminal):
    """Ctrl-C is pressed again at the worst moment: when the line was interrupted and that is not yet noted."""

    presses = 0

    @property
    def _reading(self) -> bool:
        return self.__dict__.get("reading", False)

    @_reading.setter
    def _reading(self, reading: bool) -> None:
        if self.presses == 1 and not reading:
            self.presses = 2
            signal.raise_signal(signal.SIGINT)
        self.__dict__["reading"] = reading


def test_a_second_interrupt_while_the_first_one_clears_the_line_does_not_end_the_shell(tmp_path: Path) -> None:
    prompts: list[str] = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if len(prompts) == 1:
            shell.presses = 1
            signal.raise_signal(signal.SIGINT)
        if len(prompts) == 2:
            return "a"
        raise EOFError

    out = io.StringIO()
    shell = PressedTwice(
        SEED,
        user="ann",
        open_live=None,
        open_recreated=lambda: open_session(SEED),
        read=read,
        screen=terminal.Screen(out, colour=False),
        transcript=Store(SEED),
        audit=AuditLog(tmp_path, "terminal", SystemClock()),
        clock=SystemClock(),
    )
    assert shell.run() == 0
    assert len(prompts) == 3
    assert shell.presses == 2
    assert "5" in out.getvalue()


PROGRAM = """
import sys
from tests.support.shells import SEED
from tests.wiring.test_shell_terminal import Store
from celery_trace.settings import Settings
from celery_trace.cli import terminal
store, settings = Store(SEED), Settings(dir=sys.argv[1])
sys.exit(terminal.run(SEED.id, queries=store, store=store, settings=settings, connect=None, user="ann"))
"""


def test_a_person_at_a_terminal_completes_interrupts_and_leaves(tmp_path: Path) -> None:
    main, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        env=environment,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(other)
    os.set_blocking(main, False)
    seen = ""

    def read() -> str:
        nonlocal seen
        with contextlib.suppress(OSError):
            seen += os.read(main, 65536).decode("utf-8", "replace")
        return seen

    try:
        wait_until(lambda: "recreated> " in read(), "the prompt", explain=read)
        os.write(main, b"trace.con\t\n")
        wait_until(lambda: "'Hello'" in read(), "the completed name is evaluated", explain=read)
        # It says when it runs: an interrupt before would only clear the line.
        os.write(main, b"print('run' + 'ning'), any(None for _ in iter(int, 1))\n")
        wait_until(lambda: "running" in read(), "the loop runs", explain=read)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "KeyboardInterrupt" in read(), "the loop is interrupted", explain=read)
        # What is typed before the prompt is echoed by the terminal, and an interrupt then clears nothing.
        wait_until(lambda: "recreated> " in read().rpartition("KeyboardInterrupt")[2], "the next prompt", explain=read)
        os.write(main, b"half a li")
        wait_until(lambda: "half a li" in read(), "half a line is typed", explain=read)
        # Readline looks for signals only once it waits for the next key.
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "it waits for a key")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "recreated> " in read().rpartition("half a li")[2], "a fresh prompt", explain=read)
        assert "half a li\r\n" in seen
        os.write(main, b"\x04")
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert "trace.context_data" in (tmp_path / "shell_history").read_text()
    assert (tmp_path / "shell_history").stat().st_mode & 0o777 == 0o600
