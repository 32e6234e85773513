"""Which table holds which record, and the conversions beyond copying columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from celery_trace.model import (
    AlertView,
    AuditEntry,
    Chord,
    Consuming,
    Delivery,
    Failure,
    FailureGroup,
    FailureSummary,
    Flow,
    HeapProfile,
    Kept,
    MemoryState,
    MessageStart,
    ProcessRecord,
    ProcessView,
    QueueSample,
    Rollup,
    Run,
    RunningSnapshot,
    Sample,
    Schedule,
    ShellLine,
    ShellView,
    Stats,
    TimeProfile,
    Window,
    stable_id,
)
from celery_trace.model.searches import SavedView
from celery_trace.model.triage import Comment, Retried
from celery_trace.stores import schema, tables
from celery_trace.stores.mapping import Row, TableOf
from celery_trace.stores.payloads import DeltaBase, is_difference, squeeze, unsqueeze

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow

PROCESSES = TableOf(schema.processes, ProcessRecord)
PROCESS_VIEWS = TableOf(schema.processes, ProcessView, view=True)
SAMPLES = TableOf(schema.samples, Sample)
ROLLUPS = TableOf(schema.rollups, Rollup)
TOTALS = TableOf(schema.totals, Rollup)
RUNS = TableOf(schema.runs, Run)
RUNNING = TableOf(schema.running, RunningSnapshot)
CHORDS = TableOf(schema.chords, Chord)
WINDOWS = TableOf(schema.windows, Window)
HEAP_PROFILES = TableOf(schema.heap_profiles, HeapProfile)
TIME_PROFILES = TableOf(schema.time_profiles, TimeProfile)
FAILURES = TableOf(schema.failures, Failure)
SUMMARIES = TableOf(schema.failures, FailureSummary, view=True)
GROUPS = TableOf(schema.groups, FailureGroup, view=True)
COMMENTS = TableOf(schema.comments, Comment)
RETRIED = TableOf(schema.retried, Retried)
SAVED_VIEWS = TableOf(schema.saved_views, SavedView)
KEPT = TableOf(schema.kept, Kept)
STATS = TableOf(schema.stats, Stats)
FLOWS = TableOf(schema.flows, Flow)
CONSUMING = TableOf(schema.consuming, Consuming)
QUEUE_SAMPLES = TableOf(schema.queue_samples, QueueSample)
STARTS = TableOf(schema.starts, MessageStart)
SCHEDULES = TableOf(schema.schedules, Schedule)
AUDIT = TableOf(schema.audit, AuditEntry)
ALERTS = TableOf(schema.alerts, AlertView)
DELIVERIES = TableOf(schema.deliveries, Delivery)
SHELLS = TableOf(schema.shells, ShellView)
SHELL_LINES = TableOf(schema.shell_lines, ShellLine)

#: The columns of a rollup that are summed over processes, and those of which the maximum counts.
SUMMED = tuple(column.name for column in schema.rollups.columns if column.merged == "sum")
LARGEST = tuple(column.name for column in schema.rollups.columns if column.merged == "largest")

#: The columns that :func:`total` reads.
TOTAL_COLUMNS = tuple(tables.totals.c[name] for name in (*TOTALS.columns, "id"))


def process_row(record: ProcessRecord) -> Row:
    """The row of a process that has not been sampled yet."""
    return PROCESSES.row(record, seen_at_s=record.ended_at_s or record.started_at_s)


_memory = msgspec.json.Decoder(MemoryState).decode


def memory(value: str) -> MemoryState | None:
    """A process's memory, from its column."""
    return _memory(value) if value else None


def total(row: AnyRow) -> Rollup:
    """The rollup of all processes, from a row of :data:`TOTAL_COLUMNS`; its ``process`` is empty."""
    return TOTALS.of_values(row, process="", seq=0)


def total_row(record: Rollup) -> Row:
    """The row of the rollup of all processes."""
    return TOTALS.row(record, id=total_id(record.kind, record.name, record.bucket_s))


def name_id(kind: str, name: str) -> str:
    """The key of a name's row."""
    return stable_id("name", kind, name)


def total_id(kind: str, name: str, bucket_s: int) -> str:
    """The key of a row of totals."""
    return stable_id("total", kind, name, bucket_s)


# --- failures


def fingerprint(record: Failure) -> str:
    """A failure's group; without frames it is grouped by its other facts."""
    if record.fingerprint:
        return record.fingerprint
    what = record.exception.type if record.exception else record.outcome
    return stable_id("group", record.kind, record.name, what)


def encoded(record: Failure) -> bytes:
    """A failure as JSON."""
    return msgspec.json.encode(record)


def failure_row(record: Failure, payload: bytes | None = None, shared: str = "") -> Row:
    """A failure's row; ``payload`` is the difference to the capture ``shared``, or the whole record."""
    whole = squeeze(encoded(record)) if payload is None else payload
    return FAILURES.row(record, fingerprint=fingerprint(record), shared=shared, payload=whole)


def failure(payload: bytes, base: DeltaBase | None = None) -> Failure:
    """The record in a payload, which may be a difference to a base."""
    return msgspec.json.decode(whole(payload, base), type=Failure)


def whole(payload: bytes, base: DeltaBase | None = None) -> bytes:
    """
    The JSON in a payload.

    Raises:
        LookupError: It is a difference, and its base is missing.
    """
    if not is_difference(payload):
        return unsqueeze(payload)
    if base is None:
        raise LookupError("the shared capture is gone")
    return base.restored(payload)


class _Kills(msgspec.Struct):
    """The part of a failure with the kills of its message."""

    kills: list[msgspec.Raw] = []


def kills(payload: bytes, base: DeltaBase | None = None) -> int:
    """How many processes a failure's message killed; 0 if the base of its payload was pruned just now."""
    try:
        return len(msgspec.json.decode(whole(payload, base), type=_Kills).kills)
    except LookupError:
        return 0
