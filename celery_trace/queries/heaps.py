"""The peak memory of runs, and the limits that follow from it."""

from __future__ import annotations

import statistics
from collections import defaultdict

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from celery_trace.heap import needs
from celery_trace.model import Kind, Role, WorkerView
from celery_trace.queries.profiles import ProfileQueries
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.payloads import unsqueeze

_profiles = tables.heap_profiles

#: Children that a proposal reads, and their profiles.
MOST_CHILDREN = 32
MOST_ROWS = 2000


class HeapQueries(ProfileQueries):
    """The memory that runs need."""

    def need(self, kind: str, name: str, *, since_s: float | None = None) -> needs.Need | None:
        """The peak memory of a name's runs; None if none was measured."""
        return needs.need_of(profile.peaks for profile in self.heap_profiles(kind, name, since_s=since_s))

    # --- memory limits

    def proposal(self, worker: WorkerView) -> needs.Proposal | None:
        """Limits for a prefork worker, from its most demanding task; None with too little data."""
        living = [process for process in worker.processes if process.ended_at is None]
        children = [process for process in living if process.role is Role.CHILD][:MOST_CHILDREN]
        main = next((process for process in living if process.role is Role.MAIN), None)
        if main is None or main.memory is None or not children:
            return None
        uids = [process.uid for process in children]
        greatest = self._greatest_need(uids)
        first = self._first_bytes(uids)
        if greatest is None or not first:
            return None
        name, need = greatest
        return needs.propose(
            name=name,
            need=need,
            base_bytes=round(statistics.median(first)),
            main_bytes=main.memory.rss_bytes,
            concurrency=len(children),
            room_bytes=main.memory.room.limit_bytes if main.memory.room is not None else None,
        )

    def _greatest_need(self, uids: list[str]) -> tuple[str, needs.Need] | None:
        """The task of some processes that needs most, of those that ran often enough."""
        known = [(name, need) for name, need in self._needs(uids).items() if need.runs >= needs.FEWEST_RUNS]
        return max(known, key=lambda row: row[1].p99_bytes, default=None)

    def _needs(self, uids: list[str]) -> dict[str, needs.Need]:
        """The memory that the tasks of some processes need, by name."""
        last = sa.func.row_number().over(
            partition_by=(_profiles.c.process, _profiles.c.name), order_by=_profiles.c.at_s.desc()
        )
        part = sa.select(_profiles.c.name, _profiles.c.payload, last.label("place")).where(
            _profiles.c.process.in_(uids), _profiles.c.kind == str(Kind.TASK)
        )
        numbered = part.subquery()
        wanted = sa.select(numbered.c.name, numbered.c.payload).where(numbered.c.place == 1).limit(MOST_ROWS)
        peaks: dict[str, list[dict[int, int]]] = defaultdict(list)
        with self.store.reading() as connection:
            for row in connection.execute(wanted):
                peaks[row.name].append(msgspec.json.decode(unsqueeze(row.payload), type=_Peaks).peaks)
        found = {name: needs.need_of(rows) for name, rows in peaks.items()}
        return {name: need for name, need in found.items() if need is not None}

    def _first_bytes(self, uids: list[str]) -> list[int]:
        """Each process's memory in its first sample."""
        table = tables.samples
        first = sa.select(sa.func.min(table.c.at_s)).where(table.c.process == sa.bindparam("uid")).scalar_subquery()
        wanted = sa.select(table.c.memory).where(table.c.process == sa.bindparam("uid"), table.c.at_s == first)
        found = []
        with self.store.reading() as connection:
            for uid in uids:
                memory = rows_of.memory(connection.execute(wanted, {"uid": uid}).scalar() or "")
                if memory is not None:
                    found.append(memory.rss_bytes)
        return found


class _Peaks(Struct):
    """The part of a profile with the peaks of runs."""

    peaks: dict[int, int] = {}
