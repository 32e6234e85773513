"""A captured value is written exactly or is a hole; a test of a failure is green only with evidence."""

from __future__ import annotations

import ast
import datetime
import decimal
import enum
import pathlib
import uuid
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.model import (
    Capture,
    CapturedException,
    ExceptionInfo,
    Failure,
    Frame,
    Kind,
    Node,
    Outcome,
    RequestContext,
    Variable,
    decode,
    encode,
)
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes
from celery_trace.reproduction.captured import captured_error
from celery_trace.reproduction.inputs import CannotReproduce, inputs_of
from celery_trace.reproduction.project import LoadedProject, Missing
from celery_trace.reproduction.running import RunEnd
from celery_trace.reproduction.testing import OtherError, Trial
from celery_trace.reproduction.written import written
from celery_trace.settings import Limits

REDACTOR = Redactor()


class Colour(enum.Enum):
    RED = 1


@dataclass
class Line:
    price: Any
    note: str = ""


Point = namedtuple("Point", "x y")


@pytest.fixture(scope="module")
def project() -> LoadedProject:
    return LoadedProject(Celery("shop", set_as_current=False))


def captured(error: BaseException, *args: object, **kwargs: object) -> Failure:
    """A failure as it comes from the store."""
    capture = capture_exception(
        error, limits=Limits(), redactor=REDACTOR, in_app=["tests"], arguments=Arguments(list(args), kwargs)
    )
    failure = Failure(
        id="0123456789abcdef", process="p", kind=Kind.TASK, name="shop.buy", outcome=Outcome.FAILED, at_s=0.0,
        exception=ExceptionInfo("ValueError", "builtins", ""), capture=capture,
    )  # fmt: skip
    found = decode(encode(failure))
    assert isinstance(found, Failure)
    return found


def raised(call: Callable[..., object], *args: object) -> BaseException:
    with pytest.raises(Exception) as found:
        call(*args)
    return found.value


def call_of(*args: object, **kwargs: object) -> recipes.Call:
    failure = captured(raised(lambda: 1 // 0), *args, **kwargs)
    assert failure.capture is not None
    return recipes.call_of(failure.capture, REDACTOR)


def no_hole(hole: recipes.Hole) -> object:
    raise AssertionError(hole)


def both_ways(recipe: recipes.Recipe, project: LoadedProject) -> Any:
    """The value that a recipe makes, which is also what its source evaluates to."""
    names = {"PROJECT": project} | {module: __import__(module) for module in recipes.modules(recipe)}
    written = eval(recipes.source(recipe, 4), names)
    made = recipes.value(recipe, project, no_hole)
    assert repr(written) == repr(made) or written == made
    return made


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from([range(1, 9, 2), Colour.RED])
    | st.just(pathlib.Path("/srv/a b"))
    | st.datetimes(timezones=st.just(datetime.UTC))
).map(lambda value: value.replace(fold=0) if isinstance(value, datetime.datetime | datetime.time) else value)
KEYS = st.integers() | st.text(max_size=9) | st.booleans() | st.tuples(st.integers(), st.text(max_size=5))
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.builds(Line, inner, st.text(max_size=5))
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


@given(VALUES)
@example(b"\\x80 \x80 \x00")
@example(["\\x00", "a\x00b", "\ud800"])
@example(10**50)
@example([float("inf"), -0.0, 1.0])
def test_a_value_is_made_again_exactly_or_is_a_hole(project: LoadedProject, value: object) -> None:
    args = call_of(value).args
    assert isinstance(args, recipes.Row)
    if not recipes.holes(args):
        [made] = both_ways(args, project)
        assert made == value
        assert type(made) is type(value)
        assert repr(made) == repr(value) or isinstance(value, set | frozenset | dict | list | tuple | Line)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(10**30), 0.1, float("inf"), "it's", b"\xff\x00\\x41", bytearray(b"x"), 1 + 2j, range(3),
        decimal.Decimal("1.10"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2),
        datetime.time(3, 4, 5, 6), datetime.timedelta(-1, 1, 1), uuid.UUID(int=7), pathlib.Path("/a"), {1, 2}, (1,),
        frozenset(), [], {}, {"a": [{"b": ()}]}, Colour.RED, Line(decimal.Decimal(1)), Point(1, [2]),
    ],
    ids=repr,
)  # fmt: skip
def test_these_are_no_holes(project: LoadedProject, value: object) -> None:
    [made] = both_ways(call_of(value).args, project)
    assert repr(made) == repr(value)


def test_arrays_and_scalars_of_numpy_are_made_again(project: LoadedProject) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.array([[1, 2], [3, 4]], dtype="int16")
    made = recipes.value(call_of(array, numpy.float32(0.1), numpy.bool_(True)).args, project, no_hole)
    assert made[0].dtype == array.dtype
    assert made[0].tolist() == array.tolist()
    assert [repr(item) for item in made[1:]] == [repr(numpy.float32(0.1)), repr(numpy.bool_(True))]


def looped() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


SHARED = [1]


@pytest.mark.parametrize(
    ("value", "where", "why"),
    [
        ({"password": "hunter2-swordfish"}, "args[0]['password']", "redacted"),
        ("paid with sk-live-51Habcdefghijklmnopqrstuv", "args[0]", "redacted in part"),
        ("x" * 5000, "args[0]", "cut: a str"),
        ([[3] * 500], "args[0][0]", "cut: a list, of which 450"),
        ([SHARED, SHARED], "args[0][1]", "the same object as args[0][0]"),
        (looped(), "args[0][0]", "the same object as args[0]"),
        (object(), "args[0]", "a object"),
        (SimpleNamespace(a=1), "args[0]", "a types.SimpleNamespace"),
        (ValueError("x"), "args[0]", "a ValueError"),
        ("a\0b", "args[0]", "a text with NUL"),
    ],
    ids=["name", "shape", "text", "list", "shared", "cycle", "object", "namespace", "error", "nul"],
)
def test_what_is_not_known_exactly_is_a_hole_with_its_name_and_the_reason(value: object, where: str, why: str) -> None:
    [hole] = call_of(value).holes
    assert hole.where == where
    assert hole.why.startswith(why)


def test_a_name_that_became_secret_after_the_failure_is_a_hole() -> None:
    failure = captured(raised(lambda: 1 // 0), shoe_size=43, more={"shoe_size": 44})
    assert failure.capture is not None
    stricter = Redactor(["shoe_size"])
    assert [hole.where for hole in recipes.call_of(failure.capture, stricter).holes] == [
        "shoe_size",
        "kwargs['more']['shoe_size']",
    ]


# --- the file

NODES = st.builds(
    Node,
    st.sampled_from(
        ["str", "int", "dict", "list", "os.system", "set", "numpy.ndarray", "pathlib.PosixPath", "a.B", "x y"]
    )
    | st.text(max_size=8),
    st.sampled_from(
        ["plain", "text", "list", "dict", "set", "tuple", "frozenset", "object", "redacted", "absent", "?"]
    ),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just({"a": 1}),
    st.lists(st.integers(-1, 6), max_size=4),
    st.lists(st.text(max_size=6), max_size=4),
    st.integers(-1, 5),
    st.sampled_from([0, 0, 0, 2]),
    st.sampled_from(["", "", "dataclass", "enum", "namedtuple", "model", "ndarray", "path", "bytes"]),
    st.sampled_from(["", "", "shop.Order", "int64 (2, 2)", '"""']) | st.text(max_size=8),
)
CALLED = {"hole", "frozenset", "set", "tuple"} | {maker.source for maker in recipes.MAKERS.values()}


@given(st.lists(NODES, min_size=1, max_size=7), st.text(max_size=20), st.text(max_size=12), st.text(max_size=20))
def test_any_capture_gives_valid_python_that_calls_nothing_but_the_makers(
    heap: list[Node], name: str, local: str, code: str
) -> None:
    frame = Frame(
        file=code, line=1, function=local, module=name, code=code, context=[code], context_start=1,
        locals=[Variable(local, 0), Variable("a", 1), Variable("b", -1)],
    )  # fmt: skip
    error = CapturedException(type=name, module=local, message=code, frames=[frame])
    failure = Failure(
        id=name, process="p", kind=Kind.TASK, name=name, outcome=Outcome.FAILED, at_s=0.0,
        capture=Capture(exceptions=[error], heap=heap, args=0, kwargs=min(1, len(heap) - 1)),
    )  # fmt: skip
    made = written(failure, app="shop:app", redactor=REDACTOR)
    tree = ast.parse(made.text.encode())
    fixtures = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name not in ("trial",)]
    calls = [node for fixture in fixtures for node in ast.walk(fixture) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} <= CALLED | {"trial.check"}
    imports = [node for node in tree.body if isinstance(node, ast.Import)]
    allowed = {maker.owner for maker in recipes.MAKERS.values()} | {"pytest"}
    assert {alias.name for node in imports for alias in node.names} <= allowed


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda project: project.dataclass("os.system", {"command": "true"}), "os.system"),
        (lambda project: project.dataclass("subprocess.Popen", {"args": "true"}), "not a dataclass"),
        (lambda project: project.enum("builtins.int", "real"), "not an enum"),
        (lambda project: project.namedtuple("builtins.tuple", {}), "named tuple"),
        (lambda project: project.dataclass("antigravity.Line", {}), "no class"),
        (lambda project: project.dataclass(f"{__name__}.Line", {"note": ""}), "no price"),
        (lambda project: project.task("shop.nothing"), "no task 'shop.nothing'"),
    ],
)
def test_a_forged_class_is_never_called(
    project: LoadedProject, call: Callable[[LoadedProject], object], words: str
) -> None:
    with pytest.raises(Missing, match=words):
        call(project)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": Kind.BLOCK}, "a block has no arguments"),
        ({"outcome": Outcome.LOST}, "its process was killed"),
        ({"outcome": Outcome.TIME_LIMIT}, "a time limit"),
        ({"outcome": Outcome.REVOKED}, "revoked"),
        ({"outcome": Outcome.INTERNAL_ERROR}, "around the task"),
        ({"note": "The task had finished; its result could not be stored"}, "had finished"),
        ({"capture": None}, "no frames"),
    ],
)
def test_a_failure_that_arguments_do_not_explain_is_refused(change: dict[str, Any], words: str) -> None:
    failure = replace(captured(raised(lambda: 1 // 0)), **change)
    with pytest.raises(CannotReproduce, match=f"{words}.*celery trace show 0123456789abcdef"):
        written(failure, app="shop:app", redactor=REDACTOR)


def test_a_frame_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CannotReproduce, match="There is no frame 9: the failure has 2"):
        written(captured(raised(division)), app="shop:app", redactor=REDACTOR, frame=9)


def test_secrets_of_a_request_are_holes_and_its_own_cookies_are_left_out() -> None:
    request = RequestContext(
        method="POST", path="/pay", user="ada (7)", cookies={"sessionid": "[redacted]", "theme": "dark"},
        headers={"Authorization": "[redacted]", "Content-Type": "application/json", "Cookie": "x"},
        get={"a": ["1", "2"]},
    )  # fmt: skip
    failure = replace(captured(raised(division)), kind=Kind.REQUEST, request=request)
    facts = inputs_of(failure, REDACTOR)["facts"]
    assert [(hole.where, hole.why) for hole in recipes.holes(facts)] == [
        ("body", "the capture does not read the body of a request"),
        ("header Authorization", "redacted"),
    ]
    text = recipes.source(facts)
    assert "'get': {'a': ['1', '2']}" in text
    assert "'cookies': {'theme': 'dark'}" in text
    assert "'user': '7'" in text


# --- the verdict


def division(by: int = 0) -> float:
    return 1 / by


def twice(first: int, second: int) -> float:
    total = 0.0
    total += 1 / first
    total -= 1
    total += 1 / second
    return total


def other(by: int) -> float:
    return 2 / by


def error_of(call: Callable[..., object], *args: object) -> Any:
    capture = captured(raised(call, *args)).capture
    assert capture is not None
    found = captured_error(capture.exceptions[0])
    assert found is not None
    return found


def request(seen: bool = False) -> Any:
    known = {"value": seen}
    cache = SimpleNamespace(get=lambda key, default: known["value"], set=lambda key, value: known.update(value=value))
    return SimpleNamespace(config=SimpleNamespace(cache=cache), node=SimpleNamespace(nodeid="t.py::t"), known=known)


def test_the_captured_error_fails_the_test_and_says_reproduced() -> None:
    here = request()
    live = raised(division)
    with pytest.raises(ZeroDivisionError) as found:
        Trial(error_of(division), RunEnd(live)).check(here, reproduced=False)
    assert found.value is live
    assert live.__notes__[0].startswith("reproduced: builtins.ZeroDivisionError at 'return 1 / by'")
    assert here.known["value"]


def test_no_error_is_a_skip_until_there_is_evidence() -> None:
    failure = error_of(division)
    with pytest.raises(pytest.skip.Exception, match="not reproduced"):
        Trial(failure, RunEnd(returned=1)).check(request(), reproduced=False)
    Trial(failure, RunEnd(returned=1)).check(request(), reproduced=True)
    Trial(failure, RunEnd(returned=1)).check(request(seen=True), reproduced=False)
    code = tuple(replace(one, digest="0") for one in failure.code)
    Trial(replace(failure, code=code), RunEnd(returned=1)).check(request(), reproduced=False)
    without_cache = SimpleNamespace(config=SimpleNamespace(), node=SimpleNamespace(nodeid="t"))
    with pytest.raises(pytest.skip.Exception, match="not reproduced"):
        Trial(failure, RunEnd(returned=1)).check(without_cache, reproduced=False)


@pytest.mark.parametrize(
    ("captured_call", "live_call", "words"),
    [
        ((division,), (division, "x"), "builtins.TypeError instead of builtins.ZeroDivisionError"),
        ((division,), (other, 0), "other instead of"),
        ((twice, 0, 1), (twice, 1, 0), "another line of twice: 'total \\+= 1 / second'"),
    ],
)
def test_another_error_is_not_taken_for_the_captured_one(captured_call: Any, live_call: Any, words: str) -> None:
    with pytest.raises(OtherError, match=words):
        Trial(error_of(*captured_call), RunEnd(raised(*live_call)))


def test_of_two_equal_lines_only_the_captured_one_counts(tmp_path: pathlib.Path) -> None:
    lines = [
        "def run(a, b):",
        "    total = 0",
        "    total += 1 / a",
        "    a = b",
        "    total += 1 / a",
        "    return total",
    ]

    def run_at(name: str, before: int) -> Callable[..., object]:
        file = tmp_path / name
        file.write_text("\n" * before + "\n".join(lines) + "\n")
        names: dict[str, Any] = {"__name__": "moved"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        run: Callable[..., object] = names["run"]
        return run

    failure = error_of(run_at("before.py", 0), 1, 0)
    assert failure.difference(raised(run_at("after.py", 7), 1, 0)) == ""
    assert "another line" in failure.difference(raised(run_at("after.py", 7), 0, 1))


def test_a_brief_capture_has_no_locals_and_says_where_others_are() -> None:
    failure = captured(raised(division), 1)
    assert failure.capture is not None
    [error] = failure.capture.exceptions
    frames = [replace(frame, locals=[], context=[], context_start=0) for frame in error.frames]
    brief = replace(failure.capture, brief="in brief", exceptions=[replace(error, frames=frames)])
    made = written(replace(failure, capture=brief, fingerprint="fp"), app="shop:app", redactor=REDACTOR)
    assert "trace failures --fingerprint fp" in made.text
    assert "local_" not in made.text
    assert "code='return 1 / by'" in made.text
    found = captured_error(brief.exceptions[0])
    assert found is not None
    assert found.difference(raised(division)) == ""
    assert not found.code_changed()


@settings(max_examples=100)
@given(st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=3)))
def test_no_secret_is_in_a_file(value: object) -> None:
    secret, token = "hunter2-swordfish", "sk-live-51Habcdefghijklmnopqrstuv"

    def pay(order: object, password: str, **more: object) -> float:
        header = {"Authorization": f"Bearer {secret}", "order": order, "note": f"with {token}"}
        return len(header) / 0

    order = [value, {"password": secret, "deep": [value, {"api_key": secret}]}, f"said {secret}", secret, token]
    failure = captured(raised(pay, order, secret), order, password=secret, note=f"{token} {secret}")
    text = written(failure, app="shop:app", redactor=REDACTOR).text
    assert secret not in text
    assert token not in text
    assert "hole('password', 'redacted')" in text
    assert "def local_header():" in text
