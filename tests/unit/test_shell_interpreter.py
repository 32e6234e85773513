"""What can be typed in a shell, live or recreated: the interpreter by itself."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from typing import Any

import pytest

from celery_trace.shell import interpreter as module
from celery_trace.shell import output
from celery_trace.shell.interpreter import Interpreter
from celery_trace.shell.pretty import pretty
from celery_trace.shell.trace_object import ShellFrame, Trace


class Typed:
    """An interpreter and all that it said."""

    def __init__(self, frames: list[ShellFrame] | None = None, **values: Any) -> None:
        inner = ShellFrame(
            "/srv/shop/tasks.py",
            7,
            "create_error",
            {"context_data": "Hello", "a": 5, "d": 10},
            namespace={"RATE": 3, "json": __import__("json")},
            source=lambda: [(6, "d = 10"), (7, "return d / 0")],
        )
        outer = ShellFrame("/srv/shop/views.py", 20, "view", {"order": {"id": 4}, "a": "outer"})
        self.trace = Trace([inner, outer] if frames is None else frames, exception=ZeroDivisionError("x"), args=(1,))
        self.interpreter = Interpreter(self.trace, await_=asyncio.run, **values)
        self.said: list[tuple[str, str, str]] = []

    def __call__(self, code: str) -> str:
        """What the command said; its kinds are in ``said``."""
        self.said.clear()
        output.install()
        try:
            self.outcome = self.interpreter.run(code, lambda *event: self.said.append(event))
        finally:
            output.remove()
        return "".join(text for _kind, text, _stream in self.said)

    def complete(self, code: str) -> list[str]:
        return self.interpreter.complete(code, len(code))


@pytest.fixture
def typed() -> Any:
    shell = Typed()
    yield shell
    shell.interpreter.close()


@pytest.mark.parametrize(
    ("code", "echo"),
    [
        ("1 + 1", "2"),
        ("trace.context_data", "'Hello'"),
        ("context_data", "'Hello'"),
        ("[a + d for _ in range(2)]", "[15, 15]"),
        ("(lambda: a)()", "5"),
        ("RATE", "3"),
        ("json.dumps({})", "'{}'"),
        ("trace.frames[1].locals", "{'order': {'id': 4}, 'a': 'outer'}"),
        ("trace.frames[1].locals.order", "{'id': 4}"),
        ("trace.order", "{'id': 4}"),
        ("trace.exception", "ZeroDivisionError('x')"),
        ("trace.args", "(1,)"),
        ("x = 3\ny = 4\nx * y", "12"),
        ("None", ""),
        ("import asyncio; await asyncio.sleep(0, 'slept')", "'slept'"),
        ("!a", "5"),
        ("", ""),
        ("# a remark", ""),
    ],
)
def test_an_expression_echoes_its_value(typed: Typed, code: str, echo: str) -> None:
    assert typed(code) == echo
    assert typed.outcome.ok
    assert {kind for kind, _text, _stream in typed.said} <= {"result"}


def test_underscore_is_the_last_result_in_every_frame(typed: Typed) -> None:
    typed("40 + 2")
    typed("up")
    assert typed("_ + 1") == "43"
    assert typed("_") == "43"


def test_names_made_in_one_frame_are_known_in_the_others_but_its_variables_are_not(typed: Typed) -> None:
    typed("mine = a")
    typed("up")
    assert typed("mine, a") == "(5, 'outer')"
    typed("d")
    assert "NameError" in typed.said[0][1]


def test_assigning_never_writes_into_the_frame_or_its_module(typed: Typed) -> None:
    typed("RATE = 99; a = 1")
    assert typed("RATE, a") == "(99, 1)"
    assert typed.trace.frames[0].globals["RATE"] == 3
    assert typed.trace.frames[0].locals["a"] == 5


def test_a_block_typed_line_by_line_asks_for_more_and_ends_with_an_empty_line(typed: Typed) -> None:
    assert typed("for i in range(2):") == ""
    assert typed.outcome.more
    typed("for i in range(2):\n    print(i)")
    assert typed.outcome.more
    assert typed("for i in range(2):\n    print(i)\n") == "0\n1\n"
    assert not typed.outcome.more


@pytest.mark.parametrize("code", ["(1,", "'''open", "def f():", "if a:\\", "@decorator"])
def test_what_is_not_complete_runs_nothing(typed: Typed, code: str) -> None:
    assert typed(code) == ""
    assert typed.outcome == (True, True)


def test_a_block_on_one_line_is_complete(typed: Typed) -> None:
    assert typed("for i in range(2): print(i)") == "0\n1\n"


@pytest.mark.parametrize("code", ["x = = 3", "a b", "1 +* 2", ")", "x\0y", "f(\n)\n)"])
def test_a_syntax_error_is_shown_as_one(typed: Typed, code: str) -> None:
    assert "SyntaxError" in typed(code) or "null bytes" in typed(code)
    assert not typed.outcome.ok
    assert not typed.outcome.more


def test_an_exception_is_shown_with_the_typed_lines_and_without_ours(typed: Typed) -> None:
    text = typed("def broken():\n    return 1 / 0\n\nbroken()\n")
    assert "ZeroDivisionError: division by zero" in text
    assert "return 1 / 0" in text
    assert "celery_trace" not in text
    assert typed.said[0][0] == "error"


def test_two_shells_of_one_process_show_each_its_own_lines(typed: Typed) -> None:
    other = Typed()
    try:
        typed("def broken():\n    return 'mine' / 0\n\n")
        other("def broken():\n    return 'a secret of another session' / 0\n\n")
        assert "return 'mine' / 0" in typed("broken()")
        assert "another session" in other("broken()")
    finally:
        other.interpreter.close()
    assert "return 'mine' / 0" in typed("broken()")


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()", "BaseException('x')"])
def test_nothing_that_is_raised_leaves_the_shell(typed: Typed, error: str) -> None:
    assert error.partition("(")[0] in typed(f"raise {error}")
    assert not typed.outcome.ok


def test_an_exception_whose_text_raises_is_still_an_error(typed: Typed) -> None:
    text = typed("class E(Exception):\n    def __str__(self): raise ValueError\n\nraise E\n")
    assert "E" in text
    assert not typed.outcome.ok


def test_a_repr_that_raises_becomes_part_of_the_echo(typed: Typed) -> None:
    text = typed("class R:\n    def __repr__(self): raise ValueError('no')\n\nR()\n")
    assert "its repr raised ValueError: no" in text
    assert typed.outcome.ok


def test_a_missing_name_of_trace_says_what_to_do(typed: Typed) -> None:
    assert "`where` lists the frames" in typed("trace.nothing")
    assert "it has: a, context_data, d" in typed("trace.frames[0].locals.nothing")


def test_where_up_down_and_frame_move_between_the_frames(typed: Typed) -> None:
    assert typed("where").splitlines() == [
        ">*   0  create_error  /srv/shop/tasks.py:7",
        " *   1  view  /srv/shop/views.py:20",
    ]
    assert "view" in typed("up")
    assert typed("a") == "'outer'"
    assert "outermost" in typed("up")
    assert not typed.outcome.ok
    typed("frame 0")
    assert typed("a") == "5"
    assert "innermost" in typed("down")
    assert "No frame 7; there are 0 to 1." in typed("frame 7")
    assert "No frame x" in typed("frame x")
    assert "create_error" in typed("frame")


def test_list_shows_the_source_with_the_line_marked(typed: Typed) -> None:
    assert typed("list").splitlines() == ["       6  d = 10", "->     7  return d / 0"]
    assert typed("list('ab')") == "['a', 'b']"
    typed("up")
    assert typed("list") == "There is no source for this frame."


def test_help_names_every_command(typed: Typed) -> None:
    text = typed("help")
    for word in (*typed.interpreter._commands(), "trace.exception", "await", "_"):
        assert word in text


def test_the_first_frame_is_the_innermost_one_of_the_users_own() -> None:
    frames = [ShellFrame("lib.py", 1, "lib", {"x": 1}, in_app=False), ShellFrame("app.py", 1, "mine", {"x": 2})]
    shell = Typed(frames)
    assert shell("x") == "2"
    assert shell("trace.x") == "2"
    shell.interpreter.close()


def test_a_failure_without_frames_still_has_a_shell() -> None:
    shell = Typed([])
    assert shell("1 + 1") == "2"
    assert "no frames" in shell("where")
    assert not shell.interpreter.select_frame(1)
    shell("up")
    assert not shell.outcome.ok
    shell.interpreter.close()


def test_a_variable_with_a_commands_name_is_reached_with_an_exclamation_mark() -> None:
    shell = Typed([ShellFrame("a.py", 1, "f", {"where": "here", "trace": "mine"})])
    assert shell("!where") == "'here'"
    assert shell("trace.frames[0].locals.trace") == "'mine'"
    assert "recreated" in shell("trace")
    shell.interpreter.close()


def test_output_past_the_limit_stops_the_command() -> None:
    shell = Typed(output_limit=100)
    text = shell("try:\n    while True: print('y' * 30)\nexcept Exception: pass\n")
    assert text.count("y") <= 100
    assert "cut at 100 characters" in text
    assert not shell.outcome.ok
    assert shell("1 + 1") == "2"
    shell.interpreter.close()


def test_a_result_over_the_output_limit_is_cut() -> None:
    shell = Typed(output_limit=50)
    assert "cut at 50" in shell("'x' * 1000")
    shell.interpreter.close()


def test_what_another_thread_prints_stays_where_it_was(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = io.StringIO()
    monkeypatch.setattr(sys, "stdout", outside)
    inside, printed = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(30)
        print("from another thread")
        printed.set()

    thread = threading.Thread(target=other)
    thread.start()
    typed.trace.frames[0].locals["inside"] = inside
    typed.trace.frames[0].locals["printed"] = printed
    shell = Typed([typed.trace.frames[0]])
    text = shell("inside.set(); waited = printed.wait(30); print('mine')")
    thread.join(30)
    assert text == "mine\n"
    assert outside.getvalue() == "from another thread\n"
    assert sys.stdout is outside
    shell.interpreter.close()


def test_input_does_not_wait_for_a_keyboard_that_is_not_there(typed: Typed) -> None:
    assert "can't read input" in typed("input()")
    assert "can't read input" in typed("breakpoint()")


def test_typed_lines_are_forgotten_when_the_shell_closes(typed: Typed) -> None:
    import linecache

    typed("1")
    assert any(name.startswith("<shell-") for name in linecache.cache)
    typed.interpreter.close()
    assert not [name for name in linecache.cache if name.startswith("<shell-")]


# --- completion -----------------------------------------------------------------------------------------


class Tempting:
    """Everything that a careless completion would run."""

    plain = 1

    def __init__(self) -> None:
        self.number = 3

    @property
    def queried(self) -> Any:
        raise AssertionError("a property was run")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("__getattr__ was run")

    def __dir__(self) -> Any:
        raise AssertionError("__dir__ was run")

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise AssertionError("__class__ was asked for")


class Slotted:
    __slots__ = ("inner",)

    def __init__(self) -> None:
        self.inner = Tempting()


def test_completion_knows_names_attributes_slots_and_keys() -> None:
    values = {"tempting": Tempting(), "slotted": Slotted(), "rows": [{"first_key": 1}]}
    shell = Typed([ShellFrame("a.py", 1, "f", values, namespace={"json": __import__("json")})])
    assert shell.complete("tempt") == ["tempting"]
    assert shell.complete("x = temp") == ["tempting"]
    assert shell.complete("tempting.") == ["number", "plain", "queried"]
    assert shell.complete("tempting.nu") == ["number"]
    assert shell.complete("slotted.inner.n") == ["number"]
    assert shell.complete("rows[0]['fi") == ["first_key"]
    assert shell.complete("json.dum") == ["dump", "dumps"]
    assert shell.complete("trace.frames[0].locals.tem") == ["tempting"]
    assert shell.complete("trace.temp") == ["tempting"]
    assert "range" in shell.complete("ran")
    assert "import" in shell.complete("imp")
    shell.interpreter.close()


@pytest.mark.parametrize(
    "code",
    ["tempting.queried.", "tempting().", "nothing.", "tempting[0].", "'a'.", "(1+2).x", "f'{a}'.", "x" * 5000, ""],
)
def test_completion_runs_nothing_and_never_fails(code: str) -> None:
    shell = Typed([ShellFrame("a.py", 1, "f", {"tempting": Tempting()})])
    assert isinstance(shell.complete(code), list)
    shell.interpreter.close()


def test_completion_of_a_property_gives_nothing_rather_than_its_value() -> None:
    shell = Typed([ShellFrame("a.py", 1, "f", {"tempting": Tempting()})])
    assert shell.complete("tempting.queried.") == []
    shell.interpreter.close()


# --- the echo -------------------------------------------------------------------------------------------


def test_a_long_list_is_cut_with_the_true_count() -> None:
    text = pretty(list(range(10_000)))
    assert "… 9,500 more" in text
    assert len(text) < 5000


def test_a_cycle_is_shown_once() -> None:
    values: list[Any] = [1]
    values.append(values)
    assert pretty(values) == "[1, <the same list again>]"


def test_a_deep_structure_is_shown_as_far_as_it_makes_sense() -> None:
    values: list[Any] = []
    for _ in range(5000):
        values = [values]
    assert "deeper than" in pretty(values)


def test_a_wide_dict_gets_a_line_per_key() -> None:
    text = pretty({f"key_{number}": "x" * 40 for number in range(5)})
    assert text.count("\n") == 4


@pytest.mark.parametrize("value", [(), (1,), [], {}, set(), frozenset(), {1}, frozenset({1}), [()], {"a": [1, {2: 3}]}])
def test_the_echo_of_plain_containers_is_their_repr(value: Any) -> None:
    assert pretty(value) == repr(value)


def test_the_modules_that_the_sandbox_loads_need_only_the_standard_library() -> None:
    import subprocess
    from pathlib import Path

    code = (
        "import sys, types\n"
        "for name, folder in (('celery_trace', sys.argv[1]), ('celery_trace.shell', sys.argv[1] + '/shell')):\n"
        "    package = types.ModuleType(name); package.__path__ = [folder]; sys.modules[name] = package\n"
        "import celery_trace.shell.interpreter\n"
        "import celery_trace.shell.sandbox.recreation, celery_trace.shell.sandbox.protection\n"
        "print(sorted(name for name in sys.modules if name.startswith('celery_trace.') or name == 'msgspec'))\n"
    )
    package = str(Path(module.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, package], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "msgspec" not in done.stdout
