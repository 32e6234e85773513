"""Stacks of other processes, read from outside: Python 3.14 and later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_trace.clock import SystemClock
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.model import RunningRun, StackRequest
from celery_trace.process import blackbox, tracing_right
from celery_trace.redaction import Redactor
from celery_trace.running import outside
from celery_trace.running.outside import Unreadable, read_stack, unavailable
from celery_trace.running.requests import read_stack as request_stack
from celery_trace.running.stalls import Stalls
from celery_trace.running.watch import RunningWatch
from tests.support.processes import REPOSITORY
from tests.support.waiting import wait_until

needs_reader = pytest.mark.skipif(bool(unavailable()), reason=f"stacks can't be read from outside: {unavailable()}")

#: A child with a black box, whose task is in C code that holds the lock, in the main thread or in another one.
PROGRAM = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from tests.support.box_runs import BoxWithRuns

process = ProcessRecord(uid="p1", host="h", pid=os.getpid(), started_at_s=0.0, role=Role(sys.argv[3]))
box = BoxWithRuns(Path(sys.argv[1]) / "p1.box", process, SystemClock())
begun, compute = threading.Event(), threading.Event()

def pay():
    box.begin("shop.pay", "id-1")
    begun.set()
    compute.wait()
    return 3 ** (10 ** 9)

if sys.argv[3] == "threads":
    threading.Thread(target=pay, daemon=True).start()
    begun.wait()
    box.sample()
else:
    compute.set()
    print(os.getpid(), flush=True)
    pay()
print(os.getpid(), flush=True)
compute.set()
threading.Event().wait()
"""


@contextmanager
def a_process(folder: Path, role: str = "child", **environment: str) -> Iterator[int]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(REPOSITORY), role],
        stdout=subprocess.PIPE, env={**os.environ, **environment}, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        yield int(program.stdout.readline())
    finally:
        program.kill()
        program.communicate()


def functions(pid: int, native_id: int) -> list[str]:
    try:
        return [line.function for line in read_stack(pid, native_id)]
    except Unreadable:
        return []


@needs_reader
def test_the_stack_of_a_thread_is_read_while_c_code_holds_the_lock(tmp_path: Path) -> None:
    with a_process(tmp_path) as pid:
        wait_until(lambda: "pay" in functions(pid, pid), "the task is seen in C code", timeout_s=20)
        [task, caller] = read_stack(pid, pid)
        assert (task.file, task.function, caller.function) == ("<string>", "pay", "<module>")
        assert PROGRAM.splitlines()[task.line - 1].strip() == "return 3 ** (10 ** 9)"


@needs_reader
@pytest.mark.parametrize("role", ["child", "threads"])
def test_a_request_reads_the_thread_of_its_run(role: str, tmp_path: Path) -> None:
    with a_process(tmp_path, role) as pid:
        wait_until(lambda: blackbox.read(tmp_path / "p1.box") is not None, "the box is there", timeout_s=20)
        request = StackRequest(id="r1", process="p1", task_id="id-1")
        found = []

        def asked() -> bool:
            stack = request_stack(tmp_path, request, SourceLines(Redactor()))
            found.append(stack)
            return any(line.line == PROGRAM[: PROGRAM.index("return 3")].count("\n") + 1 for line in stack.stack)

        wait_until(asked, "the line in C code is read", timeout_s=20, explain=lambda: str(found[-1:]))
        assert found[-1].by == "outside"
        assert found[-1].stack[0].function == "pay"
        assert "does not answer" in found[-1].why
        os.kill(pid, 0)  # it lives


@needs_reader
def test_a_run_that_was_never_sampled_is_shown_with_its_stack(tmp_path: Path) -> None:
    with a_process(tmp_path) as pid:
        watch = RunningWatch(tmp_path, "place", SystemClock(), SourceLines(Redactor()), Stalls())
        found: list[RunningRun] = []

        def shown() -> bool:
            snapshot = watch.look(["p1"])
            found[:] = snapshot.runs if snapshot is not None else []
            return bool(found and found[0].stack)

        wait_until(shown, "the stack is shown", timeout_s=20, explain=lambda: str(found))
        assert (found[0].pid, found[0].stack[0].function) == (pid, "pay")
        assert found[0].sampled_at_s > found[0].started_at_s


@needs_reader
def test_a_process_that_is_stopped_is_read_too(tmp_path: Path) -> None:
    with a_process(tmp_path) as pid:
        wait_until(lambda: "pay" in functions(pid, pid), "the task runs", timeout_s=20)
        os.kill(pid, signal.SIGSTOP)
        assert functions(pid, pid)[0] == "pay"


@needs_reader
def test_a_process_that_disables_remote_debugging_is_not_read(tmp_path: Path) -> None:
    with a_process(tmp_path, PYTHON_DISABLE_REMOTE_DEBUG="1"):
        reading = []

        def runs() -> bool:
            reading[:] = [blackbox.read(tmp_path / "p1.box")]
            return reading[0] is not None and reading[0].running is not None

        wait_until(runs, "the task runs", timeout_s=20)
        assert not reading[0].readable
        stack = request_stack(tmp_path, StackRequest(id="r1", process="p1", task_id="id-1"), SourceLines(Redactor()))
        assert stack.by != "outside"


@needs_reader
def test_what_is_no_python_process_or_has_ended_is_unreadable() -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        with pytest.raises(Unreadable):
            read_stack(other.pid, other.pid)
    finally:
        other.kill()
        other.wait()
    with pytest.raises(Unreadable):
        read_stack(other.pid, other.pid)


@needs_reader
def test_a_thread_that_is_not_there_has_no_stack() -> None:
    started_s = time.monotonic()
    with pytest.raises(Unreadable):
        read_stack(os.getpid(), 1)
    assert time.monotonic() - started_s < 1.0


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="about Python before 3.14")
def test_before_python_3_14_the_reason_is_given(tmp_path: Path) -> None:
    assert unavailable() == "it needs Python 3.14 or newer"
    with pytest.raises(Unreadable, match=r"3\.14"):
        read_stack(os.getpid(), os.getpid())
    assert not tracing_right.is_permitted()


@needs_reader
@pytest.mark.parametrize("breaks", ["import", "open", "read", "another stack"])
def test_a_module_that_has_changed_is_not_used(breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unwinder:
        def __init__(self, pid: int, *, all_threads: bool) -> None:
            if breaks == "open":
                raise TypeError("it takes other arguments")

        def get_stack_trace(self) -> list[object]:
            if breaks == "read":
                raise RuntimeError("another layout")
            return []

    class Module:
        RemoteUnwinder = Unwinder

    def module() -> object:
        if breaks == "import":
            raise ModuleNotFoundError("No module named '_remote_debugging'")
        return Module

    monkeypatch.setattr(outside, "_module", module)
    unavailable.cache_clear()
    try:
        words = {"import": "No module", "open": "other arguments", "read": "another layout", "another stack": "another"}
        assert words[breaks] in unavailable()
        with pytest.raises(Unreadable, match=words[breaks]):
            read_stack(os.getpid(), os.getpid())
    finally:
        monkeypatch.undo()
        unavailable.cache_clear()
    assert unavailable() == ""
