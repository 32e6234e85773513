"""
The audit log: who sent which command where, and its result. One line of JSON each, readable by the owner only.

Attempts without a login or the key go to ``strangers.jsonl``: both files are rotated when full, and unauthenticated
attempts must not push out the entries of users.

The log is written both where the command was given (monitor) and where it was executed (worker), so that neither can
hide the other's entries.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from celery_trace import os_threads, private_files
from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.model import AuditEntry, new_id, plain_text

logger = logging.getLogger("celery_trace")

#: Longest command text of an entry, characters; longer ones are cut and identified by a hash.
COMMAND_LIMIT = 4096
FILE, STRANGERS_FILE = "audit.jsonl", "strangers.jsonl"
#: The size at which a file becomes ``audit.jsonl.1``, bytes.
FILE_LIMIT_BYTES = 16 * 1024 * 1024


class AuditLog:
    """
    Appends to ``audit.jsonl`` or ``strangers.jsonl`` in ``trace_dir`` and emits the same entry as a record.

    Args:
        where: ``monitor``, ``terminal`` or ``worker``.
        emit: Sends the record to the store, if possible.
    """

    def __init__(
        self, folder: Path, where: str, clock: Clock, emit: Callable[[AuditEntry], object] | None = None
    ) -> None:
        self._folder = folder
        self._where = where
        self._clock = clock
        self._emit = emit
        self._lock = os_threads.lock()

    def note(
        self,
        command: str,
        *,
        verdict: str = "done",
        process: str = "",
        failure: str = "",
        session: str = "",
        user: str = "",
        stranger: bool = False,
    ) -> AuditEntry:
        """Write an entry. A log that can't be written is reported by the guard; the command goes on."""
        text = plain_text(command)
        if len(text) > COMMAND_LIMIT:
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            text = f"{text[:COMMAND_LIMIT]}… {len(text) - COMMAND_LIMIT} more characters, sha256 {digest}"
        entry = AuditEntry(
            id=new_id(),
            at_s=self._clock.now_s(),
            where=self._where,
            process=plain_text(process)[:200],
            failure=plain_text(failure)[:200],
            session=plain_text(session)[:200],
            user=plain_text(user)[:200],
            command=text,
            verdict=plain_text(verdict)[:500],
        )
        with Guard("audit log"):
            self._append(self._folder / (STRANGERS_FILE if stranger else FILE), msgspec.json.encode(entry) + b"\n")
        if self._emit is not None:
            with Guard("audit record"):
                self._emit(entry)
        return entry

    def _append(self, path: Path, line: bytes) -> None:
        with self._lock:
            private_files.make_trace_dir(path.parent)
            descriptor = _open(path)
            try:
                os.write(descriptor, line)
                if os.fstat(descriptor).st_size > FILE_LIMIT_BYTES:
                    _rotate(path, descriptor)
            finally:
                os.close(descriptor)


def _open(path: Path) -> int:
    """Open the log for appending. A foreign file of its name is renamed, so that the log goes on."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        return private_files.open_file(path, flags)
    except private_files.NotOurs as error:
        aside = private_files.set_aside(path)
        logger.warning("celery-trace: %s It was renamed to %s, and a new file was begun.", error, aside.name)
        return private_files.open_file(path, flags)


def _rotate(path: Path, descriptor: int) -> None:
    """Rotate a full file. Several processes write here, and only the first to notice may rotate."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        same = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return
    if same:
        os.replace(path, path.with_suffix(".jsonl.1"))
