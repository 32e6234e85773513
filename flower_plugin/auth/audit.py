"""The monitor's audit log: who gave which command, and what was refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from celery_trace.clock import Clock
from celery_trace.control.audit import AuditLog
from celery_trace.control.signing import RefusalLimit
from celery_trace.model import AuditEntry

logger = logging.getLogger("celery_trace.audit")

#: Refusals that are written in full a minute: that many of strangers, and that many of users.
REFUSALS_A_MINUTE = 100


class MonitorAuditLog:
    """
    Entries in ``audit.jsonl`` of ``trace_dir``, in the log ``celery_trace.audit``, and in the store.

    What strangers try goes to ``strangers.jsonl`` and the log only: nobody who has not logged in can fill the store
    or turn the audit file over. Of refusals the first of each minute are written in full and the others as a count,
    for strangers and for users apart.

    Attributes:
        emit: Takes an entry to the store without blocking; None until the monitor has one.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._file = AuditLog(folder, "monitor", clock)
        self._limits = {known: RefusalLimit(clock, per_minute=REFUSALS_A_MINUTE) for known in (False, True)}
        self._unwritten = {False: 0, True: 0}
        self.emit: Callable[[AuditEntry], object] | None = None

    def done(self, *, who: str, what: str, failure: str = "", session: str = "", **more: object) -> None:
        """A command was carried out."""
        self._note(who, what, "done", failure, session, more)

    def refused(self, *, who: str, what: str, why: str, failure: str = "", session: str = "", **more: object) -> None:
        """A command, a request or a login was refused."""
        known = bool(who) and what != "login"
        if not self._limits[known].admit():
            self._unwritten[known] += 1
            return
        left_out, self._unwritten[known] = self._unwritten[known], 0
        if left_out:
            more["left out before this"] = left_out
        self._note(who, what, f"refused: {why}", failure, session, more, stranger=not known)

    def _note(
        self,
        who: str,
        what: str,
        verdict: str,
        failure: str,
        session: str,
        more: dict[str, object],
        *,
        stranger: bool = False,
    ) -> None:
        if more:
            verdict += f" ({', '.join(f'{key} {value}' for key, value in more.items() if value)})"
        entry = self._file.note(what, verdict=verdict, failure=failure, session=session, user=who, stranger=stranger)
        logger.info("%s", msgspec.json.encode(entry).decode())
        if who and not stranger and self.emit is not None:
            self.emit(entry)
