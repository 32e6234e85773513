"""What a search can find in a failure: its plain values, bounded, redacted as they came."""

from hypothesis import given
from hypothesis import strategies as st

from celery_trace.model import (
    Capture,
    CapturedException,
    Failure,
    Frame,
    Kind,
    Node,
    Outcome,
    RequestContext,
    Variable,
)
from celery_trace.stores.values import MOST_CHARACTERS, pattern_text, searchable


def failure(*frames, heap=(), **fields):
    raised = CapturedException(type="KeyError", module="builtins", message="'rate'", frames=list(frames))
    places = {name: fields.pop(name, -1) for name in ("args", "kwargs")}
    capture = Capture(exceptions=[raised], heap=list(heap), **places)
    return Failure(
        id="f", process="p", kind=Kind.TASK, name="n", outcome=Outcome.FAILED, at_s=1.0, capture=capture, **fields
    )


def frame(*locals, in_app=True):
    return Frame(file="a.py", line=1, function="f", in_app=in_app, locals=[Variable(*pair) for pair in locals])


def test_locals_and_what_hangs_below_them_stand_as_name_and_value():
    heap = [
        Node("int", "plain", 84213),
        Node("shop.Order", "object", None, [2, 3], ["email", "lines"]),
        Node("str", "plain", "Ada@Example.org"),
        Node("list", "list", None, [4]),
        Node("decimal.Decimal", "text", "19.99"),
        Node("dict", "dict", None, [6, 0]),
        Node("str", "plain", "order_id"),
    ]
    found = searchable(failure(frame(("number", 0), ("order", 1), ("facts", 5)), heap=heap)).split("\n")
    assert found == ["'rate'", "number=84213", "email=ada@example.org", "order_id=84213", "lines=19.99"]


def test_arguments_and_the_request_are_found_too():
    heap = [Node("tuple", "tuple", None, [1]), Node("str", "plain", "4242"), Node("dict", "dict", None, [3, 1]),
            Node("str", "plain", "card")]  # fmt: skip
    request = RequestContext(method="POST", path="/Checkout/7", user="ada", post={"basket": ["b-9"]})
    found = searchable(failure(heap=heap, args=0, kwargs=2, request=request))
    assert found.split("\n") == ["path=/checkout/7", "user=ada", "basket=b-9", "'rate'", "args=4242", "card=4242"]


def test_a_redacted_value_and_the_frames_of_libraries_are_not_found():
    heap = [Node("str", "redacted"), Node("str", "plain", "seen by celery"), Node("dict", "dict", None, [3, 0]),
            Node("str", "plain", "token")]  # fmt: skip
    found = searchable(failure(frame(("password", 0), ("secrets", 2)), frame(("args", 1), in_app=False), heap=heap))
    assert found == "'rate'"


def test_a_cycle_ends_and_a_broken_reference_is_passed_over():
    heap = [Node("list", "list", None, [0, 1, 99, -4]), Node("int", "plain", 7)]
    assert searchable(failure(frame(("me", 0), ("gone", 500)), heap=heap)).split("\n") == ["'rate'", "me=7"]


@given(st.lists(st.text(max_size=3000), max_size=60))
def test_the_text_is_bounded_whatever_the_values(values):
    heap = [Node("str", "plain", value) for value in values]
    names = [(f"name{number}", number) for number in range(len(values))]
    assert len(searchable(failure(frame(*names), heap=heap))) <= MOST_CHARACTERS


def test_what_somebody_types_takes_the_form_of_the_lines():
    assert pattern_text(" Order_ID = A-7 ") == "order_id=a-7"
    assert pattern_text("Ada ") == "ada"
