"""
What is said when records can't be written: in the log once, by ``trace doctor``, and as an event for the monitor.

Tasks go on, so without a word nobody would notice until the records are missed.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

logger = logging.getLogger("celery_trace")

#: The event by which a worker says that it records nothing. Celery's own state passes over it.
EVENT: Final = "trace-unrecorded"
#: How often a worker that records nothing says so, seconds.
EVENT_S: Final = 10.0

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_logged: set[tuple[str, int | None]] = set()


def is_full(error: OSError) -> bool:
    """Whether there is no room, as against no right to write."""
    return error.errno in _FULL


def why(folder: Path, error: OSError) -> str:
    """What stands in the way of writing to a folder."""
    where = error.filename or folder
    return f"{where}: {error.strerror or error} (uid {os.geteuid()})"


def advice(error: OSError) -> str:
    """What to do about it."""
    if is_full(error):
        return "Free some space, or lower trace_spool_bytes."
    if error.errno in _NO_DESCRIPTORS:
        return "Raise the limit of open files (ulimit -n), or see what keeps so many of them open."
    return (
        "Set CELERY_TRACE_DIR to a writable folder. Where this host has no lasting one, take a temporary folder and "
        "CELERY_TRACE_TRANSPORT=broker: the records then go over the broker to the monitor's host."
    )


def mark_logged(folder: Path, error: OSError) -> None:
    """This process will :func:`log` it, before long: neither it nor a child that it forks need say it as well."""
    _logged.add((str(folder), error.errno))


def log_once(folder: Path, error: OSError) -> None:
    """
    Log it, the first time that a process meets this reason.

    A forked child knows what its parent has said: a worker says it once, however many children it has.
    """
    if (str(folder), error.errno) not in _logged:
        mark_logged(folder, error)
        log(folder, error)


def log(folder: Path, error: OSError) -> None:
    """Log what happens to the records, why, and what to do."""
    kept = "failures wait in memory for room, up to 4 MiB a process; what goes beyond that is lost and counted"
    if is_full(error):
        logger.error("celery-trace: no room for records in %s. Tasks go on; %s. %s", folder, kept, advice(error))
    else:
        logger.error(
            "celery-trace: records can't be written: %s. Tasks go on; %s. It is tried again all the time. %s",
            why(folder, error), kept, advice(error),
        )  # fmt: skip


def log_recovery(folder: Path, error: OSError) -> None:
    """Log that records are written again."""
    if (str(folder), error.errno) in _logged:
        _logged.discard((str(folder), error.errno))
        logger.warning("celery-trace: records are written to %s again.", folder)
