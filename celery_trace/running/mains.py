"""
Watches the main threads of workers and of beat, which run no tasks: a worker's main thread that is blocked takes no
messages.

Kombu's event loop wakes up at least every ten seconds, for its timers, and the loop of the other pools every two. Beat
sleeps until the next task is due, five minutes at most. So a thread that has not run for longer is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from celery_trace.model import ProcessRecord, Role, StalledProcess
from celery_trace.redaction import Redactor
from celery_trace.running.procfs import Procfs
from celery_trace.running.waiting import Activity, WaitEvidence, sentence

#: How often a main thread is looked at, seconds.
LOOK_S: Final = 5.0
#: Longer than the longest sleep of an event loop that works, and of beat, seconds.
_LOOP_SLEEPS_S: Final = 15.0
_BEAT_SLEEPS_S: Final = 330.0
_SLEEPS: Final = frozenset({"clock_nanosleep", "nanosleep", "select", "pselect6"})
#: Roles of processes with such a main thread. In a solo worker it runs the tasks too.
_ROLES: Final = frozenset({Role.MAIN, Role.BEAT, Role.THREADS, Role.GREEN})


class _SeenMain(Struct):
    """How often a thread had run when it was looked at last, and since when it was no more."""

    turns: int
    since_s: float


class MainWatch:
    """
    Finds main threads that do not run.

    Args:
        stuck_s: The setting ``trace_stuck_seconds``.
        procfs: What the system knows.
        redactor: Removes secrets from the sentences.
    """

    def __init__(self, stuck_s: float, procfs: Procfs, redactor: Redactor) -> None:
        self._after_s = max(stuck_s, _LOOP_SLEEPS_S)
        self._procfs = procfs
        self._redactor = redactor
        self._processes: dict[str, ProcessRecord] = {}
        self._are_here: set[str] = set()
        self._seen: dict[str, _SeenMain] = {}
        self._due_s = 0.0
        self._stalled: list[StalledProcess] = []

    def look(
        self,
        processes: Mapping[str, ProcessRecord | None],
        process_of: Callable[[str], ProcessRecord | None],
        now_s: float,
    ) -> list[StalledProcess]:
        """
        The processes with a main thread that does not run; the same as before if it is too early to look again.

        Args:
            processes: The living processes by uid. The record is None if it is not known.
            process_of: Reads the record of such a process; called until it has one.
            now_s: The time, seconds since the epoch.
        """
        if 0 <= self._due_s - now_s <= LOOK_S:
            return self._stalled
        self._due_s = now_s + LOOK_S
        known = {uid: process or self._processes.get(uid) or process_of(uid) for uid, process in processes.items()}
        self._processes = {uid: process for uid, process in known.items() if process is not None}
        self._are_here.intersection_update(self._processes)
        before, self._seen = self._seen, {}
        found = [
            self._judge(process, before.get(process.uid), now_s)
            for process in self._processes.values()
            if process.role in _ROLES
        ]
        self._stalled = [stalled for stalled in found if stalled is not None]
        return self._stalled

    def _judge(self, process: ProcessRecord, before: _SeenMain | None, now_s: float) -> StalledProcess | None:
        if process.uid not in self._are_here:
            if not self._procfs.is_process(process.pid, f"{process.uid}.lock"):
                return None  # in another container
            self._are_here.add(process.uid)
        turns = self._procfs.turns(process.pid, process.pid)
        if turns is None:
            return None
        seen = before if before is not None and before.turns == turns else _SeenMain(turns, now_s)
        self._seen[process.uid] = seen
        if now_s - seen.since_s < self._after_s:
            return None
        facts = self._procfs.thread(process.pid, process.pid)
        sleeps = process.role is Role.BEAT and facts.call in _SLEEPS and facts.state == "S"
        if sleeps and now_s - seen.since_s < _BEAT_SLEEPS_S:
            return None
        return StalledProcess(
            process=process.uid,
            worker=process.worker,
            hostname=process.host,
            pid=process.pid,
            role=process.role,
            since_s=seen.since_s,
            waiting_for=self._redactor.text(sentence(WaitEvidence(activity=Activity.WAITS, stack=[], facts=facts))),
        )
