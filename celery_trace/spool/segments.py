"""
The files of a spool folder: their names, cursors and locks.

``<uid>.<n>.spool`` holds a process's precious records, ``<uid>.<n>r.spool`` the routine ones (runs, rollups,
samples). With two lanes, space can be freed by dropping files of successful runs and never a failure. ``n`` rises:
it is the time in milliseconds at which the file was created, so names order files across processes too.

``<uid>.lock`` is locked (flock) by the living process and removed when it ends cleanly. ``<uid>.reserve`` is a future
spool file whose disk space is allocated in advance for the process's last records.
``<uid>-<id>.<n>.run-12_rollup-3_+failure-2.dropped`` counts in its name all records that a process has lost, and with
a ``+`` those it would lose if it were killed now. Counting so needs no space on a full disk, and dropping a file and
counting it are one atomic rename. The highest ``n`` includes the others.

Each file begins with a fixed-width line that holds the cursor: how far the collector has delivered. It is overwritten
in place, which needs no space on a full disk, and is removed with the file. Moving the cursor or removing the file
takes the file's flock, so collector and cap never work on the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from celery_trace import private_files
from celery_trace.model import Consuming, Flow, HeapProfile, QueueSample, Rollup, Run, Sample, TimeProfile
from celery_trace.private_files import NotOurs

ROUTINE = (Run, Rollup, Sample, HeapProfile, TimeProfile, Flow, Consuming, QueueSample)

_MAGIC = b"celery-trace-spool 1 "
_DIGITS = 16
#: The offset of a file's first record.
HEADER_BYTES = len(_MAGIC) + _DIGITS + 1

_SEGMENT = re.compile(r"([0-9A-Za-z_-]+)\.(\d+)(r?)\.spool\Z")
_DROPPED = re.compile(r"([0-9A-Za-z_-]+)\.(\d+)\.((?:\+?[a-z]+-\d+_?)*)\.dropped\Z")


class Segment(NamedTuple):
    """A spool file by its name; sorts by lane (precious first), then by age."""

    routine: bool
    number: int
    uid: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.uid}.{self.number}{'r' if self.routine else ''}.spool"

    @property
    def lane(self) -> tuple[str, bool]:
        """A process and kind of records. Files of a lane are written in turn; only the last may still grow."""
        return (self.uid, self.routine)


class SpoolListing(NamedTuple):
    """The files of a spool folder, by name."""

    segments: list[Segment]
    locks: set[str]  # uids
    boxes: set[str]  # uids
    reserves: set[str]  # uids
    dropped: list[str]  # file names
    foreign: list[str]  # unknown file names

    def newest(self) -> dict[tuple[str, bool], int]:
        """The number of each lane's newest file, the only one that may still grow."""
        newest: dict[tuple[str, bool], int] = {}
        for segment in self.segments:
            newest[segment.lane] = max(newest.get(segment.lane, 0), segment.number)
        return newest


def list_folder(folder: Path) -> SpoolListing:
    """Read the folder's names; a folder that does not exist yet is empty."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        names = []
    return list_names(names)


def list_names(names: Iterable[str]) -> SpoolListing:
    """Sort the names of a spool folder by kind."""
    listing = SpoolListing([], set(), set(), set(), [], [])
    for name in names:
        segment = parse_name(name)
        if segment is not None:
            listing.segments.append(segment)
        elif name.endswith(".lock"):
            listing.locks.add(name[:-5])
        elif name.endswith(".box"):
            listing.boxes.add(name[:-4])
        elif name.endswith(".reserve"):
            listing.reserves.add(name[:-8])
        elif name.endswith(".dropped"):
            (listing.dropped if _DROPPED.match(name) else listing.foreign).append(name)
        elif name.endswith(".spool"):
            listing.foreign.append(name)
    return listing


def parse_name(name: str) -> Segment | None:
    """The segment of that name, or None if it is not a spool file's name."""
    match = _SEGMENT.match(name)
    return Segment(bool(match[3]), int(match[2]), match[1]) if match else None


def header(cursor: int = HEADER_BYTES) -> bytes:
    """The first line of a file."""
    return b"%b%0*d\n" % (_MAGIC, _DIGITS, cursor)


def open_file(path: Path, *, write: bool) -> int:
    """
    Open a file that another of our processes made; returns its descriptor.

    Raises:
        NotOurs: The file is not ours.
        OSError: The file is gone or can't be opened.
    """
    return private_files.open_file(path, os.O_RDWR if write else os.O_RDONLY)


def read_cursor(fd: int) -> int | None:
    """
    How far the file was delivered (bytes from its start), or None if it is not a spool file.

    A cursor beyond the file's end is damaged. Nothing counts as delivered then, as sending a record twice is harmless.
    """
    line = os.pread(fd, HEADER_BYTES, 0)
    if len(line) != HEADER_BYTES or not line.startswith(_MAGIC):
        return None
    digits = line[len(_MAGIC) : -1]
    cursor = int(digits) if digits.isdigit() else 0
    return cursor if HEADER_BYTES < cursor <= os.fstat(fd).st_size else HEADER_BYTES


def write_cursor(fd: int, cursor: int) -> None:
    """Store how far the file was delivered. The caller holds its lock."""
    os.pwrite(fd, b"%0*d" % (_DIGITS, cursor), len(_MAGIC))


def try_lock(fd: int) -> bool:
    """Take the file's lock if it is free. Closing the descriptor releases it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lives(folder: Path, uid: str) -> bool:
    """Whether the process of that uid still runs: it holds the lock on its ``.lock`` file."""
    try:
        fd = open_file(folder / f"{uid}.lock", write=False)
    except NotOurs:
        return False
    except OSError as error:
        # Without a free descriptor or permission to look, assume that the process lives.
        return error.errno != errno.ENOENT
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def dropped_name(
    dropper: str, times: int, counts: Iterable[tuple[str, int]], waiting: Iterable[tuple[str, int]] = ()
) -> str:
    """The file name that counts a dropper's losses and waiting records, with its sequence number."""
    words = [f"{tag}-{count}" for tag, count in counts if count] + [
        f"+{tag}-{count}" for tag, count in waiting if count
    ]
    return f"{dropper}.{times}.{'_'.join(words)}.dropped"


def dropper_of(name: str) -> tuple[str, int]:
    """The dropper and sequence number in a name by :func:`dropped_name`."""
    match = _DROPPED.match(name)
    return (match[1], int(match[2])) if match else (name, 0)


def process_of(dropper: str) -> str:
    """The uid of a dropper's process; empty in names of version 0.1.0."""
    return dropper.rpartition("-")[0]


def dropped_counts(name: str, *, waiting: bool = False) -> Counter[str]:
    """The losses in a name by :func:`dropped_name`, by record tag; with ``waiting`` also the waiting records."""
    match = _DROPPED.match(name)
    counts: Counter[str] = Counter()
    for part in match[3].split("_") if match and match[3] else ():
        tag, _, count = part.rpartition("-")
        if waiting or not tag.startswith("+"):
            counts[tag.removeprefix("+")] += int(count)
    return counts
