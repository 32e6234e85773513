"""The signal that reads the stack of a process: it disturbs no call, and leaves the program's own handler alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from celery_trace.process import blackbox
from tests.support import waiting_calls
from tests.support.box_runs import BoxWithRuns
from tests.support.processes import REPOSITORY

Found = dict[str, tuple[str, bool, int]]


def _run(folder: Path, number: int) -> Found:
    """What each call gives, whether it took its time, and how much was written on the signal meanwhile."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.support.waiting_calls", str(folder), str(number)]
    program = subprocess.Popen(
        words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        while number and program.poll() is None:
            time.sleep(0.02)
            program.send_signal(number)
        out, errors = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0, out + errors
    assert not (folder / "p1.dump").exists()
    found: Found = json.loads((folder / "found.json").read_text())
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """All calls without a signal, and while one arrives again and again."""
    folders = [tmp_path_factory.mktemp("calls") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        undisturbed, disturbed = pool.map(_run, folders, (0, int(signal.SIGURG)))
    return undisturbed, disturbed


def test_many_libraries_are_tried(runs: tuple[Found, Found]) -> None:
    assert list(runs[0]) == list(runs[1]) == list(waiting_calls.CALLS)
    assert len(waiting_calls.CALLS) >= 60


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", waiting_calls.CALLS)
def test_a_call_that_waits_is_as_without_the_signal(name: str, runs: tuple[Found, Found]) -> None:
    (plain, plain_in_time, _), (result, in_time, written) = runs[0][name], runs[1][name]
    assert not plain.startswith("raised")
    assert (result, in_time) == (plain, plain_in_time)
    assert plain_in_time, "it waits, so that a signal arrives meanwhile"
    assert written, "a signal has arrived meanwhile"


def a_box(folder: Path) -> BoxWithRuns:
    process = ProcessRecord(uid="p1", host="h", pid=os.getpid(), started_at_s=0.0, role=Role.CHILD)
    return BoxWithRuns(folder / "p1.box", process, SystemClock())


def test_a_stack_is_written_while_the_file_is_open(tmp_path: Path) -> None:
    box = a_box(tmp_path)
    try:
        assert box.dump_on(signal.SIGURG)
        assert blackbox.dump_signal(tmp_path / "p1.box") == signal.SIGURG
        os.kill(os.getpid(), signal.SIGURG)
        stack = blackbox.dumped_stack((tmp_path / "p1.dump").read_text())
        assert stack[0].function == "test_a_stack_is_written_while_the_file_is_open"
    finally:
        box.close()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGURG)  # ignored by default again


def test_a_program_with_its_own_handler_keeps_it(tmp_path: Path) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, _: got.append(number))
    box = a_box(tmp_path)
    try:
        assert not box.dump_on(signal.SIGURG)
        assert blackbox.dump_signal(tmp_path / "p1.box") == 0
        os.kill(os.getpid(), signal.SIGURG)
        assert got == [signal.SIGURG]
    finally:
        box.close()
        signal.signal(signal.SIGURG, before)


def test_a_handler_that_the_program_installs_later_is_left_alone(tmp_path: Path) -> None:
    got: list[int] = []
    box = a_box(tmp_path)
    assert box.dump_on(signal.SIGURG)
    before = signal.signal(signal.SIGURG, lambda number, _: got.append(number))
    try:
        box.begin("shop.pay")
        box.sample()
        assert blackbox.dump_signal(tmp_path / "p1.box") == 0
        box.end()
        box.close()
        os.kill(os.getpid(), signal.SIGURG)
        assert got == [signal.SIGURG]
    finally:
        signal.signal(signal.SIGURG, before)


def test_a_later_box_takes_the_signal_again(tmp_path: Path) -> None:
    test_a_handler_that_the_program_installs_later_is_left_alone(tmp_path)
    test_a_stack_is_written_while_the_file_is_open(tmp_path)
