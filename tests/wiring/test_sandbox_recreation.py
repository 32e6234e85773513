"""The recreated shell: what comes back as what."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest

from celery_trace.failures.capture import capture_exception
from celery_trace.model import ExceptionInfo, Failure, Frame, Node, RequestContext, TaskContext
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits
from celery_trace.shell.sandbox import recreated
from celery_trace.shell.sandbox.recreated import RecreatedSession, open_session
from celery_trace.shell.sandbox.recreation import recreated_trace
from celery_trace.shell.session import CODE_LIMIT, SessionGone, ShellError
from tests.support.shells import SEED, Said, answer, captured, caught, create_error, failure, outer, say
from tests.support.waiting import wait_until

NOON = datetime.datetime(2024, 2, 3, 12, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def shared() -> Iterator[RecreatedSession]:
    """One sandbox for the tests that only look."""
    session = open_session(SEED)
    yield session
    session.close()


@pytest.fixture
def session() -> Iterator[RecreatedSession]:
    session = open_session(SEED)
    yield session
    session.close()


def decoded(*heap: Node, ref: int = 0) -> Any:
    import msgspec

    record = msgspec.to_builtins(captured(list(heap), {"x": ref}))
    return recreated_trace(record, []).frames[0].locals.x


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (Node("NoneType", "plain", None), None),
        (Node("bool", "plain", True), True),
        (Node("int", "plain", 3), 3),
        (Node("float", "plain", 1.5), 1.5),
        (Node("str", "plain", "x"), "x"),
        (Node("decimal.Decimal", "text", "1.50"), Decimal("1.50")),
        (Node("datetime.datetime", "text", NOON.isoformat()), NOON),
        (Node("datetime.date", "text", "2024-02-03"), datetime.date(2024, 2, 3)),
        (Node("datetime.time", "text", "04:05:06"), datetime.time(4, 5, 6)),
        (Node("datetime.timedelta", "text", "1 day, 2:03:04.000005"), datetime.timedelta(1, 7384, 5)),
        (Node("datetime.timedelta", "text", "-1 day, 23:59:59"), datetime.timedelta(seconds=-1)),
        (Node("uuid.UUID", "text", "12345678123456781234567812345678"), UUID("12345678123456781234567812345678")),
        (Node("pathlib.PosixPath", "text", "/srv/x"), PurePosixPath("/srv/x")),
        (Node("bytes", "text", "a\\xff", form="bytes", length=2), b"a\xff"),
        (Node("complex", "text", "(1+2j)"), 1 + 2j),
        (Node("range", "text", "range(0, 5)"), range(5)),
    ],
)  # fmt: skip
def test_plain_values_come_back_as_themselves(node: Node, value: Any) -> None:
    found = decoded(node)
    assert found == value
    assert type(found) is type(value)


def test_containers_come_back_with_sharing_and_cycles() -> None:
    heap = [
        Node("list", "list", items=[1, 1, 0]),
        Node("dict", "dict", items=[2, 3]),
        Node("str", "plain", "key"),
        Node("tuple", "tuple", items=[4]),
        Node("set", "set", items=[2]),
    ]
    found = decoded(*heap)
    assert found[0] is found[1]
    assert found[2] is found
    assert found[0]["key"] == ({"key"},)


def test_objects_come_back_as_stand_ins_with_their_attributes() -> None:
    heap = [
        Node("shop.models.Order", "object", items=[1, 0], names=["id", "parent"], form="model"),
        Node("int", "plain", 7),
    ]
    order = decoded(*heap)
    assert type(order).__name__ == "Order"
    assert type(order).__module__ == "shop.models"
    assert order.id == 7
    assert order.parent is order
    assert repr(order) == "<recreated model shop.models.Order: id=7, parent=<shop.models.Order>>"
    with pytest.raises(AttributeError, match="has no attribute 'total'"):
        _ = order.total


def test_a_namedtuple_comes_back_as_one() -> None:
    heap = [Node("geo.Point", "object", items=[1, 1], names=["x", "y"], form="namedtuple"), Node("int", "plain", 2)]
    point = decoded(*heap)
    assert (point.x, point[1], len(point)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (Node("str", "redacted"), "<redacted>"),
        (Node("object", "absent"), "<absent: cut by a limit of the capture>"),
        (Node("pandas.DataFrame", "opaque", length=3), "<pandas.DataFrame, length 3, not captured>"),
        (Node("str", "plain", "abc", length=5000, cut=4997), "'abc'… 4,997 more characters were not captured"),
        (Node("list", "list", length=50, cut=50), "[, … 50 more were not captured]"),
    ],
)
def test_what_is_missing_is_a_clear_word(node: Node, word: str) -> None:
    assert repr(decoded(node)) == word


def test_a_redacted_value_gives_nothing_away() -> None:
    found = decoded(Node("str", "redacted"))
    assert not found
    with pytest.raises(AttributeError, match="redacted"):
        _ = found.upper


@pytest.mark.parametrize(
    "heap",
    [
        [Node("list", "list", items=[99, -1])],
        [Node("tuple", "tuple", items=[0])],
        [Node("dict", "dict", items=[0])],
        [Node("dict", "dict", items=[1, 1]), Node("list", "list")],
        [Node("set", "set", items=[1]), Node("list", "list")],
        [Node("x", "no such kind")],
        [Node("decimal.Decimal", "text", "not a number")],
        [Node("bad name!", "object", items=[0], names=["__class__"])],
        [Node("p.P", "object", items=[0], names=["class"], form="namedtuple")],
        [Node("list", "list", items=[index + 1]) for index in range(5000)],
    ],
)
def test_a_broken_capture_is_shown_as_far_as_it_goes(heap: list[Node]) -> None:
    assert isinstance(repr(decoded(*heap)), str)


def test_a_real_capture_is_recreated_as_it_was(tmp_path: Any) -> None:
    values = {"amount": Decimal("9.99"), "when": datetime.date(2024, 1, 2), "rows": [1, 2], "password": "hunter22"}
    error = caught(lambda: outer(values))
    capture = capture_exception(error, limits=Limits(), redactor=Redactor(()))
    session = open_session(failure(capture=capture))
    try:
        say(session, "frame 0")
        assert answer(session, "trace.context_data['amount'] * 2") == "Decimal('19.98')"
        assert answer(session, "context_data['when'].year, sum(context_data['rows'])") == "(2024, 3)"
        assert answer(session, "context_data['password']") == "<redacted>"
        assert answer(session, "trace.frames[1].locals.above") == "['outer']"
        assert answer(session, "trace.exception.message") == "'division by zero'"
        assert [frame.function for frame in session.frames][:2] == ["create_error", "outer"]
        assert "return (a + c + d)" in say(session, "list")[1].of("output")
        assert create_error.__name__ in say(session, "where")[1].of("output")
    finally:
        session.close()


def test_a_failure_without_a_capture_still_has_its_facts() -> None:
    record = failure(exception=ExceptionInfo("WorkerLostError", "billiard", "signal 9"), task=TaskContext(queue="q"))
    session = open_session(record)
    try:
        assert answer(session, "trace.exception") == "<recreated WorkerLostError: signal 9>"
        assert answer(session, "trace.task.queue, trace.task.outcome, trace.task.retries") == "('q', 'failed', 0)"
        assert "no frames" in say(session, "where")[1].of("notice")
    finally:
        session.close()


def test_a_request_and_the_leaks_are_there() -> None:
    record = failure(kind="request", request=RequestContext(method="GET", path="/cart"))
    session = open_session(record, leaks=[{"line": 7}])
    try:
        assert answer(session, "trace.request.path, trace.leaks[0].line") == "('/cart', 7)"
    finally:
        session.close()


def test_an_interrupt_stops_a_loop(session: RecreatedSession) -> None:
    timer = threading.Timer(0.3, session.interrupt)
    timer.start()
    done, said = say(session, "while True: pass\n\n")
    timer.join()
    assert not done.ok
    assert said.of("error") == "KeyboardInterrupt\n"
    session.interrupt()
    assert answer(session, "1 + 1") == "2"


def test_a_command_over_its_time_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(SEED, command_limit_s=0.5)
    try:
        _done, said = say(session, "while True: pass\n\n")
        assert "a command may take 0.5 s" in said.of("notice")
        assert "KeyboardInterrupt" in said.of("error")
        monkeypatch.setattr(recreated, "GIVE_UP_S", 0.5)
        stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass\n"
        assert "could not be interrupted" in say(session, stubborn)[1].of("notice")
        assert answer(session, "1 + 1") == "2"
    finally:
        session.close()


def test_a_fresh_sandbox_takes_the_place_of_a_dead_one_in_the_same_frame() -> None:
    record = captured([Node("int", "plain", 1)], {"a": 0})
    raised = record.capture.exceptions[0]  # type: ignore[union-attr]
    import msgspec

    above = Frame(file="/srv/x.py", line=1, function="above")
    raised = msgspec.structs.replace(raised, frames=[*raised.frames, above])
    capture = msgspec.structs.replace(record.capture, exceptions=[raised])
    session = open_session(msgspec.structs.replace(record, capture=capture))
    try:
        say(session, "up")
        done, said = say(session, "__import__('os')._exit(3)")
        assert not done.ok
        assert "The sandbox ended: status 3" in said.of("notice")
        assert answer(session, "trace.frame.function") == "'above'"
    finally:
        session.close()


def test_one_command_at_a_time_and_the_code_is_bounded(session: RecreatedSession) -> None:
    with pytest.raises(ShellError, match="at most"):
        session.run("1" * (CODE_LIMIT + 1), Said())
    thread = threading.Thread(target=lambda: say(session, "while True: pass\n\n"))
    thread.start()
    wait_until(lambda: session._lock.locked(), "the command runs")
    with pytest.raises(ShellError, match="Another command"):
        session.run("1", Said())
    assert session.complete("tra", 3) == []
    with pytest.raises(ShellError, match="no frame 5"):
        session.select_frame(5)
    wait_until(lambda: session.interrupt() or not thread.is_alive(), "it is interrupted", every_s=0.2)


def test_closing_ends_the_process_and_whoever_waits(session: RecreatedSession) -> None:
    caught_errors: list[BaseException] = []
    thread = threading.Thread(target=lambda: caught_errors.append(caught(lambda: say(session, "while 1: pass\n\n"))))
    thread.start()
    wait_until(lambda: session._lock.locked(), "the command runs")
    session.close()
    thread.join(30)
    assert isinstance(caught_errors[0], SessionGone)
    assert session.pid is None
    with pytest.raises(SessionGone):
        say(session, "1")
    session.close()


def test_completion_comes_from_the_capture(shared: RecreatedSession) -> None:
    assert shared.complete("trace.con", 9) == ["context_data"]
    assert Failure is type(SEED)


def test_await_and_the_preloaded_modules_work(shared: RecreatedSession) -> None:
    code = "import asyncio, json, re, decimal, statistics, datetime\nawait asyncio.sleep(0, json.dumps({'a': 1}))"
    assert answer(shared, code) == "'{\"a\": 1}'"
    assert answer(shared, "datetime.datetime.strptime('2024', '%Y').year") == "2024"
    assert answer(shared, "'é'.encode('latin-1')") == "b'\\xe9'"


def test_odd_text_passes_both_ways(shared: RecreatedSession) -> None:
    assert "\\ud800" in say(shared, "print('\\ud800')")[1].of("output")
    assert answer(shared, "'\u202e <b> \x1b[2J'") == "'\\u202e <b> \\x1b[2J'"
    assert say(shared, "'\ud800'")[0].ok
