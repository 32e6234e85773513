"""The signal that reads the stack of a process: it disturbs no call, and leaves the program's own handler alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from celery_trace.process import blackbox
from tests.support.box_runs import BoxWithRuns
from tests.support.processes import REPOSITORY

#: Calls that wait for about a second, and leave what they gave in ``result``.
WAITS = {
    "sleep": "time.sleep(1); result = 'slept'",
    "recv": "result = ours.recv(10)",
    "recv with a timeout": "ours.settimeout(20); result = ours.recv(10)",
    "accept": "server = socket.create_server(('127.0.0.1', 0)); address = server.getsockname()\n"
    "threading.Timer(1, lambda: socket.create_connection(address)).start(); result = server.accept()[1][0]",
    "select": "result = len(select.select([ours], [], [], 20)[0])",
    "poll": "poller = select.poll(); poller.register(ours, select.POLLIN); result = len(poller.poll(20_000))",
    "epoll": "poller = select.epoll(); poller.register(ours, select.EPOLLIN); result = len(poller.poll(20))",
    "read of a pipe": "result = os.read(child.stdout.fileno(), 10)",
    "event": "event = threading.Event(); threading.Timer(1, event.set).start(); result = event.wait(20)",
    "queue": "jobs = queue.Queue(); threading.Timer(1, jobs.put, [7]).start(); result = jobs.get(timeout=20)",
    "wait for a child": "result = child.wait(20)",
    "communicate": "result = child.communicate(timeout=20)[0]",
    "flock": "import fcntl\nholder = subprocess.Popen([sys.executable, '-c', HOLD, sys.argv[1]], stdout=-1)\n"
    "holder.stdout.read(1)\nheld = open(sys.argv[1] + '/held', 'w')\nfcntl.flock(held, fcntl.LOCK_EX); result = 1",
    "read of the C library": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "text = ctypes.create_string_buffer(10)\ncount = libc.read(child.stdout.fileno(), text, 10)\n"
    "result = (count, ctypes.get_errno())",
    "recv of the C library": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "text = ctypes.create_string_buffer(10)\nours.setblocking(True)\ncount = libc.recv(ours.fileno(), text, 10, 0)\n"
    "result = (count, ctypes.get_errno())",
    "sqlite": "import sqlite3\npath = sys.argv[1] + '/db'\n"
    "one = sqlite3.connect(path, isolation_level=None, check_same_thread=False)\n"
    "one.execute('create table t (a)'); one.execute('begin exclusive')\n"
    "threading.Timer(1, lambda: one.execute('commit')).start()\n"
    "result = sqlite3.connect(path, timeout=20).execute('insert into t values (1)').rowcount",
    "asyncio": "import asyncio\nresult = asyncio.run(asyncio.sleep(1, 'slept'))",
}
PROGRAM = """
import os, queue, select, socket, subprocess, sys, threading, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from tests.support.box_runs import BoxWithRuns

HOLD = '''
import fcntl, sys, time
with open(sys.argv[1] + "/held", "w") as held:
    fcntl.flock(held, fcntl.LOCK_EX); print("x", flush=True); time.sleep(1)
'''
process = ProcessRecord(uid="p1", host="h", pid=os.getpid(), started_at_s=0.0, role=Role.CHILD)
box = BoxWithRuns(Path(sys.argv[1]) / "p1.box", process, SystemClock())
assert box.dump_on(int(sys.argv[3]))
ours, theirs = socket.socketpair()
late = "import sys, time; time.sleep(1); sys.stdout.write('done')"
child = subprocess.Popen([sys.executable, "-c", late], stdout=subprocess.PIPE)
threading.Timer(1, theirs.send, [b"sent"]).start()
print("ready", flush=True)
{wait}
print(repr(result), flush=True)
box.close()
"""
RESULTS = {
    "sleep": "'slept'", "recv": "b'sent'", "recv with a timeout": "b'sent'", "accept": "'127.0.0.1'", "select": "1",
    "poll": "1", "epoll": "1", "read of a pipe": "b'done'", "event": "True", "queue": "7", "wait for a child": "0",
    "communicate": "b'done'", "flock": "1", "read of the C library": "(4, 0)", "recv of the C library": "(4, 0)",
    "sqlite": "1", "asyncio": "'slept'",
}  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_a_call_that_waits_goes_on_after_the_signal(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM.replace("{wait}", WAITS[name]), str(tmp_path), str(REPOSITORY)]
    program = subprocess.Popen(
        [*words, str(int(signal.SIGURG))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    for _ in range(20):
        time.sleep(0.02)
        program.send_signal(signal.SIGURG)
    out, errors = program.communicate(timeout=60)
    assert (program.returncode, out.strip()) == (0, RESULTS[name]), errors
    assert not (tmp_path / "p1.dump").exists()


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
