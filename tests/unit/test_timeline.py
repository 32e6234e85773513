"""The rows of a workflow's timeline, from sources that are incomplete, contradictory or forged."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from celery_trace.model import UNLOCK, Chord, FailureSummary, Kind, MemoryState, Outcome, Run, Sample
from celery_trace.model.timelines import Span, TaskEvents, Timeline, TimelineRow
from celery_trace.timeline import MOST_ROWS, build

NOW_S = 1_900_000_000.0
ROOT = "root"


def events(task_id: str, state: str = "SUCCESS", parent_id: str = ROOT, **more: object) -> TaskEvents:
    values: dict[str, object] = {
        "name": f"shop.{task_id}", "sent_s": NOW_S - 100, "received_s": NOW_S - 99, "started_s": NOW_S - 90,
        "ended_s": NOW_S - 80 if state not in {"STARTED", "RECEIVED", "PENDING"} else None,
    }  # fmt: skip
    if state in {"RECEIVED", "PENDING"}:
        values["started_s"] = None
    parent_id = "" if task_id == ROOT else parent_id
    return TaskEvents(task_id=task_id, state=state, root_id=ROOT, parent_id=parent_id, **{**values, **more})  # type: ignore[arg-type]


def run(task_id: str, started_s: float, duration_s: float = 1.0, **more: object) -> Run:
    values: dict[str, object] = {"id": f"run-{task_id}-{started_s}", "state": "SUCCESS", "kind": Kind.TASK, **more}
    return Run(
        process="p", name=f"shop.{task_id}", task_id=task_id, root_id=ROOT, started_at_s=started_s,
        duration_s=duration_s, **values,
    )  # type: ignore[arg-type] # fmt: skip


def failure(
    task_id: str, at_s: float, outcome: Outcome = Outcome.FAILED, *, retries: int = 0, parent_id: str = ROOT
) -> FailureSummary:
    return FailureSummary(
        id=f"failure-{task_id}-{retries}", kind="task", name=f"shop.{task_id}", task_id=task_id, retries=retries,
        outcome=outcome, exception=None, fingerprint="f", count=1, worker="w@h", pid=1, hostname="h", at=at_s,
        live=False, root_id=ROOT, parent_id=parent_id,
    )  # fmt: skip


def row(found: Timeline, id: str) -> TimelineRow:
    (one,) = [one for one in found.rows if one.id == id]
    return one


def test_a_task_waits_from_when_it_was_sent_until_it_starts() -> None:
    one = row(build(ROOT, events=[events(ROOT)], now_s=NOW_S), ROOT)
    assert one.spans == [
        Span(kind="waiting", starts_at=NOW_S - 100, ends_at=NOW_S - 90),
        Span(kind="running", starts_at=NOW_S - 90, ends_at=NOW_S - 80),
    ]
    assert (one.outcome, one.waiting_s, one.running_s, one.unknown) == ("succeeded", 10.0, 10.0, [])


def test_without_the_event_of_the_client_it_waits_from_its_receipt_and_the_row_says_so() -> None:
    one = row(build(ROOT, events=[events(ROOT, sent_s=None)], now_s=NOW_S), ROOT)
    assert one.waiting_s == 9.0
    assert one.unknown == ["when it was sent"]


def test_what_waits_or_runs_has_no_end_and_the_timeline_ends_now() -> None:
    found = build(ROOT, events=[events(ROOT, "STARTED"), events("a", "RECEIVED")], now_s=NOW_S)
    assert row(found, ROOT).spans[-1] == Span(kind="running", starts_at=NOW_S - 90)
    assert row(found, "a").spans == [Span(kind="waiting", starts_at=NOW_S - 100)]
    assert (row(found, ROOT).outcome, row(found, "a").outcome) == ("running", "waiting")
    assert (found.begins_at, found.ends_at) == (NOW_S - 100, NOW_S)
    assert row(found, ROOT).unknown == row(found, "a").unknown == []
    assert (row(found, ROOT).running_s, row(found, "a").waiting_s) == (90.0, 100.0)  # so far


def test_each_try_has_its_span_and_the_outcome_is_that_of_the_last() -> None:
    found = build(
        ROOT,
        runs=[run(ROOT, NOW_S - 50, retries=1), run(ROOT, NOW_S - 70, state="RETRY")],
        failures=[failure(ROOT, NOW_S - 69, Outcome.RETRIED, parent_id="")],
        events=[
            events(ROOT, retries=1, sent_s=NOW_S - 60, received_s=NOW_S - 59, started_s=NOW_S - 50, ended_s=NOW_S - 49)
        ],
        now_s=NOW_S,
    )
    one = row(found, ROOT)
    assert [(span.kind, span.retries, span.starts_at) for span in one.spans] == [
        ("waiting", 1, NOW_S - 60), ("running", 0, NOW_S - 70), ("running", 1, NOW_S - 50),
    ]  # fmt: skip
    assert (one.outcome, one.retries, one.running_s) == ("succeeded", 1, 2.0)
    assert one.failure == f"failure-{ROOT}-0"


@pytest.mark.parametrize("outcome", [Outcome.TIME_LIMIT, Outcome.LOST, Outcome.FAILED])
def test_a_failure_says_more_than_celerys_state(outcome: Outcome) -> None:
    found = build(
        ROOT, events=[events(ROOT, "FAILURE", ended_s=NOW_S - 79)],
        failures=[failure(ROOT, NOW_S - 80, outcome, parent_id="")], now_s=NOW_S,
    )  # fmt: skip
    assert row(found, ROOT).outcome == outcome


def test_a_killed_run_that_is_redelivered_runs_again() -> None:
    killed = failure(ROOT, NOW_S - 95, Outcome.LOST, parent_id="")
    assert row(build(ROOT, events=[events(ROOT, "STARTED")], failures=[killed], now_s=NOW_S), ROOT).outcome == "running"
    killed = failure(ROOT, NOW_S - 85, Outcome.LOST, parent_id="")
    one = row(build(ROOT, events=[events(ROOT, "STARTED")], failures=[killed], now_s=NOW_S), ROOT)
    assert (one.outcome, one.running_s) == ("lost", 5.0)


def test_a_failure_alone_has_an_end_and_no_start() -> None:
    one = row(build(ROOT, failures=[failure("a", NOW_S - 5)], now_s=NOW_S), "a")
    assert one.spans == [Span(kind="running", ends_at=NOW_S - 5)]
    assert one.running_s is None
    assert one.unknown == ["when it was sent", "when it started"]


def test_a_run_alone_does_not_know_its_parent() -> None:
    one = row(build(ROOT, runs=[run("a", NOW_S - 5, memory=MemoryState(rss_bytes=7), kept_bytes=3)], now_s=NOW_S), "a")
    assert (one.parent, one.rss_bytes, one.kept_bytes) == (ROOT, 7, 3)
    assert one.unknown == ["its parent", "when it was sent"]


def test_the_memory_of_a_run_is_that_of_its_process_in_a_sample_during_or_soon_after_it() -> None:
    def memory(*samples: tuple[float, int], process: str = "p") -> int | None:
        found = [Sample(process=process, at_s=at_s, memory=MemoryState(rss_bytes=rss)) for at_s, rss in samples]
        return row(build(ROOT, runs=[run(ROOT, NOW_S - 50, 20.0)], samples=found, now_s=NOW_S), ROOT).rss_bytes

    assert memory((NOW_S - 51, 1), (NOW_S - 45, 3), (NOW_S - 40, 2), (NOW_S - 25, 9)) == 3
    assert memory((NOW_S - 51, 1), (NOW_S - 29, 4), (NOW_S - 25, 9)) == 4
    assert memory((NOW_S - 51, 1), (NOW_S - 5, 9)) is None
    assert memory((NOW_S - 40, 2), process="another") is None


def test_records_of_one_id_are_one_row() -> None:
    twice = [run("a", NOW_S - 5), run("a", NOW_S - 5), run("a", NOW_S - 4, 0.5)]
    found = build(ROOT, events=[events(ROOT), events("a"), events("a")], runs=twice, now_s=NOW_S)
    assert [one.id for one in found.rows] == [ROOT, "a"]
    assert [span.starts_at for span in row(found, "a").spans if span.kind == "running"] == [NOW_S - 5, NOW_S - 4]


def test_a_missing_parent_has_a_row_that_says_what_is_unknown() -> None:
    found = build(ROOT, events=[events("a", parent_id="gone")], now_s=NOW_S)
    assert [(one.id, one.depth, one.outcome) for one in found.rows] == [
        (ROOT, 0, "unknown"), ("gone", 1, "unknown"), ("a", 2, "succeeded"),
    ]  # fmt: skip
    assert row(found, "gone").unknown == ["everything but its place in the workflow"]


def test_a_request_is_above_the_root_that_celery_knows() -> None:
    request = "0123456789abcdef"
    found = build(ROOT, events=[events(ROOT), events("a")], now_s=NOW_S, first=request)
    assert [(one.id, one.kind, one.depth) for one in found.rows] == [
        (request, "request", 0), (ROOT, "task", 1), ("a", "task", 2),
    ]  # fmt: skip
    web = run(request, NOW_S - 101, kind=Kind.REQUEST, state="200")
    found = build(ROOT, events=[events(ROOT)], runs=[web], now_s=NOW_S, first=request)
    assert (found.rows[0].outcome, found.rows[0].unknown) == ("succeeded", [])


def test_rings_of_parents_end_and_lose_no_row() -> None:
    ring = [events("a", parent_id="b"), events("b", parent_id="a"), events("c", parent_id="c")]
    found = build(ROOT, events=[*ring, events(ROOT)], now_s=NOW_S)
    assert sorted(one.id for one in found.rows) == ["a", "b", "c", ROOT]
    assert row(found, "a").unknown == ["its parent, as records contradict each other"]
    assert (row(found, "a").depth, row(found, "b").depth, row(found, "c").depth) == (1, 2, 1)
    assert row(found, "c").unknown == ["its parent"]


def test_a_root_that_claims_a_parent_has_none() -> None:
    found = build(ROOT, events=[TaskEvents(task_id=ROOT, parent_id="a"), events("a")], now_s=NOW_S)
    assert [(one.id, one.depth) for one in found.rows] == [(ROOT, 0), ("a", 1)]


@pytest.mark.parametrize("at_s", [1.0, -5.0, float("nan"), float("inf"), NOW_S + 86_000])
def test_absurd_times_stretch_no_timeline_and_are_named(at_s: float) -> None:
    forged = events("a", sent_s=at_s, received_s=at_s, started_s=at_s, ended_s=at_s)
    found = build(
        ROOT, events=[events(ROOT), forged], runs=[run("b", at_s)], failures=[failure("c", at_s)], now_s=NOW_S
    )
    assert (found.begins_at, found.ends_at) == (NOW_S - 100, NOW_S - 80)
    for id in "abc":
        assert any("absurd" in text for text in row(found, id).unknown), id
        assert row(found, id).spans == []


def test_a_start_before_the_message_was_sent_is_no_negative_wait() -> None:
    one = row(build(ROOT, events=[events(ROOT, sent_s=NOW_S - 70, received_s=NOW_S - 70)], now_s=NOW_S), ROOT)
    assert (one.waiting_s, [span.kind for span in one.spans]) == (None, ["running"])
    assert one.unknown == ["how long it waited, as the clocks of the hosts disagree"]
    ended_before = row(build(ROOT, events=[events(ROOT, ended_s=NOW_S - 95)], now_s=NOW_S), ROOT)
    assert ended_before.running_s is None
    assert ended_before.unknown == ["when it ended"]


def test_a_task_that_was_revoked_before_it_started_waited_until_then() -> None:
    one = row(build(ROOT, events=[events(ROOT, "REVOKED", started_s=None)], now_s=NOW_S), ROOT)
    assert (one.outcome, one.waiting_s, one.unknown) == ("revoked", 20.0, [])


def test_ten_thousand_tasks_are_counted_and_the_ones_that_did_not_succeed_are_shown() -> None:
    chain = [events("0")] + [events(str(number), parent_id=str(number - 1)) for number in range(1, 9_990)]
    failed = [events(f"x{number}", "FAILURE", parent_id=str(number * 999)) for number in range(10)]
    began_s = time.process_time()
    found = build(ROOT, events=[*chain, *failed], now_s=NOW_S)
    assert time.process_time() - began_s < 5
    assert (len(found.rows), found.more) == (MOST_ROWS, 10_001 - MOST_ROWS)
    assert found.outcomes == {"succeeded": 9_990, "failed": 10, "unknown": 1}
    assert found.rows[0].id == ROOT
    assert {one.id for one in found.rows if one.outcome == "failed"} == {f"x{number}" for number in range(10)}


def test_nothing_is_known_of_an_unknown_id() -> None:
    assert build(ROOT, now_s=NOW_S).rows == []


# --- chords ---------------------------------------------------------------------------------------------

A, B, BODY = (f"{number:08d}-0000-4000-8000-000000000000" for number in range(3))


KNOWN = Chord(group="g", at_s=NOW_S, unlock="unlock", body="shop.total", body_id=BODY, members=[A, B], complete=True)


def chord(unlock: str, *members: TaskEvents, chords: Sequence[Chord] = (KNOWN,)) -> Timeline:
    waits = events("unlock", unlock, name=UNLOCK)
    return build(ROOT, events=[events(ROOT), waits, *members], chords=chords, now_s=NOW_S)


def test_a_chord_names_the_members_that_its_body_waits_for() -> None:
    (waiting,) = chord("RETRY", events(A), events(B, "STARTED")).chords
    assert (waiting.body, waiting.members, waiting.complete, waiting.blocked) == ("shop.total", 2, True, False)
    assert [(one.id, one.name, one.outcome) for one in waiting.missing] == [(B, f"shop.{B}", "running")]


def test_a_member_that_is_in_no_source_is_missing_too() -> None:
    (waiting,) = chord("RETRY", events(A)).chords
    assert [(one.id, one.outcome) for one in waiting.missing] == [(B, "unknown")]


def test_a_failed_member_means_that_the_body_will_not_run_also_after_the_unlock_task_has_succeeded() -> None:
    for unlock in ("RETRY", "SUCCESS"):
        (waiting,) = chord(unlock, events(A), events(B, "FAILURE")).chords
        assert waiting.blocked


def test_a_chord_with_a_body_that_was_sent_waits_for_nothing() -> None:
    assert chord("SUCCESS", events(A), events(B)).chords == []
    assert chord("RETRY", events(A), events(B), events(BODY, "RECEIVED")).chords == []


def test_a_list_of_members_that_was_cut_is_called_incomplete() -> None:
    (waiting,) = chord("RETRY", events(A), chords=[replace(KNOWN, members=[A], complete=False)]).chords
    assert (waiting.members, waiting.missing, waiting.complete) == (1, [], False)


def counted(*members: str) -> list[Chord]:
    return [replace(KNOWN, unlock="", members=[member], complete=False) for member in members]


def test_a_chord_that_its_backend_counts_waits_for_the_members_that_last_or_have_failed() -> None:
    members = [events(A, "STARTED"), events(B, "FAILURE")]
    (waiting,) = build(ROOT, events=[events(ROOT), *members], chords=counted(A, B), now_s=NOW_S).chords
    assert (waiting.unlock, waiting.body, waiting.complete, waiting.blocked) == ("", "shop.total", False, True)
    assert [(one.id, one.outcome) for one in waiting.missing] == [(A, "running"), (B, "failed")]
    assert build(ROOT, events=[events(ROOT), events(A), events(B)], chords=counted(A, B), now_s=NOW_S).chords == []


def test_a_chord_is_shown_once_if_both_its_unlock_task_and_its_members_are_known() -> None:
    (waiting,) = chord("RETRY", events(A), events(B, "STARTED"), chords=[*counted(B), KNOWN, *counted(A)]).chords
    assert (waiting.unlock, waiting.members, waiting.complete) == ("unlock", 2, True)


def test_an_unlock_task_is_that_of_the_chord_that_only_its_members_have_recorded() -> None:
    (waiting,) = chord("RETRY", events(A), events(B, "STARTED"), chords=counted(B)).chords
    assert (waiting.body, [one.id for one in waiting.missing]) == ("shop.total", [B])


def test_an_unlock_task_without_a_record_waits_for_unknown_members() -> None:
    found = build(ROOT, events=[events(ROOT), events("unlock", "RETRY", name=UNLOCK)], now_s=NOW_S)
    (waiting,) = found.chords
    assert (waiting.body, waiting.members, waiting.complete) == ("", 0, False)


def test_a_task_that_is_retried_for_hours_has_its_latest_runs() -> None:
    many = [failure(ROOT, NOW_S - 500 + number, Outcome.RETRIED, retries=number, parent_id="") for number in range(300)]
    one = row(build(ROOT, failures=many, now_s=NOW_S), ROOT)
    assert (len(one.spans), one.spans_left_out, one.retries) == (20, 280, 299)
    assert one.spans[-1].ends_at == NOW_S - 201


@pytest.mark.parametrize("state", ["RETRY", "RECEIVED"])
def test_the_times_of_a_retry_are_not_those_of_the_try_before(state: str) -> None:
    again = events(ROOT, state, sent_s=NOW_S - 80, received_s=NOW_S - 79, started_s=NOW_S - 90, ended_s=NOW_S - 80)
    one = row(build(ROOT, events=[again], now_s=NOW_S), ROOT)
    if state == "RETRY":
        assert [(span.kind, span.starts_at) for span in one.spans] == [("running", NOW_S - 90)]
        assert (one.outcome, one.unknown) == ("retried", ["when it was sent"])
    else:
        assert [(span.kind, span.starts_at) for span in one.spans] == [("waiting", NOW_S - 80)]
        assert (one.outcome, one.unknown) == ("waiting", [])


# --- anything -------------------------------------------------------------------------------------------

_IDS = st.sampled_from(["", ROOT, "a", "b", "c"])
_TIMES = st.one_of(st.none(), st.floats(), st.floats(NOW_S - 1e6, NOW_S))
_EVENTS = st.builds(
    TaskEvents, task_id=_IDS, name=st.sampled_from(["", UNLOCK, "x"]), parent_id=_IDS, retries=st.integers(0, 3),
    state=st.sampled_from(["PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "PROGRESS", ""]),
    sent_s=_TIMES, received_s=_TIMES, started_s=_TIMES, ended_s=_TIMES,
)  # fmt: skip
_RUNS = st.builds(run, st.sampled_from(["", ROOT, "a"]), st.floats(), st.floats(), retries=st.integers(0, 3))
_FAILURES = st.builds(
    failure, _IDS, st.floats(), st.sampled_from(Outcome), retries=st.integers(0, 3), parent_id=_IDS
)  # fmt: skip


@given(st.lists(_EVENTS, max_size=8), st.lists(_RUNS, max_size=5), st.lists(_FAILURES, max_size=5))
def test_whatever_the_sources_say_each_id_has_one_row_and_no_span_is_negative(
    some_events: list[TaskEvents], some_runs: list[Run], some_failures: list[FailureSummary]
) -> None:
    found = build(ROOT, events=some_events, runs=some_runs, failures=some_failures, now_s=NOW_S)
    ids = [one.id for one in found.rows]
    assert len(ids) == len(set(ids))
    assert {one.task_id for one in some_events if one.task_id} <= set(ids)
    for one in found.rows:
        for span in one.spans:
            for at_s in (span.starts_at, span.ends_at):
                assert at_s is None or found.begins_at <= at_s <= found.ends_at  # type: ignore[operator]
            assert span.starts_at is None or span.ends_at is None or span.starts_at <= span.ends_at
        assert one.waiting_s is None or one.waiting_s >= 0
        assert one.running_s is None or one.running_s >= 0
