"""A traced process's side of the spool: one append per record, nothing that waits."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections import Counter, deque
from pathlib import Path

from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.guard import report
from celery_trace.model import AnyRecord, ProcessRecord, encode, new_id
from celery_trace.spool import segments
from celery_trace.spool.cap import TAGS, Cap
from celery_trace.spool.lines import pack
from celery_trace.spool.segments import ROUTINE, Segment

#: A single record larger than this is dropped: a capture is bounded at a tenth of it.
MOST_RECORD_BYTES = 8 * 1024 * 1024
_LEAST_SEGMENT_BYTES = 16 * 1024
_MOST_SEGMENT_BYTES = 256 * 1024
#: Precious records that found no room on the disk wait in memory, up to this.
_MOST_WAITING_BYTES = 4 * 1024 * 1024

_living: weakref.WeakSet[SpoolWriter] = weakref.WeakSet()
_hooked = False


def _forget_in_the_child() -> None:
    """A forked child closes what it inherited: a lock that it kept would make its dead parent look alive."""
    for writer in list(_living):
        writer._forget()


class _Lane:
    """One of the two current files."""

    __slots__ = ("fd", "number", "path", "segment", "size")

    def __init__(self) -> None:
        self.fd = -1
        self.number = 0
        self.size = 0
        self.path: Path | None = None
        self.segment: Segment | None = None


class SpoolWriter:
    """
    Appends records to the spool files of one process.

    A record is on the disk's page cache when :meth:`append` returns: it survives ``kill -9`` of this process (not
    a power cut; no fsync, which would stall a task). Safe across threads. A process that was forked off while
    holding one gets files and a process record of its own at its first append.

    Args:
        folder: The spool folder; made 0700.
        process: Stands first in each file.
        cap_bytes: Most bytes that wait in the whole folder. A soft bound: each living process keeps its
            current files in any case.
        clock: Numbers the files.

    Nothing is made on disk before the first record.
    """

    def __init__(self, folder: Path, process: ProcessRecord, *, cap_bytes: int, clock: Clock) -> None:
        global _hooked  # noqa: PLW0603 - a fork hook can't be taken back, so there is one for all writers
        self._folder = folder
        self._clock = clock
        self._cap_bytes = cap_bytes
        self._segment_bytes = max(_LEAST_SEGMENT_BYTES, min(_MOST_SEGMENT_BYTES, cap_bytes // 64))
        #: ``written:<tag>`` appended; ``dropped:<tag>`` refused by this process (no room on the disk, too large);
        #: ``evicted:<tag>`` taken from finished files to stay below the cap. What was evicted also reaches the
        #: store by itself, as ``dropped``, whatever becomes of this process.
        self.counters: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._closed = False
        self._begin(process)
        if not _hooked:
            os.register_at_fork(after_in_child=_forget_in_the_child)
            _hooked = True
        _living.add(self)

    @property
    def path(self) -> Path:
        """The current file of precious records (a placeholder name before the first one)."""
        return self._precious.path or self._folder / f"{self._process.uid}.0.spool"

    @property
    def process(self) -> ProcessRecord:
        """Who writes here; another one after a fork."""
        return self._process

    def append(self, record: AnyRecord) -> bool:
        """
        Write one record.

        Returns:
            Whether it stands in the file. If not, it is counted: ``dropped:<tag>``. A precious record that found no
            room is kept in memory and written as soon as there is some; it counts as ``waiting`` until then.
        """
        tag = TAGS[type(record)]
        try:
            line = pack(encode(record))
        except (UnicodeError, TypeError, ValueError, OverflowError) as error:
            report("encoding a record for the spool", error)
            self.counters[f"dropped:{tag}"] += 1
            return False
        with self._lock:
            if os.getpid() != self._pid:
                self._begin_again()
            if self._closed or len(line) > MOST_RECORD_BYTES:
                self.counters[f"dropped:{tag}"] += 1
                return False
            if self._waiting:
                self._write_waiting()
            routine = isinstance(record, ROUTINE)
            if self._write(self._routine if routine else self._precious, line, patient=not routine):
                self.counters[f"written:{tag}"] += 1
                return True
            if routine or self._waiting_bytes + len(line) > _MOST_WAITING_BYTES:
                self.counters[f"dropped:{tag}"] += 1
            else:
                self._waiting.append((tag, line))
                self._waiting_bytes += len(line)
                self.counters["waiting"] = len(self._waiting)
            return False

    def close(self, how: str) -> None:
        """Write how and when the process ended, and let go of the files; the collector removes them once delivered."""
        with self._lock:
            if self._closed:
                return
            if os.getpid() == self._pid and self._lock_fd >= 0:
                self.append(replace(self._process, ended_at_s=self._clock.now_s(), ended_how=how))
                for tag, _ in self._waiting:  # there was no room for them to the very end
                    self.counters[f"dropped:{tag}"] += 1
                with contextlib.suppress(OSError):
                    (self._folder / f"{self._process.uid}.lock").unlink()
            self._closed = True
            self._forget()
        _living.discard(self)

    # --- begin, and begin again after a fork

    def _begin(self, process: ProcessRecord) -> None:
        self._process = process
        self._head = pack(encode(process))
        self._pid = os.getpid()
        self._precious, self._routine = _Lane(), _Lane()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._lock_fd = -1
        self._cap = Cap(self._folder, self._cap_bytes, self._segment_bytes)

    def _announce_life(self) -> None:
        """Lock first, then name: nobody ever sees the lock file of a living process unlocked."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{self._process.uid}.lock"
        nascent = path.with_suffix(f".{self._pid}.nascent")
        self._lock_fd = os.open(nascent, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        segments.try_lock(self._lock_fd)
        os.rename(nascent, path)

    def _begin_again(self) -> None:
        """This is a forked child that nobody announced: it gets a name and files of its own."""
        parent = self._process
        self.counters.clear()
        self._closed = False
        self._begin(
            replace(parent, uid=new_id(), pid=os.getpid(), parent_uid=parent.uid, started_at_s=self._clock.now_s())
        )
        _living.add(self)

    def _forget(self) -> None:
        """Close the descriptors. In a forked child nobody else runs yet, so a lock that was held is made anew."""
        if os.getpid() != self._pid:
            self._lock = threading.RLock()
        for lane in (self._precious, self._routine):
            if lane.fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(lane.fd)
                lane.fd = -1
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock_fd)
            self._lock_fd = -1

    # --- files

    def _rotate(self, lane: _Lane) -> None:
        """Begin the lane's next file, then see whether the folder is over its cap."""
        if self._lock_fd < 0:
            self._announce_life()
        routine = lane is self._routine
        number = max(lane.number + 1, int(self._clock.now_s() * 1000))
        segment = Segment(routine, number, self._process.uid)
        path = self._folder / segment.name
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        start = segments.header() + self._head
        try:
            if os.write(fd, start) != len(start):
                raise OSError(errno.ENOSPC, "no room for the head of a spool file", str(path))
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if lane.fd >= 0:
            os.close(lane.fd)
        lane.fd, lane.number, lane.path, lane.segment, lane.size = fd, number, path, segment, len(start)
        self._make_room()

    def _make_room(self, at_least: int = 0) -> None:
        own = {lane.segment for lane in (self._precious, self._routine) if lane.segment is not None}
        for tag, count in self._cap.make_room(own, at_least=at_least).items():
            self.counters[f"evicted:{tag}"] += count

    def _write(self, lane: _Lane, line: bytes, *, patient: bool) -> bool:
        """Append; when there is no room, the patient (precious) ones make some and try again."""
        for attempt in range(4 if patient else 2):
            try:
                if lane.fd < 0 or lane.size + len(line) > self._segment_bytes:
                    self._rotate_if_possible(lane)
                written = os.write(lane.fd, line)
                if written == len(line):
                    lane.size += written
                    return True
                os.ftruncate(lane.fd, lane.size)  # a cut line would swallow the next one
                raise OSError(errno.ENOSPC, "the record did not fit")
            except OSError as error:
                if error.errno == errno.ENOENT and attempt == 0:
                    self._forget()  # the folder was removed: begin with a lock and files of their own again
                    continue
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    report("appending to the spool", error)
                    return False
                if not patient:
                    return False
                self._make_room(at_least=1)
        return False

    def _rotate_if_possible(self, lane: _Lane) -> None:
        """On a disk without room for another file the current one goes on."""
        if lane.fd < 0 or lane.size > len(self._head) + segments.HEADER_BYTES:
            try:
                self._rotate(lane)
            except OSError as error:
                if lane.fd < 0 or error.errno == errno.ENOENT:
                    raise

    def _write_waiting(self) -> None:
        while self._waiting:
            tag, line = self._waiting[0]
            if not self._write(self._precious, line, patient=True):
                break
            self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self.counters[f"written:{tag}"] += 1
        self.counters["waiting"] = len(self._waiting)
