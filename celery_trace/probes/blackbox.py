"""
The black box: a small file per process that says what it was doing, for when it can't any more.

A killed process leaves no traceback. While a run is in progress the ticker's thread looks at
the running threads' stacks ten times a second and writes them into a memory-mapped file; the kernel keeps
the page when the process dies, however it dies. Whoever finds the process dead reads the file.

It cannot look while C code holds the GIL, so the age of the sample is told with it.

Layout: a header with the process record, then two areas (what runs, the last sample) of two
slots each. A slot is ``sequence, length, checksum, JSON``; the writer alternates, so one whole slot
survives a death in the middle of a write.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import time
import weakref
import zlib
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Final

import msgspec

from celery_trace.clock import Clock
from celery_trace.model import LastSample, Line, MemoryState, ProcessRecord

_MAGIC: Final = b"ctbox\x00\x00\x02"
_HEADER = struct.Struct("<8sI")
_SLOT = struct.Struct("<QII")
_HEADER_BYTES: Final = 4096
_RUNS_BYTES: Final = 8192
_SAMPLE_BYTES: Final = 24576
_RUNS_AT: Final = _HEADER_BYTES
_SAMPLE_AT: Final = _RUNS_AT + 2 * _RUNS_BYTES
_SIZE: Final = _SAMPLE_AT + 2 * _SAMPLE_BYTES
#: Frames kept of one stack, innermost first.
MOST_FRAMES: Final = 48
#: Threads whose runs are kept; more run at once only under gevent, where one of them has a stack.
_MOST_RUNS: Final = 32
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

_encode = msgspec.json.Encoder().encode


class Running(msgspec.Struct, frozen=True, array_like=True):
    """A run in progress, and the thread (or greenlet) that it is in."""

    kind: str
    name: str
    task_id: str
    retries: int
    started_at_s: float
    thread: int = 0


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    """The stacks of the threads that run something, by thread: file, line, function, innermost first."""

    at_s: float
    rss_bytes: int
    stacks: dict[str, list[tuple[str, int, str]]]


class BoxReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a box says. ``running`` and ``sample`` are the first of ``runs``, for processes that run one at a time."""

    process: ProcessRecord
    runs: list[tuple[Running, LastSample | None]]

    @property
    def running(self) -> Running | None:
        """The run that was in progress; None if there was none."""
        return self.runs[0][0] if self.runs else None

    @property
    def sample(self) -> LastSample | None:
        """The last look at that run's stack; None if it ended before the first look."""
        return self.runs[0][1] if self.runs else None


class BlackBox:
    """
    The writing side, in the traced process.

    Args:
        path: Where the file is made, 0600. It is removed by :meth:`close`: only a killed process leaves one.
        process: Who it is about.
        clock: Tells the time of a sample.

    Raises:
        OSError: The file can't be made.
    """

    def __init__(self, path: Path, process: ProcessRecord, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._pid = os.getpid()
        self._runs: dict[int, list[Running]] = {}
        self._sequence = 0
        header = _encode(process)
        if len(header) + _HEADER.size > _HEADER_BYTES:
            header = _encode(msgspec.structs.replace(process, counters=[], worker=process.worker[:200]))
        self._lock_path = path.with_suffix(".lock")
        self._lock = _hold(self._lock_path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._map: mmap.mmap | None = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._map[: _HEADER.size + len(header)] = _HEADER.pack(_MAGIC, len(header)) + header
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a platform without it: the sample has no memory
            self._statm = -1
        _boxes.add(self)

    def run_started(self, kind: str, name: str, task_id: str, retries: int) -> None:
        """A run begins in this thread. Runs inside it, such as an eager task, do not hide it."""
        thread = get_ident()
        run = Running(str(kind), name, task_id, retries, self._clock.now_s(), thread)
        self._runs.setdefault(thread, []).append(run)
        self._write_runs()

    def run_ended(self) -> None:
        """The innermost run of this thread is over."""
        thread = get_ident()
        nested = self._runs.get(thread)
        if nested:
            nested.pop()
            if not nested:
                del self._runs[thread]
            self._write_runs()

    def _write_runs(self) -> None:
        # The outermost run of each thread: it is the one whose end somebody waits for.
        outermost = [nested[0] for nested in list(self._runs.values())[:_MOST_RUNS] if nested]
        self._write(_RUNS_AT, _RUNS_BYTES, _encode(outermost))

    def sample(self) -> None:
        """Look at the stacks of the threads that run something; nothing is written while none does."""
        if not self._runs or os.getpid() != self._pid:
            return
        frames = sys._current_frames()
        stacks = {str(thread): _stack_of(frames[thread]) for thread in list(self._runs)[:8] if thread in frames}
        if not stacks:
            # Greenlets: only the one that is switched in has a stack of its own to see.
            stacks = {"": _stack_of(frames[get_ident()])} if get_ident() in frames else {}
        del frames
        data = _encode(_Sample(self._clock.now_s(), self._resident_bytes(), stacks))
        while len(data) > _SAMPLE_BYTES - _SLOT.size and stacks:
            stacks = {thread: stack[: len(stack) // 2] for thread, stack in list(stacks.items())[:4]}
            if not any(stacks.values()):
                stacks = {}
            data = _encode(_Sample(self._clock.now_s(), 0, stacks))
        self._write(_SAMPLE_AT, _SAMPLE_BYTES, data)

    def _resident_bytes(self) -> int:
        if self._statm < 0:
            return 0
        return int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES

    def _write(self, at: int, size: int, data: bytes) -> None:
        target = self._map
        if target is None or len(data) > size - _SLOT.size or os.getpid() != self._pid:
            return
        self._sequence += 1
        place = at + size * (self._sequence % 2)
        # The body first: a reader that comes between sees the old head fail its checksum, and takes the other slot.
        target[place + _SLOT.size : place + _SLOT.size + len(data)] = data
        target[place : place + _SLOT.size] = _SLOT.pack(self._sequence, len(data), zlib.crc32(data))

    def close(self) -> None:
        """The process ends in an orderly way: there is nothing to find afterwards. A second call does nothing."""
        if self._map is None:
            return
        self._map.close()
        self._map = None
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1
        if os.getpid() == self._pid:
            self._path.unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        """Remove the lock file, unless the spool's writer has put its own in its place."""
        descriptor, self._lock = self._lock, -1
        if descriptor < 0:
            return
        try:
            own, named = os.fstat(descriptor), os.stat(self._lock_path)
            if (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino):
                self._lock_path.unlink()
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: the parent's box, and the lock that says that the parent lives, are the parent's."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._map = None
        self._runs = {}


#: Boxes of this process, for the hook after a fork.
_boxes: weakref.WeakSet[BlackBox] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for box in list(_boxes):
        box.forget()
    _boxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _hold(path: Path) -> int:
    """
    Say that this process lives, as its spool does from its first record on: a task that is killed before
    anything was written has a box all the same, and a box without a living process is cleared away.

    Locked before it has its name, so that nobody sees the file of a living process unlocked.
    """
    nascent = path.with_suffix(f".{os.getpid()}.box-nascent")
    descriptor = os.open(nascent, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if path.exists():
        os.unlink(nascent)  # the spool's writer was first, and holds it
    else:
        os.rename(nascent, path)
    return descriptor


def _stack_of(frame: FrameType | None) -> list[tuple[str, int, str]]:
    stack: list[tuple[str, int, str]] = []
    while frame is not None and len(stack) < MOST_FRAMES:
        code = frame.f_code
        stack.append((code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_qualname))
        frame = frame.f_back
    return stack


def read(path: Path, *, noticed_at_s: float | None = None) -> BoxReading | None:
    """
    What a box says; None when there is no box or it is none of ours.

    Args:
        path: The box's file.
        noticed_at_s: When the death was noticed, seconds since the epoch; samples tell their age at that time.
            Now, if not given.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _SIZE or not data.startswith(_MAGIC):
        return None
    noticed_at_s = noticed_at_s if noticed_at_s is not None else time.time()
    _, length = _HEADER.unpack_from(data)
    try:
        process = msgspec.json.decode(data[_HEADER.size : _HEADER.size + length], type=ProcessRecord)
        runs = _newest(data, _RUNS_AT, _RUNS_BYTES)
        running = msgspec.json.decode(runs, type=list[Running]) if runs else []
        sampled = _newest(data, _SAMPLE_AT, _SAMPLE_BYTES)
        sample = msgspec.json.decode(sampled, type=_Sample) if sampled else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return BoxReading(process=process, runs=[(run, _sample_of(run, sample, noticed_at_s)) for run in running])


def _newest(data: bytes, at: int, size: int) -> bytes:
    """The body of the newer slot whose checksum holds; empty if neither was ever written."""
    best, body = -1, b""
    for place in (at, at + size):
        sequence, length, checksum = _SLOT.unpack_from(data, place)
        found = data[place + _SLOT.size : place + _SLOT.size + length]
        if sequence > best and length and zlib.crc32(found) == checksum:
            best, body = sequence, found
    return body


def _sample_of(run: Running, sample: _Sample | None, noticed_at_s: float) -> LastSample | None:
    if sample is None or sample.at_s < run.started_at_s:
        return None  # it shows an earlier run
    stack = sample.stacks.get(str(run.thread), [])
    return LastSample(
        at_s=sample.at_s,
        age_s=max(0.0, noticed_at_s - sample.at_s),
        stack=[Line(file, line, function) for file, line, function in stack],
        memory=MemoryState(rss_bytes=sample.rss_bytes) if sample.rss_bytes else None,
    )
