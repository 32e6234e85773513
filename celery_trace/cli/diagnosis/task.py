"""
What is known about one task id.

To add a source, write a function from :class:`Asked` to facts, and add it to :data:`SOURCES`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery.backends.base import DisabledBackend
from msgspec import Struct

from celery_trace.cli.diagnosis import chords
from celery_trace.model import FailureSummary, Outcome, Run, RunningView
from celery_trace.model.diagnosis import Diagnosis, Known, Unknown
from celery_trace.settings import Settings
from celery_trace.text.code_owner import CodeOwner, innermost_own
from celery_trace.text.format import duration, plural, times

if TYPE_CHECKING:
    from celery import Celery

    from celery_trace.queries import Queries

T = TypeVar("T")

#: Seconds that workers have to answer.
ANSWER_S: Final = 1.0
#: Seconds for one source outside of the store.
SOURCE_S: Final = 6.0
#: Most failures, runs and members of a workflow that are read.
MOST: Final = 200
#: Members of a workflow that are named.
MOST_NAMED: Final = 5


class Asked(Struct, frozen=True):
    """The question, and where the answers are."""

    task_id: str
    queries: Queries
    app: Celery
    settings: Settings

    def failures(self) -> list[FailureSummary]:
        """Its recorded failures, oldest first."""
        return self.queries.failures(task_id=self.task_id, limit=MOST).rows[::-1]

    def runs(self) -> list[Run]:
        """Its single runs, oldest first."""
        return self.queries.runs(task_id=self.task_id, limit=MOST).rows[::-1]


Fact = Known | Unknown
Source = Callable[[Asked], Iterator[Fact]]

#: By question: why there may be no answer. ``{days}`` is the retention.
QUESTIONS: Final[Mapping[str, str]] = {
    "published": "when and by whom it was published: only workers record",
    "received": "whether it waits in a queue: messages on the broker are not read",
    "started": "whether it has started: successful runs are added up by name, and only sampled, slow and failed runs "
    "have a row of their own; rows older than {days} days are removed",
    "ended": "whether it has failed: no failure of it is stored; they are removed after {days} days",
    "workflow": "its parent and group: they are stored with failures and single runs only",
}

_ENDS: Final[Mapping[Outcome, str]] = {
    Outcome.FAILED: "failed",
    Outcome.RETRIED: "ended with a retry",
    Outcome.REJECTED: "was rejected or refused",
    Outcome.TIME_LIMIT: "reached a time limit",
    Outcome.REVOKED: "was revoked",
    Outcome.LOST: "was lost: its process was killed",
    Outcome.INTERNAL_ERROR: "failed in Celery's own code",
}


def _place(row: FailureSummary) -> str:
    return f" on {row.worker or row.hostname}" + (f", pid {row.pid}" if row.pid else "")


def recorded_failures(asked: Asked) -> Iterator[Fact]:
    """How its tries ended."""
    for row in asked.failures():
        error = row.exception
        why = f": {error.type}: {error.message}" if error is not None and error.message else ""
        why = why or (f": {error.type}" if error is not None else "")
        how = f"failure {row.id} in the store; celery trace show {row.id}"
        ended = f"Try {row.retries} of {row.name} {_ENDS[row.outcome]}{_place(row)}{why}"
        if row.outcome is not Outcome.REVOKED:
            yield Known(about="started", what=f"Try {row.retries} had started{_place(row)}", how=how, at=row.at)
        yield Known(about="ended", what=ended, how=how, at=row.at)


def tries_and_kills(asked: Asked) -> Iterator[Fact]:
    """How many tries it had, and how many processes its message has killed."""
    rows = asked.failures()
    if len(rows) > 1:
        ends = ", ".join(f"{row.retries} {row.outcome}" for row in rows[-MOST_NAMED:])
        what = f"{len(rows)} tries of one message ended badly: {ends}"
        yield Known(about="tries", what=what, how="its failures in the store", at=rows[-1].at)
    for row in rows:
        if row.kills > 1:
            what = f"Its message has killed {row.kills} processes: it was delivered again after each"
            yield Known(about="tries", what=what, how=f"failure {row.id}: its list of kills", at=row.at)


def single_runs(asked: Asked) -> Iterator[Fact]:
    """Runs with a row of their own."""
    runs = asked.runs()
    processes = asked.queries.processes({run.process for run in runs})
    for run in runs:
        process = processes.get(run.process)
        where = f" on {process.worker or process.host}, pid {process.pid}" if process is not None else ""
        took = f"Try {run.retries} of {run.name} ran for {duration(run.duration_s)}{where}"
        state = f", state {run.state}" if run.state else ""
        how = f"single run {run.id}, stored because it was {run.why}"
        yield Known(about="started", what=f"{took}{state}", how=how, at=run.started_at_s)


def workflow(asked: Asked) -> Iterator[Fact]:
    """Its parent, root and group, and what else of them has failed."""
    own = asked.failures()
    row = own[-1] if own else None
    root_id = row.root_id if row is not None else next((run.root_id for run in asked.runs()), "")
    how = "the task's own message, as recorded with its failure or run"
    if row is not None and not row.parent_id and not row.group_id:
        yield Known(about="workflow", what="It has no parent and no group", how=how)
    if row is not None and row.parent_id:
        yield Known(about="workflow", what=f"Its parent is task {row.parent_id}", how=how)
    if row is not None and row.group_id:
        what = f"It belongs to group {row.group_id}; whether that is the header of a chord is not recorded"
        yield Known(about="workflow", what=what, how=how)
    if root_id and root_id != asked.task_id:
        yield Known(about="workflow", what=f"Its workflow began with {root_id}", how=how)
    page = asked.queries.failures(root_id=root_id or asked.task_id, limit=MOST)
    others = [other for other in page.rows if other.task_id != asked.task_id]
    relations = (
        ("of its group", [other for other in others if row is not None and row.group_id == other.group_id != ""]),
        ("that it sent", [other for other in others if other.parent_id == asked.task_id]),
        ("of its workflow", others),
    )
    for relation, found in relations:
        if found:
            named = ", ".join(f"{other.name} {other.outcome}" for other in found[:MOST_NAMED])
            more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            what = f"{plural(len(found), 'failure')} of other tasks {relation}: {named}{more}"
            yield Known(about="workflow", what=what, how="failures in the store with the same root", at=found[0].at)


def chord(asked: Asked) -> Iterator[Fact]:
    """Whether the body of its chord waits, and for which members."""
    recorded = asked.queries.chords_of(asked.task_id)
    backend = asked.app.backend
    groups = [*(one.group for one in recorded), *(row.group_id for row in asked.failures() if row.group_id)]
    try:
        groups += within(SOURCE_S, lambda: list(chords.groups_of(backend, asked.task_id)))
        counts = {
            group: within(SOURCE_S, partial(chords.counted, backend, group))
            for group in dict.fromkeys([*groups, asked.task_id])
        }
    except Exception as error:
        yield Unknown(
            about="chord", why=f"whether a chord waits for it: the result backend can't be read ({_brief(error)})"
        )
        return
    running = {run.task_id: run for run in asked.queries.running().rows}
    for group, count in counts.items():
        if count is None:
            continue
        known = asked.queries.chords_of(group)
        body = next((one.body for one in known if one.body), "The body")
        left = count.size - count.ended
        what = f"{body} of chord {group} waits for {left} of {plural(count.size, 'member')}"
        yield Known(about="chord", what=what, how="the counter of the result backend, read just now")
        members = dict.fromkeys(id for one in known for id in one.members if id not in count.states)
        for id in list(members)[:MOST_NAMED]:
            yield Known(about="chord", what=_member(asked, id, running.get(id)), how="what workers have recorded of it")
        unknown = left - len(members.keys() - count.states.keys())
        if unknown > 0:
            why = (
                f"the ids of {plural(unknown, 'member')} that have not ended: they wait in a queue, or have just begun"
            )
            yield Unknown(about="chord", why=why)


def _member(asked: Asked, id: str, run: RunningView | None) -> str:
    """What a member does that has not ended."""
    if run is not None:
        state = f"is stuck, {run.waiting_for or 'what it waits for is not known'}" if run.stuck else "runs"
        return (
            f"Its member {id} ({run.name}) {state} on {run.worker}, pid {run.pid}, for {duration(run.elapsed_s)} so far"
        )
    rows = asked.queries.failures(task_id=id, limit=1).rows
    if rows:
        return f"Its member {id} ({rows[0].name}) {_ENDS[rows[0].outcome]}{_place(rows[0])}, and was not counted"
    return f"Its member {id} has begun to run, and runs no more"


def in_progress(asked: Asked) -> Iterator[Fact]:
    """What its host has last read of it while it runs."""
    for run in asked.queries.running().rows:
        if run.task_id != asked.task_id:
            continue
        where = f"on {run.worker or run.hostname}, pid {run.pid}"
        how = "its host's snapshot of the processes; celery trace running --stack ID reads its stack"
        yield Known(about="started", what=f"Try {run.retries} of {run.name} has started {where}", how=how, at=run.since)
        owner = CodeOwner()
        line = innermost_own(run.stack, owner)
        place = f", at {owner.short(line.file)}:{line.line}" if line is not None else ""
        state = f"is stuck: {run.waiting_for or 'what it waits for is not known'}" if run.stuck else "runs now"
        yield Known(about="running", what=f"It {state}{place}, {where}, for {duration(run.elapsed_s)} so far", how=how)


def repeated(asked: Asked) -> Iterator[Fact]:
    """Whether its message was started more than once."""
    since_s = time.time() - asked.settings.retention_days * 86400
    for run in asked.queries.repeated_runs(since_s=since_s):
        if run.task_id == asked.task_id:
            when = "while it still ran" if run.overlapping else "after it had succeeded"
            what = f"Its message was started {times(len(run.starts))}, again {when}, by {', '.join(run.workers)}"
            yield Known(about="tries", what=what, how="the starts that workers record", at=run.at)


def workers_now(asked: Asked) -> Iterator[Fact]:
    """What running workers say: Celery's ``query_task``."""
    try:
        answers = within(SOURCE_S, lambda: asked.app.control.inspect(timeout=ANSWER_S).query_task(asked.task_id))
    except Exception as error:
        yield Unknown(about="running", why=f"whether it runs now: the broker can't be asked ({_brief(error)})")
        return
    if not answers:
        yield Unknown(about="running", why=f"whether it runs now: no worker answered within {duration(ANSWER_S)}")
        return
    found = {worker: answer[asked.task_id] for worker, answer in answers.items() if asked.task_id in (answer or {})}
    for worker, (state, info) in found.items():
        how = "the worker answered just now"
        yield Known(about="received", what=f"{worker} has received it", how=how)
        if state == "active":
            what = f"It runs now on {worker}, pid {info.get('worker_pid')}"
            yield Known(about="running", what=what, how=how, at=info.get("time_start"))
        else:
            what = f"It waits in {worker}, which has reserved it"
            yield Known(about="running", what=what, how=how)
    if not found:
        count = plural(len(answers), "worker")
        what = f"It neither runs nor waits in a worker that answered ({count})"
        yield Known(about="not running", what=what, how="the workers answered just now")


def result_backend(asked: Asked) -> Iterator[Fact]:
    """Its state in the result backend. The result itself is not shown: it is not redacted."""
    if "DJANGO_SETTINGS_MODULE" in os.environ and "django" in sys.modules:
        sys.modules["django"].setup()  # its models are needed if it stores the results; a worker does this too
    backend = asked.app.backend
    if isinstance(backend, DisabledBackend):
        yield Unknown(about="result", why="its result: no result backend is configured")
        return
    try:
        meta = within(SOURCE_S, lambda: backend.get_task_meta(asked.task_id))
    except Exception as error:
        yield Unknown(about="result", why=f"its result: the result backend can't be read ({_brief(error)})")
        return
    state = str(meta.get("status"))
    if state == "PENDING":
        why = "its result: the backend has none. It has not finished, its result has expired, or results are ignored"
        yield Unknown(about="result", why=why)
        return
    done = meta.get("date_done")
    when = f" since {done}" if isinstance(done, str) else ""
    about = "succeeded" if state == "SUCCESS" else "result"
    yield Known(about=about, what=f"The result backend has the state {state}{when}", how="the result backend")


#: All sources, in the order of their questions.
SOURCES: tuple[Source, ...] = (
    recorded_failures,
    tries_and_kills,
    single_runs,
    repeated,
    workers_now,
    in_progress,
    workflow,
    chord,
    result_backend,
)

#: The questions whose last fact is the summary, the most important first.
_SUMMARIES: Final = ("running", "succeeded", "ended", "result", "started")


def diagnose(asked: Asked) -> Diagnosis:
    """Ask all sources. A source that fails becomes an unknown."""
    facts: list[Fact] = []
    for source in SOURCES:
        try:
            facts += source(asked)
        except Exception as error:
            facts.append(Unknown(about=source.__name__, why=f"{source.__name__} failed: {_brief(error)}"))
    known = [fact for fact in facts if isinstance(fact, Known)]
    unknown = [fact for fact in facts if isinstance(fact, Unknown)]
    answered = {fact.about for fact in facts}
    if "started" in answered:
        answered.add("received")
    days = f"{asked.settings.retention_days:g}"
    unknown += [
        Unknown(about=question, why=why.format(days=days))
        for question, why in QUESTIONS.items()
        if question not in answered
    ]
    known.sort(key=lambda fact: (fact.at is None, fact.at or 0.0))
    return Diagnosis(task_id=asked.task_id, summary=_summary(known), known=known, unknown=unknown)


def _summary(known: list[Known]) -> str:
    for about in _SUMMARIES:
        last = next((fact for fact in reversed(known) if fact.about == about), None)
        if last is not None:
            return last.what
    return "Nothing is known about this task: it may have succeeded, wait in a queue, or not exist"


def within(seconds: float, call: Callable[[], T]) -> T:
    """
    What a call returns, if it returns in time.

    Raises:
        TimeoutError: It takes longer; its thread goes on, and does not keep the program alive.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="celery-trace-diagnose", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {duration(seconds)}")
    return results[0]


def _brief(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:200]
