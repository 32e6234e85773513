"""A traced process's side of the spool: one append per record, without blocking."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import weakref
from collections import Counter, deque
from pathlib import Path

from msgspec.structs import replace

from celery_trace import os_threads, private_files
from celery_trace.clock import Clock
from celery_trace.guard import report
from celery_trace.model import AnyRecord, ProcessRecord, encode, new_id
from celery_trace.spool import segments, unrecorded
from celery_trace.spool.cap import TAGS, Cap, count_records
from celery_trace.spool.lines import pack
from celery_trace.spool.losses import Losses
from celery_trace.spool.segments import ROUTINE, Segment

logger = logging.getLogger("celery_trace")

#: A single record larger than this is dropped. A capture is limited to a tenth of it.
MOST_RECORD_BYTES = 8 * 1024 * 1024
_LEAST_SEGMENT_BYTES = 16 * 1024
_MOST_SEGMENT_BYTES = 256 * 1024
#: Precious records for which the disk has no space wait in memory, up to this size.
_MOST_WAITING_BYTES = 4 * 1024 * 1024
#: Disk space that a process allocates in advance for its last statistics and its end.
RESERVE_BYTES = 16 * 1024
#: A folder that can't be written to is retried after this many seconds. Until then no call into it delays a task.
RETRY_S = 1.0

#: How often a writer of routine records checks whether its files were removed, seconds. What it wrote meanwhile is
#: written again. It always checks before a precious record, as the next may not come for a long time.
LOOK_S = 1.0

_living: weakref.WeakSet[SpoolWriter] = weakref.WeakSet()
_hooked = False


def _forget_in_the_child() -> None:
    """A forked child closes inherited files: a kept lock would make its dead parent look alive."""
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

    When :meth:`append` returns, the record is in the page cache: it survives ``kill -9`` of this process, but not a
    power cut (no fsync, which would stall a task). Thread-safe. A forked child gets its own files and process record
    at its first append.

    Args:
        folder: The spool folder; made 0700.
        process: The first record of each file.
        cap_bytes: Size limit of the whole folder. A soft limit: each living process keeps its current files.
        clock: Numbers the files.

    Nothing is created on disk before the first record.
    """

    def __init__(self, folder: Path, process: ProcessRecord, *, cap_bytes: int, clock: Clock) -> None:
        global _hooked  # noqa: PLW0603 - a fork hook can't be removed, so all writers share one
        self._folder = folder
        self._clock = clock
        self._cap_bytes = cap_bytes
        self._segment_bytes = max(_LEAST_SEGMENT_BYTES, min(_MOST_SEGMENT_BYTES, cap_bytes // 64))
        #: ``written:<tag>``: appended. ``dropped:<tag>``: refused by this process (disk full, record too large).
        #: ``evicted:<tag>``: removed with finished files to stay below the cap. The last two reach the store as
        #: ``dropped`` even if this process dies; :meth:`account` has those that could not.
        self.counters: Counter[str] = Counter()
        self._lock = os_threads.rlock()
        self._closed = self._ending = False
        self._look_at_s = 0.0
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
        """The record of the writing process; a new one after a fork."""
        return self._process

    @property
    def write_error(self) -> OSError | None:
        """Why nothing can be written now; None if it can, or if the disk is merely full."""
        return None if self._trouble is not None and unrecorded.is_full(self._trouble) else self._trouble

    def account(self) -> dict[str, int]:
        """Counters for the process's statistics; of dropped records, only those that are counted nowhere else."""
        with self._lock:
            counters = {name: count for name, count in self.counters.items() if not name.startswith("dropped:")}
            return counters | {f"dropped:{tag}": count for tag, count in self._losses.unpublished.items()}

    def append(self, record: AnyRecord) -> bool:
        """
        Write one record.

        Returns:
            Whether it is in the file. If not, it is counted as ``dropped:<tag>``. A precious record that did not fit
            on the disk is kept in memory until there is space; it counts as ``waiting`` until then.
        """
        tag = TAGS[type(record)]
        try:
            line = pack(encode(record))
        except (UnicodeError, TypeError, ValueError, OverflowError) as error:
            report("encoding a record for the spool", error)
            with self._lock:
                self._lose(tag)
            return False
        with self._lock:
            if os.getpid() != self._pid:
                self._begin_again()
            if self._closed or len(line) > MOST_RECORD_BYTES:
                self._lose(tag)
                return False
            routine = isinstance(record, ROUTINE)
            now_s = self._clock.monotonic_s()
            if not routine or now_s >= self._look_at_s:
                self._look_at_s = now_s + LOOK_S
                self._replace_removed_files()
            if self._waiting:
                self._write_waiting()
            # Queue it after the waiting ones: they came first, and there is no space for them either.
            behind = self._waiting and not routine
            if not behind and self._write(self._routine if routine else self._precious, line, patient=not routine):
                self.counters[f"written:{tag}"] += 1
                return True
            if self._ending and self._write_to_reserve(line):
                self.counters[f"written:{tag}"] += 1
                return True
            if routine or self._ending or self._waiting_bytes + len(line) > _MOST_WAITING_BYTES:
                self._lose(tag)
            else:
                self._waiting.append((tag, line))
                self._waiting_bytes += len(line)
                self._losses.wait(tag, 1)
                self.counters["waiting"] = len(self._waiting)
                self._publish_losses()
            return False

    def retry_pending(self, *, at_once: bool = False) -> None:
        """
        Called every few seconds: retry records that could not be written, and recreate a removed folder.

        Args:
            at_once: Retry now, because the process ends.
        """
        with self._lock:
            if self._closed or self._pid != os.getpid():
                return
            if at_once:
                self._try_again_s = 0.0
            self._replace_removed_files()
            if self._waiting:
                self._write_waiting()
            elif self._trouble is not None and self._may_try():
                try:
                    private_files.check_writable(self._folder)
                except OSError as error:
                    self._refused(error)
                else:
                    self._recovered()
            if self._losses.unpublished:
                self._publish_losses()

    def note_failure(self, error: OSError) -> None:
        """Another component found that the folder can't be written to."""
        with self._lock:
            self._refused(error)

    def prepare_end(self) -> None:
        """
        The process ends: retry the waiting records once, and count the rest as lost.

        Records appended from here on, such as the last statistics, may use the reserved space.
        """
        with self._lock:
            if self._closed or self._ending or self._pid != os.getpid():
                return
            self._try_again_s = 0.0
            self._write_waiting()
            self._ending = True
            if not self._waiting:
                return
            for tag, _ in self._waiting:
                self._losses.wait(tag, -1)
                self._lose(tag, publish=False)
            self._waiting.clear()
            self._waiting_bytes = self.counters["waiting"] = 0
            self._publish_losses()

    def close(self, how: str) -> None:
        """Write how and when the process ended, and close the files. The collector removes them once delivered."""
        with self._lock:
            if self._closed:
                return
            if os.getpid() == self._pid:
                self.prepare_end()
                if self._lock_fd >= 0:
                    self.append(replace(self._process, ended_at_s=self._clock.now_s(), ended_how=how))
                    self._return_reserve()
                    with contextlib.suppress(OSError):
                        (self._folder / f"{self._process.uid}.lock").unlink()
                self._log_uncounted_losses()
            self._closed = True
            self._forget()
        _living.discard(self)

    # --- start, and restart after a fork

    def _begin(self, process: ProcessRecord) -> None:
        self._process = process
        self._head = pack(encode(process))
        self._pid = os.getpid()
        self._precious, self._routine = _Lane(), _Lane()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._lock_fd = self._reserve_fd = -1
        self._reserve_used = 0
        self._ending = False
        self._trouble: OSError | None = None
        self._try_again_s = 0.0
        self._look_at_s = 0.0
        self._losses: Losses = Losses(self._folder, process.uid)
        self._cap = Cap(self._folder, self._cap_bytes, self._segment_bytes, self._losses)

    def _create_lock(self) -> None:
        """Lock first, then rename: the lock file of a living process is never visible unlocked."""
        private_files.make_part(self._folder)
        path = self._folder / f"{self._process.uid}.lock"
        nascent = path.with_suffix(f".{self._pid}.nascent")
        self._lock_fd = private_files.create(nascent)
        segments.try_lock(self._lock_fd)
        os.rename(nascent, path)

    def _begin_again(self) -> None:
        """This is an unannounced forked child: give it its own uid and files."""
        parent = self._process
        self.counters.clear()
        self._closed = False
        self._begin(
            replace(parent, uid=new_id(), pid=os.getpid(), parent_uid=parent.uid, started_at_s=self._clock.now_s())
        )
        _living.add(self)

    def _forget(self) -> None:
        """Close the descriptors. A forked child has no other threads yet, so a held lock is replaced."""
        if os.getpid() != self._pid:
            self._lock = os_threads.rlock()
        for lane in (self._precious, self._routine):
            if lane.fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(lane.fd)
                lane.fd = -1
        for fd in (self._lock_fd, self._reserve_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._lock_fd = self._reserve_fd = -1
        self._reserve_used = 0

    # --- space reserved for the last records

    @property
    def _reserve_path(self) -> Path:
        return self._folder / f"{self._process.uid}.reserve"

    def _take_reserve(self) -> None:
        """
        Allocate disk space for the last records, if there is any.

        Space that is freed only when needed may be taken by another process. So this is a future spool file: its
        blocks are allocated already, and it only has to be renamed.
        """
        fd = -1
        try:
            fd = private_files.create(self._reserve_path)
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
            self._reserve_fd, fd = fd, -1
        except OSError:  # retried with the next file
            with contextlib.suppress(OSError):
                self._reserve_path.unlink(missing_ok=True)
        finally:
            if fd >= 0:
                os.close(fd)

    def _write_to_reserve(self, line: bytes) -> bool:
        data = line if self._reserve_used else segments.header() + self._head + line
        if self._reserve_fd < 0 or self._reserve_used + len(data) > RESERVE_BYTES:
            return False
        try:
            self._reserve_used += os.pwrite(self._reserve_fd, data, self._reserve_used)
        except OSError:
            return False
        return True

    def _return_reserve(self) -> None:
        """Rename the reserve to a spool file if it was used; otherwise remove it."""
        if self._reserve_fd < 0:
            return
        with contextlib.suppress(OSError):
            if not self._reserve_used:
                self._reserve_path.unlink(missing_ok=True)
                return
            os.ftruncate(self._reserve_fd, self._reserve_used)
            number = max(self._precious.number + 1, int(self._clock.now_s() * 1000))
            os.rename(self._reserve_path, self._folder / Segment(False, number, self._process.uid).name)

    # --- losses

    def _lose(self, tag: str, *, publish: bool = True) -> None:
        self.counters[f"dropped:{tag}"] += 1
        self._losses.lose(tag)
        if publish:
            self._publish_losses()

    def _publish_losses(self) -> None:
        if self._may_try():
            self._losses.publish()

    def _log_uncounted_losses(self) -> None:
        """At the end, with a folder that can't be written to, only the log can report losses."""
        unpublished = self._losses.unpublished
        if unpublished:
            lost = ", ".join(f"{count} of kind {tag}" for tag, count in sorted(unpublished.items()))
            logger.error("celery-trace: records of this process (pid %d) were lost: %s.", self._pid, lost)

    # --- a folder that can't be written to

    def _may_try(self) -> bool:
        """Whether to try the folder: not right after it failed."""
        return self._trouble is None or self._clock.monotonic_s() >= self._try_again_s

    def _refused(self, error: OSError) -> None:
        self._trouble = error
        self._try_again_s = 0.0 if unrecorded.is_full(error) else self._clock.monotonic_s() + RETRY_S
        unrecorded.log_once(self._folder, error)

    def _recovered(self) -> None:
        error, self._trouble = self._trouble, None
        if error is not None and not unrecorded.is_full(error):  # free space changes with each record
            unrecorded.log_recovery(self._folder, error)

    # --- files

    def _replace_removed_files(self) -> None:
        """
        If our files or the whole folder were removed, create new ones with the contents of the current ones.

        Appends to a removed file would never be read, and without its lock file a process counts as dead.
        """
        fds = [fd for fd in (self._lock_fd, self._precious.fd, self._routine.fd) if fd >= 0]
        if all(os.fstat(fd).st_nlink for fd in fds):
            return
        logger.warning(
            "celery-trace: %s was removed while this process wrote to it. Its current files were recreated; older "
            "ones that the collector had not read are lost.",
            self._folder,
        )
        held: list[tuple[_Lane, bytes]] = []
        try:
            for lane in (self._precious, self._routine):
                if lane.fd >= 0 and not os.fstat(lane.fd).st_nlink:
                    with open(f"/proc/self/fd/{lane.fd}", "rb") as file:
                        held.append((lane, file.read()[segments.HEADER_BYTES + len(self._head) :]))
            self._forget()
            while held:
                lane, lines = held[-1]
                self._rotate(lane)
                lane.size += os.write(lane.fd, lines)
                held.pop()
        except OSError as error:  # no space or no descriptor: the next record tries again
            self._forget()
            for _, lines in held:
                for tag, count in count_records(lines).items():
                    for _ in range(count):
                        self._lose(tag, publish=False)
            self._refused(error)
            report("recreating the spool", error)

    def _rotate(self, lane: _Lane) -> None:
        """Create the lane's next file, then check the folder's cap."""
        if self._lock_fd < 0:
            self._create_lock()
        if self._reserve_fd < 0:
            self._take_reserve()
        routine = lane is self._routine
        number = max(lane.number + 1, int(self._clock.now_s() * 1000))
        segment = Segment(routine, number, self._process.uid)
        path = self._folder / segment.name
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        start = segments.header() + self._head
        try:
            if os.write(fd, start) != len(start):
                raise OSError(errno.ENOSPC, "no space for the head of a spool file", str(path))
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
        """Append a line. When the disk is full, precious (``patient``) records make space and retry."""
        if self._trouble is not None and not self._may_try():
            return False
        for attempt in range(4 if patient else 2):
            try:
                if lane.fd < 0 or lane.size + len(line) > self._segment_bytes:
                    self._rotate_if_possible(lane)
                written = os.write(lane.fd, line)
                if written == len(line):
                    lane.size += written
                    if self._trouble is not None:
                        self._recovered()
                    return True
                os.ftruncate(lane.fd, lane.size)  # a cut line would corrupt the next one
                raise OSError(errno.ENOSPC, "the record did not fit")
            except OSError as error:
                if error.errno == errno.ENOENT and attempt == 0:
                    self._forget()  # the folder was removed: start again with a new lock and files
                    continue
                self._refused(error)
                if not unrecorded.is_full(error) or not patient:
                    return False
                self._make_room(at_least=1)
        return False

    def _rotate_if_possible(self, lane: _Lane) -> None:
        """On a disk without space for another file, keep using the current one."""
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
            self._losses.wait(tag, -1)
            self.counters[f"written:{tag}"] += 1
        if len(self._waiting) != self.counters["waiting"]:
            self.counters["waiting"] = len(self._waiting)
            self._publish_losses()
