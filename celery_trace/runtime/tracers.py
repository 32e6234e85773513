"""
Observes a pool process's runs around Celery's own tracers, at a fraction of the cost of two signals.

Celery builds a function for each task, its *tracer*, that takes a run from its message to its stored result
(``celery.app.trace.build_tracer``). It sends ``task_prerun`` and ``task_postrun`` from inside. Sending to an empty
receiver costs more than measuring the run: a lock, a list of the receivers, two dictionaries of arguments. Around the
tracer, a plain call does the same. See ``docs/decisions/0016-around-the-tracer.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from celery_trace.failures.capture.exceptions import traceback_of

if TYPE_CHECKING:
    from celery import Celery, Task

#: The result, the error or retry, seconds, the result as text.
Traced: TypeAlias = tuple[object, Any, float | None, str | None]
#: ``(task_id, args, kwargs, request)`` to ``(result, error or retry, seconds, result as text)``.
Tracer: TypeAlias = Callable[..., Traced]

#: Sets the C field directly, whatever an error's class does with its attributes.
_set_traceback: Final = BaseException.__dict__["__traceback__"].__set__


class Runs(Protocol):
    """Is called for each run. Its methods may not raise."""

    def run_begins(self, task: Task, task_id: str, request: object) -> None:
        """A run of ``task`` begins."""

    def run_ends(self, task: Task, task_id: str, state: str | None, **rest: object) -> None:
        """
        The run has ended.

        Args:
            task: The task.
            task_id: The id that :meth:`run_begins` got.
            state: Celery's state; None if there is no result, such as while ``SystemExit`` passes.
            rest: Unless it succeeded, ``args``, ``kwargs``, ``request`` and ``retval`` (the error, if there is one).
        """


def remove_outermost_frame(error: BaseException) -> None:
    """Remove our frame from a traceback, the outermost so far: users read it."""
    traceback = traceback_of(error)
    if traceback is not None:
        _set_traceback(error, traceback.tb_next)


def around(tracer: Tracer, task: Task, runs: Runs) -> Tracer:
    """``tracer``, with ``runs`` called before and after each run."""
    begins, ends = runs.run_begins, runs.run_ends

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

    return traced


#: The code of the function that :func:`around` makes: all frames outside of it are the pool's.
AROUND_CODE: Final = next(const for const in around.__code__.co_consts if isinstance(const, CodeType))


def install(app: Celery, runs: Runs) -> Callable[[], None] | None:
    """
    Wrap the tracers of all tasks of ``app``, and those that eager runs build, in calls of ``runs``.

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
        return around(build(name, task, *args, **options), task, runs)

    def undo() -> None:
        if trace.build_tracer is build_tracer:
            trace.build_tracer = build
        for task, tracer in before.items():
            task.__trace__ = tracer

    for task, tracer in before.items():
        task.__trace__ = around(tracer, task, runs)
    trace.build_tracer = build_tracer
    return undo
