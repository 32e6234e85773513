"""
What a scheduler (beat) publishes, what is due, and what it has missed.

The scheduler's ``apply_async`` is wrapped, because it knows the entry; the due times of all entries are in its heap.
Other parts of it are not read: a scheduler over a database reads its tables when it is asked for its schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

from celery_trace import os_threads
from celery_trace.failures.celery_request import number
from celery_trace.guard import Guard
from celery_trace.model import AnyRecord, Schedule

#: How often the heap is read, also while nothing is published, seconds; and how often an unchanged entry is written.
LOOK_S: Final = 10.0
LOOK_IDLE_S: Final = 30.0
WRITE_S: Final = 300.0
#: Entries that are followed.
MOST_ENTRIES: Final = 1000
#: A message this much later than due is late by the clock's and the loop's granularity only, seconds.
TOLERANCE_S: Final = 1.0

#: Each estimate looks at the clock, so a due time comes out up to some milliseconds early, and would be the next again.
_NUDGE: Final = timedelta(milliseconds=20)

_guard = Guard("schedule")


class _Times(Protocol):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta: ...


class CeleryEntry(Protocol):
    """An entry of Celery's schedule."""

    name: object
    task: object
    schedule: _Times
    last_run_at: datetime | None

    def default_now(self) -> datetime:
        """The time in the schedule's zone."""


class CeleryScheduler(Protocol):
    """Celery's scheduler."""

    apply_async: Callable[..., object]


class _Entry:
    """An entry's state; ``changed`` since it was written."""

    def __init__(self) -> None:
        self.task = self.every = ""
        self.due_at_s: float | None = None
        self.interval_s = 0.0
        self.published_at_s: float | None = None
        self.published = self.missed = self.failed = 0
        self.late_max_s = 0.0
        self.changed = True
        self.written_s = 0.0

    def describe(self, entry: CeleryEntry) -> None:
        """Take the task and the schedule from Celery's entry."""
        task, every = str(entry.task)[:255], str(entry.schedule)[:200]
        if (task, every) != (self.task, self.every):
            self.task, self.every, self.changed = task, every, True
            self.due_at_s = None  # the heap has the new one

    def publishes(self, entry: CeleryEntry, now_s: float) -> None:
        """It is being published; count the due times that have passed since it was due."""
        schedule, now = entry.schedule, entry.default_now()
        if entry.last_run_at is not None:
            due = schedule.remaining_estimate(entry.last_run_at)
            after = schedule.remaining_estimate(now + due + _NUDGE)
            self.interval_s = max(0.0, round((after - due).total_seconds(), 1))
            late_s = -due.total_seconds()
            if late_s > TOLERANCE_S:
                self.late_max_s = max(self.late_max_s, late_s)
                self.missed += int(late_s / self.interval_s) if self.interval_s else 0
        self.due_at_s = now_s + schedule.remaining_estimate(now).total_seconds()
        self.changed = True


class Schedules:
    """
    The entries of one scheduler.

    Args:
        scheduler: Celery's.
        process: The uid of this process.
        write: Takes the records.
    """

    def __init__(self, scheduler: CeleryScheduler, process: str, write: Callable[[AnyRecord], None]) -> None:
        self._scheduler = scheduler
        self._process = process
        self._write = write
        self._entries: dict[str, _Entry] = {}
        self._lock = os_threads.lock()

    def install(self) -> Callable[[], None]:
        """Follow what is published from now on. Returns a function that undoes it."""
        scheduler = self._scheduler
        original = scheduler.apply_async

        def apply_async(entry: CeleryEntry, *args: object, **options: object) -> object:
            followed = None
            with _guard, self._lock:
                followed = self._of(entry)
                if followed is not None:
                    followed.publishes(entry, time.time())
            try:
                result = original(entry, *args, **options)
            except BaseException:
                if followed is not None:
                    followed.failed += 1
                raise
            if followed is not None:
                followed.published += 1
                followed.published_at_s = time.time()
            return result

        scheduler.apply_async = apply_async

        def undo() -> None:
            if vars(scheduler).get("apply_async") is apply_async:
                del scheduler.apply_async

        return undo

    def _of(self, entry: CeleryEntry) -> _Entry | None:
        name = str(entry.name)[:255]
        known = self._entries.get(name)
        if known is None:
            if len(self._entries) >= MOST_ENTRIES:
                return None
            known = self._entries[name] = _Entry()
        known.describe(entry)
        return known

    def look(self) -> None:
        """Read the due times, and write the entries that have changed or were written long ago."""
        now_s = time.time()
        with self._lock:
            heap = list(getattr(self._scheduler, "_heap", None) or ())
            for event in heap[:MOST_ENTRIES]:
                due_s, entry = number(event[0]), self._of(event[2])
                if entry is not None and due_s is not None and entry.due_at_s is None:
                    entry.due_at_s, entry.changed = due_s, True
            gone = set(self._entries) - {str(event[2].name)[:255] for event in heap} if heap else set()
            for name, entry in list(self._entries.items()):
                if name in gone or entry.changed or now_s - entry.written_s >= WRITE_S:
                    self._write_entry(name, entry, now_s, gone=name in gone)
            for name in gone:
                del self._entries[name]

    def _write_entry(self, name: str, entry: _Entry, now_s: float, *, gone: bool) -> None:
        entry.changed, entry.written_s = False, now_s
        self._write(
            Schedule(
                process=self._process,
                entry=name,
                task=entry.task,
                every=entry.every,
                at_s=now_s,
                due_at_s=entry.due_at_s,
                interval_s=entry.interval_s,
                published_at_s=entry.published_at_s,
                published=entry.published,
                missed=entry.missed,
                failed=entry.failed,
                late_max_s=entry.late_max_s,
                gone=gone,
            )
        )
