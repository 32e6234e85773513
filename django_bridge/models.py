"""
The store's tables as Django models, for ``trace_store = "django"``.

The tables are defined in :mod:`celery_trace.stores.schema` and created by the store's own migrations; these models
only read them. Times are seconds since the epoch. The collector writes the rows.
"""

from __future__ import annotations

from celery_trace.stores import schema
from django_bridge.store_models import StoreRow


class Failure(StoreRow, table=schema.failures):
    """A failed run; ``payload`` has the whole record, or its difference to a :class:`SharedCapture`."""


class FailureValues(
    StoreRow,
    table=schema.failure_values,
    verbose_name="values of a failure",
    verbose_name_plural="values of failures",
):
    """A failure's values, as short text for the search."""


class SharedCapture(StoreRow, table=schema.captures):
    """A record that other failures of its group are stored as a difference to."""


class Group(StoreRow, table=schema.groups, verbose_name="group of failures", verbose_name_plural="groups of failures"):
    """Failures that share a fingerprint."""


class Triage(StoreRow, table=schema.triage, verbose_name="triage of a group", verbose_name_plural="triage of groups"):
    """What users decided about a group."""


class Comment(StoreRow, table=schema.comments):
    """A user's comment on a group."""


class Retried(StoreRow, table=schema.retried, verbose_name="retried failure", verbose_name_plural="retried failures"):
    """A failed task that was sent again from the monitor."""


class SavedView(StoreRow, table=schema.saved_views):
    """A search that a user has saved."""

    def __str__(self) -> str:
        return str(self.title)


class Trend(StoreRow, table=schema.trends):
    """How often a group failed in an hour."""


class Kept(StoreRow, table=schema.kept, verbose_name="kept failure", verbose_name_plural="kept failures"):
    """A failure with live objects in a process."""


class Leak(StoreRow, table=schema.leaks):
    """A row of the leak table: a function of the windows."""


class LeakState(
    StoreRow, table=schema.leak_state, verbose_name="state of a leak", verbose_name_plural="states of leaks"
):
    """A resolved leak, or a name with leaks to recompute."""


class Window(StoreRow, table=schema.windows):
    """Evidence about one name in one process."""


class HeapProfile(StoreRow, table=schema.heap_profiles):
    """A name's retained memory in one process by call stack, the latest of an hour."""


class TimeProfile(StoreRow, table=schema.time_profiles):
    """Where the time of a name's runs went in one process by call stack, in one hour."""


class Running(StoreRow, table=schema.running, verbose_name="running runs", verbose_name_plural="running runs"):
    """What runs on one host: the latest snapshot."""


class Chord(StoreRow, table=schema.chords):
    """A chord with a body that waits."""


class Process(StoreRow, table=schema.processes, verbose_name_plural="processes"):
    """A traced process, with its latest sample."""


class Sample(StoreRow, table=schema.samples):
    """A point in a process's memory series."""


class Stats(StoreRow, table=schema.stats, verbose_name="statistics", verbose_name_plural="statistics"):
    """A process's statistics."""


class Run(StoreRow, table=schema.runs):
    """A run that is stored individually."""


class RunName(StoreRow, table=schema.names, verbose_name="name"):
    """A name that ever ran."""


class Queue(StoreRow, table=schema.queues, verbose_name="queue of a name", verbose_name_plural="queues of names"):
    """A name that was seen in a queue of the broker."""

    def __str__(self) -> str:
        return str(self.queue)


class Rollup(StoreRow, table=schema.rollups):
    """A process's runs of one name in five minutes."""


class Total(StoreRow, table=schema.totals):
    """The rollups of all processes, added up."""


class Flow(StoreRow, table=schema.flows):
    """Messages of a task in a queue, of one process in five minutes."""


class Consuming(StoreRow, table=schema.consuming, verbose_name_plural="consuming"):
    """A queue that a worker consumes, with the latest state."""


class QueueSample(StoreRow, table=schema.queue_samples):
    """A point in a queue's series."""


class MessageStart(StoreRow, table=schema.starts):
    """A run of a message that may have been started more than once."""


class Schedule(StoreRow, table=schema.schedules):
    """An entry of a scheduler."""


class Tally(StoreRow, table=schema.tallies, verbose_name_plural="tallies"):
    """A running sum."""


class Alert(StoreRow, table=schema.alerts):
    """An alert and its state."""

    def __str__(self) -> str:
        return str(self.subject)


class Delivery(StoreRow, table=schema.deliveries, verbose_name_plural="deliveries"):
    """One attempt to deliver an alert."""


class Shell(StoreRow, table=schema.shells):
    """A shell session over a failure."""


class ShellLine(
    StoreRow, table=schema.shell_lines, verbose_name="line of a shell", verbose_name_plural="lines of shells"
):
    """A line of a shell's transcript."""


class AuditEntry(StoreRow, table=schema.audit, verbose_name_plural="audit entries"):
    """A command to a process."""


class StoreFact(
    StoreRow, table=schema.meta, verbose_name="fact of the store", verbose_name_plural="facts of the store"
):
    """A fact about the store, such as its schema's version."""
