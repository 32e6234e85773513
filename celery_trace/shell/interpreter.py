"""
Reads commands and runs them in the scope of a failure's frame.

The live shell runs it inside the failed process, the recreated one inside the sandbox. It does not deal with threads,
messages or time limits. Only the standard library: the sandbox loads this module too.
"""

from __future__ import annotations

import ast
import codeop
import inspect
import itertools
import linecache
import traceback
import types
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import NamedTuple

from celery_trace.shell import completion
from celery_trace.shell.output import Emit, OutputLimit, Sink, redirected
from celery_trace.shell.pretty import pretty
from celery_trace.shell.trace_object import ShellFrame, Trace

#: Output limit of a command, characters.
OUTPUT_LIMIT = 256 * 1024
_ASYNC = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_REMEMBERED_SOURCES = 50
# Python caches source lines per process: two shells in it must not mix theirs up.
_numbers = itertools.count(1)
_HERE = __file__.rpartition("/")[0] + "/"

HELP = """\
trace                the failure: trace.exception, trace.args, trace.kwargs, trace.task,
                     trace.request, trace.leaks, trace.frames[0].locals, trace.NAME (a variable by name)
NAME                 a variable of the selected frame; _ is the last result
where                the frames: > is the selected one, * are your code
up, down, frame N    select another frame: up is towards the caller
list                 the source around the selected frame's line
help                 this text; help(x) is Python's own
!where               runs `where` as Python, if a variable has a command's name
# text               a remark for the other users of this session
await x              works at the top level
An empty line ends a block. New names stay in this shell; changing an object changes that object."""


class CommandResult(NamedTuple):
    """How a command ended. ``more``: it is incomplete and nothing ran."""

    ok: bool
    more: bool = False


class _Scope(dict[str, object]):
    """A frame's names as globals of a command: its variables, then the shell's names, then the module's."""

    def __init__(self, frame: ShellFrame, shared: dict[str, object]) -> None:
        super().__init__(frame.locals)
        self._shared = shared
        self._module = frame.globals
        self.original = dict(frame.locals)

    def __missing__(self, name: str) -> object:
        if name in self._shared:
            return self._shared[name]
        if name in self._module:
            return self._module[name]
        raise KeyError(name)

    def share(self) -> None:
        """Make the last command's names available in the other frames."""
        for name, value in self.items():
            if name not in self.original and name != "__builtins__":
                self._shared[name] = value

    def names(self) -> set[str]:
        return {name for name in (*self, *self._shared, *list(self._module)) if isinstance(name, str)}


class Interpreter:
    """
    A shell's state: the selected frame, its new names, the last result.

    Not thread-safe: its owner runs one command at a time.

    Args:
        trace: The failure with its frames, innermost first.
        chosen: The frame to start in; by default the innermost one of the user's code.
        await_: Runs a coroutine to its end, for ``await`` at the top level.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        chosen: int | None = None,
        await_: Callable[[Coroutine[object, object, object]], object],
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        self.trace = trace
        self._await = await_
        self._output_limit = output_limit
        self._shared: dict[str, object] = {"trace": trace, "input": _no_keyboard, "breakpoint": _no_keyboard}
        self._scopes: dict[int, _Scope] = {}
        self._nowhere = ShellFrame("<shell>", 0, "<no frame>", {})
        self._sources: list[str] = []
        self._compile = codeop.CommandCompiler()
        self._compile.compiler.flags |= _ASYNC
        if chosen is None:
            chosen = next((index for index, frame in enumerate(trace.frames) if frame.in_app), 0)
        self.frame = 0
        self.select_frame(chosen)

    def select_frame(self, index: int) -> bool:
        """Select a frame by its index; False if there is none."""
        if not 0 <= index < max(1, len(self.trace.frames)):
            return False
        self.frame = index
        if self.trace.frames:
            self.trace.choose(index)
        return True

    @property
    def _scope(self) -> _Scope:
        scope = self._scopes.get(self.frame)
        if scope is None:
            frame = self.trace.frames[self.frame] if self.trace.frames else self._nowhere
            scope = self._scopes[self.frame] = _Scope(frame, self._shared)
            scope["trace"] = self.trace
        return scope

    def complete(self, code: str, cursor: int) -> list[str]:
        """As :func:`celery_trace.shell.completion.complete`, in the selected frame."""
        scope = self._scope
        return completion.complete(scope, scope.names(), code, cursor)

    # --- running ------------------------------------------------------------------------------------

    def run(self, code: str, emit: Emit) -> CommandResult:
        """
        Run one command; all its output goes to ``emit``, including exceptions.

        Printed text does so only after :func:`celery_trace.shell.output.install`.

        Returns:
            How it ended. Only exceptions meant for the thread itself are raised.
        """
        sink = Sink(emit, self._output_limit)
        try:
            with redirected(sink):
                try:
                    return self._run(code, sink)
                except OutputLimit:
                    return CommandResult(False)
                except BaseException as error:
                    # SystemExit and KeyboardInterrupt end the command, never the process.
                    self._show_error(error, sink)
                    return CommandResult(False)
        except OutputLimit:
            return CommandResult(False)

    def _run(self, code: str, sink: Sink) -> CommandResult:
        word = code.strip()
        if not word or (word.startswith("#") and "\n" not in word):
            return CommandResult(True)
        command = self._commands().get(word.split(None, 1)[0]) if "\n" not in word else None
        if command is not None and (" " not in word or word.startswith("frame ")):
            return CommandResult(command(word.partition(" ")[2].strip(), sink))
        if word.startswith("!"):
            code = code.lstrip()[1:]
        if self._incomplete(code):
            return CommandResult(True, more=True)
        scope = self._scope
        file = f"<shell-{next(_numbers)}>"
        self._remember(file, code)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = compile(code, file, "exec", ast.PyCF_ONLY_AST | _ASYNC)
            value = self._execute(tree, file, scope)
            if value is not None:
                self._shared["_"] = value
                scope.pop("_", None)
                sink.write("result", pretty(value))
        finally:
            scope.share()
        return CommandResult(True)

    def _incomplete(self, code: str) -> bool:
        """Whether more lines are needed; a block typed line by line ends with an empty one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if self._compile(code, "<shell>", "single") is not None:
                    return False
            except (SyntaxError, ValueError, OverflowError):
                # Several statements are not "single" input; a real error is raised when compiling.
                in_block = False
            else:
                in_block = code.rsplit("\n", 1)[-1][:1] in (" ", "\t")
            try:
                return in_block or self._compile(code, "<shell>", "exec") is None
            except (SyntaxError, ValueError, OverflowError):
                return False

    def _execute(self, tree: ast.Module, file: str, scope: _Scope) -> object:
        """Run statements; returns the value of the last one if it is an expression."""
        body, last = list(tree.body), None
        if body and isinstance(body[-1], ast.Expr):
            last = ast.Expression(body[-1].value)
            del body[-1]
        parts = []
        if body:
            parts.append(compile(ast.Module(body, []), file, "exec", _ASYNC))
        if last is not None:
            parts.append(compile(last, file, "eval", _ASYNC))
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            # One loop runs all lines: the last may await what the first started.
            value = self._await(_in_turn(parts, scope))
        else:
            value = None
            for part in parts:
                value = eval(part, scope)  # noqa: S307 - running what was typed is what a shell is for
        return value if last is not None else None

    def _remember(self, file: str, code: str) -> None:
        """Let tracebacks show the typed lines."""
        linecache.cache[file] = (len(code), None, [line + "\n" for line in code.splitlines()], file)
        self._sources.append(file)
        if len(self._sources) > _REMEMBERED_SOURCES:
            linecache.cache.pop(self._sources.pop(0), None)

    def close(self) -> None:
        """Forget the typed lines, and all names."""
        while self._sources:
            linecache.cache.pop(self._sources.pop(), None)
        self._scopes.clear()
        self._shared.clear()

    def _show_error(self, error: BaseException, sink: Sink) -> None:
        if isinstance(error, KeyboardInterrupt):
            text = "KeyboardInterrupt\n"
        else:
            try:
                shown, limit = _typed_part(error)
                text = "".join(traceback.format_exception(type(error), error, shown, limit=limit))
            except Exception as again:
                text = f"{type(error).__qualname__}, and showing it raised {type(again).__qualname__}\n"
        try:
            sink.write("error", text)
        except OutputLimit:
            return

    # --- commands -----------------------------------------------------------------------------------

    def _commands(self) -> Mapping[str, Callable[[str, Sink], bool]]:
        return {
            "where": self._where,
            "up": self._up,
            "down": self._down,
            "frame": self._choose,
            "list": self._list,
            "help": self._help,
        }

    def _help(self, _argument: str, sink: Sink) -> bool:
        sink.write("output", HELP + "\n", "stdout")
        return True

    def _line(self, index: int) -> str:
        frame = self.trace.frames[index]
        mark = (">" if index == self.frame else " ") + ("*" if frame.in_app else " ")
        return f"{mark} {index:>3}  {frame.function}  {frame.file}:{frame.line}\n"

    def _where(self, _argument: str, sink: Sink) -> bool:
        if not self.trace.frames:
            sink.write("notice", "This failure has no frames.")
            return True
        for index in range(len(self.trace.frames)):
            sink.write("output", self._line(index), "stdout")
        return True

    def _go(self, index: int, sink: Sink, otherwise: str) -> bool:
        if not self.trace.frames or not self.select_frame(index):
            sink.write("error", otherwise + "\n")
            return False
        sink.write("output", self._line(index), "stdout")
        if note := self.trace.frames[index].note:
            sink.write("notice", note)
        return True

    def _up(self, _argument: str, sink: Sink) -> bool:
        return self._go(self.frame + 1, sink, "This is the outermost frame.")

    def _down(self, _argument: str, sink: Sink) -> bool:
        return self._go(self.frame - 1, sink, "This is the innermost frame.")

    def _choose(self, argument: str, sink: Sink) -> bool:
        if not argument:
            return self._go(self.frame, sink, "This failure has no frames.")
        try:
            index = int(argument)
        except ValueError:
            index = -1
        return self._go(index, sink, f"No frame {argument[:40]}; there are 0 to {len(self.trace.frames) - 1}.")

    def _list(self, _argument: str, sink: Sink) -> bool:
        frame = self.trace.frames[self.frame] if self.trace.frames else None
        lines = frame.source() if frame is not None else ()
        if frame is None or not lines:
            sink.write("notice", "There is no source for this frame.")
            return True
        for number, text in lines:
            sink.write("output", f"{'->' if number == frame.line else '  '} {number:>5}  {text.rstrip()}\n", "stdout")
        return True


async def _in_turn(parts: list[types.CodeType], scope: dict[str, object]) -> object:
    value = None
    for part in parts:
        value = eval(part, scope)  # noqa: S307 - as above
        if part.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def _no_keyboard(*_args: object, **_kwargs: object) -> None:
    """Replaces ``input`` and ``breakpoint``, which would wait for the process's own terminal forever."""
    raise RuntimeError("this shell can't read input; type values as code")


def _typed_part(error: BaseException) -> tuple[types.TracebackType | None, int | None]:
    """
    The traceback from the typed lines on, and how many of its entries to show. The interpreter's own frames, and those
    of our objects that raise the error, are left out.
    """
    first = error.__traceback__
    while first is not None and not first.tb_frame.f_code.co_filename.startswith("<shell-"):
        first = first.tb_next
    count, current = 0, first
    while current is not None:
        if current.tb_frame.f_code.co_filename.startswith(_HERE):
            return first, count
        count, current = count + 1, current.tb_next
    return first, None
