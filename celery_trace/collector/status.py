"""The collector's status file, for readiness checks and for when the store is down."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from celery_trace import private_files

STATUS_FILE = "collector.json"
#: In the spool folder. The process that holds its lock is the folder's collector.
LOCK_FILE = "collector"


class Status(Struct, kw_only=True):
    """
    The collector's state.

    ``state`` is ``starting``, ``ready`` (its last round succeeded), ``waiting`` (the store or the broker refuses;
    ``why`` has the reason) or ``ended``.
    """

    pid: int
    started_at_s: float
    transport: str
    state: str = "starting"
    why: str = ""
    at_s: float = 0.0
    delivered: int = 0
    dropped: int = 0
    corrupt: int = 0
    foreign: int = 0
    adopted: int = 0
    retries: int = 0
    accounts: int = 0
    spool_bytes: int = 0
    spool_records: int = 0
    processes: int = 0
    #: The store that the spool's cursors belong to, and how many records were sent again after it was replaced.
    store: str = ""
    sent_again: int = 0
    folders_lost: int = 0


def write_status(path: Path, status: Status) -> None:
    """Replace the file atomically. On a full disk the old one stays: records matter more than the status."""
    with contextlib.suppress(OSError):
        private_files.replace(path, msgspec.json.format(msgspec.json.encode(status), indent=1))


def read_status(folder: Path) -> Status | None:
    """The collector's status in ``trace_dir``; None if there is none that can be read."""
    try:
        return msgspec.json.decode(private_files.read(folder / STATUS_FILE), type=Status)
    except (OSError, msgspec.DecodeError):
        return None
