"""Records become rows, and rows records: the one place that knows which field stands in which column."""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec
import sqlalchemy as sa

from celery_trace.model import (
    AuditEntry,
    ExceptionInfo,
    Failure,
    FailureSummary,
    HeapProfile,
    Histogram,
    Kept,
    Kind,
    MemoryState,
    Outcome,
    ProcessRecord,
    Role,
    Rollup,
    Run,
    Sample,
    Site,
    Stats,
    Window,
    stable_id,
)
from celery_trace.stores import schema
from celery_trace.stores.payloads import Base, is_difference, squeeze, unsqueeze

Row = dict[str, Any]
_INT_MOST = 2**63 - 1

_encoder = msgspec.json.Encoder()
_memory = msgspec.json.Decoder(MemoryState).decode
_counts = msgspec.json.Decoder(list[int]).decode
_KINDS = {str(kind): kind for kind in Kind}


def text(value: object) -> str:
    """JSON as text, for columns that are shown as a whole."""
    return _encoder.encode(value).decode()


class _Fit:
    """Cuts texts and numbers of a table's rows to what every database takes."""

    def __init__(self, table: sa.Table) -> None:
        self._lengths = {
            column.name: column.type.length
            for column in table.columns
            if isinstance(column.type, sa.String) and not isinstance(column.type, sa.LargeBinary)
        }
        self._real = {column.name for column in table.columns if isinstance(column.type, sa.Double)}
        self._whole = {column.name for column in table.columns if isinstance(column.type, sa.BigInteger)}

    def __call__(self, row: Row) -> Row:
        for name, length in self._lengths.items():
            value = row.get(name)
            if value:
                if "\x00" in value:  # PostgreSQL's text holds no NUL
                    row[name] = value = value.replace("\x00", "\ufffd")
                if length is not None and len(value) > length:
                    row[name] = value[:length]
        for name in self._whole:
            value = row.get(name)
            if value is not None and not -_INT_MOST <= value <= _INT_MOST:
                row[name] = max(-_INT_MOST, min(_INT_MOST, value))
        for name in self._real:
            value = row.get(name)
            if value is not None and not isfinite(value):  # MySQL has no infinity
                row[name] = 0.0
        return row


_fits: dict[str, _Fit] = {}


def fit(table: sa.Table, row: Row) -> Row:
    """The row, with each value cut to its column."""
    cutter = _fits.get(table.name)
    if cutter is None:
        cutter = _fits[table.name] = _Fit(table)
    return cutter(row)


# --- processes, samples


def process_row(record: ProcessRecord) -> Row:
    return {
        "uid": record.uid,
        "host": record.host,
        "pid": record.pid,
        "worker": record.worker,
        "role": str(record.role),
        "parent_uid": record.parent_uid,
        "python": record.python,
        "counters": text(record.counters),
        "mode": record.mode,
        "release": record.release,
        "started_at_s": record.started_at_s,
        "ended_at_s": record.ended_at_s,
        "ended_how": record.ended_how,
        "seen_at_s": record.ended_at_s or record.started_at_s,
        "sampled_at_s": None,
        "memory": "",
        "running": "",
        "runs": 0,
        "kept_failures": 0,
        "overhead_ratio": 0.0,
    }


def process(row: Any) -> ProcessRecord:
    return ProcessRecord(
        uid=row.uid,
        host=row.host,
        pid=row.pid,
        worker=row.worker,
        role=role(row.role),
        parent_uid=row.parent_uid,
        python=row.python,
        counters=msgspec.json.decode(row.counters or "[]"),
        mode=row.mode,
        started_at_s=row.started_at_s,
        ended_at_s=row.ended_at_s,
        ended_how=row.ended_how,
        release=row.release,
    )


_ROLES = {str(one): one for one in Role}


def role(word: str) -> Role:
    """A process's role; one that a newer version wrote is a script's."""
    return _ROLES.get(word, Role.SCRIPT)


def memory(value: str) -> MemoryState | None:
    return _memory(value) if value else None


def sample_row(record: Sample) -> Row:
    return {
        "id": record.key,
        "process": record.process,
        "at_s": record.at_s,
        "memory": text(record.memory),
        "runs": record.runs,
        "name": record.name,
        "kept_failures": record.kept_failures,
        "overhead_ratio": record.overhead_ratio,
    }


def sample(row: Any) -> Sample:
    return Sample(
        process=row.process,
        at_s=row.at_s,
        memory=memory(row.memory) or MemoryState(),
        runs=row.runs,
        name=row.name,
        kept_failures=row.kept_failures,
        overhead_ratio=row.overhead_ratio,
    )


# --- runs, rollups


class _RunPayload(msgspec.Struct, omit_defaults=True):
    memory: MemoryState | None = None
    top: list[Site] = []


def run_row(record: Run) -> Row:
    payload = None
    if record.memory is not None or record.top:
        payload = squeeze(_encoder.encode(_RunPayload(record.memory, record.top)))
    return {
        "id": record.id,
        "process": record.process,
        "kind": str(record.kind),
        "name": record.name,
        "task_id": record.task_id,
        "retries": record.retries,
        "queue": record.queue,
        "root_id": record.root_id,
        "started_at_s": record.started_at_s,
        "duration_s": record.duration_s,
        "state": record.state,
        "why": record.why,
        "kept_blocks": record.kept_blocks,
        "kept_bytes": record.kept_bytes,
        "concurrent": record.concurrent,
        "payload": payload,
    }


def run(row: Any) -> Run:
    payload = msgspec.json.decode(unsqueeze(row.payload), type=_RunPayload) if row.payload else _RunPayload()
    return Run(
        id=row.id,
        process=row.process,
        kind=Kind(row.kind),
        name=row.name,
        task_id=row.task_id,
        retries=row.retries,
        queue=row.queue,
        root_id=row.root_id,
        started_at_s=row.started_at_s,
        duration_s=row.duration_s,
        state=row.state,
        why=row.why,
        kept_blocks=row.kept_blocks,
        kept_bytes=row.kept_bytes,
        memory=payload.memory,
        top=payload.top,
        concurrent=row.concurrent,
    )


#: The columns of a rollup that add up over processes.
SUMMED = ("runs", "failed", "retried", "duration_s", "gated", "kept_blocks", "kept_bytes", "overhead_s")
LARGEST = ("duration_max_s", "rss_max_bytes")


def rollup_row(record: Rollup) -> Row:
    return {
        "id": record.key,
        "process": record.process,
        "kind": str(record.kind),
        "name": record.name,
        "bucket_s": record.bucket_s,
        "seq": record.seq,
        "durations": text(record.durations.counts),
        "concurrent": record.concurrent,
        **{name: getattr(record, name) for name in (*SUMMED, *LARGEST)},
    }


def rollup(row: Any) -> Rollup:
    """A rollup of one process."""
    return Rollup(
        process=row.process,
        kind=Kind(row.kind),
        name=row.name,
        bucket_s=row.bucket_s,
        seq=row.seq,
        durations=Histogram(msgspec.json.decode(row.durations or "[]")),
        concurrent=bool(row.concurrent),
        **{name: getattr(row, name) for name in (*SUMMED, *LARGEST)},
    )


_PLAIN = (*SUMMED, *LARGEST)
#: What :func:`total` reads, in its order: a page has thousands of them, and by place is four times faster.
TOTAL_COLUMNS = tuple(
    schema.totals.c[name] for name in ("kind", "name", "bucket_s", "durations", "concurrent", *_PLAIN, "id")
)


def total(row: Any) -> Rollup:
    """What all processes did together, from a row of :data:`TOTAL_COLUMNS`; it belongs to no process."""
    kind, name, bucket_s, durations, concurrent, *plain, _id = row
    return Rollup(
        process="",
        kind=_KINDS[kind],
        name=name,
        bucket_s=bucket_s,
        seq=0,
        durations=Histogram(_counts(durations or "[]")),
        concurrent=bool(concurrent),
        **dict(zip(_PLAIN, plain, strict=True)),
    )


def name_id(kind: str, name: str) -> str:
    """The key of a name's row."""
    return stable_id("name", kind, name)


def total_id(kind: str, name: str, bucket_s: int) -> str:
    """The key of a row of totals."""
    return stable_id("total", kind, name, bucket_s)


# --- windows, failures


def window_row(record: Window) -> Row:
    return {
        "id": record.id,
        "investigation": record.investigation,
        "process": record.process,
        "kind": str(record.kind),
        "name": record.name,
        "stage": str(record.stage),
        "verdict": str(record.verdict),
        "at_s": record.at_s,
        "payload": squeeze(_encoder.encode(record)),
    }


def window(row: Any) -> Window:
    return msgspec.json.decode(unsqueeze(row.payload), type=Window)


def heap_profile_row(record: HeapProfile) -> Row:
    return {
        "id": record.key,
        "process": record.process,
        "kind": str(record.kind),
        "name": record.name,
        "release": record.release,
        "at_s": record.at_s,
        "runs": record.runs,
        "bytes": record.bytes,
        "payload": squeeze(_encoder.encode(record)),
    }


def heap_profile(row: Any) -> HeapProfile:
    return msgspec.json.decode(unsqueeze(row.payload), type=HeapProfile)


def fingerprint(record: Failure) -> str:
    """The group that a failure belongs to; a failure without frames groups by what is known of it."""
    if record.fingerprint:
        return record.fingerprint
    what = record.exception.type if record.exception else record.outcome
    return stable_id("group", record.kind, record.name, what)


def encoded(record: Failure) -> bytes:
    """A failure as JSON."""
    return _encoder.encode(record)


def failure_row(record: Failure, payload: bytes | None = None, shared: str = "") -> Row:
    """A failure's row; ``payload`` is the difference to the capture ``shared``, or else the whole record."""
    raised = record.exception
    return {
        "id": record.id,
        "process": record.process,
        "kind": str(record.kind),
        "name": record.name,
        "task_id": record.task_id,
        "retries": record.retries,
        "root_id": record.task.root_id if record.task else "",
        "parent_id": record.task.parent_id if record.task else "",
        "group_id": record.task.group_id if record.task else "",
        "outcome": str(record.outcome),
        "witness": record.witness,
        "exception_type": raised.type if raised else "",
        "exception_module": raised.module if raised else "",
        "exception_message": raised.message if raised else "",
        "fingerprint": fingerprint(record),
        "worker": record.worker,
        "pid": record.last_pid,
        "hostname": record.hostname,
        "at_s": record.at_s,
        "shared": shared,
        "payload": squeeze(_encoder.encode(record)) if payload is None else payload,
    }


def failure(payload: bytes, base: Base | None = None) -> Failure:
    """The record in a payload, which may be a difference to a base."""
    return msgspec.json.decode(whole(payload, base), type=Failure)


def whole(payload: bytes, base: Base | None = None) -> bytes:
    """
    The JSON in a payload.

    Raises:
        LookupError: It is a difference, and what it is a difference to is not there.
    """
    if not is_difference(payload):
        return unsqueeze(payload)
    if base is None:
        raise LookupError("the shared capture is gone")
    return base.restored(payload)


def exception(row: Any) -> ExceptionInfo | None:
    if not row.exception_type and not row.exception_message:
        return None
    return ExceptionInfo(row.exception_type, row.exception_module, row.exception_message)


class _Kills(msgspec.Struct):
    """The part of a failure that tells how often its message killed a process."""

    kills: list[msgspec.Raw] = []


def kills(payload: bytes, base: Base | None = None) -> int:
    """How many processes a failure's message killed; 0 if what its payload differs from was pruned just now."""
    try:
        return len(msgspec.json.decode(whole(payload, base), type=_Kills).kills)
    except LookupError:
        return 0


def summary(row: Any, *, count: int, live: bool, kills: int = 0) -> FailureSummary:
    return FailureSummary(
        id=row.id,
        kind=row.kind,
        name=row.name,
        task_id=row.task_id,
        retries=row.retries,
        outcome=Outcome(row.outcome),
        exception=exception(row),
        fingerprint=row.fingerprint,
        count=count,
        worker=row.worker,
        pid=row.pid,
        hostname=row.hostname,
        at=row.at_s,
        live=live,
        root_id=row.root_id,
        parent_id=row.parent_id,
        group_id=row.group_id,
        kills=kills,
    )


# --- the rest


def kept_row(record: Kept) -> Row:
    return {"id": record.key, **{name: getattr(record, name) for name in _KEPT}}


_KEPT = ("process", "failure", "at_s", "until_s", "address", "bytes", "gone")


def kept(row: Any) -> Kept:
    return Kept(**{name: getattr(row, name) for name in _KEPT})


def stats_row(record: Stats) -> Row:
    return {
        "process": record.process,
        "seq": record.seq,
        "at_s": record.at_s,
        "counters": text(record.counters),
        "overhead_s": record.overhead_s,
        "process_s": record.process_s,
    }


def audit_row(record: AuditEntry) -> Row:
    return {
        "id": record.id,
        "at_s": record.at_s,
        "place": record.where,
        "process": record.process,
        "failure": record.failure,
        "session": record.session,
        "username": record.user,
        "command": record.command,
        "verdict": record.verdict,
    }


def audit(row: Any) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at_s=row.at_s,
        where=row.place,
        process=row.process,
        failure=row.failure,
        session=row.session,
        user=row.username,
        command=row.command,
        verdict=row.verdict,
    )
