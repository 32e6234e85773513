"""Several witnesses, one record: whatever the order, and however often each is heard."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.failures.merge import _GROUPS, MOST_KILLS, merge
from celery_trace.model import (
    Capture,
    CapturedException,
    ExceptionInfo,
    Failure,
    Frame,
    Kill,
    Kind,
    LastSample,
    Line,
    MemoryState,
    Node,
    Outcome,
    TaskContext,
)

FRAMES = Capture(
    exceptions=[
        CapturedException(
            type="SystemExit", module="builtins", message="", frames=[Frame(file="a.py", line=1, function="f")]
        )
    ]
)
ARGUMENTS = Capture(heap=[Node("tuple", "tuple")], args=0)


def seen(witness, outcome, exception=None, **more):
    info = ExceptionInfo(exception, "m", "text") if exception else None
    fields = {"process": f"{witness}-uid", "at_s": 10.0, "fingerprint": f"{outcome}-{exception}"}
    return Failure(
        id="f",
        kind=Kind.TASK,
        name="n",
        task_id="t",
        witness=witness,
        outcome=outcome,
        exception=info,
        **(fields | more),
    )


CHILD = seen("child", Outcome.LOST, "SystemExit", capture=FRAMES, pid=7, memory=MemoryState(rss_bytes=5))
BOX = seen("box", Outcome.LOST, last_sample=LastSample(at_s=9.0, age_s=0.1, stack=[Line("a.py", 1, "f")]), pid=7)
CASES = {
    "hard time limit": (
        [CHILD, seen("main", Outcome.TIME_LIMIT, "TimeLimitExceeded", capture=ARGUMENTS)],
        "time_limit",
        "TimeLimitExceeded",
    ),
    "revoked": ([CHILD, seen("main", Outcome.REVOKED, "TaskRevokedError")], "revoked", "TaskRevokedError"),
    "sys.exit": ([CHILD, seen("main", Outcome.LOST, "WorkerLostError")], "lost", "SystemExit"),
    "killed": ([BOX, seen("main", Outcome.LOST, "WorkerLostError", capture=ARGUMENTS)], "lost", "WorkerLostError"),
    "time limit and box": (
        [CHILD, BOX, seen("main", Outcome.TIME_LIMIT, "TimeLimitExceeded")],
        "time_limit",
        "TimeLimitExceeded",
    ),
    "on_failure raises": (
        [
            seen("child", Outcome.INTERNAL_ERROR, "ValueError", capture=FRAMES),
            seen("main", Outcome.FAILED, "ValueError"),
        ],
        "internal_error",
        "ValueError",
    ),
    "failed, then killed in postrun": (
        [seen("child", Outcome.FAILED, "ValueError", capture=FRAMES), BOX],
        "failed",
        "ValueError",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_settles_the_same_in_any_order_and_when_heard_twice(case):
    witnesses, outcome, exception = CASES[case]
    settled = set()
    for order in itertools.permutations([*witnesses, witnesses[0]]):
        merged = order[0]
        for other in order[1:]:
            merged = merge(merged, other)
        settled.add(repr(merged))
        assert merged.outcome == outcome
        assert merged.exception.type == exception
    assert len(settled) == 1
    if CHILD in witnesses:
        assert merged.capture == FRAMES
        assert (merged.witness, merged.process, merged.pid) == ("child", "child-uid", 7)
    if BOX in witnesses:
        assert merged.last_sample == BOX.last_sample
    if case == "killed":
        assert merged.capture == ARGUMENTS


def killed(pid, at_s, witness="box", process="worker-uid"):
    return seen(witness, Outcome.LOST, at_s=at_s, kills=[Kill(at_s=at_s, pid=pid, process=process)])


def test_each_kill_of_a_message_counts_once_however_many_saw_it():
    seen_by_all = [
        killed(7, 10.0),
        killed(7, 10.4, "main"),
        killed(8, 20.0),
        killed(7, 30.0, process="after a restart"),
    ]
    for order in itertools.permutations(seen_by_all):
        merged = order[0]
        for other in order[1:]:
            merged = merge(merged, other)
        assert [(kill.pid, kill.at_s) for kill in merged.kills] == [(7, 10.0), (8, 20.0), (7, 30.0)]
        assert merged.at_s == 30.0, "a message that still kills is news"


def test_a_message_that_kills_for_ever_keeps_a_bounded_record():
    merged = killed(1, 1.0)
    for number in range(2, MOST_KILLS + 50):
        merged = merge(merged, killed(number, float(number)))
    assert len(merged.kills) == MOST_KILLS
    assert merged.kills[-1].pid == MOST_KILLS + 49


def test_the_group_goes_with_the_outcome():
    main = seen("main", Outcome.TIME_LIMIT, "TimeLimitExceeded")
    assert merge(CHILD, main).fingerprint == main.fingerprint


def test_each_field_is_merged_by_one_rule():
    merged = ["id", "at_s", "kills", "duration_s", *(name for names, _ in _GROUPS for name in names)]
    assert sorted(merged) == sorted(Failure.__struct_fields__)


def test_failures_of_different_runs_are_not_merged():
    with pytest.raises(ValueError, match="different runs"):
        merge(CHILD, Failure(id="g", process="p", kind=Kind.TASK, name="n", outcome=Outcome.FAILED, at_s=1.0))


_texts = st.sampled_from(["", "a", "b"])
FAILURES = st.builds(
    Failure,
    id=st.just("f"),
    process=_texts,
    kind=st.sampled_from(Kind),
    name=_texts,
    task_id=_texts,
    retries=st.integers(0, 1),
    outcome=st.sampled_from(Outcome),
    witness=st.sampled_from(["child", "main", "box", "web", "block", "other"]),
    exception=st.none()
    | st.builds(ExceptionInfo, st.sampled_from(["ValueError", "SystemExit", "WorkerLostError"]), _texts, _texts),
    traceback_text=_texts,
    fingerprint=_texts,
    worker=_texts,
    pid=st.integers(0, 2),
    hostname=_texts,
    at_s=st.sampled_from([1.0, 2.0]),
    duration_s=st.none() | st.sampled_from([0.5, 1.5]),
    capture=st.sampled_from([None, Capture(), FRAMES, ARGUMENTS]),
    task=st.none() | st.builds(TaskContext, queue=_texts),
    memory=st.none() | st.builds(MemoryState, rss_bytes=st.integers(0, 2)),
    last_sample=st.none() | st.builds(LastSample, at_s=st.sampled_from([1.0, 2.0]), age_s=st.just(0.1)),
    note=_texts,
    kills=st.lists(
        st.builds(Kill, at_s=st.sampled_from([1.0, 2.0]), pid=st.integers(1, 2), process=_texts, worker=_texts),
        max_size=1,
    ),
)


@given(FAILURES, FAILURES, FAILURES)
def test_merging_is_commutative_associative_and_idempotent(first, second, third):
    assert merge(first, second) == merge(second, first)
    assert merge(merge(first, second), third) == merge(first, merge(second, third))
    assert merge(first, first) == first
    assert merge(merge(first, second), second) == merge(first, second)
