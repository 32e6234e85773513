"""What ``/proc`` says about a thread: of a real process, of one that has ended, and of one that may not be read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_trace.running.connections import Peers
from celery_trace.running.procfs import Child, Descriptor, Procfs, ThreadFacts
from tests.support.waiting import wait_until

Start = Callable[[str], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python process with this code; its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait(10)


def facts(pid: int, call: str, procfs: Procfs | None = None) -> ThreadFacts:
    """The facts about the main thread of a process, once it is in this system call."""
    found: list[ThreadFacts] = []

    def look() -> bool:
        found.append((procfs or Procfs()).thread(pid, pid))
        return found[-1].call == call

    wait_until(look, f"it is in {call}", timeout_s=20, explain=lambda: str(found[-1]))
    return found[-1]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_the_peer_of_a_connection_is_named(start: Start, server: socket.socket) -> None:
    port = server.getsockname()[1]
    pid = start(f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)")
    found = facts(pid, "recvfrom")
    assert (found.on, found.state) == ((Descriptor("socket", f"127.0.0.1:{port}"),), "S")


def test_the_connections_of_a_poll_are_read_from_the_process(start: Start, server: socket.socket) -> None:
    port = server.getsockname()[1]
    pid = start(f"import socket; c = socket.create_connection(('127.0.0.1', {port})); c.settimeout(999); c.recv(1)")
    assert facts(pid, "poll").on == (Descriptor("socket", f"127.0.0.1:{port}"),)


def test_ipv6_and_unix_sockets_are_named_too(start: Start, tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    pid = start(f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen(); s.accept()")
    assert facts(pid, "accept4").on[0].name == path
    pid = start("import socket; s = socket.create_server(('::1', 0), family=socket.AF_INET6); s.accept()")
    on = facts(pid, "accept4").on[0]
    assert on.kind == "listening"
    assert on.name.startswith("[::1]:")


def test_a_child_process_is_named_with_the_time_that_its_own_children_have_used(start: Start) -> None:
    inner = "import time; end = time.process_time() + 0.2\\nwhile time.process_time() < end: pass\\ntime.sleep(999)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])".replace("\\\\n", "\\n")
    pid = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {outer!r}])")
    waited: list[ThreadFacts] = []

    def works() -> bool:
        waited.append(Procfs().thread(pid, pid))
        return waited[-1].call == "wait4" and any(child.cpu_s >= 0.2 for child in waited[-1].children)

    try:
        wait_until(works, "its child's child has worked", timeout_s=20, explain=lambda: str(waited[-1]))
        [child] = waited[-1].children
        assert waited[-1].child == child.pid
        assert child.command.startswith("python")
    finally:
        for child in waited[-1].children:
            for grandchild in Procfs().children(child.pid):
                os.kill(grandchild.pid, 9)
            os.kill(child.pid, 9)


def test_who_holds_the_lock_of_a_file_is_named(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "orders.lock"
    path.touch()
    lock = f"import fcntl; f = open({str(path)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX)"
    holder = start(f"{lock}; import time; time.sleep(999)")
    facts(holder, "clock_nanosleep")
    found = facts(start(lock), "flock")
    assert found.on == (Descriptor("file", str(path)),)
    assert found.lock_held_by.startswith(f"{holder} (python")


def test_the_processor_time_of_a_thread_is_read(start: Start) -> None:
    pid = start("while True: pass")
    wait_until(lambda: Procfs().cpu_s(pid, pid)[1] > 0.1, "it has used the processor", timeout_s=20)
    assert Procfs().cpu_s(pid, pid)[0] == "R"


def test_a_process_is_recognised_by_a_file_that_it_has_open(start: Start, tmp_path: Path) -> None:
    (tmp_path / "p1.lock").touch()
    pid = start(f"f = open({str(tmp_path / 'p1.lock')!r}); import time; time.sleep(999)")
    wait_until(lambda: Procfs().is_process(pid, "p1.lock"), "it has opened the file", timeout_s=20)
    assert not Procfs().is_process(pid, "1.lock")


def test_of_a_process_that_has_ended_nothing_is_known(start: Start) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert Procfs().thread(ended.pid, ended.pid) == ThreadFacts()
    assert not Procfs().is_process(ended.pid, "p1.lock")


def written(root: Path, files: dict[str, str]) -> Procfs:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Procfs(root)


STAT = f"7 (a) b (c) S 1 {' '.join('0' for _ in range(9))} 150 50 0 0"


@pytest.mark.parametrize(
    ("wchan", "call"),
    [
        ("hrtimer_nanosleep", "clock_nanosleep"),
        ("futex_wait_queue", "futex"),
        ("__futex_wait", "futex"),
        ("ep_poll", "epoll_wait"),
        ("wait_woken", ""),
        ("0", ""),
    ],
)
def test_where_the_system_call_may_not_be_read_the_kernels_function_names_it(
    tmp_path: Path, wchan: str, call: str
) -> None:
    procfs = written(tmp_path, {"7/task/7/stat": STAT, "7/task/7/wchan": wchan})
    assert procfs.thread(7, 7) == ThreadFacts(state="S", cpu_s=200 / os.sysconf("SC_CLK_TCK"), call=call)


@pytest.mark.parametrize("damage", ["", "7 (x", "7 (x) S", "\0\0"])
def test_a_file_that_is_cut_short_says_nothing(tmp_path: Path, damage: str) -> None:
    procfs = written(tmp_path, {"7/task/7/stat": damage, "7/task/7/syscall": damage, "7/net/tcp": damage})
    assert procfs.thread(7, 7).call == ""
    assert Peers(tmp_path / "7" / "net").of(1) is None


def test_a_command_may_contain_blanks_and_parentheses(tmp_path: Path) -> None:
    procfs = written(tmp_path, {"5/task/5/children": "7 ", "7/stat": STAT})
    assert procfs.children(5) == [Child(7, "a) b (c", 200 / os.sysconf("SC_CLK_TCK"))]
