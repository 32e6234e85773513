"""
What the processes of one host share about a task under suspicion: who traces it, and how far the evidence came.

Two small files a name, in ``trace_dir/leases``. A held ``flock`` means that one process is tracing this
task, so that a fleet of children pays for it once; the kernel lets it go when the process dies,
however it dies. The note beside it carries an investigation over to the next process, so that
workers that are recycled after a few runs still reach a verdict.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from celery_trace import private_files
from celery_trace.model import Kind, stable_id


class Note(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the investigation of one name came, in all processes of this host together."""

    investigation: str
    process: str  # who left it
    fleet: str  # the worker whose processes these are; another start of it may run other code
    at_s: float
    stage: str  # of STAGES: what the next process need not do again
    runs: int = 0  # runs in which it grew, summed over processes that followed each other
    processes: int = 0  # how many of them saw it grow
    kept_blocks: int = 0  # a run, by the census
    kept_bytes: int = 0
    bounded: str = ""  # what holds it and has a bound, where a process has seen that


#: How far an investigation can be: first signs, growth that survives a collection, its line, its verdict.
STAGES = ("suspect", "growing", "located", "decided")


class Lease(Protocol):
    """Who may trace, and what is known already."""

    def acquire(self, kind: Kind, name: str) -> bool:
        """Take the right to trace a name; False when another process has it. Taking it twice is one."""

    def release(self, kind: Kind, name: str) -> None:
        """Give it back; nothing happens when it was not held."""

    def note(self, kind: Kind, name: str) -> Note | None:
        """What earlier processes left, or None."""

    def leave(self, kind: Kind, name: str, note: Note | None) -> None:
        """Leave word for the next process; None takes it away."""


class FolderLease:
    """Leases and notes as files of a folder that the processes of a host share. Errors of the disk mean "no"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, tuple[int, int]] = {}

    def _path(self, kind: Kind, name: str, ending: str) -> Path:
        return self._folder / f"{stable_id('lease', kind, name)}.{ending}"

    def acquire(self, kind: Kind, name: str) -> bool:
        path = self._path(kind, name, "lock")
        held = self._held.get(path.name)
        if held is not None and held[1] == os.getpid():
            return True
        try:
            private_files.make_part(self._folder)
            descriptor = private_files.open_file(path, os.O_RDWR | os.O_CREAT)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held[path.name] = (descriptor, os.getpid())
        return True

    def release(self, kind: Kind, name: str) -> None:
        held = self._held.pop(self._path(kind, name, "lock").name, None)
        if held is not None:
            # In a child that was forked meanwhile this closes only its copy: the parent keeps the lock.
            os.close(held[0])

    def note(self, kind: Kind, name: str) -> Note | None:
        try:
            return msgspec.json.decode(private_files.read(self._path(kind, name, "note")), type=Note)
        except (OSError, msgspec.DecodeError):
            return None

    def leave(self, kind: Kind, name: str, note: Note | None) -> None:
        path = self._path(kind, name, "note")
        try:
            if note is None:
                path.unlink(missing_ok=True)
                return
            private_files.make_part(self._folder)
            private_files.replace(path, msgspec.json.encode(note))
        except OSError:
            return  # a full disk costs the hand-over, not the task


class AloneLease:
    """For a process that shares with nobody: every lease is granted, notes live as long as the process."""

    def __init__(self) -> None:
        self._notes: dict[tuple[Kind, str], Note] = {}

    def acquire(self, kind: Kind, name: str) -> bool:  # noqa: ARG002 - granted to whoever asks
        return True

    def release(self, kind: Kind, name: str) -> None:  # noqa: ARG002
        return None

    def note(self, kind: Kind, name: str) -> Note | None:
        return self._notes.get((kind, name))

    def leave(self, kind: Kind, name: str, note: Note | None) -> None:
        if note is None:
            self._notes.pop((kind, name), None)
        else:
            self._notes[kind, name] = note
