"""The collector's side of the spool: batches over all files, and cursors that mark what was delivered."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from celery_trace.model import AnyRecord, ProcessRecord
from celery_trace.private_files import NotOurs
from celery_trace.spool import segments
from celery_trace.spool.lines import CorruptLine, unpack
from celery_trace.spool.segments import Segment, SpoolListing

#: Up to this size a backlog is counted record by record.
COUNTED_BYTES = 8 * 1024 * 1024
#: Delivered bytes are freed in steps of this size while the file is still being written.
GIVEN_BACK_BYTES = 16 * 1024
_BLOCK_BYTES = 4096
#: With less free space than this, as a share or in bytes, a disk counts as nearly full.
FEW_FREE = 0.05
FEW_FREE_BYTES = 256 * 1024 * 1024
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h


class Corrupt(Struct, frozen=True):
    """A line that could not be read: its position, the reason and its first bytes."""

    file: str
    offset: int
    why: str
    start: bytes


class OpenSegment:
    """An open and locked file, and how far it was read beyond its cursor."""

    __slots__ = ("began", "cursor", "fd", "segment", "size")

    def __init__(self, segment: Segment, fd: int, cursor: int, size: int) -> None:
        self.segment = segment
        self.fd = fd
        self.began = self.cursor = cursor
        self.size = size


class Batch:
    """
    Records of one delivery. Their files stay locked until :meth:`commit` or :meth:`release`.

    A context manager: leaving it without :meth:`commit` leaves the cursors where they were.
    """

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []
        self.corrupt: list[Corrupt] = []
        self.bytes = 0
        #: Whether the folder held more than one batch.
        self.full = False
        self._readings: list[OpenSegment] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __bool__(self) -> bool:
        return bool(self._readings)

    def add(self, reading: OpenSegment) -> None:
        """Hold a file until the batch is done."""
        self._readings.append(reading)

    def commit(self) -> None:
        """The batch is delivered: move the cursors and free the disk space."""
        for reading in self._readings:
            segments.write_cursor(reading.fd, reading.cursor)
            if reading.cursor // GIVEN_BACK_BYTES > reading.began // GIVEN_BACK_BYTES:
                _give_back(reading.fd, reading.cursor)
        self.release()

    def release(self) -> None:
        """Close the files."""
        for reading in self._readings:
            os.close(reading.fd)
        self._readings.clear()


class SpoolReader:
    """
    Reads a spool folder in batches of bounded size, precious records first.

    Args:
        folder: The spool folder.
        batch_bytes: The size limit of a batch. A single larger record makes a batch of its own.
        batch_records: The record limit of a batch.
    """

    #: Most files held open by one batch.
    BATCH_FILES = 256

    def __init__(self, folder: Path, *, batch_bytes: int = 2 * 1024 * 1024, batch_records: int = 2000) -> None:
        self._folder = folder
        self._batch_bytes = batch_bytes
        self._batch_records = batch_records

    def list(self) -> SpoolListing:
        """The files in the folder now."""
        return segments.list_folder(self._folder)

    def read(self, listing: SpoolListing, living: set[str]) -> Batch:
        """
        The next batch.

        Args:
            listing: The folder's files, just read.
            living: Uids of living processes: the last line of their newest files may be incomplete.
        """
        batch = Batch()
        newest = listing.newest()
        for segment in sorted(listing.segments):
            growing = segment.uid in living and newest[segment.lane] == segment.number
            self._read_segment(segment, batch, growing=growing)
            if (
                batch.bytes >= self._batch_bytes
                or len(batch.records) >= self._batch_records
                or len(batch._readings) >= self.BATCH_FILES
            ):
                batch.full = True
                break
        return batch

    def _read_segment(self, segment: Segment, batch: Batch, *, growing: bool) -> None:
        try:
            fd = segments.open_file(self._folder / segment.name, write=True)
        except OSError:
            return
        held = False
        try:
            if not segments.try_lock(fd) or os.fstat(fd).st_nlink == 0:
                return
            cursor = segments.read_cursor(fd)
            if cursor is None:
                return
            size = os.fstat(fd).st_size
            if cursor >= size:
                return
            room = max(self._batch_bytes - batch.bytes, 64 * 1024)
            data = os.pread(fd, min(size - cursor, room), cursor)
            cut_short = cursor + len(data) < size
            if b"\n" not in data and cut_short:  # one record larger than the rest of the batch
                data = os.pread(fd, size - cursor, cursor)
                cut_short = False
            batch.full = batch.full or cut_short
            reading = OpenSegment(segment, fd, cursor, size)
            if self._take_lines(reading, data, batch, complete=not cut_short and not growing):
                batch.add(reading)
                held = True
        finally:
            if not held:
                os.close(fd)

    def _take_lines(self, reading: OpenSegment, data: bytes, batch: Batch, *, complete: bool) -> bool:
        """Decode whole lines. A last one without a line feed is corrupt only if its writer is gone."""
        taken = False
        for line, whole in _lines(data):
            if not whole and not complete:
                break
            if len(batch.records) >= self._batch_records and taken:
                break
            length = len(line) + whole
            try:
                if not whole:
                    raise CorruptLine("it was cut: its end is missing")
                batch.records.append(unpack(line))
            except CorruptLine as error:
                batch.corrupt.append(Corrupt(reading.segment.name, reading.cursor, str(error), line[:4096]))
            reading.cursor += length
            batch.bytes += length
            taken = True
        return taken

    # --- after delivery

    def rewind(self, listing: SpoolListing) -> int:
        """
        Reset every cursor to the beginning of its file, because the store with the delivered records is lost.

        Returns:
            The number of records that will be read again.
        """
        again = 0
        for segment in listing.segments:
            try:
                fd = segments.open_file(self._folder / segment.name, write=True)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # the cap holds it for 0.1 ms
                cursor = segments.read_cursor(fd)
                if cursor is not None and cursor > segments.HEADER_BYTES:
                    start = _first_kept(fd, cursor)
                    kept = os.pread(fd, cursor - start, start)
                    # The process record at its head is a copy.
                    again += max(0, kept.count(b"\n") - (start == segments.HEADER_BYTES))
                    segments.write_cursor(fd, start)
            finally:
                os.close(fd)
        return again

    def remove_if_delivered(self, segment: Segment) -> bool:
        """Delete a finished file if all of it was delivered."""
        path = self._folder / segment.name
        try:
            fd = segments.open_file(path, write=True)
        except OSError:
            return False
        try:
            if not segments.try_lock(fd):
                return False
            cursor = segments.read_cursor(fd)
            if cursor is None or cursor < os.fstat(fd).st_size:
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(fd)

    def backlog(self, listing: SpoolListing) -> tuple[int, int]:
        """
        The records that wait beyond the cursors.

        Returns:
            Bytes and records. Records are counted up to 8 MiB and estimated from their mean size beyond.
        """
        waiting = counted_bytes = records = 0
        for segment in listing.segments:
            try:
                fd = segments.open_file(self._folder / segment.name, write=False)
            except OSError:
                continue
            try:
                cursor = segments.read_cursor(fd) or 0
                size = max(0, os.fstat(fd).st_size - cursor)
                waiting += size
                if size > 0 and counted_bytes < COUNTED_BYTES:
                    records += os.pread(fd, size, cursor).count(b"\n")
                    counted_bytes += size
            finally:
                os.close(fd)
        return waiting, round(records * waiting / counted_bytes) if counted_bytes else 0

    def process_of(self, uid: str, listing: SpoolListing) -> ProcessRecord | None:
        """A process's record, from the head of one of its files."""
        for segment in sorted(listing.segments):
            if segment.uid != uid:
                continue
            try:
                with open(segments.open_file(self._folder / segment.name, write=False), "rb") as file:
                    file.seek(segments.HEADER_BYTES)
                    record = unpack(file.readline().rstrip(b"\n"))
            except (OSError, CorruptLine):
                continue
            if isinstance(record, ProcessRecord):
                return record
        return None

    def is_ours(self, segment: Segment) -> bool | None:
        """Whether a file with a spool name is ours and begins with our header; None if it is gone."""
        try:
            fd = segments.open_file(self._folder / segment.name, write=False)
        except NotOurs:
            return False
        except OSError:
            return None
        try:
            return segments.read_cursor(fd) is not None
        finally:
            os.close(fd)


def _lines(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Each line without its line feed, and whether it had one."""
    start = 0
    while True:
        end = data.find(b"\n", start)
        if end < 0:
            break
        yield data[start:end], True
        start = end + 1
    if start < len(data):
        yield data[start:], False


def _give_back(fd: int, cursor: int) -> None:
    """
    On a nearly full disk, free the delivered bytes; the file keeps its size.

    Elsewhere they stay until the file is done, as the only copy should the store be lost. The first block always
    stays, with the cursor and the process record. A file system that can't punch holes is left as it is.
    """
    end = cursor - cursor % _BLOCK_BYTES
    if _fallocate is not None and end > _BLOCK_BYTES and _is_nearly_full(fd):
        _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, _BLOCK_BYTES, end - _BLOCK_BYTES)


def _is_nearly_full(fd: int) -> bool:
    """Whether a file's disk has little space left."""
    disk = os.fstatvfs(fd)
    return disk.f_bavail < FEW_FREE * disk.f_blocks or disk.f_bavail * disk.f_frsize < FEW_FREE_BYTES


def _first_kept(fd: int, cursor: int) -> int:
    """Where the delivered records that a file still has begin: at its head, or after the freed part."""
    hole = os.lseek(fd, 0, os.SEEK_HOLE)
    if hole >= cursor:
        return segments.HEADER_BYTES
    try:
        data = os.lseek(fd, hole, os.SEEK_DATA)
    except OSError:  # the hole reaches to the end
        return cursor
    # The hole ends at a block, in the middle of a record.
    end = os.pread(fd, max(0, cursor - data), data).find(b"\n")
    return cursor if data >= cursor or end < 0 else data + end + 1


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    libc = ctypes.CDLL(None)
    # glibc's fallocate64 is 64-bit everywhere; musl has only fallocate, which is 64-bit too.
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return found


_fallocate = _find_fallocate()
