"""
Observes a pool process's runs around Celery's own tracers, at a fraction of the cost of two signals.

Celery builds a function for each task, its *tracer*, that takes a run from its message to its stored result
(``celery.app.trace.build_tracer``). It sends ``task_prerun`` and ``task_postrun`` from inside. Sending to an empty
receiver costs more than measuring the run: a lock, a list of the receivers, two dictionaries of arguments. Around the
tracer, a plain call does the same; where the extension module ``_open_runs.c`` is, a run that succeeds needs no call of
Python. See ``docs/decisions/0016-around-the-tracer.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from celery_trace.failures.capture.exceptions import traceback_of
from celery_trace.process.open_runs import OpenRuns, Token

if TYPE_CHECKING:
    from celery import Celery, Task

#: The result, the error or retry, seconds, the result as text.
Traced: TypeAlias = tuple[object, Any, float | None, str | None]
#: ``(task_id, args, kwargs, request)`` to ``(result, error or retry, seconds, result as text)``.
Tracer: TypeAlias = Callable[..., Traced]

#: Sets the C field directly, whatever an error's class does with its attributes.
_set_traceback: Final = BaseException.__dict__["__traceback__"].__set__


def remove_outermost_frame(error: BaseException) -> None:
    """Remove our frame from a traceback, the outermost so far: users read it."""
    traceback = traceback_of(error)
    if traceback is not None:
        _set_traceback(error, traceback.tb_next)


class PlainHooks:
    """
    What the wrapped tracers of a process call. Neither ``begins`` nor ``ends`` may raise, unless it is for the task.

    Args:
        begins: Called with the task, the id and the request when a run begins.
        ends: Called with the task, the id and Celery's state when it has ended: None if there is no result, such as
            while ``SystemExit`` passes. Unless it succeeded, also with ``args``, ``kwargs``, ``request`` and ``retval``
            (the error, if there is one), by name.
    """

    def __init__(self, begins: Callable[..., None], ends: Callable[..., None]) -> None:
        self._begins = begins
        self._ends = ends

    def connect(
        self,
        runs: OpenRuns,
        tokens: dict[str, Token],
        known: Mapping[str, object],
        describe: Callable[[object], tuple[str, str]],
        added: Callable[[Token, int], None],
    ) -> None:
        """
        From now on a run may begin and end without ``begins`` and ``ends``, if it succeeds and is not ``special``.

        The extension module does so while ``runs.quick`` is set. This class calls them for each run.

        Args:
            runs: The runs in progress.
            tokens: Of the runs in progress, by the task's id.
            known: A run of a task's id that is in it calls ``begins`` and ``ends``.
            describe: The token's.
            added: Called with a run and what :meth:`OpenRuns.end` returned, unless that is ``ADDED``.
        """

    def observed(self, tracer: Tracer, task: Task) -> Tracer:
        """``tracer``, observed."""
        begins, ends = self._begins, self._ends

        def traced(uuid: str, args: object, kwargs: object, request: object = None) -> Traced:
            begins(task, uuid, request)
            try:
                returned = tracer(uuid, args, kwargs, request)
            except BaseException as error:
                remove_outermost_frame(error)
                ends(task, uuid, None, args=args, kwargs=kwargs, request=request)
                raise
            info = returned[1]
            if info is None:
                # Without a duration nothing ran: a redelivered message of a task that has succeeded before.
                ends(task, uuid, "SUCCESS" if returned[2] is not None else "IGNORED")
            else:
                ends(task, uuid, info.state, args=args, kwargs=kwargs, request=request, retval=info.retval)
            return returned

        traced.__wrapped__ = tracer  # type: ignore[attr-defined]
        return traced


if TYPE_CHECKING:
    Hooks = PlainHooks
else:
    try:
        from celery_trace.process._open_runs import Hooks
    except ImportError:  # no extension module for this interpreter
        Hooks = PlainHooks


def boundary(tracer: object) -> CodeType | None:
    """The function around every run of an observed tracer: all frames outside of it are the pool's. None if unknown."""
    inside = getattr(tracer, "__wrapped__", None)
    code = getattr(tracer, "__code__", None) or getattr(inside, "__code__", None)
    return code if isinstance(code, CodeType) else None


def install(app: Celery, hooks: Hooks) -> Callable[[], None] | None:
    """
    Observe the tracers of all tasks of ``app``, and those that eager runs build.

    Call it in a pool process once Celery has built its tracers, which is when ``worker_process_init`` is sent.

    Returns:
        A function that undoes it; None, with nothing changed, if this version of Celery keeps its tracers elsewhere.
    """
    from celery.app import trace  # loaded by any process that has tracers

    tasks = list(app.tasks.values())
    build = getattr(trace, "build_tracer", None)
    if build is None or not all(callable(getattr(task, "__trace__", None)) for task in tasks):
        return None
    before = {task: task.__trace__ for task in tasks}

    @functools.wraps(build)
    def build_tracer(name: str, task: Task, *args: object, **options: object) -> Tracer:
        return hooks.observed(build(name, task, *args, **options), task)

    def undo() -> None:
        if trace.build_tracer is build_tracer:
            trace.build_tracer = build
        for task, tracer in before.items():
            task.__trace__ = tracer

    for task, tracer in before.items():
        task.__trace__ = hooks.observed(tracer, task)
    trace.build_tracer = build_tracer
    return undo
