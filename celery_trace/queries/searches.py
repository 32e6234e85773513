"""The qualifiers of each list, the conditions for a search, and completions from the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.model import Outcome, Verdict
from celery_trace.model.searches import SavedView
from celery_trace.queries.base import QueryBase
from celery_trace.queries.cursors import like
from celery_trace.queries.language import (
    BadSearch,
    Qualifier,
    Search,
    Suggestion,
    Term,
    read,
    suggestions_of_names,
    word_at_end,
)
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn

#: Groups that the qualifiers of a group select, the most recent first.
MOST_GROUPS = 2_000
#: Saved searches of one user.
MOST_VIEWS = 100
#: Values that a completion offers.
MOST_SUGGESTED = 12
#: States of a group; ``open`` is any but resolved and ignored.
GROUP_STATES = ("new", "ongoing", "regressed", "resolved", "ignored", "open")

_failures = tables.failures.c
_groups = tables.groups.c
_leaks = tables.leaks.c
_alerts = tables.alerts.c
_names = tables.names.c
_runs = tables.runs.c
_processes = tables.processes.c
_triage = tables.triage.c


def _list(*qualifiers: Qualifier) -> dict[str, Qualifier]:
    return {one.name: one for one in qualifiers}


_TASK = Qualifier(name="task", meaning="Name of the task or route")
_KIND = Qualifier(name="kind", meaning="What was run", words=("task", "request", "block", "process"))
_SINCE = Qualifier(name="since", meaning="Seen since then: 2h, 7d, 2026-11-30", is_time=True)
_UNTIL = Qualifier(name="until", meaning="Seen before then", is_time=True)
_EXCEPTION = Qualifier(name="exception", meaning="Type of the exception")
_MESSAGE = Qualifier(name="message", meaning="Message of the exception", reads_values=True)
_OUTCOME = Qualifier(name="outcome", meaning="How the run ended", words=tuple(map(str, Outcome)))
_WORKER = Qualifier(name="worker", meaning="Worker")
_HOST = Qualifier(name="host", meaning="Host")
_QUEUE = Qualifier(name="queue", meaning="Queue")
_RELEASE = Qualifier(name="release", meaning="Release of the process")
_ROUTE = Qualifier(name="route", meaning="Route of the request")
_GROUP = Qualifier(name="group", meaning="Fingerprint of the group")
_ASSIGNED = Qualifier(name="assigned", meaning="User that the group is assigned to")
_ID = Qualifier(name="id", meaning="Id of the task or of the failure")
_ROOT = Qualifier(name="root", meaning="Root of the workflow")

#: By list: its qualifiers. Free text and ``name=value`` are searched too.
LISTS: Mapping[str, Mapping[str, Qualifier]] = {
    "failures": _list(
        _TASK, _EXCEPTION, _MESSAGE, _OUTCOME, _WORKER, _HOST, _QUEUE, _RELEASE, _ROUTE, _KIND, _GROUP, _ID, _ROOT,
        Qualifier(name="is", meaning="Kept live by its process", words=("live",)), _SINCE, _UNTIL,
    ),
    "groups": _list(
        _TASK, _EXCEPTION, _MESSAGE, _OUTCOME, _WORKER, _HOST, _QUEUE, _RELEASE, _ROUTE, _KIND, _GROUP, _ASSIGNED,
        Qualifier(name="is", meaning="State of the group", words=GROUP_STATES), _SINCE,
    ),
    "leaks": _list(
        _TASK, _KIND, Qualifier(name="verdict", meaning="Verdict", words=tuple(map(str, Verdict))),
        Qualifier(name="place", meaning="File, function or line"), _WORKER, _QUEUE, _SINCE,
    ),
    "runs": _list(
        _TASK, _KIND, Qualifier(name="why", meaning="Why it was stored"), _QUEUE, _ID, _ROOT,
        Qualifier(name="state", meaning="State at its end"), _SINCE, _UNTIL,
    ),
    "names": _list(_TASK, _KIND),
    "alerts": _list(
        Qualifier(name="rule", meaning="Rule"), Qualifier(name="subject", meaning="What it is about"),
        Qualifier(name="is", meaning="State", words=("firing", "pending", "resolved")),
        Qualifier(name="severity", meaning="Severity", words=("info", "warning", "critical")), _SINCE,
    ),
}  # fmt: skip

#: By list and qualifier: where its values are, for completions.
_SOURCES: Mapping[str, AnyColumn] = {
    "task": _names.name, "exception": _groups.exception_type, "worker": _processes.worker, "host": _processes.host,
    "queue": tables.queues.c.queue, "release": _processes.release, "assigned": _triage.assigned_to,
    "route": _names.name, "rule": _alerts.rule, "group": _groups.fingerprint, "subject": _alerts.subject,
}  # fmt: skip


def understood(noun: str, text: str | None, now_s: float) -> Search:
    """
    A search of a list.

    Raises:
        BadSearch: It can't be understood.
    """
    return read(text, LISTS[noun], now_s) if text else Search()


def is_understood(noun: str, text: str) -> bool:
    """Whether a list has all qualifiers of a search."""
    try:
        understood(noun, text, 0.0)
    except BadSearch:
        return False
    return True


def conditions(search: Search, columns: Mapping[str, AnyColumn]) -> list[sa.ColumnElement[bool]]:
    """The conditions of qualifiers that are columns of the list's own table."""
    return [term.where(columns[term.qualifier.name]) for term in search.terms if term.qualifier.name in columns]


def times(search: Search, column: AnyColumn) -> list[sa.ColumnElement[bool]]:
    """The conditions of ``since`` and ``until``."""
    since = [column >= term.at_s for term in search.of("since")]
    return since + [column < term.at_s for term in search.of("until")]


#: Qualifiers of a failure that its own row has.
_OF_FAILURE: Mapping[str, AnyColumn] = {
    "outcome": _failures.outcome, "worker": _failures.worker, "host": _failures.hostname, "queue": _failures.queue,
    "route": _failures.route, "kind": _failures.kind, "group": _failures.fingerprint, "root": _failures.root_id,
}  # fmt: skip
_OF_GROUP: Mapping[str, AnyColumn] = {
    "task": _groups.name, "exception": _groups.exception_type, "outcome": _groups.outcome, "kind": _groups.kind,
    "group": _groups.fingerprint,
}  # fmt: skip
#: Qualifiers by which groups are found through their failures.
_BY_FAILURES = ("worker", "host", "queue", "route", "release")


def of_failures(connection: sa.Connection, search: Search) -> list[sa.ColumnElement[bool]]:
    """
    The conditions of failures, but for free text and ``is``.

    Names, exceptions and messages are looked up among the groups, of which there are few, where no index has them.
    """
    found = [*conditions(search, _OF_FAILURE), *times(search, _failures.at_s)]
    found += [_in_release(term) for term in search.of("release")]
    found += [term.where(_failures.id, _failures.task_id) for term in search.of("id")]
    for term in search.of("task", "exception", "message"):
        if term.qualifier.name == "task" and term.exact is not None:
            found.append(_failures.name == term.exact)
            continue
        column = {"task": _groups.name, "exception": _groups.exception_type}.get(term.qualifier.name)
        matching = _whatever_sign(term, column) if column is not None else _message(term)
        groups = connection.execute(
            sa.select(_groups.fingerprint).where(matching).order_by(_groups.last_seen_s.desc()).limit(MOST_GROUPS)
        ).scalars()
        inside = _failures.fingerprint.in_(list(groups))
        found.append(sa.not_(inside) if term.negative else inside)
    return found


def of_groups(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of groups, but for free text and ``is``."""
    found = [*conditions(search, _OF_GROUP), *times(search, _groups.last_seen_s)]
    for term in search.of("assigned"):
        assigned = term.where(_triage.assigned_to)
        found.append(sa.or_(assigned, _triage.assigned_to.is_(None)) if term.negative else assigned)
    for term in search.of("message"):
        matching = _message(term)
        found.append(sa.not_(matching) if term.negative else matching)
    # One failure has all that is wanted, and none has what is not.
    of_one = sa.exists().where(_failures.fingerprint == _groups.fingerprint)
    by_failures = search.of(*_BY_FAILURES)
    if wanted := [_of_failure(term) for term in by_failures if not term.negative]:
        found.append(of_one.where(*wanted))
    unwanted = (replace(term, negative=False) for term in by_failures if term.negative)
    return found + [sa.not_(of_one.where(_of_failure(term))) for term in unwanted]


def _of_failure(term: Term) -> sa.ColumnElement[bool]:
    return _in_release(term) if term.qualifier.name == "release" else term.where(_OF_FAILURE[term.qualifier.name])


def _whatever_sign(term: Term, column: AnyColumn) -> sa.ColumnElement[bool]:
    """The condition of a term as if it were not negated."""
    found = term.where(column)
    return sa.not_(found) if term.negative else found


def _message(term: Term) -> sa.ColumnElement[bool]:
    """The message of a group has one of the texts anywhere, whatever the sign."""
    low = sa.func.lower(_groups.exception_message)
    return sa.or_(*(low.like(like(value.lower().replace("*", "")), escape="!") for value in term.values))


def _in_release(term: Term) -> sa.ColumnElement[bool]:
    return _failures.process.in_(sa.select(_processes.uid).where(term.where(_processes.release)))


_OF_LEAK: Mapping[str, AnyColumn] = {"task": _leaks.name, "kind": _leaks.kind, "verdict": _leaks.verdict}


def of_leaks(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of rows of the leak table, but for the worker, the queue and free text."""
    found = [*conditions(search, _OF_LEAK), *times(search, _leaks.last_seen_s)]
    for term in search.of("place"):
        low = sa.func.lower(_leaks.place)
        inside = sa.or_(*(low.like(like(value.lower().replace("*", "")), escape="!") for value in term.values))
        found.append(sa.not_(inside) if term.negative else inside)
    return found


def of_runs(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of single runs; free text is a part of the name."""
    columns = {
        "task": _runs.name, "kind": _runs.kind, "why": _runs.why, "queue": _runs.queue, "id": _runs.task_id,
        "root": _runs.root_id, "state": _runs.state,
    }  # fmt: skip
    return [*conditions(search, columns), *times(search, _runs.started_at_s), *texts(search.texts, _runs.name)]


def of_names(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of names."""
    return [*conditions(search, {"task": _names.name, "kind": _names.kind}), *texts(search.texts, _names.name)]


def of_alerts(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of alerts."""
    columns = {"rule": _alerts.rule, "subject": _alerts.subject, "is": _alerts.state, "severity": _alerts.severity}
    return [*conditions(search, columns), *times(search, _alerts.since_s), *texts(search.texts, _alerts.subject)]


def texts(words: Iterable[str], *columns: AnyColumn) -> list[sa.ColumnElement[bool]]:
    """The conditions that each word is somewhere in one of the columns."""
    return [
        sa.or_(*(sa.func.lower(column).like(like(word.lower()), escape="!") for column in columns)) for word in words
    ]


class SearchQueries(QueryBase):
    """Completions of searches, and saved ones."""

    def saved_views(self, user: str, noun: str | None = None) -> list[SavedView]:
        """A user's saved searches of a list or of all, by title."""
        table = tables.saved_views
        wanted = sa.select(table).where(table.c.username == user).order_by(table.c.title, table.c.id).limit(MOST_VIEWS)
        if noun is not None:
            wanted = wanted.where(table.c.noun == noun)
        with self.store.reading() as connection:
            return rows_of.SAVED_VIEWS.records(connection.execute(wanted).all())

    def suggestions(self, noun: str, text: str) -> list[Suggestion]:
        """
        Completions of the last word of a search of a list: qualifiers, or values that the store has.

        Args:
            text: The search up to the cursor.
        """
        qualifiers = LISTS[noun]
        _, word = word_at_end(text)
        name, colon, begun = word.removeprefix("-").partition(":")
        known: Sequence[str] | None = None
        if colon:
            begun = begun.rpartition(",")[2].replace('"', "")
            known = self._values(qualifiers.get(name), begun)
        return suggestions_of_names(text, qualifiers.values(), known)[:MOST_SUGGESTED]

    def _values(self, qualifier: Qualifier | None, begun: str) -> list[str]:
        if qualifier is None:
            return []
        if qualifier.words:
            return [word for word in qualifier.words if word.startswith(begun.lower())]
        if qualifier.is_time:
            return [age for age in ("15m", "1h", "2h", "1d", "7d") if age.startswith(begun)]
        column = _SOURCES.get(qualifier.name)
        if column is None:
            return []
        wanted = sa.select(column).where(column != "").distinct().order_by(column).limit(MOST_SUGGESTED)
        if begun:
            wanted = wanted.where(sa.func.lower(column).like(like(begun.lower().replace("*", "")), escape="!"))
        with self.store.reading() as connection:
            return [str(value) for value in connection.execute(wanted).scalars()]
