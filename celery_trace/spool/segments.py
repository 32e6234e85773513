"""
The files of a spool folder: their names, the cursor that each carries, and who holds which lock.

``<uid>.<n>.spool`` holds a process's precious records, ``<uid>.<n>r.spool`` the routine ones
(runs, rollups, samples): two lanes, so that room can be made by taking whole files of successful
runs and never a failure. ``n`` rises and is the time in milliseconds at which the file was begun,
so that the names alone tell which of two files is older, also across processes.

``<uid>.lock`` is locked (flock) by the living process and removed when it ends cleanly. ``<uid>.reserve`` is a spool
file in the making, whose room on the disk is taken in advance for the process's last words.
``<uid>-<id>.<n>.run-12_rollup-3_+failure-2.dropped`` says in its name all that a process has lost, and with a ``+``
what it would lose if it were killed now: counting needs no room on a full disk, and dropping a file and counting it are
one atomic rename. The greatest ``n`` holds the others.

Each file begins with a line of fixed width that holds the cursor: how far the collector came. It is
overwritten in place, which needs no space on a full disk and vanishes with the file. Whoever moves
the cursor or removes the file holds the file's flock, so collector and cap never act on one at once.
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
from celery_trace.model import HeapProfile, Rollup, Run, Sample
from celery_trace.private_files import NotOurs

ROUTINE = (Run, Rollup, Sample, HeapProfile)

_MAGIC = b"celery-trace-spool 1 "
_DIGITS = 16
#: Where the first record of a file stands.
HEADER_BYTES = len(_MAGIC) + _DIGITS + 1

_SEGMENT = re.compile(r"([0-9A-Za-z_-]+)\.(\d+)(r?)\.spool\Z")
_DROPPED = re.compile(r"([0-9A-Za-z_-]+)\.(\d+)\.((?:\+?[a-z]+-\d+_?)*)\.dropped\Z")


class Segment(NamedTuple):
    """One spool file by its name; sorts by lane (precious first), then by age."""

    routine: bool
    number: int
    uid: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.uid}.{self.number}{'r' if self.routine else ''}.spool"

    @property
    def lane(self) -> tuple[str, bool]:
        """Files of one lane are written one after the other; only the last may still grow."""
        return (self.uid, self.routine)


class SpoolListing(NamedTuple):
    """What stands in a spool folder, by name."""

    segments: list[Segment]
    locks: set[str]  # uids
    boxes: set[str]  # uids
    reserves: set[str]  # uids
    dropped: list[str]  # file names
    foreign: list[str]  # file names of nobody we know

    def newest(self) -> dict[tuple[str, bool], int]:
        """For each lane the number of its newest file: the only one that may still grow."""
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
    """What the names in a spool folder stand for."""
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
    """The segment of that name, or None when it is none of ours."""
    match = _SEGMENT.match(name)
    return Segment(bool(match[3]), int(match[2]), match[1]) if match else None


def header(cursor: int = HEADER_BYTES) -> bytes:
    """The first line of a file."""
    return b"%b%0*d\n" % (_MAGIC, _DIGITS, cursor)


def open_file(path: Path, *, write: bool) -> int:
    """
    A descriptor of a file that another process of ours made.

    Raises:
        NotOurs: Something else stands there.
        OSError: It is gone, or can't be opened.
    """
    return private_files.open_file(path, os.O_RDWR if write else os.O_RDONLY)


def read_cursor(fd: int) -> int | None:
    """
    How far the file was delivered (bytes from its start), or None when it is no spool file of ours.

    One beyond the file's end was damaged: then nothing counts as delivered, for a record told twice is harmless.
    """
    line = os.pread(fd, HEADER_BYTES, 0)
    if len(line) != HEADER_BYTES or not line.startswith(_MAGIC):
        return None
    digits = line[len(_MAGIC) : -1]
    cursor = int(digits) if digits.isdigit() else 0
    return cursor if HEADER_BYTES < cursor <= os.fstat(fd).st_size else HEADER_BYTES


def write_cursor(fd: int, cursor: int) -> None:
    """Remember how far the file was delivered; the caller holds its lock."""
    os.pwrite(fd, b"%0*d" % (_DIGITS, cursor), len(_MAGIC))


def try_lock(fd: int) -> bool:
    """Take the file's lock if nobody has it; it goes with the descriptor."""
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
        # Whoever can't look (no descriptor left, no right to) must not take a living process for dead.
        return error.errno != errno.ENOENT
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def dropped_name(
    dropper: str, times: int, counts: Iterable[tuple[str, int]], waiting: Iterable[tuple[str, int]] = ()
) -> str:
    """The name that says what a dropper has lost so far and what waits in its memory, as its how manyth."""
    words = [f"{tag}-{count}" for tag, count in counts if count] + [
        f"+{tag}-{count}" for tag, count in waiting if count
    ]
    return f"{dropper}.{times}.{'_'.join(words)}.dropped"


def dropper_of(name: str) -> tuple[str, int]:
    """Who dropped, and as the how manyth, in a name by :func:`dropped_name`."""
    match = _DROPPED.match(name)
    return (match[1], int(match[2])) if match else (name, 0)


def process_of(dropper: str) -> str:
    """The uid of the process that a dropper belongs to; empty where the name does not say (0.1.0)."""
    return dropper.rpartition("-")[0]


def dropped_counts(name: str, *, waiting: bool = False) -> Counter[str]:
    """What :func:`dropped_name` says was lost, by record tag; with ``waiting`` what waits as well."""
    match = _DROPPED.match(name)
    counts: Counter[str] = Counter()
    for part in match[3].split("_") if match and match[3] else ():
        tag, _, count = part.rpartition("-")
        if waiting or not tag.startswith("+"):
            counts[tag.removeprefix("+")] += int(count)
    return counts
