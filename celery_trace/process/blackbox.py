"""
The black box: a small file per process that shows what the process was doing when it was killed.

A killed process leaves no traceback. While a run is in progress, the ticker's thread samples the running threads'
stacks up to ten times a second and writes them into a memory-mapped file. The kernel keeps its pages however the
process dies. The collector reads the file afterwards.

It cannot sample while C code holds the GIL, so each sample is shown with its age. If the process crashes in C code
(SIGSEGV and the like), `faulthandler` appends the stack of the crash to the file.

Layout: a header with the process record and, at its end, the number of runs that have ended, the number of requests to
the process, the signal that it writes its stack on, and whether its stacks may be read from outside; a place for each
run in progress; the last sample, twice; the crash, as text.
A place is a byte for "taken" and the run in binary; :mod:`celery_trace.process.open_runs` writes it
around every run. A sample is ``sequence, length, checksum, JSON``; the writer alternates between the two, so one whole
sample survives.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import re
import signal
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Final, NamedTuple

import msgspec

from celery_trace import private_files
from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.model import LastSample, Line, MemoryState, ProcessRecord
from celery_trace.process import tracing_right
from celery_trace.process.frames import RunFrames, RunPlaces, look_at_runs
from celery_trace.process.movement import Movement, ThreadSample
from celery_trace.process.open_runs import COUNT, MOST_PLACES, PLACE, VISIBLE, OpenRuns, Token
from celery_trace.text.code_owner import WRAPPERS

_MAGIC: Final = b"ctbox\x00\x00\x03"
_HEADER = struct.Struct("<8sI")
_SAMPLE_HEAD = struct.Struct("<QII")
_HEADER_BYTES: Final = 4096
_SAMPLE_BYTES: Final = 24576
_RUNS_AT: Final = _HEADER_BYTES
#: The end of the header is for numbers.
_PROCESS_BYTES: Final = _HEADER_BYTES - 64
#: Raised by 1 to have the process look for a request (:mod:`celery_trace.running.requests`).
_REQUESTS: Final = struct.Struct("<Q")
_REQUESTS_AT: Final = _RUNS_AT - COUNT.size - _REQUESTS.size
#: The signal on which the process writes its stack into ``<uid>.dump``; 0 for none.
_SIGNAL: Final = struct.Struct("<I")
_SIGNAL_AT: Final = _REQUESTS_AT - _SIGNAL.size
#: Whether the process permits that its memory is read for stacks.
_READABLE_AT: Final = _SIGNAL_AT - 1
_SAMPLE_AT: Final = _RUNS_AT + MOST_PLACES * PLACE.size
_SIZE: Final = _SAMPLE_AT + 2 * _SAMPLE_BYTES
#: Frames kept of one stack, innermost first.
MOST_FRAMES: Final = 48
#: Stacks in one sample.
MOST_STACKS: Final = 8
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

#: A crash of up to 100 threads with 100 frames each; names of files are cut at 500 characters.
_CRASH_BYTES: Final = 1024 * 1024
#: The signals that `faulthandler` handles.
_FATAL: Final = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
_CRASH_MESSAGE = re.compile(r"Fatal Python error: (.{1,200})")
_CRASH_THREAD = re.compile(r"(Current thread|Thread) 0x([0-9a-f]+).*\(most recent call first\):")
_CRASH_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')

_encode = msgspec.json.Encoder().encode


class Running(msgspec.Struct, frozen=True):
    """A run in progress, and the thread (or greenlet) that it is in."""

    kind: str
    name: str
    task_id: str
    retries: int
    started_at_s: float
    thread: int = 0
    moves: ThreadSample | None = None  # of the last sample, if that has the thread
    queue: str = ""  # known once its stack has been sampled


class SampledStack(NamedTuple):
    """
    The stack of a run in progress: file, line, function, innermost first, and its first frames from the task on.

    ``thread`` is the number of the greenlet or coroutine, where runs share a thread.
    """

    thread: int
    token: Token
    frames: list[tuple[str, int, str]]
    inside: int  # how many of the frames are the task's; the others are around it
    stands_for: float  # how many runs: more than one if more runs were in progress than are sampled at a time
    runs_in: int  # the thread that runs it now; 0 if its greenlet or coroutine is suspended


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    """
    The stacks of the threads that run tasks, by thread: file, line, function, innermost first.

    ``queues`` are the queues that the tasks came from, and ``threads`` shows since when they do nothing new; both by
    thread.
    """

    at_s: float
    rss_bytes: int
    stacks: dict[str, list[tuple[str, int, str]]]
    queues: dict[str, str] = {}
    threads: dict[str, ThreadSample] = {}


def label(kind: str, name: str) -> bytes:
    """The kind and name of a run as they are written into the box; encoded once per name."""
    return f"\0{kind}\0{name}".encode("utf-8", VISIBLE)


class BoxReading(msgspec.Struct, frozen=True, kw_only=True):
    """
    The contents of a box. ``running`` and ``sample`` are the first of ``runs``, for one run at a time. ``readable`` is
    whether the process permits that its stacks are read from outside.
    """

    process: ProcessRecord
    runs: list[tuple[Running, LastSample | None]]
    ended: int = 0  # runs so far
    readable: bool = False

    @property
    def running(self) -> Running | None:
        """The run that was in progress; None if there was none."""
        return self.runs[0][0] if self.runs else None

    @property
    def sample(self) -> LastSample | None:
        """The last sample of that run's stack; None if the process ended before the first sample."""
        return self.runs[0][1] if self.runs else None


class _CrashFile:
    """
    The end of a box, for `faulthandler`, which keeps a reference to its file while it is enabled.

    So this object lives until `faulthandler` is disabled or enabled with another file. Then it is closed.
    """

    __slots__ = ("__weakref__", "_descriptor")

    def __init__(self, path: Path) -> None:
        self._descriptor = private_files.open_file(path, os.O_WRONLY | os.O_APPEND)

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        """Required by `faulthandler`; there is nothing to flush."""

    def __del__(self) -> None:
        os.close(self._descriptor)


class _DumpFile:
    """The file that `faulthandler` writes a stack into when a signal arrives."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        os.close(private_files.create(path))
        self._descriptor = private_files.open_file(path, os.O_WRONLY | os.O_APPEND)
        faulthandler.register(number, file=self._descriptor, all_threads=False, chain=False)

    @property
    def is_in_force(self) -> bool:
        """Whether the program has installed no handler of its own since."""
        return signal.getsignal(self._number) is signal.SIG_DFL

    def close(self) -> None:
        self.forget()
        self._path.unlink(missing_ok=True)

    def forget(self) -> None:
        """In a forked child: the file is the parent's."""
        handler = signal.getsignal(self._number)
        if handler is signal.SIG_DFL:
            faulthandler.unregister(self._number)
        elif handler is not None and threading.current_thread() is threading.main_thread():
            faulthandler.unregister(self._number)  # which removes the program's handler too
            signal.signal(self._number, handler)
        os.close(self._descriptor)


class BlackBox:
    """
    The writing side, in the traced process.

    Args:
        path: Where the file is made, 0600. It is removed by :meth:`close`: only a killed process leaves one.
        open_runs: The process's runs in progress, which are written into the file from now on.
        process: The process's record.
        clock: The time of a sample.
        movement: Compares each sample with those before; None for none.

    Raises:
        OSError: The file can't be made.
    """

    def __init__(
        self,
        path: Path,
        process: ProcessRecord,
        clock: Clock,
        open_runs: OpenRuns,
        movement: Movement | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        #: Set where runs share a thread.
        self.places: RunPlaces | None = None
        #: Functions that are around tasks: frames outside of them are not a task's.
        self.around: Collection[CodeType] = ()
        self._pid = os.getpid()
        self._open_runs = open_runs
        self._movement = movement
        self._sequence = 0
        self._queues: dict[int, tuple[float, str]] = {}  # by thread: when its run began, and the run's queue
        self._requests = 0  # that were answered
        self._dump_file: _DumpFile | None = None
        self._crash_file: weakref.ref[_CrashFile] | None = None
        header = _encode(process)
        if len(header) + _HEADER.size > _PROCESS_BYTES:
            header = _encode(msgspec.structs.replace(process, counters=[], worker=process.worker[:200]))
        self._lock_path = path.with_suffix(".lock")
        self._lock = _hold_lock(self._lock_path)
        descriptor = -1
        try:
            descriptor = private_files.create(path)
            # Not only a length: on a full disk, a write into a hole of the file would kill the process.
            os.posix_fallocate(descriptor, 0, _SIZE)
            self._map: mmap.mmap | None = mmap.mmap(descriptor, _SIZE)
        except OSError:
            path.unlink(missing_ok=True)
            self._release_lock()
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._map[: _HEADER.size + len(header)] = _HEADER.pack(_MAGIC, len(header)) + header
        self._map[_READABLE_AT] = tracing_right.is_permitted()
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a platform without it: the sample has no memory
            self._statm = -1
        open_runs.write_to(self._map, _RUNS_AT)
        _boxes.add(self)

    def catch_crashes(self) -> bool:
        """
        Have crashes of the process write their stack into the box.

        Returns:
            False, with nothing changed, if the program has its own handler for such signals.
        """
        if faulthandler.is_enabled() or any(
            signal.getsignal(number) not in (signal.SIG_DFL, None) for number in _FATAL
        ):
            return False
        file = _CrashFile(self._path)
        faulthandler.enable(file=file)  # any object with `fileno` and `flush` will do
        self._crash_file = weakref.ref(file)
        return True

    def dump_on(self, number: int) -> bool:
        """
        Have a signal write the main thread's stack into ``<uid>.dump``, also while C code holds the interpreter's lock.

        Without ``chain``, `faulthandler` asks the kernel to restart system calls that the signal interrupts.

        Returns:
            False, with nothing changed, if the program has its own handler for the signal.
        """
        if self._map is None or signal.getsignal(number) is not signal.SIG_DFL:
            return False
        self._dump_file = _DumpFile(self._path.with_suffix(".dump"), number)
        _SIGNAL.pack_into(self._map, _SIGNAL_AT, number)
        return True

    def requested(self) -> bool:
        """Whether the stack of a run was requested since the last call. Cheap."""
        if self._map is None:
            return False
        requests = _REQUESTS.unpack_from(self._map, _REQUESTS_AT)[0]
        is_new, self._requests = requests != self._requests, requests
        return bool(is_new)

    def _yield_signal(self) -> None:
        """Leave the signal to the program, if it has installed its own handler since."""
        if self._dump_file is not None and self._map is not None and not self._dump_file.is_in_force:
            _SIGNAL.pack_into(self._map, _SIGNAL_AT, 0)

    def _disable_dumps(self) -> None:
        if self._dump_file is not None:
            self._dump_file.close()
            self._dump_file = None

    def _disable_crash_handler(self) -> None:
        """Disable `faulthandler`, unless the program has enabled it for another file since."""
        if self._crash_file is not None and self._crash_file() is not None:
            faulthandler.disable()
        self._crash_file = None

    def sample(self) -> list[SampledStack]:
        """
        Sample the stacks of the runs in progress; nothing is written while there are none.

        Returns:
            The stacks.
        """
        target = self._map
        if target is None or os.getpid() != self._pid:
            return []
        in_progress = self._open_runs.in_progress()
        if not in_progress:
            return []
        self._yield_signal()
        # Of many at once, other ones each time.
        first = self._sequence * MOST_STACKS % len(in_progress) if len(in_progress) > MOST_STACKS else 0
        running = dict((in_progress[first:] + in_progress[:first])[:MOST_STACKS])
        now_s = self._clock.now_s()
        frames = sys._current_frames()
        try:
            looks = look_at_runs(running, self.places, frames)
            found = [
                SampledStack(
                    number,
                    running[number],
                    *_places_of(look.frames, self.around),
                    len(in_progress) / len(running),
                    look.thread if look.runs else 0,
                )
                for number, look in looks.items()
            ]
            threads = self._compare(found, looks, frames, in_progress, now_s)
        finally:
            frames.clear()  # this frame is in it, as in `stacks_by_run`
        stacks = {str(one.thread): one.frames for one in found}
        data = _encode(_Sample(now_s, self._resident_bytes(), stacks, self._queues_of(running), threads))
        while len(data) > _SAMPLE_BYTES - _SAMPLE_HEAD.size and stacks:
            stacks = {thread: stack[: len(stack) // 2] for thread, stack in list(stacks.items())[:4]}
            if not any(stacks.values()):
                stacks = {}
            data = _encode(_Sample(now_s, 0, stacks, threads=threads if len(stacks) == len(threads) else {}))
        self._write_sample(data)
        return found

    def _compare(
        self,
        found: list[SampledStack],
        looks: Mapping[int, RunFrames],
        frames: Mapping[int, FrameType],
        in_progress: list[tuple[int, Token]],
        now_s: float,
    ) -> dict[str, ThreadSample]:
        """Since when the runs do nothing new."""
        if self._movement is None:
            return {}
        with Guard("since when a run does nothing new"):
            began = {thread: token.started_at_s for thread, token in in_progress}
            stacks = {one.thread: one.frames for one in found}
            return self._movement.look(stacks, looks, frames, began, now_s)
        return {}

    def _queues_of(self, running: dict[int, Token]) -> dict[str, str]:
        """The queues that runs came from, read from their requests once for each run."""
        known, self._queues = self._queues, {}
        for thread, token in running.items():
            began_s, queue = known.get(thread, (-1.0, ""))
            if began_s != token.started_s and token.describe is not None:
                with Guard("queue of a run"):
                    queue = token.describe(token.origin)[0][:255]
            self._queues[thread] = (token.started_s, queue)
        return {str(thread): queue for thread, (_, queue) in self._queues.items() if queue}

    def _resident_bytes(self) -> int:
        if self._statm < 0:
            return 0
        return int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES

    def _write_sample(self, data: bytes) -> None:
        target = self._map
        if target is None or len(data) > _SAMPLE_BYTES - _SAMPLE_HEAD.size:
            return
        self._sequence += 1
        head = _SAMPLE_AT + _SAMPLE_BYTES * (self._sequence % 2)
        body = head + _SAMPLE_HEAD.size
        # The body first: in between, the old head fails its checksum, and a reader takes the other sample.
        target[body : body + len(data)] = data
        target[head:body] = _SAMPLE_HEAD.pack(self._sequence, len(data), zlib.crc32(data))

    def close(self) -> None:
        """The process ends normally: remove the file. A second call does nothing."""
        if self._map is None:
            return
        self._disable_crash_handler()
        self._disable_dumps()
        self._open_runs.write_to(None)
        self._map.close()
        self._map = None
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1
        if os.getpid() == self._pid:
            self._path.unlink(missing_ok=True)
            self._release_lock()

    def _release_lock(self) -> None:
        """Remove the lock file, unless the spool's writer has replaced it with its own."""
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
        """In a forked child: close the parent's box and its lock, and leave the files to the parent."""
        self._disable_crash_handler()
        if self._dump_file is not None:
            self._dump_file.forget()
            self._dump_file = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._open_runs.write_to(None)
        self._map = None


#: The boxes of this process, for the hook after a fork.
_boxes: weakref.WeakSet[BlackBox] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for box in list(_boxes):
        box.forget()
    _boxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _hold_lock(path: Path) -> int:
    """
    Lock a file that shows that this process lives, as its spool does from its first record on. A task may be killed
    before the first record, and a box without a living process is removed.

    It is locked before it gets its name, so that the file of a living process is never seen unlocked.
    """
    nascent = path.with_suffix(f".{os.getpid()}.box-nascent")
    descriptor = private_files.create(nascent)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if path.exists() and not path.is_symlink():
        os.unlink(nascent)  # the spool's writer was first, and has locked it
    else:
        os.rename(nascent, path)
    return descriptor


def _places_of(frames: list[FrameType], around: Collection[CodeType]) -> tuple[list[tuple[str, int, str]], int]:
    """
    A stack without our wrappers, and how many of its frames are the task's: those inside of the outermost wrapper, or
    up to the outermost of some functions that are around tasks.
    """
    stack: list[tuple[str, int, str]] = []
    inside = -1
    for frame in frames:
        if len(stack) == MOST_FRAMES:
            break
        code = frame.f_code
        if code.co_filename not in WRAPPERS:
            stack.append((code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_qualname))
        if code.co_filename in WRAPPERS or code in around:
            inside = len(stack)
    return stack, inside if inside >= 0 else len(stack)


def read(path: Path, *, noticed_at_s: float | None = None) -> BoxReading | None:
    """
    Read a box; None if there is none, or another kind of file.

    Args:
        path: The box's file.
        noticed_at_s: When the death was noticed, seconds since the epoch; the age of a sample is its age at that time.
            Now, if not given.
    """
    try:
        with open(private_files.open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
            data = file.read(_SAMPLE_AT)
            if data.startswith(_MAGIC) and any(data[_RUNS_AT :: PLACE.size]):  # else nothing runs
                data += file.read(_SIZE + _CRASH_BYTES - _SAMPLE_AT)
            written_at_s = os.fstat(file.fileno()).st_mtime
            is_whole = os.fstat(file.fileno()).st_size >= _SIZE
    except OSError:
        return None
    if not is_whole or not data.startswith(_MAGIC):
        return None
    noticed_at_s = noticed_at_s if noticed_at_s is not None else time.time()
    _, length = _HEADER.unpack_from(data)
    try:
        process = msgspec.json.decode(data[_HEADER.size : _HEADER.size + length], type=ProcessRecord)
        sampled = _newest_sample(data) if len(data) >= _SIZE else b""
        sample = msgspec.json.decode(sampled, type=_Sample) if sampled else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    running = [_with_sample(run, sample) for run in _running(data)]
    crash = _crash_of(data[_SIZE:].decode("utf-8", "replace"))
    runs = []
    for run in running:
        seen = _sample_of(run, sample, noticed_at_s)
        if crash is not None:
            seen = crash.of_run(run, running, min(written_at_s, noticed_at_s), noticed_at_s, seen)
        runs.append((run, seen))
    ended = COUNT.unpack_from(data, _RUNS_AT - COUNT.size)[0]
    return BoxReading(process=process, runs=runs, ended=ended, readable=data[_READABLE_AT] == 1)


def request(path: Path) -> None:
    """
    Have a living process look for a request.

    Raises:
        OSError: It has no black box.
    """
    descriptor = private_files.open_file(path, os.O_RDWR)
    try:
        before = os.pread(descriptor, _REQUESTS.size, _REQUESTS_AT)
        if len(before) == _REQUESTS.size:
            number = (_REQUESTS.unpack(before)[0] + 1) % 2**64
            os.pwrite(descriptor, _REQUESTS.pack(number), _REQUESTS_AT)
    finally:
        os.close(descriptor)


def dump_signal(path: Path) -> int:
    """The signal on which a process writes its stack; 0 if it does not."""
    try:
        with open(private_files.open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), _SIGNAL.size, _SIGNAL_AT)
    except OSError:
        return 0
    return int(_SIGNAL.unpack(data)[0]) if len(data) == _SIGNAL.size else 0


def dumped_stack(text: str) -> list[Line]:
    """The stack that `faulthandler` has written on a signal, innermost first."""
    found = (_CRASH_FRAME.match(line) for line in text.splitlines())
    return [Line(one[1], int(one[2]), one[3]) for one in found if one and one[1] not in WRAPPERS][:MOST_FRAMES]


class _Crash(msgspec.Struct, frozen=True):
    """What `faulthandler` wrote: the message, the stack of each thread, and the thread that crashed (0: unknown)."""

    message: str
    stacks: dict[int, list[Line]]
    thread: int

    def of_run(
        self, run: Running, running: list[Running], at_s: float, noticed_at_s: float, seen: LastSample | None
    ) -> LastSample:
        """The last sample of one run: the crash, or where its thread was at that time."""
        message, stack = self.message, self.stacks.get(run.thread, [])
        if self.thread != run.thread:
            if any(other.thread == self.thread for other in running):
                message += ", in another run of the process"
            elif self.stacks.get(self.thread):
                message, stack = f"{message}, in another thread than the task's", self.stacks[self.thread]
            else:
                message += ", in a thread that runs no Python code"
        memory = seen.memory if seen is not None else None
        return LastSample(at_s=at_s, age_s=max(0.0, noticed_at_s - at_s), stack=stack, memory=memory, crash=message)


def _crash_of(text: str) -> _Crash | None:
    message = _CRASH_MESSAGE.match(text)
    if message is None:
        return None
    stacks: dict[int, list[Line]] = {}
    crashed = thread = 0
    for line in text.splitlines()[1:]:
        if found := _CRASH_THREAD.match(line):
            thread = int(found[2], 16)
            stacks[thread] = []
            if found[1].startswith("Current"):
                crashed = thread
        elif (found := _CRASH_FRAME.match(line)) and thread:
            if found[1] not in WRAPPERS and len(stacks[thread]) < MOST_FRAMES:
                stacks[thread].append(Line(found[1], int(found[2]), found[3]))
        else:
            thread = 0  # after the threads come the loaded extension modules and the C stack
    return _Crash(message[1], stacks, crashed)


def _running(data: bytes) -> list[Running]:
    """The runs in the taken places."""
    runs = []
    for at in range(_RUNS_AT, _SAMPLE_AT, PLACE.size):
        taken, started_at_s, thread, retries, text = PLACE.unpack_from(data, at)
        if taken:
            task_id, _, rest = text.rstrip(b"\0").decode("utf-8", "replace").partition("\0")
            kind, _, name = rest.partition("\0")
            runs.append(Running(kind, name, task_id, retries, started_at_s, thread))
    return runs


def _with_sample(run: Running, sample: _Sample | None) -> Running:
    """The run with what the sample shows in addition to its stack, unless that is of an earlier run."""
    if sample is None or sample.at_s < run.started_at_s:
        return run
    thread = str(run.thread)
    queue, moves = sample.queues.get(thread, run.queue), sample.threads.get(thread)
    return msgspec.structs.replace(run, queue=queue, moves=moves)


def _newest_sample(data: bytes) -> bytes:
    """The body of the newer sample with a valid checksum; empty if neither was ever written."""
    best, newest = -1, b""
    for head in (_SAMPLE_AT, _SAMPLE_AT + _SAMPLE_BYTES):
        sequence, length, checksum = _SAMPLE_HEAD.unpack_from(data, head)
        body = data[head + _SAMPLE_HEAD.size : head + _SAMPLE_HEAD.size + length]
        if sequence > best and length and zlib.crc32(body) == checksum:
            best, newest = sequence, body
    return newest


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
