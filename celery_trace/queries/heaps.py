"""Retained memory by call stack, and the peak memory of runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from celery_trace.heap import flames, needs
from celery_trace.intervals import SILENT_S
from celery_trace.model import HeapProfile, Kind, Role, WorkerView
from celery_trace.queries.base import QueryBase
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.payloads import unsqueeze
from celery_trace.text.format import duration
from celery_trace.text.parse import read_seconds

_profiles = tables.heap_profiles
_processes = tables.processes

#: Processes of one answer, those that wrote last.
MOST_PROCESSES = 300
MOST_RELEASES = 30
MOST_NAMES = 1000
#: Children that a proposal reads, and their profiles.
MOST_CHILDREN = 32
MOST_ROWS = 2000


class HeapQueries(QueryBase):
    """Retained memory by stack."""

    def heap_profiles(
        self,
        kind: str,
        name: str,
        *,
        since_s: float | None = None,
        at_s: float | None = None,
        release: str | None = None,
    ) -> list[HeapProfile]:
        """
        The latest profile of each process, oldest first, for the :data:`MOST_PROCESSES` that wrote last.

        Args:
            kind, name: Whose profiles.
            since_s: Written since then.
            at_s: The state at that time: what processes that lived then had written by then.
            release: Only this release.
        """
        wanted = sa.select(_profiles.c.process, sa.func.max(_profiles.c.at_s).label("at_s"))
        wanted = wanted.where(_profiles.c.name == name, _profiles.c.kind == kind)
        if since_s is not None:
            wanted = wanted.where(_profiles.c.at_s >= since_s)
        if release is not None:
            wanted = wanted.where(_profiles.c.release == release)
        if at_s is not None:
            ended = sa.func.coalesce(_processes.c.ended_at_s, _processes.c.seen_at_s + SILENT_S)
            wanted = wanted.join(_processes, _processes.c.uid == _profiles.c.process)
            wanted = wanted.where(_profiles.c.at_s <= at_s, ended >= at_s)
        latest = wanted.group_by(_profiles.c.process).order_by(sa.desc("at_s")).limit(MOST_PROCESSES).subquery()
        rows = sa.select(_profiles.c.payload).join(
            latest, sa.and_(_profiles.c.process == latest.c.process, _profiles.c.at_s == latest.c.at_s)
        )
        rows = rows.where(_profiles.c.name == name, _profiles.c.kind == kind).order_by(_profiles.c.at_s, _profiles.c.id)
        with self.store.reading() as connection:
            return rows_of.HEAP_PROFILES.records(connection.execute(rows))

    def heap_releases(self, kind: str, name: str) -> list[str]:
        """The releases with a profile of a name, the last seen first."""
        last = sa.func.max(_profiles.c.at_s).label("at_s")
        wanted = sa.select(_profiles.c.release, last).where(
            _profiles.c.name == name, _profiles.c.kind == kind, _profiles.c.release != ""
        )
        newest = wanted.group_by(_profiles.c.release).order_by(sa.desc("at_s")).limit(MOST_RELEASES)
        with self.store.reading() as connection:
            return [row.release for row in connection.execute(newest)]

    def kept_heap(
        self,
        kind: str,
        name: str,
        *,
        since_s: float | None = None,
        at_s: float | None = None,
        release: str | None = None,
    ) -> flames.KeptHeap:
        """Retained memory by stack over all processes; the arguments are those of :meth:`heap_profiles`."""
        return flames.together(self.heap_profiles(kind, name, since_s=since_s, at_s=at_s, release=release))

    def need(self, kind: str, name: str, *, since_s: float | None = None) -> needs.Need | None:
        """The peak memory of a name's runs; None if none was measured."""
        return needs.need_of(profile.peaks for profile in self.heap_profiles(kind, name, since_s=since_s))

    def heap_view(self, kind: str, name: str, *, compare: str = "", since_s: float | None = None) -> flames.HeapView:
        """
        A name's retained memory, or a comparison.

        Args:
            kind, name: Whose memory.
            compare: An age such as ``1h`` or ``7d``: the memory retained now against then. Or ``release:1.8.1``, and
                ``release:1.8.1..1.9``: bytes a run of a release against an earlier one; the later one is the latest.
            since_s: Without ``compare``: only what processes have written since then.

        Raises:
            ValueError: ``compare`` is neither, or there is no other release.
        """
        if not compare:
            return flames.HeapView(after=self.kept_heap(kind, name, since_s=since_s))
        if compare.startswith("release:"):
            return self._releases_compared(kind, name, compare.removeprefix("release:"))
        age_s = read_seconds(compare)
        if not age_s:
            raise ValueError(f"invalid comparison {compare[:50]!r} (examples: 1h, 7d, release:NAME)")
        now_s = self._now_s()
        return flames.HeapView(
            after=self.kept_heap(kind, name, at_s=now_s),
            before=self.kept_heap(kind, name, at_s=now_s - age_s),
            after_is="now",
            before_is=f"{duration(age_s)} ago",
        )

    def _releases_compared(self, kind: str, name: str, wanted: str) -> flames.HeapView:
        earlier, _, later = wanted.partition("..")
        if not later:
            others = [release for release in self.heap_releases(kind, name) if release != earlier]
            if not others:
                raise ValueError(f"there is no other release than {earlier[:50]!r} to compare with")
            later = others[0]
        after, before = (flames.per_run(self.kept_heap(kind, name, release=release)) for release in (later, earlier))
        return flames.HeapView(
            after=flames.by_function(after),
            before=flames.by_function(before),
            after_is=f"with release {later}",
            before_is=f"with release {earlier}",
            a_run=True,
        )

    def kept_by_name(
        self, *, since_s: float | None = None, processes: Sequence[str] = ()
    ) -> list[tuple[Kind, str, int]]:
        """
        The memory that each name retains, from the latest profile of each process: kind, name and bytes, largest first.

        Args:
            since_s: Only processes that have written since then.
            processes: Their ids; None for all.
        """
        key = (_profiles.c.process, _profiles.c.kind, _profiles.c.name)
        latest = sa.select(*key, sa.func.max(_profiles.c.at_s).label("at_s")).group_by(*key)
        if since_s is not None:
            latest = latest.where(_profiles.c.at_s >= since_s)
        if processes:
            latest = latest.where(_profiles.c.process.in_(processes))
        last = latest.subquery()
        is_last = sa.and_(*(_profiles.c[name] == last.c[name] for name in ("process", "kind", "name", "at_s")))
        total = sa.func.sum(_profiles.c.bytes).label("total")
        wanted = sa.select(_profiles.c.kind, _profiles.c.name, total).join(last, is_last)
        wanted = wanted.group_by(_profiles.c.kind, _profiles.c.name).order_by(sa.desc("total")).limit(MOST_NAMES)
        with self.store.reading() as connection:
            return [(Kind(row.kind), row.name, int(row.total)) for row in connection.execute(wanted)]

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
