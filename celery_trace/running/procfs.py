"""
What the system knows about a thread that waits: its system call, and what that is about.

Everything is read from ``/proc``. Each read may fail: the process may have ended, or the system may not permit it. Then
the field is empty. ``syscall`` and the memory of another process need the rights of a debugger, which Yama
(``kernel.yama.ptrace_scope``) may refuse; ``wchan``, the function of the kernel that waits, needs fewer.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from celery_trace.running.connections import Peers

_X86_64: Final = {
    0: "read", 1: "write", 2: "open", 7: "poll", 17: "pread64", 19: "readv", 20: "writev", 23: "select", 34: "pause",
    35: "nanosleep", 40: "sendfile", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg",
    47: "recvmsg", 61: "wait4", 65: "semop", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync",
    128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex", 220: "semtimedop", 230: "clock_nanosleep",
    232: "epoll_wait", 247: "waitid", 257: "openat", 270: "pselect6", 271: "ppoll", 275: "splice", 281: "epoll_pwait",
    288: "accept4", 441: "epoll_pwait2",
}  # fmt: skip
_AARCH64: Final = {
    22: "epoll_pwait", 25: "fcntl", 32: "flock", 56: "openat", 63: "read", 64: "write", 65: "readv", 66: "writev",
    67: "pread64", 71: "sendfile", 72: "pselect6", 73: "ppoll", 76: "splice", 82: "fsync", 83: "fdatasync",
    95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 133: "rt_sigsuspend", 137: "rt_sigtimedwait",
    192: "semtimedop", 193: "semop", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
    212: "recvmsg", 242: "accept4", 260: "wait4", 441: "epoll_pwait2",
}  # fmt: skip
_NAMES: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), {})

#: System calls whose first argument is a descriptor.
_ON_DESCRIPTOR: Final = frozenset({
    "read", "write", "pread64", "readv", "writev", "connect", "accept", "accept4", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "sendfile", "fcntl", "flock", "fsync", "fdatasync", "splice",
})  # fmt: skip
#: What the kernel's function says if the system call can't be read, by the begin of its name.
_BY_WCHAN: Final = (
    ("hrtimer_nanosleep", "clock_nanosleep"), ("do_nanosleep", "clock_nanosleep"), ("futex", "futex"),
    ("ep_poll", "epoll_wait"), ("do_epoll", "epoll_wait"), ("poll_schedule", "poll"), ("do_poll", "poll"),
    ("do_sys_poll", "poll"), ("do_select", "select"), ("do_wait", "wait4"), ("pipe_read", "read"),
    ("anon_pipe_read", "read"), ("fifo_pipe_read", "read"), ("pipe_write", "write"), ("anon_pipe_write", "write"),
    ("flock_lock", "flock"), ("locks_lock", "flock"), ("posix_lock", "fcntl"), ("fcntl_setlk", "fcntl"),
    ("unix_stream_data_wait", "recvfrom"), ("unix_stream_read", "recvfrom"), ("sk_wait_data", "recvfrom"),
    ("tcp_recvmsg", "recvfrom"), ("__skb_wait_for_more", "recvfrom"), ("inet_csk_accept", "accept"),
    ("inet_stream_connect", "connect"), ("sk_stream_wait_memory", "sendto"), ("n_tty_read", "read"),
    ("sigsuspend", "rt_sigsuspend"), ("do_sigtimedwait", "rt_sigtimedwait"),
)  # fmt: skip

_P_PID: Final = 1  # of waitid: this process
_SQLITE_NAMES: Final = (".db", ".sqlite", ".sqlite3", ".db3")
_SQLITE_FILES: Final = ("-wal", "-shm", "-journal")
_MOST_DESCRIPTORS: Final = 64
_MOST_CHILDREN: Final = 100
_MOST_DEPTH: Final = 10
_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_POLLFD: Final = struct.Struct("=ihh")


class Descriptor(Struct, frozen=True):
    """
    An open file of a process. ``kind`` is ``socket``, ``listening``, ``pipe``, ``terminal``, ``file`` or ``other``;
    ``name`` its peer, such as ``10.0.0.5:5432``, or its path; empty if unknown.
    """

    kind: str
    name: str = ""


class Child(Struct, frozen=True):
    """
    A child process: the processor seconds that it and its own children have used, and whether it runs now, or waits for
    its turn.
    """

    pid: int
    command: str
    cpu_s: float
    runs: bool = False


class ThreadFacts(Struct, frozen=True, kw_only=True):
    """What ``/proc`` says about a thread. What could not be read is empty."""

    state: str = ""  # one letter, as in ps: R, S, D, T, t, Z
    cpu_s: float = 0.0
    call: str = ""  # the name of its system call
    on: tuple[Descriptor, ...] = ()  # the descriptors of that call
    child: int = 0  # the process that it waits for; 0 for any
    children: tuple[Child, ...] = ()  # of the thread's process
    lock_held_by: str = ""  # the process that has the lock on the file, such as "123 (python)"
    sqlite: str = ""  # an open SQLite database, if there is just one


class Procfs:
    """
    Reads ``/proc``.

    Args:
        root: The folder; another one in tests.
    """

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def is_process(self, pid: int, opened: str) -> bool:
        """Whether a process has a file of this name open: a pid alone may mean one in another container."""
        return any(link.endswith(f"/{opened}") for _, link in self._links(pid))

    def cpu_s(self, pid: int, thread: int) -> tuple[str, float]:
        """State and processor seconds of a thread; ("", 0) if it has ended."""
        fields = self._stat(self._root / str(pid) / "task" / str(thread) / "stat")
        return (fields[0], (int(fields[11]) + int(fields[12])) / _TICKS) if len(fields) > 12 else ("", 0.0)

    def turns(self, pid: int, thread: int) -> int | None:
        """How often the system has let a thread run; None if that is unknown."""
        lines = self._read(self._root / str(pid) / "task" / str(thread) / "status").splitlines()
        counts = [line.split()[1:] for line in lines if "voluntary_ctxt_switches:" in line]
        return sum(int(count[0]) for count in counts if count) if counts else None

    def thread(self, pid: int, thread: int) -> ThreadFacts:
        """Everything about one thread."""
        state, cpu_s = self.cpu_s(pid, thread)
        call, arguments = self._system_call(pid, thread)
        locks, sleeps = call in ("flock", "fcntl"), call in ("clock_nanosleep", "nanosleep")
        return ThreadFacts(
            state=state,
            cpu_s=cpu_s,
            call=call,
            on=tuple(self.descriptors(pid, self._descriptors_of(pid, call, arguments))),
            child=self._awaited_child(call, arguments),
            children=tuple(self.children(pid)),
            lock_held_by=self._lock_holder(pid, arguments) if locks else "",
            sqlite=self._sqlite(pid) if sleeps else "",
        )

    def descriptors(self, pid: int, numbers: Iterable[int]) -> Iterator[Descriptor]:
        """The open files with these numbers."""
        peers: Peers | None = None
        for number in numbers:
            try:
                link = os.readlink(self._root / str(pid) / "fd" / str(number))
            except OSError:
                continue
            if link.startswith("socket:["):
                peers = peers or Peers(self._root / str(pid) / "net")
                peer = peers.of(int(link[8:-1]))
                yield Descriptor("listening" if peer is not None and peer.listens else "socket", str(peer or ""))
            elif link.startswith("pipe:["):
                yield Descriptor("pipe")
            elif link.startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
                yield Descriptor("terminal", link)
            elif link.startswith("/"):
                yield Descriptor("file", link)
            else:
                yield Descriptor("other", link.removeprefix("anon_inode:").strip("[]"))

    def children(self, pid: int) -> list[Child]:
        """The child processes of a process. Where the kernel lists none (CONFIG_PROC_CHILDREN), there are none."""
        found = []
        for child in self._child_pids(pid):
            command, fields = self._command_and_stat(self._root / str(child) / "stat")
            if len(fields) > 12:
                found.append(Child(child, command, self._cpu_with_children_s(child), fields[0] == "R"))
        return found

    def _child_pids(self, pid: int) -> list[int]:
        folder = self._root / str(pid) / "task"
        try:
            threads = os.listdir(folder)
        except OSError:
            return []
        texts = (self._read(folder / thread / "children") for thread in threads)
        return [int(child) for text in texts for child in text.split()][:_MOST_CHILDREN]

    def _cpu_with_children_s(self, pid: int, depth: int = 0) -> float:
        """Processor seconds of a process, of the children that it has waited for, and of those that live."""
        fields = self._stat(self._root / str(pid) / "stat")
        own_s = sum(int(field) for field in fields[11:15]) / _TICKS
        below = self._child_pids(pid) if depth < _MOST_DEPTH else []
        return own_s + sum(self._cpu_with_children_s(child, depth + 1) for child in below)

    # --- one file each -----------------------------------------------------------------------------------

    def _read(self, path: Path) -> str:
        try:
            return path.read_bytes().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _stat(self, path: Path) -> list[str]:
        return self._command_and_stat(path)[1]

    def _command_and_stat(self, path: Path) -> tuple[str, list[str]]:
        """The command, and the fields from the state on. A command may contain blanks and parentheses."""
        head, _, rest = self._read(path).rpartition(")")
        return head.partition("(")[2], rest.split()

    def _links(self, pid: int) -> Iterator[tuple[int, str]]:
        folder = self._root / str(pid) / "fd"
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            try:
                yield int(name), os.readlink(folder / name)
            except OSError:
                continue

    def _system_call(self, pid: int, thread: int) -> tuple[str, list[int]]:
        """The name and the arguments of the system call; without arguments if only the kernel's function is known."""
        task = self._root / str(pid) / "task" / str(thread)
        fields = self._read(task / "syscall").split()
        if len(fields) > 6 and fields[0].isdigit():
            return _NAMES.get(int(fields[0]), ""), [int(field, 16) for field in fields[1:7]]
        wchan = self._read(task / "wchan").removeprefix("__")
        return next((call for begin, call in _BY_WCHAN if wchan.startswith(begin.removeprefix("__"))), ""), []

    def _descriptors_of(self, pid: int, call: str, arguments: list[int]) -> list[int]:
        """The numbers of the descriptors that a system call is about."""
        if not arguments:
            return []
        if call in _ON_DESCRIPTOR:
            return [arguments[0]]
        if call in ("poll", "ppoll"):
            count = min(arguments[1], _MOST_DESCRIPTORS)
            polled = self._memory(pid, arguments[0], count * _POLLFD.size)
            return [number for number, _, _ in _POLLFD.iter_unpack(polled) if number >= 0]
        if call in ("select", "pselect6"):
            count = min(arguments[0], 1024)
            sets = [self._memory(pid, at, (count + 63) // 64 * 8) for at in arguments[1:4] if at]
            return [
                number for number in range(count) if any(bits[number // 8] >> number % 8 & 1 for bits in sets if bits)
            ]
        if call.startswith("epoll_"):
            lines = self._read(self._root / str(pid) / "fdinfo" / str(arguments[0])).splitlines()
            watched = [line.split()[1] for line in lines if line.startswith("tfd:")]
            return [int(number) for number in watched[:_MOST_DESCRIPTORS]]
        return []

    def _memory(self, pid: int, address: int, size: int) -> bytes:
        """A part of a process's memory: the list of descriptors that it has given to the kernel."""
        if not size:
            return b""
        try:
            with open(self._root / str(pid) / "mem", "rb", buffering=0) as memory:
                data = os.pread(memory.fileno(), size, address)
        except (OSError, OverflowError):
            return b""
        return data if len(data) == size else b""

    def _awaited_child(self, call: str, arguments: list[int]) -> int:
        if call == "wait4" and arguments:
            number = arguments[0] & 0xFFFFFFFF
            return number if number < 1 << 31 else 0  # -1 for any
        return arguments[1] if call == "waitid" and arguments and arguments[0] == _P_PID else 0

    def _lock_holder(self, pid: int, arguments: list[int]) -> str:
        """The process that has a lock on the file which this one waits for."""
        if not arguments:
            return ""
        try:
            wanted = os.stat(self._root / str(pid) / "fd" / str(arguments[0]))
        except OSError:
            return ""
        name = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}:{wanted.st_ino}"
        for line in self._read(self._root / "locks").splitlines():
            fields = line.split()
            if "->" not in fields and len(fields) > 5 and fields[5] == name and fields[4].isdigit():
                holder = int(fields[4])
                command, _ = self._command_and_stat(self._root / fields[4] / "stat")
                return f"{holder} ({command})" if command else str(holder)
        return ""

    def _sqlite(self, pid: int) -> str:
        """
        The path of the open SQLite database, if there is just one, by its name.

        It is not opened: the collector may have it open too, and closing it a second time would release its locks.
        """
        links = {link for _, link in self._links(pid) if link.startswith("/")}
        found = {
            link
            for link in links
            if link.endswith(_SQLITE_NAMES) or any(f"{link}{ending}" in links for ending in _SQLITE_FILES)
        }
        return found.pop() if len(found) == 1 else ""
