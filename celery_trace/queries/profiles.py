"""Where memory and time go, by call stack."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.intervals import PROFILE_S, SILENT_S
from celery_trace.model import TIMES, HeapProfile, Kind, Measure, TimeProfile
from celery_trace.profiles import flames
from celery_trace.profiles.flames import ProfileView, StackSum
from celery_trace.queries.base import QueryBase
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.text.format import duration
from celery_trace.text.parse import read_seconds

_heap = tables.heap_profiles
_times = tables.time_profiles
_processes = tables.processes

#: Processes of one answer, those that wrote last.
MOST_PROCESSES = 300
#: Records of time in one answer, the latest: one a process and hour.
MOST_TIMES = 1000
MOST_RELEASES = 30
MOST_NAMES = 1000
#: The time that is compared with an earlier one: a record is of up to an hour, and is written a few minutes late.
COMPARED_S = TimeProfile.HOUR_S + PROFILE_S


class ProfileQueries(QueryBase):
    """Memory and time by stack."""

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
        wanted = sa.select(_heap.c.process, sa.func.max(_heap.c.at_s).label("at_s"))
        wanted = wanted.where(_heap.c.name == name, _heap.c.kind == kind)
        if since_s is not None:
            wanted = wanted.where(_heap.c.at_s >= since_s)
        if release is not None:
            wanted = wanted.where(_heap.c.release == release)
        if at_s is not None:
            ended = sa.func.coalesce(_processes.c.ended_at_s, _processes.c.seen_at_s + SILENT_S)
            wanted = wanted.join(_processes, _processes.c.uid == _heap.c.process)
            wanted = wanted.where(_heap.c.at_s <= at_s, ended >= at_s)
        latest = wanted.group_by(_heap.c.process).order_by(sa.desc("at_s")).limit(MOST_PROCESSES).subquery()
        rows = sa.select(_heap.c.payload).join(
            latest, sa.and_(_heap.c.process == latest.c.process, _heap.c.at_s == latest.c.at_s)
        )
        rows = rows.where(_heap.c.name == name, _heap.c.kind == kind).order_by(_heap.c.at_s, _heap.c.id)
        with self.store.reading() as connection:
            return rows_of.HEAP_PROFILES.records(connection.execute(rows))

    def time_profiles(
        self,
        kind: str,
        name: str,
        *,
        since_s: float | None = None,
        until_s: float | None = None,
        release: str | None = None,
    ) -> list[TimeProfile]:
        """
        The latest :data:`MOST_TIMES` profiles of a name, oldest first: one of each process and hour.

        Args:
            kind, name: Whose profiles.
            since_s, until_s: Written since or until then.
            release: Only this release.
        """
        wanted = sa.select(_times.c.payload).where(_times.c.name == name, _times.c.kind == kind)
        if since_s is not None:
            wanted = wanted.where(_times.c.at_s >= since_s)
        if until_s is not None:
            wanted = wanted.where(_times.c.at_s <= until_s)
        if release is not None:
            wanted = wanted.where(_times.c.release == release)
        latest = wanted.order_by(_times.c.at_s.desc(), _times.c.id.desc()).limit(MOST_TIMES)
        with self.store.reading() as connection:
            return rows_of.TIME_PROFILES.records(connection.execute(latest))[::-1]

    def profile_releases(self, kind: str, name: str, measure: Measure) -> list[str]:
        """The releases with a profile of a name, the last seen first."""
        table = _table_of(measure)
        last = sa.func.max(table.c.at_s).label("at_s")
        wanted = sa.select(table.c.release, last).where(
            table.c.name == name, table.c.kind == kind, table.c.release != ""
        )
        newest = wanted.group_by(table.c.release).order_by(sa.desc("at_s")).limit(MOST_RELEASES)
        with self.store.reading() as connection:
            return [row.release for row in connection.execute(newest)]

    def profile_measures(self, kind: str, name: str) -> list[Measure]:
        """The measures that there are profiles of."""
        found: list[Measure] = []
        with self.store.reading() as connection:
            of_heap = sa.select(_heap.c.id).where(_heap.c.name == name, _heap.c.kind == kind).limit(1)
            if connection.execute(of_heap).first() is not None:
                found.append(Measure.MEMORY)
            latest = sa.select(_times.c.payload).where(_times.c.name == name, _times.c.kind == kind)
            rows = connection.execute(latest.order_by(_times.c.at_s.desc(), _times.c.id.desc()).limit(1))
            for profile in rows_of.TIME_PROFILES.records(rows):
                found += [measure for measure in TIMES if measure in profile.measures]
        return found

    def profile_view(
        self, kind: str, name: str, measure: Measure, *, compare: str = "", since_s: float | None = None
    ) -> ProfileView:
        """
        Where a name's memory or time goes, or a comparison.

        Args:
            kind, name: Whose.
            measure: What is added up.
            compare: An age such as ``1h`` or ``7d``: for memory, what is retained now against then; for times, the time
                of a run in the last hour against the hour before then. Or ``release:1.8.1``, and
                ``release:1.8.1..1.9``: a run of a release against one of an earlier one; the later one is the latest.
            since_s: Without ``compare``: only what processes have written since then.

        Raises:
            ValueError: ``compare`` is neither, or there is no other release.
        """
        measures = self.profile_measures(kind, name)
        if not compare:
            return ProfileView(
                measure=measure, measures=measures, after=self._sum(kind, name, measure, since_s=since_s)
            )
        if compare.startswith("release:"):
            return self._releases_compared(kind, name, measure, measures, compare.removeprefix("release:"))
        age_s = read_seconds(compare)
        if not age_s:
            raise ValueError(f"invalid comparison {compare[:50]!r} (examples: 1h, 7d, release:NAME)")
        now_s = self._now_s()
        after, before = (self._sum(kind, name, measure, at_s=at_s) for at_s in (now_s, now_s - age_s))
        a_run = measure is not Measure.MEMORY  # what is alive fills the memory; of time, that of a run counts
        return ProfileView(
            measure=measure,
            measures=measures,
            after=flames.per_run(after) if a_run else after,
            before=flames.per_run(before) if a_run else before,
            after_is="now",
            before_is=f"{duration(age_s)} ago",
            a_run=a_run,
        )

    def _releases_compared(
        self, kind: str, name: str, measure: Measure, measures: list[Measure], wanted: str
    ) -> ProfileView:
        earlier, _, later = wanted.partition("..")
        if not later:
            others = [release for release in self.profile_releases(kind, name, measure) if release != earlier]
            if not others:
                raise ValueError(f"there is no other release than {earlier[:50]!r} to compare with")
            later = others[0]
        after, before = (flames.per_run(self._sum(kind, name, measure, release=one)) for one in (later, earlier))
        return ProfileView(
            measure=measure,
            measures=measures,
            after=flames.by_function(after),
            before=flames.by_function(before),
            after_is=f"with release {later}",
            before_is=f"with release {earlier}",
            a_run=True,
        )

    def _sum(
        self,
        kind: str,
        name: str,
        measure: Measure,
        *,
        since_s: float | None = None,
        at_s: float | None = None,
        release: str | None = None,
    ) -> StackSum:
        """The sum over all processes: since a time, at a time (of times: in the hour before), or of a release."""
        if measure is Measure.MEMORY:
            memory = self.heap_profiles(kind, name, since_s=since_s, at_s=at_s, release=release)
            return flames.together(memory, measure)
        if at_s is not None:
            since_s = at_s - COMPARED_S
        times = self.time_profiles(kind, name, since_s=since_s, until_s=at_s, release=release)
        return replace(flames.together(times, measure), cut=len(times) == MOST_TIMES)

    def kept_by_name(
        self, *, since_s: float | None = None, processes: Sequence[str] = ()
    ) -> list[tuple[Kind, str, int]]:
        """
        The memory that each name retains, from the latest profile of each process: kind, name and bytes, largest first.

        Args:
            since_s: Only processes that have written since then.
            processes: Their ids; None for all.
        """
        key = (_heap.c.process, _heap.c.kind, _heap.c.name)
        latest = sa.select(*key, sa.func.max(_heap.c.at_s).label("at_s")).group_by(*key)
        if since_s is not None:
            latest = latest.where(_heap.c.at_s >= since_s)
        if processes:
            latest = latest.where(_heap.c.process.in_(processes))
        last = latest.subquery()
        is_last = sa.and_(*(_heap.c[name] == last.c[name] for name in ("process", "kind", "name", "at_s")))
        total = sa.func.sum(_heap.c.bytes).label("total")
        wanted = sa.select(_heap.c.kind, _heap.c.name, total).join(last, is_last)
        wanted = wanted.group_by(_heap.c.kind, _heap.c.name).order_by(sa.desc("total")).limit(MOST_NAMES)
        with self.store.reading() as connection:
            return [(Kind(row.kind), row.name, int(row.total)) for row in connection.execute(wanted)]


def _table_of(measure: Measure) -> sa.Table:
    return _heap if measure is Measure.MEMORY else _times
