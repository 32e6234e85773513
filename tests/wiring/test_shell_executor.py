"""Interrupts of shell commands in a process of its own, which may hang."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What each program begins with. Its end is the check: with a profile function set, calls must still return.
BEGIN = """
import sys, threading, time
from celery_trace.clock import SystemClock
from celery_trace.shell.live.executor import Executor

executor = Executor("shell", SystemClock())
caught = []

def run(command):
    ended = threading.Event()
    assert executor.submit(command, ended.set)
    return ended

def interrupted():
    while not executor.interrupt():
        time.sleep(0.001)

def is_profiled():
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name))
    (lambda: None)()
    sys.setprofile(None)
    return "<lambda>" in calls
"""
COMMANDS = {
    "ends by itself": """
for _ in range(3):
    assert run(lambda: None).wait(10)
""",
    "is interrupted": """
def loop():
    try:
        while True:
            pass
    except KeyboardInterrupt:
        caught.append(1)
ended = run(loop)
interrupted()
assert ended.wait(10) and caught
""",
    "waits in C while it is interrupted": """
waiting, goes_on = threading.Event(), threading.Lock()
goes_on.acquire()
def wait():
    waiting.set()
    try:
        goes_on.acquire()
        for _ in range(1000):
            pass
    except KeyboardInterrupt:
        caught.append(1)
ended = run(wait)
assert waiting.wait(10)
time.sleep(0.1)
interrupted()
assert is_profiled()
goes_on.release()
assert ended.wait(10) and caught, "it arrives when the command returns from C"
""",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_profiler_works_after_a_command_that(command: str) -> None:
    """On Python 3.11, a flag that CPython keeps for interrupts made each profiled call hang (cProfile, memray, pdb)."""
    program = BEGIN + COMMANDS[command] + "assert is_profiled()\nprint('done')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
