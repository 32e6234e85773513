"""Failures, their groups, and whether the failed process still holds the objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.model import Failure, FailureDetail, FailureGroup, FailureSummary, Kept, Outcome, Page
from celery_trace.queries import cursors, searches
from celery_trace.queries.base import QueryBase
from celery_trace.queries.cursors import like
from celery_trace.queries.filters import FailureFilter, GroupFilter, exactly
from celery_trace.stores import rows as rows_of
from celery_trace.stores import shared_captures, tables, values
from celery_trace.stores.statements import by_key
from celery_trace.stores.writing import HOUR_S

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow, AnySelect

#: A group is new for this long, seconds.
NEW_S = 24 * 3600
#: Hours of a group's trend.
TREND_HOURS = 24
#: Groups that a search reads, the most recent first.
SEARCHED_GROUPS = 300
#: Failures whose values a search reads, the most recent that match the other filters.
SEARCHED_VALUES = 5_000
#: Failures read at a time, fewer in the first step; the time is checked after each step.
SEARCHED_AT_ONCE, SEARCHED_FIRST = 500, 100
#: Time limit of reading values, seconds, for stores that fetch each text from a disk.
SEARCH_S = 0.05
#: Most matches among values.
MOST_FOUND = 1000

#: Outcomes whose rows show how many processes were killed.
_KILLING = frozenset((Outcome.LOST.value, Outcome.TIME_LIMIT.value))

_failures = tables.failures
_groups = tables.groups
_kept = tables.kept
_values = tables.failure_values
_processes = tables.processes
_triage = tables.triage


class FailureQueries(QueryBase):
    """What failed."""

    def failures(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        **filters: Unpack[FailureFilter],
    ) -> Page[FailureSummary]:
        """
        Failures, newest first.

        Args:
            limit, cursor: The page.
            filters: See :class:`FailureFilter`. ``query`` is in the language of searches. ``search`` is part of the
                task's name or of the exception, a whole task or failure id, or part of a local's or an argument's
                value, also as ``name=value``; see :data:`SEARCHED_VALUES`.
        """
        kind, name, live = filters.get("kind"), filters.get("name"), filters.get("live")
        asked = searches.understood("failures", filters.get("query"), self._now_s())
        texts = [*asked.texts, *([search] if (search := filters.get("search")) else [])]
        held_live = [live] if live is not None else [not term.negative for term in asked.of("is")]
        exact = ("kind", "name", "outcome", "fingerprint", "worker", "task_id", "root_id")
        conditions = exactly(_failures, filters, *exact)
        if (since_s := filters.get("since_s")) is not None:
            conditions.append(_failures.c.at_s >= since_s)
        if (until_s := filters.get("until_s")) is not None:
            conditions.append(_failures.c.at_s < until_s)
        columns = [column for column in _failures.columns if column.name != "payload"]
        with self.store.reading() as connection:
            order = ((_failures.c.at_s, True), (_failures.c.id, True))
            conditions += searches.of_failures(connection, asked)
            wanted = sa.select(*columns).where(*conditions)
            if texts and cursor:  # the search in values begins at the page
                conditions.append(cursors.after(order, cursors.decode(cursor, cursors.kinds_of(order))))
            for text in texts:
                wanted = wanted.where(self._matches(connection, text, conditions, kind, name))
            for is_live in held_live:
                held = self._held(connection, None)
                wanted = wanted.where(_failures.c.id.in_(held) if is_live else _failures.c.id.not_in(held))
            return self._page(
                connection, "failures", wanted, order, limit, cursor, lambda rows: self._summaries(connection, rows)
            )

    def _matches(
        self,
        connection: sa.Connection,
        search: str,
        conditions: Sequence[sa.ColumnElement[bool]],
        kind: str | None,
        name: str | None,
    ) -> sa.ColumnElement[bool]:
        """
        A search reads the groups, of which there are few, whole ids, which have an index, and the values of the newest
        failures.

        Reading the texts of ten million failures would take minutes.
        """
        text = search.strip()
        # A group has one kind and one name: without them each failure of a name would be compared with other groups.
        groups = sa.select(_groups.c.fingerprint).where(self._group_matches(text))
        for column, value in ((_groups.c.kind, kind), (_groups.c.name, name)):
            if value:
                groups = groups.where(column == value)
        found = connection.execute(groups.order_by(_groups.c.last_seen_s.desc()).limit(SEARCHED_GROUPS)).scalars()
        ids = connection.execute(
            sa.union_all(
                sa.select(_failures.c.id).where(_failures.c.id == text),
                sa.select(_failures.c.id).where(_failures.c.task_id == text),
                sa.select(_failures.c.id).where(_failures.c.root_id == text),
            ).limit(1000)
        ).scalars()
        fingerprints = list(found)
        identified = sorted({*ids, *self._with_value(connection, text, conditions)})
        if not identified and not fingerprints:
            return sa.false()
        if identified and not fingerprints:
            return _failures.c.id.in_(identified)
        if fingerprints and not identified:
            return _failures.c.fingerprint.in_(fingerprints)
        return sa.or_(_failures.c.fingerprint.in_(fingerprints), _failures.c.id.in_(identified))

    @staticmethod
    def _with_value(
        connection: sa.Connection, search: str, conditions: Sequence[sa.ColumnElement[bool]] = ()
    ) -> Sequence[str]:
        """Ids of the newest failures that match ``conditions`` and have such a value."""
        newest = (
            sa.select(_failures.c.id, _failures.c.at_s, _failures.c.shared)
            .where(*conditions)
            .order_by(_failures.c.at_s.desc(), _failures.c.id.desc())
        )
        looked_for = values.Search(search)
        matches = sa.or_(*(_values.c.text.like(like(pattern), escape="!") for pattern in looked_for.patterns))
        lines: dict[str, set[int]] = {}  # by shared capture: its matching lines
        found: list[str] = []
        begun_s, searched, size = time.monotonic(), 0, SEARCHED_FIRST
        with by_key(connection):
            while searched < SEARCHED_VALUES and len(found) < MOST_FOUND:
                part = newest.limit(size).offset(searched).subquery()
                shared = set(connection.execute(sa.select(part.c.shared).distinct()).scalars()) - {""}
                texts = shared_captures.texts(connection, shared - lines.keys())
                lines |= {id: looked_for.lines_of(text) for id, text in texts.items()}
                # The database may have found the number of a missing line, or a line that is missing here.
                perhaps = sa.or_(matches, part.c.shared.in_([id for id in shared if lines.get(id)]))
                wanted = sa.select(part.c.id, part.c.shared, _values.c.text).join(_values, _values.c.id == part.c.id)
                found += [
                    id
                    for id, base, text in connection.execute(wanted.where(perhaps))
                    if (
                        looked_for.finds_in_difference(text, lines.get(base, set())) if base else looked_for.finds(text)
                    )
                ]
                searched += size
                took_s = time.monotonic() - begun_s
                if took_s >= SEARCH_S:
                    break
                # No more than what fits in the remaining time at the pace so far.
                size = max(SEARCHED_FIRST // 2, min(SEARCHED_AT_ONCE, int(searched / took_s * (SEARCH_S - took_s))))
        return found[:MOST_FOUND]

    @staticmethod
    def _group_matches(search: str) -> sa.ColumnElement[bool]:
        pattern = like(search.lower())
        return sa.or_(
            *(
                sa.func.lower(column).like(pattern, escape="!")
                for column in (_groups.c.name, _groups.c.exception_type, _groups.c.exception_message)
            )
        )

    def _summaries(self, connection: sa.Connection, rows: Sequence[AnyRow]) -> list[FailureSummary]:
        counts = self._by_key(connection, _groups, {row.fingerprint for row in rows})
        held = self._held(connection, [row.id for row in rows])
        kills = self._kills(connection, [row.id for row in rows if row.outcome in _KILLING])
        return [
            rows_of.SUMMARIES.record(
                row,
                count=counts[row.fingerprint]._mapping["count"] if row.fingerprint in counts else 1,
                live=row.id in held,
                kills=kills.get(row.id, 0),
            )
            for row in rows
        ]

    @staticmethod
    def _kills(connection: sa.Connection, ids: list[str]) -> dict[str, int]:
        """The number of processes that a failure's message killed, by id. Payloads of killed runs are small."""
        if not ids:
            return {}
        wanted = sa.select(_failures.c.id, _failures.c.payload, _failures.c.shared).where(_failures.c.id.in_(ids))
        rows = [row for row in connection.execute(wanted) if row.payload is not None]
        known = shared_captures.bases(connection, [row.shared for row in rows])
        return {row.id: rows_of.kills(row.payload, known.get(row.shared)) for row in rows}

    def failure_record(self, id: str) -> Failure | None:
        """The whole record, as captured and merged."""
        with self.store.reading() as connection:
            wanted = sa.select(_failures.c.payload, _failures.c.shared).where(_failures.c.id == id)
            row = connection.execute(wanted).first()
            if row is None or row.payload is None:
                return None
            known = shared_captures.bases(connection, [row.shared])
        try:
            return rows_of.failure(row.payload, known.get(row.shared))
        except LookupError:  # it was pruned just now
            return None

    def failure(self, id: str) -> FailureDetail | None:
        """One failure with all its details, in the shape of the contract."""
        from celery_trace.failures import views

        record = self.failure_record(id)
        if record is None:
            return None
        with self.store.reading() as connection:
            group = self._by_key(connection, _groups, [rows_of.fingerprint(record)]).get(rows_of.fingerprint(record))
        kept = self.kept(id)
        count = group._mapping["count"] if group is not None else 1
        detail = views.detail(record, count=count, live=kept is not None)
        return replace(
            detail,
            fingerprint=rows_of.fingerprint(record),
            live_until=kept.until_s if kept else None,
            first_seen=group.first_seen_s if group is not None else record.at_s,
            last_seen=group.last_seen_s if group is not None else record.at_s,
        )

    # --- groups

    def groups(
        self,
        *,
        sort: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        trends: bool = True,
        **filters: Unpack[GroupFilter],
    ) -> Page[FailureGroup]:
        """
        Groups of failures that share a fingerprint, the last seen first.

        Args:
            sort: ``count`` for the most frequent first, ``first`` for the latest to appear first.
            limit, cursor: The page.
            trends: Whether to read each group's trend, which takes longer than all the rest.
            filters: ``state`` is ``new`` (first seen within a day), ``ongoing``, ``resolved``, ``regressed``,
                ``ignored``, or ``open`` for all but the resolved and the ignored ones. ``search`` is as in
                :meth:`failures`.
        """
        exact = ("kind", "name", "outcome")
        since_s, state = filters.get("since_s"), filters.get("state")
        asked = searches.understood("groups", filters.get("query"), self._now_s())
        texts = [*asked.texts, *([search.strip()] if (search := filters.get("search")) else [])]
        wanted = self.select_groups().where(*exactly(_groups, filters, *exact))
        if since_s is not None:
            wanted = wanted.where(_groups.c.last_seen_s >= since_s)
        if assigned_to := filters.get("assigned_to"):
            wanted = wanted.where(_triage.c.assigned_to == assigned_to)
        wanted = wanted.where(*searches.of_groups(asked))
        if state:
            wanted = wanted.where(_of_state(state, self._now_s()))
        for term in asked.of("is"):
            in_state = sa.or_(*(_of_state(word, self._now_s()) for word in term.values))
            wanted = wanted.where(sa.not_(in_state) if term.negative else in_state)
        column = {"count": _groups.c["count"], "first": _groups.c.first_seen_s}.get(sort or "", _groups.c.last_seen_s)
        order = ((column, True), (_groups.c.fingerprint, True))
        with self.store.reading() as connection:
            for text in texts:
                narrow = exactly(_failures, filters, *exact)
                if since_s is not None:
                    narrow.append(_failures.c.at_s >= since_s)
                found = self._with_value(connection, text, narrow)
                held = sa.select(_failures.c.fingerprint).where(_failures.c.id.in_(found))
                fingerprints = connection.execute(held.distinct()).scalars().all()
                wanted = wanted.where(sa.or_(self._group_matches(text), _groups.c.fingerprint.in_(fingerprints)))
            return self._page(
                connection,
                "groups",
                wanted,
                order,
                limit,
                cursor,
                lambda rows: self.group_views(connection, rows, trends=trends),
            )

    @staticmethod
    def select_groups() -> AnySelect:
        """The rows of groups with what users decided about them."""
        return sa.select(_groups, _triage.c.assigned_to, _triage.c.ignored_until_s, _triage.c.ignored_by).join(
            _triage, _triage.c.fingerprint == _groups.c.fingerprint, isouter=True
        )

    def group_views(self, connection: sa.Connection, rows: Sequence[AnyRow], *, trends: bool) -> list[FailureGroup]:
        now_s = self._now_s()
        hour_s = int(now_s // HOUR_S) * HOUR_S
        slices = [hour_s - HOUR_S * back for back in range(TREND_HOURS - 1, -1, -1)] if trends else []
        counts: dict[tuple[str, int], int] = {}
        if rows and trends:
            hours = tables.trends.c
            found = connection.execute(
                sa.select(hours.fingerprint, hours.hour_s, hours["count"]).where(
                    hours.fingerprint.in_([row.fingerprint for row in rows]), hours.hour_s >= slices[0]
                )
            )
            counts = {(fingerprint, hour): count for fingerprint, hour, count in found}
        return [
            rows_of.GROUPS.record(
                row,
                state=_state(row, now_s),
                assigned_to=row.assigned_to or "",
                ignored_until=row.ignored_until_s,
                trend=[(float(start), counts.get((row.fingerprint, start), 0)) for start in slices],
            )
            for row in rows
        ]

    def failed_since(self, since_s: float) -> int:
        """The number of stored failures in the hours that began since then."""
        table = tables.trends
        wanted = sa.select(sa.func.sum(table.c["count"])).where(table.c.hour_s >= since_s)
        with self.store.reading() as connection:
            return int(connection.execute(wanted).scalar() or 0)

    # --- live

    def kept(self, failure_id: str) -> Kept | None:
        """Where a failure's objects can be reached; None after they were released or their process ended."""
        with self.store.reading() as connection:
            rows = connection.execute(
                sa.select(_kept)
                .join(_processes, _processes.c.uid == _kept.c.process, isouter=True)
                .where(
                    _kept.c.failure == failure_id,
                    _kept.c.gone == "",
                    _kept.c.until_s > self._now_s(),
                    _processes.c.ended_at_s.is_(None),
                )
                .order_by(_kept.c.at_s.desc())
            ).all()
        return rows_of.KEPT.record(rows[0]) if rows else None

    def _held(self, connection: sa.Connection, ids: list[str] | None) -> set[str]:
        """The ids among these failures (or all) that a living process holds."""
        if ids is not None and not ids:
            return set()
        wanted = (
            sa.select(_kept.c.failure)
            .join(_processes, _processes.c.uid == _kept.c.process, isouter=True)
            .where(_kept.c.gone == "", _kept.c.until_s > self._now_s(), _processes.c.ended_at_s.is_(None))
        )
        if ids is not None:
            wanted = wanted.where(_kept.c.failure.in_(ids))
        return set(connection.execute(wanted).scalars())


def _state(row: AnyRow, now_s: float) -> str:
    if row.resolved_at_s is not None and row.last_seen_s <= row.resolved_at_s:
        return "resolved"
    if row.ignored_until_s is not None and row.ignored_until_s > now_s:
        return "ignored"
    if row.resolved_at_s is not None:
        return "regressed"
    return "new" if row.first_seen_s > now_s - NEW_S else "ongoing"


def _of_state(state: str, now_s: float) -> sa.ColumnElement[bool]:
    """The condition for :func:`_state`; ``open`` is any but ``resolved`` and ``ignored``."""
    again = _groups.c.last_seen_s > _groups.c.resolved_at_s
    unresolved = _groups.c.resolved_at_s.is_(None)
    ignored = sa.func.coalesce(_triage.c.ignored_until_s, 0.0) > now_s
    is_open = sa.and_(sa.or_(unresolved, again), ~ignored)
    conditions = {
        "new": sa.and_(is_open, unresolved, _groups.c.first_seen_s > now_s - NEW_S),
        "ongoing": sa.and_(is_open, unresolved, _groups.c.first_seen_s <= now_s - NEW_S),
        "resolved": sa.and_(~unresolved, ~again),
        "regressed": sa.and_(is_open, ~unresolved),
        "ignored": sa.and_(sa.or_(unresolved, again), ignored),
        "open": is_open,
    }
    return conditions.get(state, sa.false())
