"""An exception becomes frames, causes and groups; within its limits; grouped by what is the same problem."""

import asyncio
import linecache
import sys
import textwrap
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_trace.failures import views
from celery_trace.failures.capture import Arguments, capture_exception, capture_frames, describe, source_lines
from celery_trace.failures.capture.exceptions import message_of
from celery_trace.failures.fingerprint import fingerprint
from celery_trace.model import Capture, ExceptionInfo, Failure, Kind, Outcome
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits
from celery_trace.text.code_owner import CodeOwner
from tests.support import hostile
from tests.unit.test_capture_values import VALUES


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def captured(error, **more):
    return capture_exception(error, limits=more.pop("limits", Limits()), redactor=Redactor(), **more)


def values(capture, frame=0, exception=0):
    frames = capture.exceptions[exception].frames
    return {local.name: local.value for local in views._values(capture.heap, frames[frame].locals)}


def fails(number):
    half = number / 2
    raise ValueError(f"half of {number} is {half}")


def test_frames_stand_innermost_first_with_their_source_and_locals():
    capture = captured(raised(fails, 5))
    first = capture.exceptions[0].frames[0]
    assert (first.function, first.code) == ("fails", 'raise ValueError(f"half of {number} is {half}")')
    assert first.context[first.line - first.context_start].strip() == first.code
    assert first.in_app
    assert not first.stale
    end_line, column, end_column = first.columns
    assert end_line == first.line
    assert linecache.getline(first.file, first.line)[column:end_column] == first.code
    assert values(capture) == {"number": "5", "half": "2.5"}
    assert [frame.function for frame in capture.exceptions[0].frames] == ["fails", "raised"]
    assert capture.exceptions[0].message == "half of 5 is 2.5"


def test_causes_contexts_and_groups_hang_in_a_tree():
    def cause():
        try:
            fails(1)
        except ValueError as error:
            raise KeyError("k") from error

    def context():
        try:
            cause()
        except KeyError:
            raise ExceptionGroup("both", [raised(fails, 2), TypeError("t")])  # noqa: B904

    error = raised(context)
    error.add_note("a note with password=hunter2x")
    told = [(one.type, one.link, one.parent) for one in captured(error).exceptions]
    assert told == [
        ("ExceptionGroup", "", -1),
        ("ValueError", "group", 0),
        ("TypeError", "group", 0),
        ("KeyError", "context", 0),
        ("ValueError", "cause", 3),
    ]
    first = captured(error).exceptions[0]
    assert first.message == "both (2 sub-exceptions)"
    assert first.notes == ["a note with password=[redacted]"]


def test_a_suppressed_context_is_left_out_and_a_cycle_ends():
    def suppressed():
        try:
            fails(1)
        except ValueError:
            raise KeyError("k") from None

    assert [one.type for one in captured(raised(suppressed)).exceptions] == ["KeyError"]
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    assert len(captured(first).exceptions) == 2


def test_recursion_is_told_once():
    def endless(level):
        return other(level + 1)

    def other(level):
        return endless(level + 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1200)
    try:
        error = raised(endless, 0)
    finally:
        sys.setrecursionlimit(limit)
    started_s = time.thread_time()
    capture = captured(error)
    assert time.thread_time() - started_s < 0.5
    frames = capture.exceptions[0].frames
    assert len(frames) < 12
    assert sum(frame.folded for frame in frames) > 900
    assert {"endless", "other"} <= {frame.function for frame in frames}


def test_a_long_way_that_is_no_recursion_keeps_both_ends():
    source = "def step_0():\n    raise ValueError('end')\n" + "".join(
        f"def step_{number}():\n    step_{number - 1}()\n" for number in range(1, 150)
    )
    namespace = {"__name__": "long_way"}
    exec(compile(source, "<long way>", "exec"), namespace)
    one = captured(raised(namespace["step_149"])).exceptions[0]
    assert len(one.frames) == 60
    assert one.frames[0].function == "step_0"
    assert one.frames[-2].function == "step_149"
    assert one.frames_cut == 91


def test_the_innermost_frame_gets_its_share_first():
    def inner():
        mine = [[number] for number in range(40)]
        raise ValueError(len(mine))

    def outer():
        theirs = [[[number], [number], [number]] for number in range(1000, 1050)]
        inner()
        return theirs

    capture = captured(raised(outer), limits=Limits(nodes=150))
    assert values(capture)["mine"].startswith("[[0], [1], [2]")
    assert len(capture.heap) <= 150
    assert capture.cut_values > 0


@pytest.mark.parametrize("size", [1024, 4096, 20_000, 262_144])
def test_the_whole_capture_stays_within_its_bytes(size):
    def deep(level):
        rows = [{"place": place, "text": 'ünï"\\\n' * 200} for place in range(100)]
        if level:
            deep(level - 1)
        raise ValueError("message " * 1000, rows)

    capture = captured(raised(deep, 5), limits=Limits(bytes=size), arguments=Arguments((1,) * 200, {"a": "b" * 5000}))
    assert len(msgspec.json.encode(capture)) <= size + 512


def test_nothing_of_a_users_exception_is_run():
    class Custom(hostile.hostile(Exception)):
        pass

    error = raised(lambda: (_ for _ in ()).throw(BaseException.__new__(Custom, "plain text")))
    other = raised(lambda: (_ for _ in ()).throw(ValueError(hostile.hostile()())))
    with hostile.watched():
        told = captured(error)
        about = captured(other)
        info = describe(error, Redactor())
    assert told.exceptions[0].message == "plain text"
    assert info.type == "Custom"
    assert about.exceptions[0].message == "<tests.support.hostile.Hostile>"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("plain"), "plain"),
        (ValueError(), ""),
        (ValueError("a", 1), "('a', 1)"),
        (KeyError("key"), "'key'"),
        (FileNotFoundError(2, "No such file", "x.txt"), "[Errno 2] No such file: 'x.txt'"),
        (ZeroDivisionError("division by zero"), "division by zero"),
        (ValueError({"a": 1}), "<dict>"),
    ],
    ids=repr,
)
def test_messages_read_as_python_says_them(error, message):
    assert captured(error).exceptions[0].message == message


def test_frames_of_generators_and_coroutines_are_frames_too():
    def numbers():
        step = 1
        yield step
        raise ValueError("in the generator")

    assert values(captured(raised(list, numbers()))) == {"step": "1"}

    async def waits():
        phase = "waiting"
        raise ValueError(phase)

    coroutine = waits()
    assert values(captured(raised(coroutine.send, None))) == {"phase": "'waiting'"}


def test_a_running_stack_can_be_captured_without_an_exception():
    marker = 5
    capture = capture_frames(sys._getframe(), limits=Limits(), redactor=Redactor())
    assert capture.exceptions[0].frames[0].function == "test_a_running_stack_can_be_captured_without_an_exception"
    assert values(capture)["marker"] == str(marker)


# --- source ----------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's with a function that fails; gives its error and its file."""

    def make(body, call="f()"):
        file = tmp_path / "a_users_module.py"
        file.write_text(textwrap.dedent(body))
        namespace = {"__name__": "a_users_module"}
        exec(compile(file.read_text(), str(file), "exec"), namespace)
        return raised(lambda: eval(call, namespace)), file

    yield make
    linecache.checkcache()


def test_literal_secrets_in_the_source_are_not_shown(module):
    error, _ = module('def f():\n    password = "hunter2x"\n    key = f"sk-{1}"\n    raise ValueError(1)\n')
    data = msgspec.json.encode(captured(error))
    assert b"hunter2x" not in data
    assert b"raise ValueError(1)" in data


def test_a_positional_secret_is_taken_out_of_source_message_and_arguments(module):
    error, _ = module(
        "def login(user, password):\n    raise ValueError(f'no {password}')\ndef f():\n    login('bob', 'hunter2x')\n"
    )
    data = msgspec.json.encode(captured(error, arguments=Arguments(("bob", "hunter2x"), {}, ("user", "password"))))
    assert b"hunter2x" not in data
    assert b"bob" in data


def test_a_file_that_changed_after_import_is_marked(module, monkeypatch):
    error, file = module("def f():\n    raise ValueError(1)\n")
    monkeypatch.setattr(source_lines, "IMPORTED_AT_S", time.time() - 3600)
    assert captured(error).exceptions[0].frames[0].stale
    monkeypatch.setattr(source_lines, "IMPORTED_AT_S", time.time() + 3600)
    file.write_text("# one more line\n" + file.read_text())
    assert not captured(error).exceptions[0].frames[0].stale


@pytest.mark.parametrize(
    ("file", "module", "in_app"),
    [
        ("/srv/shop/orders.py", "orders", True),
        ("/srv/shop/.venv/lib/python3.11/site-packages/celery/app/trace.py", "celery.app.trace", False),
        (msgspec.__file__, "msgspec", False),
        (textwrap.__file__, "textwrap", False),
        (source_lines.__file__, "celery_trace.failures.capture.source_lines", False),
        ("<frozen importlib._bootstrap>", "importlib._bootstrap", False),
        ("<string>", "attr._make", False),
        ("<stdin>", "__main__", True),
        ("/usr/lib/python3/dist-packages/acme/tool.py", "acme.tool", True),
        ("/opt/shared/lib.py", "shared.lib", True),
    ],
)
def test_libraries_are_not_the_users_own(file, module, in_app):
    assert CodeOwner(["acme", "/opt/shared"])(file, module) is in_app


# --- groups ----------------------------------------------------------------------------------------------


def group_of(error, name="shop.buy", outcome=Outcome.FAILED):
    capture = captured(error)
    one = capture.exceptions[0]
    return fingerprint("task", name, capture, ExceptionInfo(one.type, one.module, one.message), outcome)


def test_the_same_problem_is_one_group_whatever_its_values_and_lines(module):
    def group(body, **more):
        return group_of(module(body)[0], **more)

    first = group("def f():\n    raise ValueError(1)\n")
    assert first == group("\n\n# moved\ndef f():\n    raise ValueError(1)\n")
    others = {
        first,
        group("def f():\n    raise ValueError(2)\n"),
        group("def f():\n    raise TypeError(1)\n"),
        group("def f():\n    raise ValueError(1)\n", name="shop.sell"),
    }
    assert len(others) == 4
    assert group_of(raised(fails, 1)) == group_of(raised(fails, 2))


def test_killed_runs_group_by_how_they_ended_not_by_where_they_stood():
    assert group_of(raised(fails, 1), outcome=Outcome.LOST) == group_of(raised(lambda: fails(1)), outcome=Outcome.LOST)
    assert group_of(raised(fails, 1), outcome=Outcome.LOST) != group_of(raised(fails, 1), outcome=Outcome.TIME_LIMIT)


def test_the_depth_of_a_recursion_makes_no_new_group():
    def down(level):
        if level:
            down(level - 1)
        raise ValueError("bottom")

    assert group_of(raised(down, 3)) == group_of(raised(down, 30))


# --- what readers get ------------------------------------------------------------------------------------


def failure(capture, **more):
    fields = {"exception": ExceptionInfo("ValueError", "builtins", "x"), "outcome": Outcome.FAILED, "at_s": 5.0}
    return Failure(id="f1", process="p1", kind=Kind.TASK, name="shop.buy", capture=capture, **(fields | more))


def test_the_detail_has_the_contracts_shape():
    capture = captured(raised(fails, 5), arguments=Arguments((1, "a"), {"password": "hunter2x"}, ()))
    detail = msgspec.to_builtins(views.detail(failure(capture), count=3, live=True, live_until=9.0))
    assert {"frames", "chain", "args", "kwargs", "request", "memory", "count", "live", "at"} <= set(detail)
    frame = detail["frames"][0]
    assert {"file", "line", "function", "code", "context", "in_app", "locals"} <= set(frame)
    assert {"name", "type", "value", "cut", "redacted"} <= set(frame["locals"][0])
    assert [arg["value"] for arg in detail["args"]] == ["1", "'a'"]
    assert [(word["name"], word["redacted"]) for word in detail["kwargs"]] == [("password", True)]
    assert frame["context"][0][0] == capture.exceptions[0].frames[0].context_start
    assert (detail["count"], detail["live"], detail["live_until"]) == (3, True, 9.0)


def test_a_failure_with_nothing_but_its_outcome_can_be_shown():
    detail = views.detail(failure(None, exception=None, outcome=Outcome.LOST))
    assert (detail.frames, detail.chain, detail.args, detail.exception) == ([], [], [], None)
    assert views.detail(failure(Capture())).frames == []


# --- properties ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    local=VALUES,
    argument=VALUES,
    secret=st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=8, max_size=30).map("Q7{}".format),
)
def test_whatever_a_task_holds_its_secret_is_in_no_byte_of_its_failure(local, argument, secret):
    def login(password, extra):
        copied = [password, {"note": f"<{password}>"}]
        raise ValueError(f"can't log in with {password}", copied, extra)

    error = raised(login, secret, local)
    error.add_note(f"it was {secret}")
    with hostile.watched():
        capture = captured(error, arguments=Arguments((secret, argument), {"again": secret}, ("password",)))
    data = msgspec.json.encode(capture)
    if secret not in repr((local, argument)):
        assert secret.encode() not in data
    assert len(data) <= Limits().bytes
    assert msgspec.json.decode(data, type=Capture) == capture
    views.detail(failure(capture))


def test_frames_of_async_generators_and_of_tasks_in_a_group_are_frames_too():
    async def pages():
        page = 1
        yield page
        raise ValueError("no second page")

    async def reads(book):
        async for number in pages():
            last = (book, number)
        return last

    async def all_of_them():
        async with asyncio.TaskGroup() as group:
            group.create_task(reads("first"))
            group.create_task(reads("second"))

    capture = captured(raised(asyncio.run, all_of_them()))
    group, *members = capture.exceptions
    assert group.type == "ExceptionGroup"
    assert {(one.link, one.parent, one.message) for one in members} == {("group", 0, "no second page")}
    assert len(members) == 2
    for place in (1, 2):
        assert [frame.function for frame in capture.exceptions[place].frames][:2] == ["pages", "reads"]
        assert values(capture, 0, place) == {"page": "1"}
    books = {values(capture, 1, place)["book"] for place in (1, 2)}
    assert books == {"'first'", "'second'"}


def test_an_error_made_of_an_error_says_what_that_one_says():
    class Wrapping(Exception):
        pass

    endless = Wrapping()
    endless.args = (endless,)
    for error in (Wrapping(TypeError("not serializable")), Wrapping(Wrapping(KeyError("k"))), Wrapping()):
        assert message_of(error) == str(error)
    assert "Wrapping" in message_of(endless)
