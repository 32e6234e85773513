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


def of_a_child(app: Celery) -> list[CodeType]:
    """Around the runs of a pool's process with observed tracers, and around what it does between runs."""
    from billiard.pool import Worker  # loaded in such a process

    around_runs = {tracers.boundary(getattr(task, "__trace__", None)) for task in app.tasks.values()}
    found = [code for code in around_runs if code is not None]
    return [*found[:_MOST_AROUND_RUNS], *_codes(getattr(Worker, "workloop", None))]


def of_a_main_process() -> list[CodeType]:
    """Around all that the main process of a prefork worker does once it is ready."""
    from celery.worker import loops  # loaded by any worker

    return [*_codes(getattr(loops, "asynloop", None)), *_codes(getattr(loops, "synloop", None))]


def _codes(function: object) -> list[CodeType]:
    code = getattr(function, "__code__", None)
    return [code] if isinstance(code, CodeType) else []
