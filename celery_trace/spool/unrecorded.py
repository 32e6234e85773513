"""
How it is reported that records can't be written: once in the log, by ``trace doctor``, and by an event for the monitor.

Tasks go on, so without a report the missing records would go unnoticed.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

logger = logging.getLogger("celery_trace")

#: The event with which a worker reports that it records nothing. Celery's own state ignores it.
EVENT: Final = "trace-unrecorded"
#: How often a worker that records nothing reports it, seconds.
EVENT_S: Final = 10.0

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_logged: set[tuple[str, int | None]] = set()


def is_full(error: OSError) -> bool:
    """Whether the disk or quota is full; otherwise there is no permission to write."""
    return error.errno in _FULL


def why(folder: Path, error: OSError) -> str:
    """Why a folder can't be written to."""
    where = error.filename or folder
    return f"{where}: {error.strerror or error} (uid {os.geteuid()})"


def advice(error: OSError) -> str:
    """What to do about it."""
    if is_full(error):
        return "Free some space, or lower trace_spool_bytes."
    if error.errno in _NO_DESCRIPTORS:
        return "Raise the limit of open files (ulimit -n), or find what keeps so many of them open."
    return (
        "Set CELERY_TRACE_DIR to a writable folder. If this host has no persistent one, use a temporary folder and "
        "CELERY_TRACE_TRANSPORT=broker, which sends the records over the broker to the monitor's host."
    )


def mark_logged(folder: Path, error: OSError) -> None:
    """This process will :func:`log` it soon: it and its forked children need not log it again."""
    _logged.add((str(folder), error.errno))


def log_once(folder: Path, error: OSError) -> None:
    """
    Log it the first time that a process meets this reason.

    A forked child inherits what its parent has logged, so a worker logs it once, however many children it has.
    """
    if (str(folder), error.errno) not in _logged:
        mark_logged(folder, error)
        log(folder, error)


def log(folder: Path, error: OSError) -> None:
    """Log that records can't be written, why, and what to do."""
    kept = "failures wait in memory for space, up to 4 MiB per process; more are lost and counted"
    if is_full(error):
        logger.error("celery-trace: no space for records in %s. Tasks go on; %s. %s", folder, kept, advice(error))
    else:
        logger.error(
            "celery-trace: records can't be written: %s. Tasks go on; %s. Writing is retried. %s",
            why(folder, error), kept, advice(error),
        )  # fmt: skip


def log_recovery(folder: Path, error: OSError) -> None:
    """Log that records are written again."""
    if (str(folder), error.errno) in _logged:
        _logged.discard((str(folder), error.errno))
        logger.warning("celery-trace: records are written to %s again.", folder)
