"""A process that crashes in C code leaves its stack in its black box. A handler of the program's own is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celery_trace.process import blackbox
from tests.support.processes import REPOSITORY

PROGRAM = """
import ctypes, faulthandler, os, resource, signal, sys, threading, time
from pathlib import Path
from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from tests.support.box_runs import BoxWithRuns

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
folder = Path(sys.argv[1])
process = ProcessRecord(uid="u", host="h", pid=os.getpid(), started_at_s=time.time(), role=Role.CHILD)
box = BoxWithRuns(folder / "u.box", process, SystemClock())


def segfault(secret="hunter2"):
    ctypes.string_at(0)


def abort():
    os.abort()


def in_a_thread():
    thread = threading.Thread(target=segfault)
    thread.start()
    thread.join()


def begin():
    box.begin("shop.pay", "t1")


"""


def crash(tmp_path: Path, rest: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "crashes.py"
    script.write_text(PROGRAM + rest)
    words = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONFAULTHANDLER", None)
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize(
    ("call", "number", "words", "functions"),
    [
        ("segfault()", signal.SIGSEGV, "Segmentation fault", ["string_at", "segfault", "<module>"]),
        ("abort()", signal.SIGABRT, "Aborted", ["abort", "<module>"]),
        (
            "in_a_thread()", signal.SIGSEGV, "Segmentation fault, in another thread than the task's",
            ["string_at", "segfault"],
        ),
    ],
)  # fmt: skip
def test_a_crash_leaves_its_own_stack(tmp_path, call, number, words, functions):
    ended = crash(tmp_path, f"assert box.catch_crashes()\nbegin()\nbox.sample()\n{call}")
    assert ended.returncode == -number
    assert ended.stderr == "", "the program's output is as without us"
    reading = blackbox.read(tmp_path / "u.box")
    assert reading.sample.crash == words
    assert [line.function for line in reading.sample.stack][: len(functions)] == functions
    assert reading.sample.memory.rss_bytes > 1_000_000
    assert 0 <= reading.sample.age_s < 60
    assert b"hunter2" not in (tmp_path / "u.box").read_bytes()
    assert (tmp_path / "u.box").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "own",
    [
        "faulthandler.enable()\nassert not box.catch_crashes()",
        "assert box.catch_crashes()\nfaulthandler.enable()\nbox._disable_crash_handler()",
    ],
)
def test_the_programs_own_faulthandler_is_left_alone(tmp_path, own):
    ended = crash(tmp_path, f"{own}\nbegin()\nsegfault()")
    assert ended.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in ended.stderr
    assert blackbox.read(tmp_path / "u.box").sample is None


def test_a_handler_of_the_programs_own_stays(tmp_path):
    ended = crash(tmp_path, "signal.signal(signal.SIGABRT, print)\nassert not box.catch_crashes()")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_after_a_close_or_a_fork_nothing_of_ours_handles_a_crash(tmp_path):
    ended = crash(
        tmp_path,
        "before = len(os.listdir('/proc/self/fd'))\nassert box.catch_crashes()\npid = os.fork()\n"
        "if not pid:\n    assert not faulthandler.is_enabled()\n    segfault()\n"
        "assert os.waitpid(pid, 0)[1] & 127 == signal.SIGSEGV\nassert faulthandler.is_enabled()\n"
        "assert (folder / 'u.box').stat().st_size == box_size\nbox.close()\nassert not faulthandler.is_enabled()\n"
        "assert os.listdir(folder) == ['crashes.py']\n".replace("box_size", str(blackbox._SIZE)),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
