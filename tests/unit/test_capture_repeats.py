"""The same failure again and again: the first ones in full, the rest in brief, none left out."""

import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.clock import FakeClock
from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.failures.repeats import CREDIT_S, FULL_A_MINUTE, Repeats
from celery_trace.failures.watcher import FailureWatcher
from celery_trace.failures.writer import FailureWriter
from celery_trace.model import Kind, ProcessRecord, Role
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits, Settings

REDACTOR = Redactor()


def pay(order, password):
    total = order * 2
    try:
        raise LookupError(f"no card of {order}")
    except LookupError as error:
        raise ValueError(f"can't pay {total} with {password}") from error


def fail(order, password="open sesame"):
    try:
        pay(order, password)
    except ValueError as error:
        return error


def raised_by(function, *args):
    with pytest.raises(ValueError) as caught:
        function(*args)
    return caught.value


def captured(repeats, error, order=1, password="open sesame"):
    return capture_exception(
        error,
        limits=Limits(),
        redactor=REDACTOR,
        arguments=Arguments((order, password), {}, ("order", "password")),
        repeats=repeats,
    )


class Now:
    def __init__(self):
        self.s = 0.0

    def __call__(self):
        return self.s


@pytest.fixture
def now():
    return Now()


def test_the_first_of_a_failure_are_in_full_and_the_rest_in_brief(now):
    repeats = Repeats(0.0, now)
    captures = [captured(repeats, fail(order), order) for order in range(FULL_A_MINUTE + 3)]
    assert [bool(capture.brief) for capture in captures] == [False] * FULL_A_MINUTE + [True] * 3
    assert repeats.brief == 3
    full, brief = captures[0], captures[-1]
    assert f"{FULL_A_MINUTE} of the last minute" in brief.brief
    assert [link.message for link in brief.exceptions] == [
        f"can't pay {2 * (FULL_A_MINUTE + 2)} with [redacted]",
        f"no card of {FULL_A_MINUTE + 2}",
    ], "what was said is this one's own"
    places = [
        [(frame.file, frame.line, frame.qualname, frame.code, frame.columns) for frame in link.frames]
        for link in full.exceptions
    ]
    assert places == [
        [(frame.file, frame.line, frame.qualname, frame.code, frame.columns) for frame in link.frames]
        for link in brief.exceptions
    ]
    assert all("repeats" in frame.note for frame in brief.exceptions[0].frames)
    assert brief.heap[brief.heap[brief.args].items[0]].value == FULL_A_MINUTE + 2
    assert brief.cut_values >= sum(len(frame.locals) for link in full.exceptions for frame in link.frames)
    assert fingerprint("task", "t", full, None) == fingerprint("task", "t", brief, None)
    assert len(msgspec.json.encode(brief)) < 0.7 * len(msgspec.json.encode(full))
    assert b"open sesame" not in msgspec.json.encode(captures)


def test_what_differs_is_captured_in_full_however_much_else_fails(now):
    repeats = Repeats(0.0, now)
    for order in range(FULL_A_MINUTE + 1):
        last = captured(repeats, fail(order))
    assert last.brief
    try:
        raise ValueError("elsewhere")
    except ValueError as error:
        elsewhere = error
    assert not captured(repeats, elsewhere).brief
    assert not captured(repeats, fail(1, 2).__cause__).brief, "the cause alone is another failure"


def test_a_failure_whose_locals_hold_a_secret_is_always_in_full(now):
    def log_in(user):
        settings = {"password": "open sesame"}
        raise ValueError(f"no {user} with {settings['password']}")

    repeats = Repeats(0.0, now)
    for _ in range(FULL_A_MINUTE + 3):
        capture = captured(repeats, raised_by(log_in, "ada"), password=None)
        assert not capture.brief
        assert capture.exceptions[0].message == "no ada with [redacted]"


def test_each_minute_has_some_in_full(now):
    repeats = Repeats(0.0, now)
    for _ in range(3):
        briefs = [bool(captured(repeats, fail(1)).brief) for _ in range(FULL_A_MINUTE + 2)]
        assert briefs == [False] * FULL_A_MINUTE + [True] * 2
        now.s += 61


def test_repeats_are_in_full_while_the_budget_lasts(now):
    repeats = Repeats(0.1, now)
    error = fail(1)
    for _ in range(FULL_A_MINUTE):
        captured(repeats, error)
    assert not captured(repeats, error).brief, "the credit of the beginning is not spent"
    spend(repeats, error)
    assert captured(repeats, error).brief
    now.s += 2 * CREDIT_S / 0.1 + 1
    assert not captured(repeats, error).brief


def test_what_else_a_failure_in_full_takes_is_charged_too(now):
    repeats = Repeats(0.1, now)
    error = fail(1)
    for _ in range(FULL_A_MINUTE + 1):
        assert not captured(repeats, error).brief
    repeats.charge(2 * CREDIT_S)
    assert captured(repeats, error).brief


def spend(repeats, error):
    """As if capturing had taken long."""
    from celery_trace.failures.capture.exceptions import traceback_of, tree_of
    from celery_trace.failures.repeats import identity_of

    repeats.captured(identity_of(tree_of(error), traceback_of), [], 10.0)


def test_a_budget_of_one_captures_all_in_full(now):
    repeats = Repeats(1.0, now)
    assert not any(captured(repeats, fail(1)).brief for _ in range(50))
    assert repeats.brief == 0


def test_what_is_remembered_is_bounded_and_keeps_no_frame_alive(now):
    repeats = Repeats(0.0, now)
    for number in range(200):
        code = compile("raise ValueError", f"<{number}>", "exec")
        try:
            exec(code)
        except ValueError as error:
            captured(repeats, error)
    assert len(repeats._known) <= 64
    error = fail(1)
    before = sys.getrefcount(error)
    captured(repeats, error)
    assert sys.getrefcount(error) == before


def test_a_task_that_fails_over_and_over_is_recorded_each_time_and_the_account_says_how_many_in_brief():
    records = []
    process = ProcessRecord(uid="u", host="h", pid=1, started_at_s=0.0, role=Role.CHILD)
    kept = []
    settings, clock = Settings(capture_budget=0.0), FakeClock()
    writer = FailureWriter(settings, process, records.append, clock, keep=lambda failure, _: kept.append(failure))
    watcher = FailureWatcher(settings, process, writer, clock)
    assert watcher.counters == {}
    for number in range(FULL_A_MINUTE + 4):
        watcher.failure(task_id=f"t{number}", exception=fail(number, None), args=(number,), kwargs={})
    assert len({record.id for record in records}) == FULL_A_MINUTE + 4
    assert {record.fingerprint for record in records} == {records[0].fingerprint}
    assert {record.kind for record in records} == {Kind.TASK}
    assert [record.note.startswith("in brief") for record in records] == [False] * FULL_A_MINUTE + [True] * 4
    assert watcher.counters == {"cut:captures": 4}
    assert kept == records[:FULL_A_MINUTE], "those in brief would drive out those whose locals were captured"


TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(["hunter2", "api_key=abcdefgh", "name", "value", "password"]))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.text(min_size=1000, max_size=1100))
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=2))


def shown(capture):
    """What a reader sees of a capture's arguments and words."""

    def told(ref):
        node = capture.heap[ref]
        items = [told(item) for item in node.items]
        return node.type, node.kind, repr(node.value), items, node.length, node.cut

    return told(capture.args), told(capture.kwargs), [one.message for one in capture.exceptions]


@given(st.lists(VALUES, max_size=4), st.dictionaries(TEXTS, VALUES, max_size=3), TEXTS, st.booleans())
def test_a_capture_in_brief_has_the_words_and_arguments_of_one_in_full(args, kwargs, message, as_list):
    def stop():
        raise ValueError(message)

    repeats = Repeats(0.0, Now())
    arguments = Arguments(args if as_list else tuple(args), kwargs, ("order", "password"))
    for _ in range(FULL_A_MINUTE + 1):
        error = raised_by(stop)
        capture_exception(error, limits=Limits(), redactor=REDACTOR, repeats=repeats)
    brief = capture_exception(error, limits=Limits(), redactor=REDACTOR, arguments=arguments, repeats=repeats)
    assert brief.brief
    full = capture_exception(error, limits=Limits(), redactor=REDACTOR, arguments=arguments)
    assert shown(brief) == shown(full)
    assert len(msgspec.json.encode(brief)) <= Limits().bytes
    assert len(msgspec.json.encode((brief.exceptions, brief.heap))) <= brief.bytes + 64
