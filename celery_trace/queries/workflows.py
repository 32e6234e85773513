"""The workflows of tasks."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from celery_trace.queries.base import QueryBase
from celery_trace.stores import tables
from celery_trace.stores.statements import chunks


class WorkflowQueries(QueryBase):
    """Which tasks belong together."""

    def roots_of(self, task_ids: Iterable[str]) -> list[str]:
        """
        The roots of tasks, in order, as single runs and failures have them; unknown tasks are left out.

        A task that a traced web request has sent has the request's id as its root.
        """
        found: set[str] = set()
        with self.store.reading() as connection:
            for part in chunks(sorted(set(task_ids))):
                for table in (tables.runs, tables.failures):
                    wanted = sa.select(table.c.root_id).where(table.c.task_id.in_(part), table.c.root_id != "")
                    found |= set(connection.execute(wanted.distinct()).scalars())
        return sorted(found)
