"""
The spool's cap: make room by dropping whole files, oldest routine ones first, and count what was in them.

Any process may drop any other's finished file. It takes the file's lock first, so a file from which the collector
is delivering stays; counts what lies beyond the cursor; and renames the file to a name that holds the counts
(see :mod:`celery_trace.spool.losses`).
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path

from celery_trace.model import AuditEntry, Failure, HeapProfile, Kept, ProcessRecord, Rollup, Run, Sample, Stats, Window
from celery_trace.spool import segments
from celery_trace.spool.lines import opening
from celery_trace.spool.losses import Losses
from celery_trace.spool.segments import HEADER_BYTES, Segment, SpoolListing

TAGS: dict[type, str] = {
    kind: str(kind.__struct_config__.tag)
    for kind in (ProcessRecord, Rollup, Run, Sample, Window, HeapProfile, Failure, Kept, Stats, AuditEntry)
}
_OPENINGS = {tag: opening(tag) for tag in TAGS.values()}
_ROUTINE_OPENINGS = {TAGS[kind]: opening(TAGS[kind]) for kind in (*segments.ROUTINE, ProcessRecord)}

#: At most so many files give way in one call: each costs about a fifth of a millisecond, and a task waits for it.
MOST_AT_ONCE = 2
#: So many files are chosen at a time; by when the last one goes, few older ones have come.
PLANNED = 64


class Cap:
    """
    Keeps one folder below a number of bytes, as seen from one process.

    Files are counted, not measured: reading the sizes of a thousand files would take longer than a task may wait.
    A file holds up to ``segment_bytes`` (more only when a single record is larger), so the estimate is an upper bound.
    """

    def __init__(self, folder: Path, cap_bytes: int, segment_bytes: int, losses: Losses) -> None:
        self._folder = folder
        self._most_segments = max(2, cap_bytes // segment_bytes)
        self._losses = losses
        self._next: deque[Segment] = deque()

    def make_room(self, own: set[Segment], *, at_least: int = 0) -> Counter[str]:
        """
        Drop what is over the cap.

        Args:
            own: The caller's current files; they stay.
            at_least: Drop so many files even below the cap: the disk is full.

        Returns:
            How many undelivered records went, by tag.
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
            # Taking a thousand names apart takes a millisecond, so it is done once for the next few dozen files.
            self._next.extend(self._plan(segments.list_names(names), own))
        surplus = min(surplus, MOST_AT_ONCE)
        while surplus and self._next:
            counts = self._drop(self._next.popleft())
            if counts is not None:
                gone += counts
                surplus -= 1
        return gone

    def _plan(self, listing: SpoolListing, own: set[Segment]) -> list[Segment]:
        """Only routine files are chosen ahead: before a failure goes, it is looked anew whether there is a run."""
        victims = self._victims(listing, own)
        routine = [segment for segment in victims[:PLANNED] if segment.routine]
        return routine or victims[:1]

    @staticmethod
    def _victims(listing: SpoolListing, own: set[Segment]) -> list[Segment]:
        """Files that nobody writes to any more; routine ones first, the oldest first."""
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
                return None  # the collector delivers from it, or was quicker
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
    Count a file's records beyond its cursor, by tag; the process record at its head is a copy and does not count.

    One pass of counting over bytes, no decoding: about 0.1 ms for 256 KiB.
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
    """How many records of each tag stand in lines of a spool file."""
    return Counter({tag: found for tag, mark in openings.items() if (found := lines.count(mark))})
