"""A group of failures: its tags, its trend, what users decided about it, and which of its tasks can be sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from celery_trace.model import FailureSummary, Outcome
from celery_trace.model.triage import Comment, GroupDetail, Neighbours, Retried, Tag, TagShare
from celery_trace.queries.cursors import after
from celery_trace.queries.failures import FailureQueries
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.statements import chunks
from celery_trace.stores.tables import AnyRow
from celery_trace.stores.writing import HOUR_S

#: Failures of a group that its tags count, the newest.
MOST_TAGGED = 5_000
#: Values of a tag that are listed.
MOST_VALUES = 5
#: Comments of a group that are shown, the newest.
MOST_COMMENTS = 500
#: Failures that one order sends again at most.
MOST_RETRIED = 1_000
#: Outcomes of runs that ended without success and were not sent again by Celery.
RETRYABLE = (Outcome.FAILED, Outcome.TIME_LIMIT, Outcome.LOST, Outcome.INTERNAL_ERROR)

_failures = tables.failures
_processes = tables.processes
_retried = tables.retried


class TriageQueries(FailureQueries):
    """Failures, and what users decided about their groups."""

    def group(self, fingerprint: str) -> GroupDetail | None:
        """One group with its tags and comments."""
        comments = tables.comments
        with self.store.reading() as connection:
            row = connection.execute(self.select_groups().where(tables.groups.c.fingerprint == fingerprint)).first()
            if row is None:
                return None
            (view,) = self.group_views(connection, [row], trends=True)
            tagged, tags = _tags(connection, fingerprint)
            latest = (
                sa.select(comments)
                .where(comments.c.fingerprint == fingerprint)
                .order_by(comments.c.at_s.desc())
                .limit(MOST_COMMENTS)
            )
            said = rows_of.COMMENTS.records(connection.execute(latest).all())
            again = sa.select(sa.func.count()).select_from(_retried).where(_retried.c.fingerprint == fingerprint)
            return GroupDetail(
                **msgspec.structs.asdict(view),
                resolved_at=row.resolved_at_s,
                resolved_by=row.resolved_by,
                ignored_by=row.ignored_by or "",
                tags=tags,
                tagged=tagged,
                first_release=_release(connection, fingerprint, newest=False),
                last_release=_release(connection, fingerprint, newest=True),
                comments=said[::-1],
                retried=int(connection.execute(again).scalar() or 0),
            )

    def group_trend(self, fingerprint: str, since_s: float, slices: int) -> list[tuple[float, int]]:
        """
        How often a group failed in equal slices of time, oldest first; the last one is not over.

        Args:
            since_s: Rounded down to an hour, so that slices begin at full hours.
            slices: How many at most.
        """
        hours = tables.trends
        end_s = (int(self._now_s()) // HOUR_S + 1) * HOUR_S
        all_hours = max(1, (end_s - int(since_s) // HOUR_S * HOUR_S) // HOUR_S)
        each_s = -(-all_hours // slices) * HOUR_S
        number = min(slices, -(-all_hours // (each_s // HOUR_S)))
        begin_s = end_s - number * each_s
        wanted = sa.select(hours.c.hour_s, hours.c["count"]).where(
            hours.c.fingerprint == fingerprint, hours.c.hour_s >= begin_s
        )
        counts: Counter[int] = Counter()
        with self.store.reading() as connection:
            for hour_s, count in connection.execute(wanted):
                counts[(hour_s - begin_s) // each_s] += count
        return [(float(begin_s + each_s * place), counts[place]) for place in range(number)]

    def neighbours(self, failure: FailureSummary) -> Neighbours:
        """The failures of the same group before and after one, by time."""
        found: list[FailureSummary | None] = []
        columns = [column for column in _failures.columns if column.name != "payload"]
        with self.store.reading() as connection:
            for earlier in (True, False):
                order = ((_failures.c.at_s, earlier), (_failures.c.id, earlier))
                beyond = after(order, (failure.at, failure.id))
                wanted = sa.select(*columns).where(_failures.c.fingerprint == failure.fingerprint, beyond)
                sort = (column.desc() if earlier else column.asc() for column, _ in order)
                rows = connection.execute(wanted.order_by(*sort).limit(1)).all()
                found += self._summaries(connection, rows) or [None]
        return Neighbours(previous=found[0], next=found[1])

    def retryable(self, fingerprint: str, limit: int = MOST_RETRIED) -> list[str]:
        """Ids of the group's failed tasks that were not sent again yet, oldest first."""
        known = sa.exists().where(_retried.c.id == _failures.c.id)
        wanted = (
            sa.select(_failures.c.id)
            .where(
                _failures.c.fingerprint == fingerprint,
                _failures.c.kind == "task",
                _failures.c.outcome.in_([str(outcome) for outcome in RETRYABLE]),
                ~known,
            )
            .order_by(_failures.c.at_s, _failures.c.id)
            .limit(limit)
        )
        with self.store.reading() as connection:
            return list(connection.execute(wanted).scalars())

    def members(self, fingerprint: str, failure_ids: list[str]) -> set[str]:
        """Those of the failures that are tasks of the group."""
        found: set[str] = set()
        of_group = _failures.c.fingerprint == fingerprint, _failures.c.kind == "task"
        with self.store.reading() as connection:
            for part in chunks(failure_ids):
                wanted = sa.select(_failures.c.id).where(_failures.c.id.in_(part), *of_group)
                found |= set(connection.execute(wanted).scalars())
        return found

    def known_groups(self, fingerprints: list[str]) -> list[str]:
        """Those of the groups that exist, in order."""
        found: list[str] = []
        groups = tables.groups.c
        with self.store.reading() as connection:
            for part in chunks(sorted(set(fingerprints))):
                found += connection.execute(
                    sa.select(groups.fingerprint).where(groups.fingerprint.in_(part)).order_by(groups.fingerprint)
                ).scalars()
        return found

    def retried(self, failure_ids: list[str]) -> dict[str, Retried]:
        """The failures among these that were sent again, by id."""
        found: dict[str, Retried] = {}
        with self.store.reading() as connection:
            for part in chunks(failure_ids):
                rows = connection.execute(sa.select(_retried).where(_retried.c.id.in_(part))).all()
                found |= {record.id: record for record in rows_of.RETRIED.records(rows)}
        return found

    def release_of(self, process: str) -> str:
        """The release of a process; empty if it is not known."""
        wanted = sa.select(_processes.c.release).where(_processes.c.uid == process)
        with self.store.reading() as connection:
            return str(connection.execute(wanted).scalar() or "")

    def comment(self, id: str) -> Comment | None:
        """One comment."""
        with self.store.reading() as connection:
            row = connection.execute(sa.select(tables.comments).where(tables.comments.c.id == id)).first()
        return rows_of.COMMENTS.record(row) if row is not None else None

    def assignees(self, limit: int = 50) -> list[str]:
        """Names that groups are assigned to."""
        name = tables.triage.c.assigned_to
        wanted = sa.select(name).where(name != "").distinct().order_by(name).limit(limit)
        with self.store.reading() as connection:
            return list(connection.execute(wanted).scalars())


def _tags(connection: sa.Connection, fingerprint: str) -> tuple[int, list[Tag]]:
    """How many failures were counted, and their tags; a tag without any value is left out."""
    newest = (
        sa.select(_failures.c.process, _failures.c.worker, _failures.c.queue, _failures.c.hostname, _failures.c.route)
        .where(_failures.c.fingerprint == fingerprint)
        .order_by(_failures.c.at_s.desc(), _failures.c.id.desc())
        .limit(MOST_TAGGED)
        .subquery()
    )
    columns = (newest.c.worker, newest.c.queue, _processes.c.release, newest.c.hostname, newest.c.route)
    wanted = (
        sa.select(*columns, sa.func.count().label("number"))
        .join_from(newest, _processes, _processes.c.uid == newest.c.process, isouter=True)
        .group_by(*columns)
    )
    rows = connection.execute(wanted).all()
    names = ("worker", "queue", "release", "host", "route")
    tags = [_tag(name, place, rows) for place, name in enumerate(names)]
    return sum(row.number for row in rows), [tag for tag in tags if any(share.value for share in tag.values)]


def _tag(name: str, place: int, rows: Sequence[AnyRow]) -> Tag:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row[place] or ""] += row.number
    whole = counts.total()
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shares = [TagShare(value, count, count / whole) for value, count in common[:MOST_VALUES]]
    return Tag(name, shares, whole - sum(share.count for share in shares))


def _release(connection: sa.Connection, fingerprint: str, *, newest: bool) -> str:
    order = (_failures.c.at_s, _failures.c.id)
    wanted = (
        sa.select(_processes.c.release)
        .join_from(_failures, _processes, _processes.c.uid == _failures.c.process)
        .where(_failures.c.fingerprint == fingerprint, _processes.c.release != "")
        .order_by(*(column.desc() if newest else column.asc() for column in order))
        .limit(1)
    )
    return str(connection.execute(wanted).scalar() or "")
