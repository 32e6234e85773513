"""
``@trace_memory`` and ``with trace_memory("label"):`` — the Top 10 differences of a function or a block.

Each run of the block is traced, its table printed, and the run recorded like any other: what it retains is found in
the sampled heap, as for a task. With ``trace_memory`` set to ``off`` or ``rss`` the block just runs.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import FrameType, TracebackType
from typing import ParamSpec, TextIO, TypeVar, cast, overload

from celery_trace import settings as settings_module
from celery_trace.guard import Guard, report
from celery_trace.heap.differences import table
from celery_trace.model import Kind, Role, Site, Stage, Verdict, Window, new_id, stable_id
from celery_trace.process.open_runs import Token
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.probes.trace_probe import TraceProbe
from celery_trace.runtime.recorder import Recorder

Function = TypeVar("Function", bound=Callable[..., object])
P = ParamSpec("P")
T = TypeVar("T")
Sent = TypeVar("Sent")
Result = TypeVar("Result")

#: The calls of a label that write their differences as evidence too: the first few, then fewer and fewer.
_WRITTEN_CALLS = frozenset({1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000})


class TracedBlock:
    """
    A context manager and a decorator, made by :func:`trace_memory`. It may be entered many times, also concurrently.

    Args:
        label: The block's name; by default the function's name, or the module and line of the block.
        show: Whether the table is printed.
        file: Where it is printed; by default ``sys.stdout`` at the end of the block.
    """

    def __init__(self, label: str = "", *, show: bool = True, file: TextIO | None = None) -> None:
        self._label = label
        self._show = show
        self._file = file
        self._running: list[_OneRun] = []
        #: The rows of the last run that ended, greatest change first.
        self.top: list[Site] = []

    # --- with --------------------------------------------------------------------------------------------

    def __enter__(self) -> TracedBlock:
        self._begin(sys._getframe(1))
        return self

    def _begin(self, caller: FrameType) -> None:
        label = self._label or f"{caller.f_globals.get('__name__', '?')}:{caller.f_lineno}"
        self._running.append(_OneRun(self, label))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running:
            self.finish(self._running.pop(), failed=error is not None)

    async def __aenter__(self) -> TracedBlock:
        self._begin(sys._getframe(1))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def finish(self, run: _OneRun, *, failed: bool) -> None:
        """Record a run that has ended, and print its table."""
        with Guard("trace_memory: end"):
            if run.end(failed):
                self.top = run.top
                if self._show:
                    stream = self._file or sys.stdout
                    stream.write(run.text() + "\n")

    # --- decorator ---------------------------------------------------------------------------------------

    def __call__(self, function: Function) -> Function:
        """Trace each call: of a function, a coroutine function, a generator from its first to its last item."""
        if hasattr(function, "apply_async"):
            raise TypeError(
                f"trace_memory was put on the Celery task {getattr(function, 'name', function)!r}, which is no longer "
                "a plain function. Put @trace_memory below the task decorator, directly above def."
            )
        label = self._label or f"{function.__module__}.{function.__qualname__}"
        return cast(Function, functools.wraps(function)(self._wrapper(function, label)))

    def _wrapper(self, function: Callable[P, T], label: str) -> Callable[P, object]:
        if inspect.isasyncgenfunction(function):
            return self._around_async_generator(function, label)
        if inspect.iscoroutinefunction(function):
            return self._around_coroutine(function, label)
        if inspect.isgeneratorfunction(function):
            return self._around_generator(function, label)

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with _OneRun(self, label):
                return function(*args, **kwargs)

        return call

    def _around_coroutine(self, function: Callable[P, Awaitable[T]], label: str) -> Callable[P, Awaitable[T]]:
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with _OneRun(self, label):
                return await function(*args, **kwargs)

        return call

    def _around_generator(
        self, function: Callable[P, Generator[T, Sent, Result]], label: str
    ) -> Callable[P, Generator[T, Sent, Result]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[T, Sent, Result]:
            with _OneRun(self, label):
                return (yield from function(*args, **kwargs))

        return call

    def _around_async_generator(
        self, function: Callable[P, AsyncGenerator[T, Sent]], label: str
    ) -> Callable[P, AsyncGenerator[T, Sent]]:
        async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, Sent]:
            with _OneRun(self, label):
                inner = function(*args, **kwargs)
                try:
                    step: Awaitable[T] = inner.__anext__()
                    while True:
                        try:
                            item = await step
                        except StopAsyncIteration:
                            return
                        try:
                            step = inner.asend((yield item))
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            step = inner.athrow(error)
                finally:
                    await inner.aclose()

        return call


class _OneRun:
    """
    One run of a block, from its start to its table.

    Args:
        block: Gets the table at the end.
        label: The block's name.
    """

    def __init__(self, block: TracedBlock, label: str) -> None:
        self._block = block
        self._label = label
        self._recorder: Recorder | None = None
        self._token: Token | None = None
        self.top: list[Site] = []
        self._concurrent = 1
        with Guard("trace_memory: start"):
            recorder = _recorder()
            if recorder is not None:
                # It becomes a name everywhere, in metrics and alerts too, and may contain values.
                self._label = label = recorder.redactor.text(label)
                if recorder.settings.memory in {"auto", "always"}:
                    recorder.probe(TraceProbe).trace(label)
                self._recorder = recorder
                self._token = recorder.run_started(Kind.BLOCK, label)

    def __enter__(self) -> None:
        """It has begun: tracing starts with the constructor."""

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # A generator is closed early when the client of a stream disconnects; that is no failure.
        self._block.finish(self, failed=kind is not None and kind is not GeneratorExit)

    def end(self, failed: bool) -> bool:
        """Record the run. False if it was not traced, so there is nothing to show."""
        recorder, token = self._recorder, self._token
        if recorder is None or token is None:
            return False
        recorder.run_ended(token, "FAILURE" if failed else "SUCCESS", failed=failed)
        if token.top is None:
            return False
        self.top = token.top
        self._concurrent = token.shared
        self._write(recorder, token.totals.traced)
        return True

    def _write(self, recorder: Recorder, number: int) -> None:
        if number not in _WRITTEN_CALLS and number % 1_000:
            return
        grown = [site for site in self.top if site.bytes > 0]
        recorder.write(
            Window(
                id=new_id(),
                investigation=stable_id("block", recorder.process.uid, self._label),
                process=recorder.process.uid,
                kind=Kind.BLOCK,
                name=self._label,
                stage=Stage.TRACED,
                verdict=Verdict.TOO_FEW_RUNS if number < 3 else Verdict.SUSPECT,
                at_s=recorder.clock.now_s(),
                runs=1,
                run_number=number,
                kept_blocks_per_run=float(sum(site.blocks for site in self.top)),
                kept_bytes_per_run=float(sum(site.bytes for site in self.top)),
                sites=grown,
                concurrent=self._concurrent,
            )
        )

    def text(self) -> str:
        """The table, with a note if other runs were in progress."""
        text = table(self.top, self._label)
        if self._concurrent > 1:
            text += f"\n{self._concurrent} concurrent runs: these figures include what the others allocated"
        return text


def _recorder() -> Recorder | None:
    """This process's recorder; if there is none, one from the environment's settings."""
    recorder = recorders.current()
    if recorder is not None:
        return recorder
    try:
        settings = settings_module.load()
    except settings_module.SettingError as error:
        report("trace_memory: settings", error)
        return None
    if not settings.enabled or settings.memory == "off":
        return None
    return recorders.ensure(settings, Role.SCRIPT)


@overload
def trace_memory(label: Function, /) -> Function: ...
@overload
def trace_memory(label: str = "", /, *, show: bool = True, file: TextIO | None = None) -> TracedBlock: ...
def trace_memory(
    label: Function | str = "", /, *, show: bool = True, file: TextIO | None = None
) -> Function | TracedBlock:
    """
    Measure a function or a block: print its Top 10 differences and record the run.

    Use it as ``@trace_memory``, ``@trace_memory("label")``, ``with trace_memory("label"):`` or
    ``async with trace_memory("label"):``, for tasks, views and plain code, sync and async.

    Args:
        label: The block's name; by default the function's name, or the module and line of the block.
        show: Whether the table is printed. The run is recorded in any case.
        file: Where it is printed; by default ``sys.stdout``.

    Raises:
        TypeError: It was put above a Celery task's decorator.
    """
    if isinstance(label, str):
        return TracedBlock(label, show=show, file=file)
    return TracedBlock(show=show, file=file)(label)
