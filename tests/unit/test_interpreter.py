"""What is said of the Python interpreter, and what may read it."""

from __future__ import annotations

import errno
import logging
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celery_trace import settings
from celery_trace.cli import interpreter
from celery_trace.collector.status import STATUS_FILE, Status, write_status
from celery_trace.model import Role
from celery_trace.process import tracing_right
from celery_trace.runtime.probes.tracer_probe import TracerProbe


def said(number: tuple[int, ...], *, free_threaded: bool = False) -> list[tuple[str, str]]:
    return [(one.level, one.check) for one in interpreter.version("x", number, free_threaded=free_threaded)]


@pytest.mark.parametrize(
    ("number", "free_threaded", "expected"),
    [
        ((3, 11, 0), False, [("ok", "python")]),
        ((3, 13, 9), False, [("ok", "python")]),
        ((3, 14, 0), False, [("ok", "python"), ("warn", "garbage")]),
        ((3, 14, 4), False, [("ok", "python"), ("warn", "garbage")]),
        ((3, 14, 5), False, [("ok", "python")]),
        ((3, 15, 0), False, [("warn", "python")]),
        ((3, 14, 2), True, [("warn", "python"), ("warn", "garbage")]),
        ((3, 13, 2), True, [("warn", "python")]),
    ],
)
def test_the_doctor_knows_versions_of_python(
    number: tuple[int, ...], free_threaded: bool, expected: list[tuple[str, str]]
) -> None:
    assert said(number, free_threaded=free_threaded) == expected


def test_the_doctor_examines_this_interpreter() -> None:
    found = list(interpreter.examine())
    assert found[0].check == "python"
    assert platform.python_version() in found[0].found
    assert found[-1].check == "stacks"
    assert ("not from outside" in found[-1].found) == (sys.version_info < (3, 14)), found[-1]


@pytest.mark.parametrize(
    ("why", "scope", "words"),
    [
        ("it needs Python 3.14 or newer", 0, "not from outside: it needs Python 3.14"),
        ("", 0, "C code: from outside"),
        ("", 1, "by the collector only (ptrace_scope is 1)"),
        ("", 2, "only by root"),
        ("", 3, "only by root"),
    ],
)
def test_the_doctor_says_how_the_stack_of_a_run_in_c_code_is_read(why: str, scope: int, words: str) -> None:
    assert words in interpreter.stacks(why, scope).found


def test_without_the_interpreters_lock_nothing_is_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    settings._say_that_nothing_is_traced.cache_clear()
    with caplog.at_level(logging.WARNING, "celery_trace"):
        assert not settings.load({}, {}).enabled
        assert not settings.load({}, {}).enabled
    assert len(caplog.records) == 1
    assert "free-threaded" in caplog.text
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert settings.load({}, {}).enabled


# --- the right to read a process ---------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "scope"), [("0\n", 0), ("1\n", 1), ("3\n", 3), ("", 0), (None, 0)])
def test_the_limit_of_yama_is_read(text: str | None, scope: int, tmp_path: Path) -> None:
    file = tmp_path / "ptrace_scope"
    if text is not None:
        file.write_text(text)
    assert tracing_right.scope(file) == scope


@pytest.mark.parametrize("pid", [0, -1])
def test_no_right_is_given_to_any_process(pid: int) -> None:
    with pytest.raises(ValueError, match="no process"):
        tracing_right.grant(pid)


def test_the_right_is_given_where_there_is_yama() -> None:
    if tracing_right.SCOPE_FILE.exists():
        tracing_right.grant(os.getpid())
    else:
        with pytest.raises(OSError, match="Invalid argument") as refused:
            tracing_right.grant(os.getpid())
        assert refused.value.errno == errno.EINVAL


def a_probe(folder: Path, granted: list[int], *, needs: bool = True, role: Role = Role.CHILD) -> Any:
    calls: list[tuple[float, Callable[[], None]]] = []

    def every(seconds: float, call: Callable[[], None], name: str, *, idle_s: float) -> SimpleNamespace:
        calls.append((seconds, call))
        return SimpleNamespace(every_s=seconds)

    host = SimpleNamespace(
        process=SimpleNamespace(role=role), settings=SimpleNamespace(black_box=True, folder=folder),
        ticker=SimpleNamespace(every=every),
    )  # fmt: skip
    probe: Any = TracerProbe(host)  # type: ignore[arg-type]
    probe.needs_grant, probe.grant = (lambda: needs), granted.append
    probe.start()
    probe.calls = calls
    return probe


def status_of(folder: Path, pid: int, state: str = "ready") -> None:
    write_status(folder / STATUS_FILE, Status(pid=pid, started_at_s=0.0, transport="direct", state=state))


def test_the_collector_and_its_successor_get_the_right_once_each(tmp_path: Path) -> None:
    granted: list[int] = []
    probe = a_probe(tmp_path, granted)
    probe.every()
    assert granted == []  # there is none yet
    for pid in (4711, 4711, 4712, 4712):
        status_of(tmp_path, pid)
        probe.every()
    assert granted == [4711, 4712]
    status_of(tmp_path, 4713, "ended")
    probe.every()
    assert granted == [4711, 4712]


def test_a_process_that_the_collector_can_read_anyway_does_nothing(tmp_path: Path) -> None:
    assert a_probe(tmp_path, [], needs=False).calls == []
    assert a_probe(tmp_path, [], role=Role.MAIN).calls == []
    assert len(a_probe(tmp_path, []).calls) == 1
