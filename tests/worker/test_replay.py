"""`trace replay` in a real terminal: what it says first, what it asks for, and where pdb begins."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments, info_of
from celery_trace.model import Failure, Kind, Outcome
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits, Settings
from celery_trace.stores import open_store
from tests.support.processes import trace_environment
from tests.support.waiting import wait_until

SOURCE = """
import json

from celery import Celery

app = Celery("replayable", set_as_current=False)


@app.task(shared=False)
def charge(order, word):
    open("effects", "a").write("charged ")
    return total(order, word)


@app.task(shared=False)
def login(order, password):
    return total(order, password)


def total(order, word):
    rows = json.loads(order)
    return sum(rows) / len(word)


@app.task(shared=False)
def fine():
    return "all is well"
"""


class Terminal:
    """A program on a pty."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self.output = ""

    def _read(self) -> None:
        if not select.select([self._fd], [], [], 0.05)[0]:
            return
        try:
            self.output += os.read(self._fd, 65536).decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:  # it has ended
            time.sleep(0.05)

    def wait_for(self, text: str) -> str:
        """Everything until the text; the rest stays."""

        def look() -> bool:
            if text not in self.output:
                self._read()
            return text in self.output

        wait_until(look, f"the terminal shows {text!r}", timeout_s=30, every_s=0.01, explain=lambda: self.output)
        before, _, self.output = self.output.partition(text)
        return before + text

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "replayable.py").write_text(SOURCE)
    return folder


@pytest.fixture
def ids(project: Path, trace_dir: Path) -> dict[str, str]:
    """Failures of the project's code in the store, by name."""
    module = ModuleType("replayable")
    exec(compile(SOURCE, str(project / "replayable.py"), "exec"), module.__dict__)
    calls: dict[str, tuple[Any, tuple[Any, ...], tuple[str, ...]]] = {
        "decode": (module.total, ("[1", "x"), ("order", "word")),
        "hole": (module.total, ("[1, 2]", ""), ("order", "password")),
        "wrong": (module.total, ("[1, 2]", ""), ("order", "word")),
    }
    module.app.close()
    store = open_store(Settings(dir=str(trace_dir)))
    for name, (call, args, names) in calls.items():
        try:
            call(*args)
        except Exception as error:
            shown = (args[0], "hunter2") if name == "hole" else args
            capture = capture_exception(
                error,
                limits=Limits(),
                redactor=Redactor(),
                in_app=["replayable"],
                arguments=Arguments(shown, {}, names),
            )
        task = {"decode": "replayable.charge", "hole": "replayable.login"}.get(name, "replayable.fine")
        store.write(
            [
                Failure(
                    id=name, process="p", kind=Kind.TASK, name=task, task_id=name, outcome=Outcome.FAILED, at_s=1.0,
                    capture=capture, exception=info_of(capture),
                )
            ]
        )  # fmt: skip
    store.close()
    return {name: name for name in calls}


@pytest.fixture
def environment(trace_dir: Path) -> dict[str, str]:
    return trace_environment(broker_url="memory://", trace_dir=trace_dir, switch=False)


@pytest.fixture
def terminal(project: Path, environment: dict[str, str], ids: dict[str, str]):
    @contextmanager
    def terminal(*words: str) -> Iterator[Terminal]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "replayable", "trace", "replay", *words],
            cwd=project, env=environment | {"TERM": "dumb", "PYTHON_BASIC_REPL": "1"},
            stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            yield Terminal(process, ours)
            assert process.wait(60) is not None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(ours)

    return terminal


def test_it_says_what_will_run_asks_and_stops_at_the_line_of_the_users_code(terminal: Any, project: Path) -> None:
    with terminal("decode") as shown:
        said = shown.wait_for("Run it? [y/N]: ")
        assert "This runs the task replayable.charge, try 0" in said
        assert "args = ['[1', 'x']" in said
        assert "to see json.decoder.JSONDecodeError at: rows = json.loads(order)" in said
        assert not (project / "effects").exists()
        shown.type("y")
        assert "Reproduced: json.decoder.JSONDecodeError" in shown.wait_for("(Pdb) ")
        shown.type("p order, word")
        assert "('[1', 'x')" in shown.wait_for("(Pdb) ")
        shown.type("where")
        assert "> " in (where := shown.wait_for("(Pdb) "))
        assert "total()" in where.partition("\n> ")[2].partition("\n")[0]
        shown.type("quit")
    assert (project / "effects").read_text() == "charged "
    assert shown.process.returncode == 0


def test_without_a_yes_nothing_runs(terminal: Any, project: Path) -> None:
    with terminal("decode") as shown:
        shown.wait_for("Run it? [y/N]: ")
        shown.type("n")
        shown.wait_for("Aborted!")
    assert not (project / "effects").exists()
    assert shown.process.returncode == 1


def test_a_redacted_argument_is_asked_for_and_not_shown(terminal: Any) -> None:
    with terminal("hole", "--yes") as shown:
        said = shown.wait_for("password (redacted): ")
        assert "hole('password', 'redacted')" in said
        shown.type("''")
        assert "''" not in shown.wait_for("Reproduced: builtins.ZeroDivisionError")
        shown.wait_for("(Pdb) ")
        shown.type("quit")


def replayed(project: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "replayable", "trace", "replay", *words],
        cwd=project, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_holes_are_refused_by_name_without_a_terminal_and_filled_by_options(
    ids: dict[str, str], project: Path, environment: dict[str, str]
) -> None:
    refused = replayed(project, environment, "hole", "--yes")
    assert refused.returncode == 1
    assert "the capture lacks password (redacted). Add --hole NAME=VALUE for each." in refused.stderr
    unknown = replayed(project, environment, "hole", "--yes", "--hole", "token=1")
    assert "There is no hole token. The holes are: password." in unknown.stderr
    assert not (project / "effects").exists()
    other = replayed(project, environment, "hole", "--yes", "--hole", "password=5")
    assert "Not reproduced, another error: builtins.TypeError instead of builtins.ZeroDivisionError" in other.stdout


def test_a_run_without_an_error_is_not_reproduced(
    ids: dict[str, str], project: Path, environment: dict[str, str]
) -> None:
    fine = replayed(project, environment, "wrong", "--yes")
    assert "Not reproduced, another error: builtins.TypeError" in fine.stdout
    (project / "replayable.py").write_text(SOURCE.replace("def fine():", "def fine(*_):"))
    fine = replayed(project, environment, "wrong", "--yes")
    assert fine.returncode == 0
    assert "Not reproduced: no error. It returned 'all is well'." in fine.stdout
