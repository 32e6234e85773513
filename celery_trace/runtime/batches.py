"""
Observes the runs of ``celery-batches``, which do not pass Celery's tracers.

That library calls the task once with a list of requests. When a batch fails it catches the error, logs it, and sends
neither ``task_failure`` nor anything else that has the error. So the task's own ``run`` is wrapped, in each process
that runs tasks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from celery_trace.failures.celery_request import field, text
from celery_trace.runtime.tracers import remove_outermost_frame

if TYPE_CHECKING:
    from celery import Celery, Task

P = ParamSpec("P")
R = TypeVar("R")

#: The most request ids in a record's note.
_MOST_IDS: Final = 50


class BatchRuns(Protocol):
    """Is called for each batch, with the id of its first request. Its methods may not raise."""

    def run_begins(self, task: Task, task_id: str, request: object) -> None:
        """A batch begins."""

    def run_ends(self, task: Task, task_id: str, state: str | None, **rest: object) -> None:
        """It has ended; see :class:`celery_trace.runtime.tracers.PlainHooks`."""

    def batch_failed(
        self, task: Task, task_id: str, request: object, error: BaseException, args: object, note: str
    ) -> None:
        """A batch has failed; called before :meth:`run_ends`, while the traceback is alive."""


def install(app: Celery, runs: BatchRuns) -> Callable[[], None] | None:
    """
    Call ``runs`` for each batch that a task of ``app`` runs in this process from now on.

    Returns:
        A function that undoes it; None if the app has no such task.
    """
    library = sys.modules.get("celery_batches")
    kind = getattr(library, "Batches", None)
    tasks: list[Task] = [task for task in app.tasks.values() if isinstance(kind, type) and isinstance(task, kind)]
    if not tasks:
        return None
    before = [(task, vars(task).get("run")) for task in tasks]
    for task in tasks:
        task.run = _around(task.run, task, runs)

    def undo() -> None:
        for task, run in before:
            if run is None:
                del task.run  # the class's own remains
            else:
                task.run = run

    return undo


def in_a_batch() -> bool:
    """Whether a caller is the library's function that runs a batch: its signals add nothing to what is seen here."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_code.co_name == "apply_batches_task":
            return True
        frame = frame.f_back
    return False


def _around(run: Callable[P, R], task: Task, runs: BatchRuns) -> Callable[P, R]:
    @functools.wraps(run)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        if not in_a_batch():  # an eager run, which Celery's own tracer observes, or a plain call
            return run(*args, **kwargs)
        requests = args[0] if args and isinstance(args[0], list) else []
        task_id, request, note = _described(requests)
        runs.run_begins(task, task_id, request)
        try:
            result = run(*args, **kwargs)
        except BaseException as error:
            remove_outermost_frame(error)
            fails = isinstance(error, Exception)
            if fails:
                runs.batch_failed(task, task_id, request, error, args, note)
            runs.run_ends(task, task_id, "FAILURE" if fails else None, args=args, kwargs=kwargs, request=request)
            raise
        runs.run_ends(task, task_id, "SUCCESS")
        return result

    return traced


def _described(requests: list[object]) -> tuple[str, dict[str, object], str]:
    """A batch's id, its first request's fields, and its requests as a note."""
    first = requests[0] if requests else None
    headers = field(first, "request_dict")
    fields = dict(headers) if isinstance(headers, Mapping) else {}
    fields["delivery_info"] = field(first, "delivery_info")
    ids = [text(field(request, "id")) for request in requests[:_MOST_IDS]]
    more = f" and {len(requests) - len(ids)} more" if len(requests) > len(ids) else ""
    plural = "s" if len(requests) != 1 else ""
    note = f"a batch of {len(requests)} request{plural}: {', '.join(ids)}{more}"
    return (ids[0] if ids else ""), fields, note
