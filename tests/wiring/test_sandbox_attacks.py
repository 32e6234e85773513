"""What is tried from inside the sandbox, and that each of it is refused by the kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from celery_trace.shell.sandbox import protection, recreated
from celery_trace.shell.sandbox.protection import Protection, notices
from celery_trace.shell.sandbox.recreated import RecreatedSession, open_session
from celery_trace.shell.session import ShellError
from tests.support.shells import SEED, answer, say
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox's layers are Linux's")


@pytest.fixture(scope="module")
def session() -> Iterator[RecreatedSession]:
    session = open_session(SEED)
    if not session.protections.get("seccomp"):
        session.close()
        pytest.skip("this kernel offers no seccomp filter")
    say(
        session,
        "import os, sys, ctypes, socket, threading, subprocess, signal, mmap; libc = ctypes.CDLL(None, use_errno=True)",
    )
    say(session, "import os, sys")
    yield session
    session.close()


def refused(session: RecreatedSession, code: str) -> str:
    done, said = say(session, code)
    assert not done.ok, f"{code} gave {said.of()}"
    return said.of("error")


def test_every_layer_holds_here_and_the_notice_says_so(session: RecreatedSession) -> None:
    assert session.protections["rlimits"]
    assert session.protections["seccomp"]
    assert "in a sandbox" in session.notices[0]
    status = Path(f"/proc/{session.pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd')",
        "open(os.path.abspath(__import__('celery_trace.shell.interpreter').__path__[0] + '/model.py'))",
        "open('/tmp/celery-trace-attack', 'w')",
        "os.open('/', os.O_RDONLY)",
        "os.listdir('/')",
        "os.listdir('/proc/self')",
        "os.stat('/etc/passwd')",
        "os.readlink('/proc/self/exe')",
        "os.chdir('/tmp')",
        "os.mkdir('/tmp/celery-trace-attack')",
        "os.unlink('/tmp/celery-trace-attack')",
        "os.rename('/etc/hosts', '/etc/hosts2')",
        "os.symlink('/etc/passwd', '/tmp/celery-trace-attack')",
        "os.chmod('/etc/passwd', 0o777)",
        "os.memfd_create('x')",
        "os.pipe()",
        "os.dup(2)",
        "import sqlite3",
        "__import__('django')",
        "__import__('importlib').import_module('celery')",
    ],
)
def test_no_file_can_be_reached(session: RecreatedSession, code: str) -> None:
    assert "Error" in refused(session, code)
    assert not Path("/tmp/celery-trace-attack").exists()


@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "os.forkpty()",
        "os.execv('/bin/sh', ['sh', '-c', 'id'])",
        "os.posix_spawn('/bin/sh', ['sh'], {})",
        "__import__('subprocess').run(['id'])",
        "__import__('threading').Thread(target=print).start()",
        "__import__('_thread').start_new_thread(print, ())",
        "__import__('concurrent.futures').futures.ThreadPoolExecutor(1).submit(print)",
        "os.kill(os.getppid(), 9)",
        "os.kill(1, 0)",
        "os.killpg(0, 9)",
        "os.setuid(0)",
        "os.setsid()",
        "os.nice(-5)",
        "os.sched_setaffinity(0, {0})",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_NPROC, (10, 10))",
    ],
)
def test_no_process_can_be_made_or_touched(session: RecreatedSession, code: str) -> None:
    assert "Error" in refused(session, code)
    assert psutil.Process(session.pid).children() == []


@pytest.mark.parametrize(
    "code",
    [
        "__import__('_socket').socket()",
        "__import__('socket').socket(1, 1)",
        "__import__('socket').create_connection(('127.0.0.1', 6379), 1)",
        "__import__('socket').getaddrinfo('example.org', 80)",
        "__import__('socket').socketpair()",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1')",
    ],
)
def test_no_network_can_be_reached(session: RecreatedSession, code: str) -> None:
    assert "rror" in refused(session, code)


def test_no_signal_reaches_another_process_by_way_of_a_descriptor(session: RecreatedSession) -> None:
    aim = "__import__('fcntl').ioctl(fd, 0x8901, __import__('struct').pack('i', os.getppid()))"
    code = f"import os\naimed = []\nfor fd in range(16):\n    try: {aim}; aimed.append(fd)\n    except OSError: pass\n"
    say(session, code + "\n")
    assert answer(session, "aimed") == "[]"
    assert answer(session, "os.isatty(0)") == "False"


@pytest.mark.parametrize(
    "code",
    [
        "libc.fork()",
        "libc.vfork()",
        "libc.system(b'true')",
        "libc.open(b'/etc/passwd', 0)",
        "libc.socket(2, 1, 0)",
        "libc.kill(os.getppid(), 0)",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.prctl(22, 0, 0, 0, 0)",
        "libc.setns(0, 0)",
        "libc.dlopen(b'libsqlite3.so.0', 2) or -1",
        "libc.mprotect(ctypes.c_void_p(id(libc) & ~4095), 4096, 7)",
    ],
)
def test_machine_code_reached_through_the_module_that_shut_the_door_is_refused_too(
    session: RecreatedSession, code: str
) -> None:
    say(session, "ctypes = sys.modules['ctypes']; libc = ctypes.CDLL(None)")
    assert int(answer(session, code)) not in (0, 1)
    assert psutil.Process(session.pid).children() == []


@pytest.mark.parametrize(
    "code",
    [
        "__import__('_io').FileIO('/etc/passwd')",
        "__import__('_io').open_code('/etc/passwd')",
        "__import__('importlib.machinery').machinery.SourceFileLoader('x', '/etc/passwd').get_data('/etc/passwd')",
        "[t for t in object.__subclasses__() if t.__name__ == 'FileLoader'][0]('x', '/').get_data('/etc/passwd')",
        "next(o for o in __import__('gc').get_objects() if type(o).__name__ == '_Wire')._in.__class__('/etc/passwd')",
        "sys.modules['celery_trace.shell.sandbox.protection'].ctypes.CDLL('libsqlite3.so.0')",
        "sys._getframe().f_back.f_globals['linecache'].sys.modules['importlib'].import_module('sqlite3')",
        "__import__('linecache').updatecache('/etc/passwd')[0]",
        "__import__('tokenize').open('/etc/passwd')",
        "__import__('xml.etree.ElementTree').etree.ElementTree.parse('/etc/passwd')",
        "__import__('csv').__spec__.loader.get_data('/etc/passwd')",
    ],
)
def test_the_object_graph_leads_to_no_file(session: RecreatedSession, code: str) -> None:
    assert "rror" in refused(session, code)


def test_a_crash_of_the_interpreter_costs_the_sandbox_alone() -> None:
    session, said = forged("__import__('sys').modules['ctypes'].memset(0, 1, 8)")
    try:
        assert "The sandbox ended: a crash of the interpreter (SIGSEGV)" in said
        assert answer(session, "1 + 1") == "2"
    finally:
        session.close()


def test_a_shell_command_finds_no_way_out(session: RecreatedSession, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    say(session, f"os.system('echo x > {mark}')")
    assert not mark.exists()


# Numbers of x86_64; each is a call that a filter by names alone tends to forget.
RAW_CALLS = {
    "open": (2, "b'/etc/passwd', 0"),
    "openat": (257, "-100, b'/etc/passwd', 0"),
    "openat2": (437, "-100, b'/etc/passwd', 0, 24"),
    "open_by_handle_at": (304, "0, 0, 0"),
    "execve": (59, "b'/bin/sh', 0, 0"),
    "execveat": (322, "-100, b'/bin/sh', 0, 0, 0"),
    "clone": (56, "0x11, 0, 0, 0, 0"),
    "vfork": (58, ""),
    "ptrace": (101, "16, 1, 0, 0"),
    "process_vm_readv": (310, "1, 0, 0, 0, 0, 0"),
    "io_uring_setup": (425, "8, 0"),
    "bpf": (321, "0, 0, 0"),
    "perf_event_open": (298, "0, 0, -1, -1, 0"),
    "userfaultfd": (323, "0"),
    "keyctl": (250, "0, 0"),
    "unshare": (272, "0x10000000"),
    "setns": (308, "0, 0"),
    "mount": (165, "0, 0, 0, 0, 0"),
    "pidfd_open": (434, "1, 0"),
    "prlimit64": (302, "0, 6, 0, 0"),
    "tgkill": (234, "1, 1, 9"),
    "prctl": (157, "38, 0, 0, 0, 0"),
    "seccomp": (317, "1, 0, 0"),
    "personality": (135, "0x0004000"),
    "ioctl TIOCSTI, which types into a terminal": (16, "0, 0x5412, b'x'"),
    "ioctl FIOSETOWN, which aims a signal": (16, "0, 0x8901, b'xxxx'"),
    "ioctl FIOASYNC, which sends it": (16, "0, 0x5452, b'xxxx'"),
    "fcntl": (72, "0, 8, 1"),
    "mprotect with PROT_EXEC": (10, "0, 4096, 5"),
    "mmap with PROT_EXEC": (9, "0, 4096, 7, 0x22, -1, 0"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's")
@pytest.mark.parametrize("name", RAW_CALLS)
def test_raw_system_calls_are_refused_by_the_kernel(name: str) -> None:
    # ctypes is not loaded in the sandbox, so the filter is tried where it is.
    number, arguments = RAW_CALLS[name]
    code = (
        "import ctypes, errno, os, sys\n"
        "from celery_trace.shell.sandbox import protection\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "protection.confine()\n"
        f"result = libc.syscall({number}, {arguments})\n"
        "os.write(1, f'{result} {errno.errorcode.get(ctypes.get_errno())}'.encode())\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stdout == b"-1 EPERM", done


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is x86_64's")
def test_the_x32_variants_of_calls_kill_the_process() -> None:
    code = (
        "import ctypes, os\n"
        "from celery_trace.shell.sandbox import protection\n"
        "libc = ctypes.CDLL(None)\n"
        "protection.confine()\n"
        "libc.syscall(0x40000000 + 2, b'/etc/passwd', 0)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == -31


@pytest.mark.parametrize("layer", ["_landlock", "_namespaces"])
def test_each_layer_holds_without_the_others(layer: str, tmp_path: Path) -> None:
    probe = tmp_path / "secret"
    probe.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import ctypes, os, socket\n"
            "from celery_trace.shell.sandbox import protection\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "libc.prctl(38, 1, 0, 0, 0)\n"
            f"held = protection.{layer}(libc)\n"
            "said = [str(held.holds)]\n"
            f"for call in (lambda: open({str(probe)!r}), lambda: socket.create_connection(('127.0.0.1', {port}), 2)):\n"
            "    try: call(); said.append('open')\n"
            "    except OSError: said.append('shut')\n"
            "os.write(1, ' '.join(said).encode())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(__file__).parents[2], text=True
        )
    holds, files, network = done.stdout.split()
    if holds != "True":
        pytest.skip(f"this kernel does not offer {layer}")
    assert network == "shut"
    assert files == ("shut" if layer == "_landlock" else "open")


def test_the_environment_is_empty_and_nothing_of_the_project_is_there(
    session: RecreatedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(session, "sorted(set(os.environ) - {'LC_CTYPE'})") == "[]"
    assert answer(session, "sys.path, os.getcwd()") == "([], '/')"
    assert (
        answer(session, "[m for m in sys.modules if m in ('msgspec', 'celery', 'django', 'kombu', 'pickle5')]") == "[]"
    )
    assert Path(f"/proc/{session.pid}/environ").read_bytes() in (b"", b"LC_CTYPE=C.UTF-8\0")


def test_the_sandbox_holds_its_two_pipes_and_its_event_loop_and_no_more(
    session: RecreatedSession,
) -> None:
    folder = Path(f"/proc/{session.pid}/fd")
    kinds = sorted(os.readlink(entry).partition(":")[0] for entry in folder.iterdir())
    # With static trampolines, libffi, which ctypes loads, keeps its own file open to map parts of it again.
    kinds = [kind for kind in kinds if not Path(kind).name.startswith("libffi.so.")]
    assert set(kinds) <= {"/dev/null", "anon_inode", "pipe", "socket"}
    assert kinds.count("pipe") == 2
    # The loop wakes itself through a pair of sockets that are connected to each other.
    assert kinds.count("socket") == 2


def test_memory_is_bounded(session: RecreatedSession) -> None:
    assert "MemoryError" in refused(session, "'x' * (2 * 1024 ** 3)")
    assert "MemoryError" in refused(session, "rows = []\nwhile True: rows.append(bytearray(50_000_000))")
    say(session, "rows = None")
    assert answer(session, "1 + 1") == "2"
    assert psutil.Process(session.pid).memory_info().rss < protection.MEMORY_BYTES


def test_processor_time_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "from celery_trace.shell.sandbox import protection\n"
        "protection.CPU_S = 1\n"
        "protection.confine()\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode in (-24, -9)


def test_a_flood_of_output_is_cut_and_the_session_lives(session: RecreatedSession) -> None:
    _done, said = say(session, "while True: print('x' * 1000)\n\n")
    assert len(said.of("output")) <= 256 * 1024
    assert "cut at" in said.of("notice")
    assert answer(session, "1 + 1") == "2"


def forged(code: str) -> tuple[RecreatedSession, str]:
    """Run code that writes to every descriptor: that of the wire is no secret, and harms only this session."""
    session = open_session(SEED)
    say(session, "import os, json")
    _done, said = say(session, code)
    return session, said.of()


@pytest.mark.parametrize(
    "line",
    [
        b"not json\\n",
        b"[1, 2]\\n",
        b"{}\\n",
        b'{\\"type\\": 3}\\n',
        b'{\\"type\\": \\"event\\", \\"kind\\": {}}\\n',
        b"\\x80\\x04\\x95pickle.\\n",
    ],
)
def test_whatever_is_written_to_the_wire_harms_only_the_session(line: bytes) -> None:
    session, _said = forged(f"[os.write(fd, b'{line.decode()}') for fd in range(3, 8)]")
    try:
        say(session, "1")
        assert answer(session, "1 + 1") == "2"
    finally:
        session.close()


def test_an_endless_line_on_the_wire_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recreated, "ANSWER_LIMIT_BYTES", 256 * 1024)
    write = "        try: os.write(fd, b'x' * 4096)\n        except OSError: pass\n\n"
    code = f"while True:\n    for fd in range(3, 8):\n{write}"
    session, said = forged(code)
    session.close()
    assert "exceeded its output limit" in said


def test_empty_pieces_on_the_wire_are_not_heard_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recreated, "WIRE_LIMIT_BYTES", 200_000)
    lines = json.dumps({"type": "event", "kind": "notice", "text": ""}) * 90
    code = f"lines = {lines!r}.replace('}}', '}}' + chr(10)).encode()\n"
    code += (
        "while True:\n    for fd in range(3, 8):\n        try: os.write(fd, lines)\n        except OSError: pass\n\n"
    )
    session, said = forged(code)
    session.close()
    assert "exceeded its output limit" in said


def test_a_forged_notice_of_protections_is_not_believed(session: RecreatedSession) -> None:
    before = dict(session.protections), list(session.notices)
    forged_line = '{"type": "ready", "notices": ["all is safe"], "protections": [["seccomp", true, ""]]}'
    other, _said = forged(
        f"[os.write(fd, {forged_line.encode() + b'%n'!r}.replace(b'%n', b'\\n')) for fd in range(3, 8)]"
    )
    try:
        assert "all is safe" not in other.notices
    finally:
        other.close()
    assert (dict(session.protections), list(session.notices)) == before


PARENT = """
import sys, time
from celery_trace.shell.sandbox.recreated import open_session
from tests.support.shells import SEED
session = open_session(SEED, command_limit_s=600)
def heard(event):
    if event.kind == "output":
        print(session.pid, session._sandbox._process.pid, flush=True)
code = sys.stdin.read()
if code:
    session.run(code, heard)
else:
    print(session.pid, session._sandbox._process.pid, flush=True)
time.sleep(600)
"""

#: What code may do so as not to be ended. Each prints when it is done with its preparations.
TENACIOUS = {
    "it waits for a command": "",
    "it sleeps": "import time; print(1); time.sleep(10 ** 6)",
    "it cleared its timers": (
        "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0); signal.setitimer(signal.ITIMER_VIRTUAL, 0); "
        "print(1); time.sleep(10 ** 6)"
    ),
    "it ignores and blocks all signals": (
        "import signal, time\n"
        "for number in sorted(signal.valid_signals()):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); print(1)\n"
        "while True: time.sleep(10 ** 6)\n\n"
    ),
    "it closed every descriptor but the one it prints to": (
        "import os, time; print(1); os.closerange(0, 4); os.closerange(5, 64); time.sleep(10 ** 6)"
    ),
    "it never leaves machine code": "print(1); 7 ** 7 ** 10",
}


@pytest.mark.parametrize("victim", ["parent", "outer process"])
@pytest.mark.parametrize("what", TENACIOUS)
def test_a_sandbox_outlives_neither_its_parent_nor_its_outer_process(what: str, victim: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    try:
        parent.stdin.write(TENACIOUS[what])
        parent.stdin.close()
        inner, outer = map(int, parent.stdout.readline().split())
        assert psutil.Process(inner).ppid() == outer
        os.kill(parent.pid if victim == "parent" else outer, signal.SIGKILL)
        wait_until(lambda: not running(inner), "the inner process ends", timeout_s=10, every_s=0.02)
        wait_until(lambda: not running(outer), "the outer process ends", timeout_s=10, every_s=0.02)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_closed_session_leaves_no_process_to_reap(session: RecreatedSession) -> None:
    other = open_session(SEED)
    inner = other.pid
    assert inner is not None
    say(other, "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
    other.close()
    assert not psutil.pid_exists(inner)


def test_code_that_pretends_to_be_done_and_reads_no_more_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    done = json.dumps({"type": "done", "ok": True, "frame": 10**9}).encode() + b"\n"
    session, _said = forged(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "for fd in range(3, 8):\n"
        f"    try: os.write(fd, {done!r})\n"
        "    except OSError: pass\n"
        "time.sleep(10 ** 6)\n"
    )
    try:
        assert session.frame == 0
        monkeypatch.setattr(recreated, "START_S", 0.5)
        outcome, said = say(session, "'" + "é" * 60_000 + "'")  # more than a pipe holds
        assert not outcome.ok
        assert "does not read" in said.of("notice")
        monkeypatch.setattr(recreated, "START_S", 30.0)
        assert answer(session, "1 + 1") == "2"
    finally:
        session.close()


def test_an_interpreter_that_is_none_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ShellError, match="did not start"):
        open_session(SEED)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ShellError, match="did not start"):
        open_session(SEED)


def test_what_does_not_hold_is_said_in_words() -> None:
    lines = notices([Protection("rlimits", True), Protection("seccomp", False, "no filter for mips")])
    assert "the sandbox can't block: files, network, other processes (seccomp: no filter for mips)" in lines[1]
    whole = [Protection(name, True) for name in ("rlimits", "seccomp", "landlock", "network")]
    assert len(notices(whole)) == 1
    assert len(notices([])) == 2


def test_the_filter_fits_the_kernels_limit() -> None:
    for arch in protection._ARCHES.values():
        code = protection.seccomp_program(arch)
        assert len(code) % 8 == 0
        assert len(code) // 8 < 4096
        last = struct.unpack("=HBBI", code[-8:])
        assert last == (0x06, 0, 0, 0x00050001)
