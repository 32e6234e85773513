"""
Exact counters of live memory that cost about a microsecond: how many blocks, how many bytes.

``sys.getallocatedblocks()`` counts the live blocks of CPython's own allocator (requests
up to 512 bytes); glibc's ``mallinfo2`` counts the live bytes of the C allocator (all that is
larger, and what C libraries ask for). Together they see every allocation of the
process except bare ``mmap``. Neither exists everywhere: :func:`available` returns which
do here, and a missing counter always reads 0, which never looks like growth.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable
from functools import cache


class _MallInfo2(ctypes.Structure):
    """``struct mallinfo2`` of <malloc.h>, glibc 2.33 and newer."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )

    arena: int
    hblkhd: int
    uordblks: int


@cache
def _mallinfo() -> Callable[[], _MallInfo2] | None:
    """glibc's ``mallinfo2``; None on musl, macOS, an old glibc, or under another allocator."""
    try:
        # PyDLL keeps the GIL: releasing it around a call of half a microsecond costs more than the call,
        # and hands the processor to another thread in the middle of a reading.
        function = ctypes.PyDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    function.restype = _MallInfo2
    function.argtypes = []
    # jemalloc and tcmalloc leave glibc's symbol in place, but its figures do not change: try it.
    size = 4 << 20
    before = function()
    held = ctypes.create_string_buffer(size)
    after = function()
    moved = (after.uordblks + after.hblkhd) - (before.uordblks + before.hblkhd)
    del held
    return function if moved >= size // 2 else None


@cache
def _counts_blocks() -> bool:
    """Whether CPython counts its blocks: not under ``PYTHONMALLOC=malloc``, and not in a free-threaded build's past."""
    before = sys.getallocatedblocks()
    held = [object() for _ in range(64)]
    moved = sys.getallocatedblocks() - before
    del held
    return moved >= 32


def available() -> list[str]:
    """The exact counters that work in this interpreter: of ``allocated_blocks``, ``malloc_bytes`` and ``statm``."""
    names = []
    if _counts_blocks():
        names.append("allocated_blocks")
    if _mallinfo() is not None:
        names.append("malloc_bytes")
    if _statm_descriptor() is not None:
        names.append("statm")
    return names


def _nothing() -> int:
    return 0


def block_counter() -> Callable[[], int]:
    """A function that returns the live blocks of CPython's allocator; always 0 where they are not counted."""
    return sys.getallocatedblocks if _counts_blocks() else _nothing


def byte_counter() -> Callable[[], int]:
    """
    A function that returns the live bytes of the C allocator; always 0 where they are not counted.

    The call walks the free chunks: half a microsecond on a compact heap, milliseconds on one with
    fifty thousand of them. A frequent caller must watch the time.
    """
    mallinfo = _mallinfo()
    if mallinfo is None:
        return _nothing

    def live_bytes(read: Callable[[], _MallInfo2] = mallinfo) -> int:
        info = read()
        return info.uordblks + info.hblkhd

    return live_bytes


def mapped_by_malloc_bytes() -> int:
    """Address space that the C allocator took from the system: its arenas and its own mappings; 0 if unknown."""
    mallinfo = _mallinfo()
    if mallinfo is None:
        return 0
    info = mallinfo()
    return info.arena + info.hblkhd


_statm: dict[int, int] = {}


def _statm_descriptor() -> int | None:
    """A descriptor of this process's ``/proc/self/statm``, opened again after a fork; None where there is no procfs."""
    pid = os.getpid()
    found = _statm.get(pid)
    if found is not None:
        return found
    for stale in list(_statm):
        # The parent's descriptor still reads the parent's numbers.
        try:
            os.close(_statm.pop(stale))
        except OSError:
            continue
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    _statm[pid] = descriptor
    return descriptor


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def address_space_bytes() -> tuple[int, int]:
    """``(virtual size, resident size)`` of this process in bytes; ``(0, 0)`` if unknown."""
    descriptor = _statm_descriptor()
    if descriptor is None:
        return 0, 0
    try:
        fields = os.pread(descriptor, 64, 0).split()
        return int(fields[0]) * _PAGE_BYTES, int(fields[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        # All descriptors were closed, as daemons do: open it again at the next reading.
        _statm.pop(os.getpid(), None)
        return 0, 0


def open_descriptors() -> int | None:
    """How many file descriptors this process has open; None if unknown."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the listing's own
    except OSError:
        return None


def native_threads() -> int | None:
    """How many threads the kernel counts for this process, those of C code too; None if unknown."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


#: The kernel lists children by the thread that forked them; beyond so many threads they are not read.
_MOST_PARENTS = 256


def child_processes() -> int:
    """How many child processes there are, zombies included; 0 if unknown."""
    children = 0
    try:
        for thread in os.listdir("/proc/self/task")[:_MOST_PARENTS]:
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                children += len(file.read().split())
    except OSError:  # this kernel has no such file, or the thread has ended meanwhile
        pass
    return children


@cache
def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not POSIX, or without that name
        return False


def stack_bytes() -> int:
    """The address space that the stack of a new thread takes."""
    chosen = threading.stack_size()
    if chosen:
        return chosen
    if not _is_glibc():
        return _OTHER_STACK_BYTES
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return limit if limit != resource.RLIM_INFINITY else _UNLIMITED_STACK_BYTES


#: What glibc gives a thread where the limit of the stack's size is off, and what other C libraries give about.
_UNLIMITED_STACK_BYTES = 2 << 20
_OTHER_STACK_BYTES = 1 << 20

_reserved: tuple[int, int] = (-1, 0)


def reserved_bytes(threads: int) -> int:
    """
    Address space that is reserved but not usable yet, such as what glibc reserves for the allocations of a thread.

    Args:
        threads: How many there are now. The list of mappings is read only when that has changed.
    """
    global _reserved  # noqa: PLW0603 - the last reading
    if _reserved[0] != threads:
        total = 0
        try:
            with open("/proc/self/maps", "rb") as file:
                for line in file:
                    span, access, _ = line.split(b" ", 2)
                    if access == b"---p":
                        begin, end = span.split(b"-")
                        total += int(end, 16) - int(begin, 16)
        except (OSError, ValueError):
            total = 0
        _reserved = (threads, total)
    return _reserved[1]
