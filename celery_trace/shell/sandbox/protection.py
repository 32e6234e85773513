"""
Drops this process's rights irrevocably, which makes the recreated shell a sandbox.

The layers are independent, and the kernel may not support each; :func:`confine` reports which hold.

- *seccomp*: a filter of system calls (classic BPF, built here). Calls that plain computation in Python needs are
  allowed; everything else fails with EPERM: opening files, sockets, starting processes or threads, signals to
  others, ptrace, mapping executable memory. See seccomp(2), Documentation/userspace-api/seccomp_filter.rst.
- *Landlock*: no access to any file below any path, no TCP, no signal out. See landlock(7).
- *namespaces*: a network namespace without interfaces, no root privileges. See unshare(2).
- *rlimits*: memory, CPU time, processes, file size, descriptors, core dumps. See getrlimit(2).

Called by the sandboxed program after its imports. Only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from typing import NamedTuple

MEMORY_BYTES = 512 * 1024 * 1024
CPU_S = 120

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 4, 38, 22, 2
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LD_W_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_PROT_EXEC = 4
#: The ioctls that Python uses: terminal and its size, waiting bytes, blocking mode, inheritance. Others can do harm:
#: FIOSETOWN lets the kernel send a signal to any process of the same user.
IOCTLS = {
    "TCGETS": 0x5401,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
}
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446


class _Arch(NamedTuple):
    audit: int
    allowed: dict[str, int]
    ioctl: int  # allowed for IOCTLS only
    no_exec: dict[str, int]  # allowed unless they ask for executable memory (third argument)
    unknown: dict[str, int]  # answered with ENOSYS, so that libc uses the older call


_X86_64 = _Arch(
    0xC000003E,
    {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20,
        "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "pause": 34, "nanosleep": 35, "getitimer": 36,
        "setitimer": 38, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "gettimeofday": 96, "getrusage": 98,
        "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
        "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204,
        "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
        "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
        "epoll_pwait": 281, "getrandom": 318, "rseq": 334,
    },
    16,
    {"mmap": 9, "mprotect": 10, "pkey_mprotect": 329},
    {"clone3": 435, "faccessat2": 439, "epoll_pwait2": 441},
)  # fmt: skip
_AARCH64 = _Arch(
    0xC00000B7,
    {
        "getcwd": 17, "epoll_ctl": 21, "epoll_pwait": 22, "close": 57, "lseek": 62, "read": 63,
        "write": 64, "readv": 65, "writev": 66, "pselect6": 72, "ppoll": 73, "fstat": 80, "exit": 93,
        "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101, "getitimer": 102, "setitimer": 103,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123,
        "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
        "rt_sigreturn": 139, "times": 153, "uname": 160, "getrusage": 165, "gettimeofday": 169, "getpid": 172,
        "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "brk": 214,
        "munmap": 215, "mremap": 216, "madvise": 233, "getrandom": 278, "rseq": 293,
    },
    29,
    {"mmap": 222, "mprotect": 226, "pkey_mprotect": 288},
    {"clone3": 435, "faccessat2": 439, "epoll_pwait2": 441},
)  # fmt: skip
_ARCHES = {"x86_64": _X86_64, "aarch64": _AARCH64}


class Protection(NamedTuple):
    """A layer, and whether it holds here."""

    name: str
    holds: bool
    note: str = ""


def confine() -> list[Protection]:
    """
    Drop all rights that the kernel lets us drop. This can't be undone.

    Returns:
        Each layer and whether it holds; a layer that fails never stops the others.
    """
    held = [_limits()]
    if not sys.platform.startswith("linux"):
        return [*held, Protection("seccomp", False, "needs Linux"), Protection("landlock", False, "needs Linux")]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    held.append(_namespaces(libc))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return [*held, Protection("seccomp", False, "no_new_privs was refused"), Protection("landlock", False)]
    held.append(_landlock(libc))
    held.append(_seccomp(libc))
    return held


def die_with(parent: int) -> None:
    """Let the kernel kill this process, a child of the single-threaded ``parent``, when the parent dies."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(0)


def _limits() -> Protection:
    failed = []
    for name, limit in (
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_CPU", CPU_S),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", 16),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (AttributeError, OSError, ValueError):
            failed.append(name)
    return Protection("rlimits", not failed, " ".join(failed))


def _namespaces(libc: ctypes.CDLL) -> Protection:
    flags = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNS
    # A new user namespace removes root's rights, and allows creating the others.
    if libc.unshare(_CLONE_NEWUSER | flags) == 0:
        return Protection("network", True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return Protection("network", True, "without a user namespace")
    return Protection("network", False, os.strerror(ctypes.get_errno()))


def _landlock(libc: ctypes.CDLL) -> Protection:
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return Protection("landlock", False, os.strerror(ctypes.get_errno()))
    files = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)
    network = 0x3 if version >= 4 else 0
    scoped = 0x3 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = ctypes.create_string_buffer(struct.pack("=QQQ", files, network, scoped)[:size], size)
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return Protection("landlock", False, os.strerror(ctypes.get_errno()))
    try:
        if libc.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)) != 0:
            return Protection("landlock", False, os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)
    return Protection("landlock", True, f"version {version}")


def _step(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def seccomp_program(arch: _Arch) -> bytes:
    """
    The filter, as an array of ``struct sock_filter``.

    ``seccomp_data`` has the call's number at offset 0, the architecture at 4 and the arguments,
    eight bytes each, from 16; both architectures are little-endian.
    """
    steps = [
        _step(_LD_W_ABS, 0, 0, 4),
        _step(_JEQ, 1, 0, arch.audit),
        _step(_RET, 0, 0, _KILL),
        _step(_LD_W_ABS, 0, 0, 0),
    ]
    if arch is _X86_64:
        # Numbers from here on are the x32 variants, which would bypass the list.
        steps += [_step(_JGE, 0, 1, 0x40000000), _step(_RET, 0, 0, _KILL)]
    for number in sorted(arch.allowed.values()):
        steps += [_step(_JEQ, 0, 1, number), _step(_RET, 0, 0, _ALLOW)]
    steps += [_step(_JEQ, 0, 2 * len(IOCTLS) + 2, arch.ioctl), _step(_LD_W_ABS, 0, 0, 16 + 8)]
    for request in IOCTLS.values():
        steps += [_step(_JEQ, 0, 1, request), _step(_RET, 0, 0, _ALLOW)]
    steps.append(_step(_RET, 0, 0, _ERRNO | _EPERM))
    for number in arch.unknown.values():
        steps += [_step(_JEQ, 0, 1, number), _step(_RET, 0, 0, _ERRNO | _ENOSYS)]
    for number in arch.no_exec.values():
        steps += [
            _step(_JEQ, 0, 4, number),
            _step(_LD_W_ABS, 0, 0, 16 + 8 * 2),
            _step(_JSET, 0, 1, _PROT_EXEC),
            _step(_RET, 0, 0, _ERRNO | _EPERM),
            _step(_RET, 0, 0, _ALLOW),
        ]
    steps.append(_step(_RET, 0, 0, _ERRNO | _EPERM))
    return b"".join(steps)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _seccomp(libc: ctypes.CDLL) -> Protection:
    arch = _ARCHES.get(platform.machine())
    if arch is None or sys.byteorder != "little":
        return Protection("seccomp", False, f"no filter for {platform.machine()}")
    code = seccomp_program(arch)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        return Protection("seccomp", False, os.strerror(ctypes.get_errno()))
    return Protection("seccomp", True)


def notices(held: list[Protection]) -> list[str]:
    """The protections in words, for the user."""
    holds = {one.name for one in held if one.holds}
    files = bool(holds & {"seccomp", "landlock"})
    network = bool(holds & {"seccomp", "network"})
    processes = "seccomp" in holds
    words = [("files", files), ("network", network), ("other processes", processes), ("memory and time", True)]
    if "rlimits" not in holds:
        words[-1] = ("memory and time", False)
    kept = ", ".join(word for word, good in words if good)
    lines = [f"Recreated from the capture, in a sandbox ({', '.join(sorted(holds)) or 'no layer of the kernel'})."]
    lost = [word for word, good in words if not good]
    if lost:
        reasons = "; ".join(f"{one.name}: {one.note or 'not offered'}" for one in held if not one.holds)
        lines.append(
            f"On this system the sandbox can't block: {', '.join(lost)} ({reasons}). "
            f"Blocked: {kept or 'nothing'}. Run only what you would run on this machine yourself."
        )
    return lines
