"""A forged capture: whatever it asks for is done inside the closed sandbox, and for a few seconds at most."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_trace.model import Failure, Node
from celery_trace.shell.sandbox import recreated, recreation
from celery_trace.shell.sandbox.protection import MEMORY_BYTES
from celery_trace.shell.sandbox.recreated import open_session
from celery_trace.shell.sandbox.recreation import recreated_trace
from celery_trace.shell.session import ShellError
from tests.support.shells import answer, captured


def processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def value(*heap: Node) -> Any:
    record = msgspec.to_builtins(captured(list(heap), {"x": len(heap) - 1}))
    return recreated_trace(record, []).frames[0].locals.x


HUGE_NUMBERS = {
    "Fraction with an exponent": Node("fractions.Fraction", "text", "1e20000000"),
    "Fraction with a small one": Node("fractions.Fraction", "text", "1e-20000000"),
    "Fraction of many digits": Node("fractions.Fraction", "text", "9" * 1_000_000),
    "int of many digits": Node("int", "text", "9" * 1_000_000),
    "Decimal of many digits": Node("decimal.Decimal", "text", "9" * 5_000_000),
    "float of many digits": Node("float", "text", "9" * 5_000_000),
    "range of many digits": Node("range", "text", f"range(0, {'9' * 1_000_000})"),
    "timedelta of many digits": Node("datetime.timedelta", "text", f"{'9' * 1_000_000} days, 0:00:00"),
    "complex of many digits": Node("complex", "text", f"({'9' * 1_000_000}+1j)"),
}


@pytest.mark.parametrize("name", HUGE_NUMBERS)
def test_a_number_that_would_take_long_to_build_stays_a_text(name: str) -> None:
    begun_s = processor_s()
    found = value(HUGE_NUMBERS[name])
    assert type(found).__name__ == "_Text"
    assert processor_s() - begun_s < 0.2


def test_numbers_as_the_capture_writes_them_are_built() -> None:
    assert value(Node("fractions.Fraction", "text", "-3/7")) == recreation.fractions.Fraction(-3, 7)
    assert value(Node("fractions.Fraction", "text", "12")) == 12
    assert value(Node("int", "text", "9" * 4000)) == int("9" * 4000)
    assert value(Node("decimal.Decimal", "text", "1E+999999")) == recreation.decimal.Decimal("1E+999999")


def nested_keys(depth: int) -> list[Node]:
    """
    Tuples of the same tuple twice, two of them equal keys of a dict: comparing them takes two to the power of depth.

    So does hashing them, but for the versions since Python 3.14, where a tuple keeps its hash.
    """
    heap = [Node("int", "plain", 1)]
    keys = []
    for _ in range(2):
        inner = 0
        for _ in range(depth):
            heap.append(Node("tuple", "tuple", items=[inner, inner]))
            inner = len(heap) - 1
        keys.append(inner)
    heap.append(Node("dict", "dict", items=[keys[0], 0, keys[1], 0]))
    return heap


def test_work_without_end_is_given_up_after_the_limit_and_not_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recreated, "RECREATE_S", 0.7)
    heap = nested_keys(60)
    begun_s, own_s = time.monotonic(), processor_s()
    with pytest.raises(ShellError, match=r"could not be recreated within 0\.7 s"):
        open_session(captured(heap, {"x": len(heap) - 1}))
    assert processor_s() - own_s < 1.0, "this process only waited"
    assert time.monotonic() - begun_s < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox's layers are Linux's")
def test_the_failure_is_decoded_after_the_sandbox_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is the limit that shows it: before it is closed, the program may take any."""
    monkeypatch.setattr(recreated, "RECREATE_S", 60.0)
    many = b'{"failure": {"note": [' + b"1.5," * (MEMORY_BYTES // 40) + b"1.5]}}"  # each takes 32 bytes of memory
    with pytest.raises(recreated._Died, match=r"can't be recreated \(MemoryError"):
        recreated._Sandbox(many)


def test_a_capture_that_is_none_of_ours_is_a_clear_error() -> None:
    with pytest.raises(recreated._Died, match=r"can't be recreated \(.*Error"):
        recreated._Sandbox(b'{"failure": 5}')


def test_a_genuine_capture_of_the_greatest_size_is_recreated() -> None:
    heap = [Node("str", "plain", "x" * 1024) for _ in range(4000)]
    heap.append(Node("list", "list", items=list(range(4000))))
    session = open_session(captured(heap, {"x": 4000}))
    try:
        assert answer(session, "len(x)") == "4000"
    finally:
        session.close()


def test_a_tuple_that_a_forger_put_into_itself_is_not_followed_for_ever() -> None:
    found = value(Node("tuple", "tuple", items=[0, 0, 0]))
    assert "a tuple or a set within itself" in repr(found)
    assert len(repr(found)) < 1000


def test_a_tuple_within_a_list_that_it_holds_comes_back() -> None:
    (inner,) = value(Node("list", "list", items=[1]), Node("tuple", "tuple", items=[0]))
    assert inner[0][0] is inner


plain = st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=20)
tree = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
kinds = st.sampled_from(
    ["plain", "text", "list", "deque", "dict", "set", "frozenset", "tuple", "object", "redacted", "absent", "other"]
)
types = st.sampled_from([*recreation._FROM_TEXT, "shop.Order", "a.b.", "", "class", "__import__"])
nodes = st.lists(
    tree
    | st.tuples(types, kinds, plain, st.lists(st.integers(-2, 8), max_size=2), st.lists(st.text(max_size=4))).map(list),
    max_size=8,  # a tuple may hold the same one twice, so its repr doubles with each
)


@given(heap=nodes, args=plain)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_heap_becomes_a_trace_or_a_plain_error(heap: list[Any], args: Any) -> None:
    frame = {"file": "f", "line": 1, "function": "g", "locals": [["x", 0], ["y", len(heap) - 1]]}
    record = {"capture": {"heap": heap, "exceptions": [{"frames": [frame]}], "args": args}}
    try:
        trace = recreated_trace(record, [])
    except (TypeError, ValueError, AttributeError):  # in the sandbox: the session does not open and says so
        return
    assert isinstance(repr(trace.frames[0].locals.x), str)


def test_the_record_that_reaches_the_sandbox_was_checked_by_its_types() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"id": "x", "at_s": 1, "capture": {"heap": 5}}', type=Failure)
