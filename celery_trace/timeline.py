"""
The timeline of a workflow, from Celery's events, single runs and failures.

No source is complete. Events are lost when the monitor restarts, and anybody can forge them. Of the runs, the store has
only some: sampled ones, outliers and failures. So each row names what is unknown about it, and nothing is guessed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from msgspec import Struct, field
from msgspec.structs import replace

from celery_trace.intervals import SAMPLE_S
from celery_trace.model import UNLOCK, Chord, FailureSummary, Kind, Outcome, Run, Sample
from celery_trace.model.timelines import ChordMember, Span, TaskEvents, Timeline, TimelineRow, WaitingChord

#: Rows of a timeline; the others are counted.
MOST_ROWS = 300
#: Times before or after these bounds, in seconds from now, come from a wrong clock or a forged event.
OLDEST_S, AHEAD_S = 366 * 86_400.0, 60.0
#: Spans of a row. A chord's unlock task may be retried once a second, for hours.
MOST_SPANS = 20
#: Levels by which a page indents; deeper rows have this depth.
MOST_DEPTH = 100


_OUTCOMES: Mapping[str, str] = {
    "PENDING": "waiting", "RECEIVED": "waiting", "STARTED": "running", "SUCCESS": "succeeded", "FAILURE": "failed",
    "RETRY": "retried", "REVOKED": "revoked", "REJECTED": "rejected",
}  # fmt: skip
#: Outcomes after which no result will come.
_ENDED_BADLY = frozenset(str(one) for one in Outcome) - {"retried"}
_FAILED = frozenset({"failed", "time_limit", "lost", "internal_error"})
#: The rows that are left out first if there are too many.
_LEAST = ("succeeded", "unknown")


class _Try(Struct, frozen=True, kw_only=True):
    """A run or a failure, without its times if they are absurd."""

    retries: int
    starts_at: float | None = None
    ends_at: float | None = None
    outcome: str


class _Facts(Struct):
    """All that is known of one id. Runs and failures are in order, and their tries are in the same order."""

    id: str
    events: TaskEvents | None = None
    runs: list[tuple[_Try, Run]] = field(default_factory=list)
    failures: list[tuple[_Try, FailureSummary]] = field(default_factory=list)
    is_request: bool = False
    bad_times: bool = False


def build(
    root_id: str,
    *,
    events: Iterable[TaskEvents] = (),
    runs: Iterable[Run] = (),
    failures: Iterable[FailureSummary] = (),
    samples: Iterable[Sample] = (),
    chords: Iterable[Chord] = (),
    now_s: float,
    first: str = "",
    most: int = MOST_ROWS,
    incomplete: bool = False,
) -> Timeline:
    """
    The rows of a workflow, each below its parent, siblings by their start.

    Args:
        root_id: The id that was asked for.
        events, runs, failures: In any order; the records of one id become one row.
        samples: Of the processes of the runs, oldest first.
        chords: As recorded, in any order.
        now_s: The reader's clock, seconds since the epoch.
        first: The id of the first row, if it is not ``root_id``: the request that sent the tasks.
        most: Maximum number of rows. Those that have succeeded are left out first.
        incomplete: Whether the sources were cut.
    """
    first = first or root_id
    found = _together(events, runs, failures, now_s)
    if not found:
        return Timeline(id=root_id, first=first, incomplete=incomplete)
    by_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.process].append(sample)
    rows = {id: _row(facts, first, now_s, by_process) for id, facts in found.items()}
    for missing in {first, *(row.parent for row in rows.values() if row.parent)} - rows.keys():
        rows[missing] = _without_records(missing, first, found)
    ordered = _in_order(rows, first)
    times = [at for row in ordered for span in row.spans for at in (span.starts_at, span.ends_at) if at is not None]
    if times and any(row.outcome in {"waiting", "running"} for row in ordered):
        times.append(now_s)
    shown = _selected(ordered, most)
    return Timeline(
        id=root_id,
        first=first,
        begins_at=min(times, default=None),
        ends_at=max(times, default=None),
        rows=shown,
        more=len(ordered) - len(shown),
        outcomes=dict(Counter(row.outcome for row in ordered)),
        chords=_chords(chords, rows),
        incomplete=incomplete,
    )


# --- bars -----------------------------------------------------------------------------------------------


class Bar(Struct, frozen=True):
    """
    A span as it is drawn.

    ``kind`` is ``waiting``, ``running``, ``retried`` (an earlier try was, whatever the outcome of the last) or
    ``failed``. ``begins`` and ``ends`` are shares of the timeline's length.
    """

    kind: str
    begins: float
    ends: float


def bars(found: Timeline, row: TimelineRow, now_s: float) -> list[Bar]:
    """The spans of a row of which a time is known."""
    begins_s = now_s if found.begins_at is None else found.begins_at
    length_s = max((now_s if found.ends_at is None else found.ends_at) - begins_s, 0.001)
    made = []
    for span in row.spans:
        known = [at_s for at_s in (span.starts_at, ends_of(span, row, now_s)) if at_s is not None]
        if known:
            begins, ends = ((at_s - begins_s) / length_s for at_s in (min(known), max(known)))
            made.append(Bar(_kind(span, row), begins, ends))
    return made


def ends_of(span: Span, row: TimelineRow, now_s: float) -> float | None:
    """The end of a span; now if it goes on, None if it is unknown."""
    return now_s if span.ends_at is None and row.outcome == span.kind else span.ends_at


def _kind(span: Span, row: TimelineRow) -> str:
    if span.kind == "waiting":
        return "waiting"
    if span is not row.spans[-1] or row.outcome == "retried":
        return "retried"
    return "failed" if row.outcome in _FAILED else "running"


# --- the facts of one id --------------------------------------------------------------------------------


def _together(
    events: Iterable[TaskEvents], runs: Iterable[Run], failures: Iterable[FailureSummary], now_s: float
) -> dict[str, _Facts]:
    found: dict[str, _Facts] = {}

    def facts(id: str) -> _Facts:
        if id not in found:
            found[id] = _Facts(id)
        return found[id]

    for one in events:
        if one.task_id:
            mine = facts(one.task_id)
            mine.events, mine.bad_times = _with_sane_times(one, now_s)
    for run in runs:
        if run.task_id:
            mine = facts(run.task_id)
            times = (run.started_at_s, run.started_at_s + run.duration_s)
            sane = all(_sane(at_s, now_s) for at_s in times) and times[0] <= times[1]
            starts_at, ends_at = times if sane else (None, None)
            one_try = _Try(retries=run.retries, starts_at=starts_at, ends_at=ends_at, outcome=_of_run(run))
            mine.runs.append((one_try, run))
            mine.is_request = mine.is_request or run.kind == Kind.REQUEST
            mine.bad_times = mine.bad_times or not sane
    for failure in failures:
        mine = facts(failure.task_id or failure.id)
        sane = _sane(failure.at, now_s)
        one_try = _Try(retries=failure.retries, ends_at=failure.at if sane else None, outcome=str(failure.outcome))
        mine.failures.append((one_try, failure))
        mine.is_request = mine.is_request or failure.kind == Kind.REQUEST
        mine.bad_times = mine.bad_times or not sane
    for mine in found.values():
        mine.runs.sort(key=lambda pair: (pair[0].retries, pair[0].starts_at or 0.0))
        mine.failures.sort(key=lambda pair: (pair[0].retries, pair[0].ends_at or 0.0))
    return found


def _sane(at_s: float, now_s: float) -> bool:
    return math.isfinite(at_s) and now_s - OLDEST_S <= at_s <= now_s + AHEAD_S


def _with_sane_times(one: TaskEvents, now_s: float) -> tuple[TaskEvents, bool]:
    """The events without absurd times, and whether there were any."""
    times = {name: getattr(one, name) for name in ("sent_s", "received_s", "started_s", "ended_s")}
    bad = {name: None for name, at_s in times.items() if at_s is not None and not _sane(at_s, now_s)}
    return _of_one_try(replace(one, **bad)), bool(bad)


def _of_one_try(one: TaskEvents) -> TaskEvents:
    """Without the times of another try: a retry is sent and received before or after the state of the task changes."""
    since = [at_s for at_s in (one.sent_s, one.received_s) if at_s is not None]
    if one.started_s is None or not since or min(since) <= one.started_s:
        return one
    if one.state in {"RECEIVED", "PENDING"}:
        return replace(one, started_s=None)
    return replace(one, sent_s=None, received_s=None) if one.state == "RETRY" else one


def _row(facts: _Facts, first: str, now_s: float, samples: Mapping[str, Sequence[Sample]]) -> TimelineRow:
    events, tries = facts.events, [one for one, _ in (*facts.runs, *facts.failures)]
    run = facts.runs[-1][1] if facts.runs else None
    failure = facts.failures[-1][1] if facts.failures else None
    outcome = _outcome(facts)
    running = _running(facts)
    waiting, disagree = _waiting(events, running, outcome)
    parent, parent_known = _parent(facts, first)
    name = next((one.name for one in (run, failure, events) if one is not None and one.name), "")
    unknown = [
        *(["its name"] if not name else []),
        *(["its parent"] if not parent_known else []),
        *(["when it was sent"] if not facts.is_request and (events is None or events.sent_s is None) else []),
        *(["when it started"] if _start_is_unknown(running, outcome) else []),
        *(["when it ended"] if _end_is_unknown(running, outcome) else []),
        *(["times that are absurd, by a wrong clock or a forged event"] if facts.bad_times else []),
        *(["how long it waited, as the clocks of the hosts disagree"] if disagree else []),
    ]
    lengths = [one for span in running if (one := _length_s(span, outcome, now_s)) is not None]
    return TimelineRow(
        id=facts.id,
        kind=str(Kind.REQUEST if facts.is_request else Kind.TASK),
        name=name,
        parent=parent,
        outcome=outcome,
        worker=next((one.worker for one in (failure, events) if one is not None and one.worker), ""),
        queue=next((one.queue for one in (run, events) if one is not None and one.queue), ""),
        retries=max(one.retries for one in (*tries, events) if one is not None),
        spans=[*([waiting] if waiting else []), *running[-MOST_SPANS:]],
        spans_left_out=max(0, len(running) - MOST_SPANS),
        waiting_s=_length_s(waiting, outcome, now_s) if waiting else None,
        running_s=sum(lengths) if lengths else None,
        rss_bytes=_rss_bytes(run, samples) if run else None,
        kept_bytes=run.kept_bytes if run else None,
        failure=failure.id if failure else "",
        run=run.id if run else "",
        remembered=events is not None,
        unknown=unknown,
    )


def _rss_bytes(run: Run, samples: Mapping[str, Sequence[Sample]]) -> int | None:
    """The process's memory: at the run's end, or its most in a sample during the run, or in the first one after it."""
    if run.memory is not None:
        return run.memory.rss_bytes
    mine, ends_s = samples.get(run.process, ()), run.started_at_s + run.duration_s
    during: list[int] = []
    for one in islice(mine, bisect_left(mine, run.started_at_s, key=lambda sample: sample.at_s), None):
        if one.at_s > ends_s + SAMPLE_S or (during and one.at_s > ends_s):
            break
        during.append(one.memory.rss_bytes)
    return max(during, default=None)


def _length_s(span: Span, outcome: str, now_s: float) -> float | None:
    """The length of a span, so far if it goes on; None if it is unknown."""
    ends_at = now_s if span.ends_at is None and outcome == span.kind else span.ends_at
    return None if span.starts_at is None or ends_at is None else max(0.0, ends_at - span.starts_at)


def _outcome(facts: _Facts) -> str:
    """The outcome of the latest try; of one try, the latest."""
    known = [(one.retries, one.ends_at or 0.0, one.outcome) for one, _ in (*facts.runs, *facts.failures)]
    if (events := facts.events) is not None:
        at_s = events.ended_s or events.started_s or events.received_s or events.sent_s or 0.0
        state = _OUTCOMES.get(events.state, "running" if events.started_s else "unknown")
        known.append((events.retries, at_s, state))
    retries, _, outcome = max(known, default=(0, 0.0, "unknown"))
    if outcome == "failed":
        # Celery's state says less: a time limit and a killed process are failures too.
        return next((one.outcome for one, _ in reversed(facts.failures) if one.retries == retries), outcome)
    return outcome


def _of_run(run: Run) -> str:
    if run.kind == Kind.REQUEST:
        return "failed" if run.state.startswith("5") else "succeeded"
    return _OUTCOMES.get(run.state, "unknown")


def _running(facts: _Facts) -> list[Span]:
    """One span for each try, of the best source that knows it."""
    spans: list[Span] = []
    for one, _ in facts.runs:
        if one.starts_at is not None and not any(span.starts_at == one.starts_at for span in spans):
            spans.append(Span(kind="running", retries=one.retries, starts_at=one.starts_at, ends_at=one.ends_at))
    events = facts.events
    if events is not None and events.started_s is not None and all(span.retries != events.retries for span in spans):
        ended_s = events.ended_s if events.ended_s is not None and events.ended_s >= events.started_s else None
        spans.append(Span(kind="running", retries=events.retries, starts_at=events.started_s, ends_at=ended_s))
    for one, _ in facts.failures:
        if one.ends_at is not None and all(span.retries != one.retries for span in spans):
            spans.append(Span(kind="running", retries=one.retries, ends_at=one.ends_at))
    return [_with_end(span, facts) for span in sorted(spans, key=_place)]


def _with_end(span: Span, facts: _Facts) -> Span:
    """A killed run has no end in Celery's events, but its failure has."""
    if span.ends_at is not None or span.starts_at is None:
        return span
    ends = [one.ends_at for one, _ in facts.failures if one.retries == span.retries and one.ends_at is not None]
    return replace(span, ends_at=min((at_s for at_s in ends if at_s >= span.starts_at), default=None))


def _place(span: Span) -> float:
    return span.starts_at or span.ends_at or math.inf


def _waiting(events: TaskEvents | None, running: Sequence[Span], outcome: str) -> tuple[Span | None, bool]:
    """The time before the try that the events know, and whether the clocks of the hosts disagree on it."""
    if events is None:
        return None, False
    start_s = next((span.starts_at for span in running if span.retries == events.retries), None)
    since = [at_s for at_s in (events.sent_s, events.received_s) if at_s is not None]
    if not since:
        return None, False
    if start_s is None and outcome != "waiting":
        start_s = events.ended_s  # revoked or rejected before it started
        if start_s is None:
            return None, False
    if start_s is None:
        return Span(kind="waiting", retries=events.retries, starts_at=min(since)), False
    before = [at_s for at_s in since if at_s <= start_s]
    if not before:
        return None, True
    return Span(kind="waiting", retries=events.retries, starts_at=min(before), ends_at=start_s), False


def _start_is_unknown(running: Sequence[Span], outcome: str) -> bool:
    if not running:
        return outcome not in {"waiting", "revoked", "rejected"}
    return any(span.starts_at is None for span in running)


def _end_is_unknown(running: Sequence[Span], outcome: str) -> bool:
    ends = [span.ends_at for span in running]
    return outcome not in {"running", "waiting"} and None in ends


def _parent(facts: _Facts, first: str) -> tuple[str, bool]:
    """The parent's id, and whether it is known; the first row if not."""
    if facts.id == first:
        return "", True
    sources = [facts.events.parent_id] if facts.events else []
    sources += [failure.parent_id for _, failure in facts.failures]
    parent = next((one for one in sources if one), "")
    return (parent, True) if parent and parent != facts.id else (first, bool(sources) and parent != facts.id)


def _without_records(id: str, first: str, found: Mapping[str, _Facts]) -> TimelineRow:
    """A row of which only the id is known, as its children name it."""
    sent_by_a_request = id == first and all(one.events is None or one.events.root_id != id for one in found.values())
    kind = Kind.REQUEST if sent_by_a_request and len(id) == 16 else Kind.TASK
    return TimelineRow(
        id=id, kind=str(kind), parent="" if id == first else first, unknown=["everything but its place in the workflow"]
    )


# --- the order of the rows ------------------------------------------------------------------------------


def _in_order(rows: Mapping[str, TimelineRow], first: str) -> list[TimelineRow]:
    """All rows, children after their parent. Rows that claim to be each other's parents follow the first one."""
    below: dict[str, list[TimelineRow]] = defaultdict(list)
    for row in rows.values():
        if row.parent:
            below[row.parent].append(row)
    ordered: list[TimelineRow] = []
    seen: set[str] = set()
    rest = sorted(rows.values(), key=_begins)
    starts = [rows[first], *rest]
    for start in starts:
        ring = start.id not in seen and start.id != first
        waiting = [(start, 1 if ring else 0)]
        while waiting:
            row, depth = waiting.pop()
            if row.id in seen:
                continue
            seen.add(row.id)
            if ring and row is start:
                row = replace(row, parent=first, unknown=[*row.unknown, "its parent, as records contradict each other"])
            ordered.append(replace(row, depth=min(depth, MOST_DEPTH)))
            waiting.extend((child, depth + 1) for child in sorted(below[row.id], key=_begins, reverse=True))
    return ordered


def _begins(row: TimelineRow) -> tuple[float, str]:
    return (_place(row.spans[0]) if row.spans else math.inf, row.id)


def _selected(rows: Sequence[TimelineRow], most: int) -> list[TimelineRow]:
    """At most so many rows, in the same order: the first one, then those that have not succeeded, then the others."""
    if len(rows) <= most:
        return list(rows)
    ranked = sorted(range(1, len(rows)), key=lambda index: (rows[index].outcome in _LEAST, index))
    return [rows[index] for index in sorted([0, *ranked[: most - 1]])]


# --- chords ---------------------------------------------------------------------------------------------


def _together_by_group(chords: Iterable[Chord]) -> list[Chord]:
    """One of each group: that of its unlock task, which knows all members, or else the known members together."""
    found: dict[str, Chord] = {}
    for chord in sorted(chords, key=lambda chord: chord.at_s):
        known = found.get(chord.group)
        if known is None or (chord.unlock and not known.unlock):
            found[chord.group] = chord
        elif not known.unlock:
            members = list(dict.fromkeys([*known.members, *chord.members]))
            found[chord.group] = replace(known, members=members)
    return list(found.values())


def _chords(chords: Iterable[Chord], rows: Mapping[str, TimelineRow]) -> list[WaitingChord]:
    """The chords with a body that has not started."""
    known = _together_by_group(chords)
    unlocks = {chord.unlock for chord in known}
    others = [row.id for row in rows.values() if row.name == UNLOCK and row.id not in unlocks]
    # The unlock task of a chord that only its members have recorded so far.
    of_known = sum(not chord.unlock for chord in known)
    known += [Chord(group="", unlock=id, at_s=0.0) for id in others[of_known:]]
    found = [_chord(chord, rows) for chord in known]
    return [chord for chord in found if chord is not None]


def _chord(chord: Chord, rows: Mapping[str, TimelineRow]) -> WaitingChord | None:
    """
    A chord that waits; None if its body has been sent.

    If a member fails, the unlock task succeeds, and the body gets its error without being sent.
    """
    if chord.body_id in rows and rows[chord.body_id].outcome != "unknown":
        return None
    members = [rows.get(id, TimelineRow(id=id)) for id in chord.members]
    missing = [row for row in members if row.outcome != "succeeded"]
    blocked = any(row.outcome in _ENDED_BADLY for row in missing)
    over = chord.unlock in rows and rows[chord.unlock].outcome == "succeeded"
    if (over and not blocked) or not (chord.unlock or missing):
        return None
    return WaitingChord(
        unlock=chord.unlock,
        body=chord.body,
        members=len(members),
        missing=[ChordMember(id=row.id, name=row.name, outcome=row.outcome) for row in missing],
        complete=chord.complete,
        blocked=blocked,
    )
