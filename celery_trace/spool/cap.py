"""
The spool's cap: drop whole files, the oldest routine ones first, and count the records lost with them.

object process may drop a finished file of any other. It takes the file's lock first, so a file that the collector is
delivering stays; counts the records beyond the cursor; and renames the file to a name that holds the counts
(see :mod:`celery_trace.spool.losses`).
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from celery_trace.model import AnyRecord, ProcessRecord
from celery_trace.spool import segments
from celery_trace.spool.lines import opening
from celery_trace.spool.losses import Losses
from celery_trace.spool.segments import HEADER_BYTES, Segment, SpoolListing

TAGS: dict[type, str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(AnyRecord)}
_OPENINGS = {tag: opening(tag) for tag in TAGS.values()}
_ROUTINE_OPENINGS = {TAGS[kind]: opening(TAGS[kind]) for kind in (*segments.ROUTINE, ProcessRecord)}

#: Most files dropped in one call: each takes about 0.2 ms, and a task waits for it.
MOST_AT_ONCE = 2
#: Files chosen at a time. Few older ones arrive before the last of them is dropped.
PLANNED = 64


class Cap:
    """
    Keeps one folder below a number of bytes, as seen from one process.

    It counts files instead of measuring them: reading a thousand sizes takes longer than a task may wait. A file
    holds up to ``segment_bytes`` (more only if a single record is larger), so the estimate is an upper bound.
    """

    def __init__(self, folder: Path, cap_bytes: int, segment_bytes: int, losses: Losses) -> None:
        self._folder = folder
        self._most_segments = max(2, cap_bytes // segment_bytes)
        self._losses = losses
        self._next: deque[Segment] = deque()

    def make_room(self, own: set[Segment], *, at_least: int = 0) -> Counter[str]:
        """
        Drop files above the cap.

        Args:
            own: The caller's current files, which stay.
            at_least: Drop this many files even below the cap, because the disk is full.

        Returns:
            The number of undelivered records dropped, by tag.
        """
        gone: Counter[str] = Counter()
        try:
            names = os.listdir(self._folder)
        except OSError:
            return gone
        surplus = max(sum(name.endswith(".spool") for name in names) - self._most_segments, at_least)
        if surplus <= 0:
            return gone
        if not self._next:
            # Parsing a thousand names takes a millisecond, so it is done once for the next few dozen files.
            self._next.extend(self._plan(segments.list_names(names), own))
        surplus = min(surplus, MOST_AT_ONCE)
        while surplus and self._next:
            counts = self._drop(self._next.popleft())
            if counts is not None:
                gone += counts
                surplus -= 1
        return gone

    def _plan(self, listing: SpoolListing, own: set[Segment]) -> list[Segment]:
        """Choose only routine files ahead: before a failure is dropped, look again for a run to drop instead."""
        victims = self._victims(listing, own)
        routine = [segment for segment in victims[:PLANNED] if segment.routine]
        return routine or victims[:1]

    @staticmethod
    def _victims(listing: SpoolListing, own: set[Segment]) -> list[Segment]:
        """Finished files: routine ones first, then the oldest first."""
        newest = listing.newest()
        finished = [
            segment
            for segment in listing.segments
            if segment not in own and (newest[segment.lane] != segment.number or segment.uid not in listing.locks)
        ]
        return sorted(finished, key=lambda segment: (not segment.routine, segment.number, segment.uid))

    def _drop(self, segment: Segment) -> Counter[str] | None:
        path = self._folder / segment.name
        try:
            fd = segments.open_file(path, write=True)
        except OSError:
            return None
        try:
            if not segments.try_lock(fd) or os.fstat(fd).st_nlink == 0:
                return None  # the collector is delivering it, or has removed it
            counts = undelivered(fd, _ROUTINE_OPENINGS if segment.routine else _OPENINGS)
            self._losses.drop_file(path, counts)
            os.ftruncate(fd, 0)
            return counts
        except OSError:
            return None
        finally:
            os.close(fd)


def undelivered(fd: int, openings: Mapping[str, bytes] = _OPENINGS) -> Counter[str]:
    """
    Count a file's records beyond its cursor, by tag. The process record at its head is a copy and isn't counted.

    It counts bytes without decoding: about 0.1 ms for 256 KiB.
    """
    cursor = segments.read_cursor(fd)
    if cursor is None:
        return Counter()
    data = os.pread(fd, os.fstat(fd).st_size - cursor, cursor) if os.fstat(fd).st_size > cursor else b""
    counts = count_records(data, openings)
    if cursor == HEADER_BYTES and counts["process"]:
        counts["process"] -= 1
    return +counts


def count_records(lines: bytes, openings: Mapping[str, bytes] = _OPENINGS) -> Counter[str]:
    """Count the records of each tag in lines of a spool file."""
    return Counter({tag: found for tag, mark in openings.items() if (found := lines.count(mark))})
