"""What reached the store, read as everybody reads it: through :class:`celery_trace.queries.Queries`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from celery_trace.settings import Settings
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from celery_trace.model import FailureDetail
    from celery_trace.queries import Queries

Value = TypeVar("Value")


class Records:
    """A reader of one store that can wait for a fact to arrive."""

    def __init__(self, queries: Queries) -> None:
        self.queries = queries

    def wait(
        self,
        read: Callable[[Queries], Value],
        what: str,
        *,
        timeout_s: float = 60.0,
        explain: Callable[[], str] | None = None,
    ) -> Value:
        """Read again and again until the answer is true; see :func:`wait_until`."""
        return wait_until(lambda: read(self.queries), what, timeout_s=timeout_s, every_s=0.2, explain=explain)

    def failure_of(
        self, task_id: str, *, timeout_s: float = 60.0, explain: Callable[[], str] | None = None
    ) -> FailureDetail:
        """The failure of one task, once it is there."""
        page = self.wait(
            lambda queries: queries.failures(task_id=task_id).rows,
            f"a failure of task {task_id} in the store",
            timeout_s=timeout_s,
            explain=explain,
        )
        detail = self.queries.failure(page[0].id)
        assert detail is not None
        return detail

    def runs_of(self, name: str) -> int:
        """How many runs of a name the rollups count so far."""
        return sum(rollup.runs for rollup in self.queries.rollups(name=name))


@contextmanager
def open_records(trace_dir: Path) -> Iterator[Records]:
    """The records in the SQLite store of a ``trace_dir``, which is made where it is missing."""
    from celery_trace.queries import Queries
    from celery_trace.stores import open_store

    store = open_store(Settings(dir=str(trace_dir)))
    try:
        yield Records(Queries(store))
    finally:
        store.close()
