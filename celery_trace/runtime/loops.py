"""
The functions in which a worker's processes wait for work: all frames outside of them are the same in every stack.

The heap's sampler ends stacks there, which is most of what a pick costs.
"""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Final

from celery_trace.runtime import tracers

if TYPE_CHECKING:
    from celery import Celery

#: Celery makes all tracers in one function; other libraries may wrap some of them.
_MOST_AROUND_RUNS: Final = 4


def around_runs(app: Celery) -> list[CodeType]:
    """Around the runs of a pool's process with observed tracers."""
    found = {tracers.boundary(getattr(task, "__trace__", None)) for task in app.tasks.values()}
    return [code for code in found if code is not None][:_MOST_AROUND_RUNS]


def between_runs() -> list[CodeType]:
    """Around what a pool's process does between runs."""
    from billiard.pool import Worker  # loaded in such a process

    return _codes(getattr(Worker, "workloop", None))


def of_a_main_process() -> list[CodeType]:
    """Around all that the main process of a prefork worker does once it is ready."""
    from celery.worker import loops  # loaded by any worker

    return [*_codes(getattr(loops, "asynloop", None)), *_codes(getattr(loops, "synloop", None))]


def _codes(function: object) -> list[CodeType]:
    code = getattr(function, "__code__", None)
    return [code] if isinstance(code, CodeType) else []
