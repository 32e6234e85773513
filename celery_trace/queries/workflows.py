"""The workflows of tasks."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from celery_trace.model import Chord, Sample
from celery_trace.queries.base import QueryBase
from celery_trace.stores import rows as rows_of
from celery_trace.stores import tables
from celery_trace.stores.statements import chunks

#: Samples that are read for one workflow, the earliest.
MOST_SAMPLES = 5000
#: Chords that are read for one workflow, each of them once for each member that lasts or has failed.
MOST_CHORDS = 500
#: Chords in which one task is looked for, the newest.
MOST_RECENT = 5000


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

    def chords(self, root_ids: Iterable[str]) -> list[Chord]:
        """The recorded chords of workflows, the newest :data:`MOST_CHORDS` of each five hundred roots."""
        found: list[Chord] = []
        with self.store.reading() as connection:
            for part in chunks(sorted(set(root_ids))):
                wanted = sa.select(tables.chords).where(tables.chords.c.root_id.in_(part))
                newest = wanted.order_by(tables.chords.c.at_s.desc()).limit(MOST_CHORDS)
                found += rows_of.CHORDS.records(connection.execute(newest).all())
        return found

    def chords_of(self, id: str) -> list[Chord]:
        """The recorded chords with that group, or that a task is a member, the body or the unlock task of."""
        newest = sa.select(tables.chords).order_by(tables.chords.c.at_s.desc()).limit(MOST_RECENT)
        with self.store.reading() as connection:
            recent = rows_of.CHORDS.records(connection.execute(newest).all())
        return [one for one in recent if id in (one.group, one.unlock, one.body_id, *one.members)]

    def memory_between(self, processes: Iterable[str], since_s: float, until_s: float) -> list[Sample]:
        """The memory of processes in a time, both ends in seconds since the epoch, oldest first."""
        samples = tables.samples.c
        found: list[Sample] = []
        with self.store.reading() as connection:
            for part in chunks(sorted(set(processes))):
                during = samples.process.in_(part), samples.at_s >= since_s, samples.at_s <= until_s
                wanted = sa.select(tables.samples).where(*during).order_by(samples.at_s).limit(MOST_SAMPLES)
                found += rows_of.SAMPLES.records(connection.execute(wanted).all())
        return sorted(found, key=lambda sample: sample.at_s)[:MOST_SAMPLES]
