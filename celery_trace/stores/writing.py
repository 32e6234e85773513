"""
Writes a batch of records into the tables, in one transaction.

Delivery is at-least-once: every step gives the same result when the same records arrive again, in another order, or
from two collectors at once. Rows that are written once are inserted if their key is new. Rows that grow are locked,
merged and written back. Tables are visited in a fixed order and rows in key order, so that writers never deadlock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import Struct, field
from msgspec.structs import replace

from celery_trace.model import (
    AnyRecord,
    AuditEntry,
    Chord,
    Consuming,
    Failure,
    Flow,
    HeapProfile,
    Histogram,
    Kept,
    MemoryState,
    MessageStart,
    ProcessRecord,
    QueueSample,
    Rollup,
    Run,
    RunningSnapshot,
    Sample,
    Schedule,
    Stats,
    TimeProfile,
    Window,
    stable_id,
)
from celery_trace.stores import rows as rows_of
from celery_trace.stores import shared_captures, sizes, tables
from celery_trace.stores.mapping import Row, TableOf, text
from celery_trace.stores.rows import LARGEST, SUMMED
from celery_trace.stores.statements import add_tallies, insert_all, insert_new, locked, update_rows, upsert

if TYPE_CHECKING:
    pass

R = TypeVar("R", bound=Struct)

HOUR_S = 3600
#: Counters of a :class:`Stats` record that are gauges and are not summed.
LEVELS = ("spool:", "waiting", "heap:")


class Written(Struct):
    """
    The result of a batch.

    ``new`` and ``known`` count by record tag: new rows, and records that completed or repeated a row. ``refused`` are
    records that the database refused even alone, with the reason.
    """

    new: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[AnyRecord, str]] = []

    def add(self, other: Written) -> None:
        """Add another batch's counts."""
        self.new.update(other.new)
        self.known.update(other.known)
        self.refused.extend(other.refused)


def write(connection: sa.Connection, records: Sequence[AnyRecord], now_s: float) -> Written:
    """Write a batch within the caller's transaction."""
    by_type: dict[type, list[Any]] = defaultdict(list)
    for record in records:
        by_type[type(record)].append(record)
    written = Written()
    batch = _Batch(connection, now_s)
    for kind, step in (
        (ProcessRecord, batch.processes),
        (Sample, batch.samples),
        (Rollup, batch.rollups),
        (Run, batch.runs),
        (Window, batch.windows),
        (HeapProfile, batch.heap_profiles),
        (TimeProfile, batch.time_profiles),
        (Failure, batch.failures),
        (Kept, batch.kept),
        (Stats, batch.stats),
        (AuditEntry, batch.audit),
        (Flow, batch.flows),
        (Consuming, batch.consuming),
        (QueueSample, batch.queue_samples),
        (MessageStart, batch.starts),
        (Schedule, batch.schedules),
        (RunningSnapshot, batch.running),
        (Chord, batch.chords),
    ):
        given = by_type.get(kind)
        if not given:
            continue
        new = step(given)
        tag = str(kind.__struct_config__.tag)
        written.new[tag] += new
        written.known[tag] += len(given) - new
        batch.tallies[f"rows:{tables.RECORDS[tag].name}"] += new
    batch.finish()
    return written


class _Batch:
    """One transaction's work; ``tallies`` are written last, because every writer updates those few rows."""

    def __init__(self, connection: sa.Connection, now_s: float) -> None:
        self._connection = connection
        self._now_s = now_s
        self.tallies: Counter[str] = Counter({"changes": 1})

    def finish(self) -> None:
        add_tallies(self._connection, tables.tallies, self.tallies)

    # --- written once

    def _queues(self, seen: Iterable[tuple[str, str, str]]) -> None:
        rows = {
            stable_id("queue", *found): {"queue": found[0], "kind": found[1], "name": found[2]}
            for found in set(seen)
            if found[0]
        }
        insert_new(self._connection, tables.queues, [{"id": key, **row} for key, row in sorted(rows.items())])

    def runs(self, given: list[Run]) -> int:
        self._queues((record.queue, str(record.kind), record.name) for record in given)
        return insert_new(self._connection, tables.runs, [rows_of.RUNS.row(record) for record in given])

    def audit(self, given: list[AuditEntry]) -> int:
        return insert_new(self._connection, tables.audit, [rows_of.AUDIT.row(record) for record in given])

    def queue_samples(self, given: list[QueueSample]) -> int:
        rows = [rows_of.QUEUE_SAMPLES.row(record) for record in given]
        return insert_new(self._connection, tables.queue_samples, rows)

    def windows(self, given: list[Window]) -> int:
        new = insert_new(self._connection, tables.windows, [rows_of.WINDOWS.row(record) for record in given])
        if new:
            names = {rows_of.name_id(record.kind, record.name): record for record in given}
            state = tables.leak_state
            keys = sorted(f"name:{key}" for key in names)
            insert_new(
                self._connection,
                state,
                [
                    {"id": key, "kind": str(names[key[5:]].kind), "name": names[key[5:]].name, "at_s": self._now_s,
                     "username": ""}
                    for key in keys
                ],
            )  # fmt: skip
            # Touch existing marks: a process that is computing this name now will see the change.
            self._connection.execute(
                sa.update(state)
                .where(state.c.id.in_(keys))
                .values(at_s=self._now_s, username=stable_id(given[0].id, new))
            )
        return new

    def samples(self, given: list[Sample]) -> int:
        new = insert_new(self._connection, tables.samples, [rows_of.SAMPLES.row(record) for record in given])
        latest: dict[str, Sample] = {}
        for record in sorted(given, key=lambda record: record.at_s):
            before = latest.get(record.process)
            memory = _with_rare_counters(record.memory, before.memory if before is not None else None)
            latest[record.process] = replace(record, memory=memory)
        table = tables.processes
        found = locked(
            self._connection, table, latest, (table.c.uid, table.c.sampled_at_s, table.c.seen_at_s, table.c.memory)
        )
        changed = []
        for uid, row in found.items():
            record = latest[uid]
            if row.sampled_at_s is None or row.sampled_at_s < record.at_s:
                changed.append(
                    {
                        "uid": uid,
                        "seen_at_s": max(row.seen_at_s, record.at_s),
                        "sampled_at_s": record.at_s,
                        "memory": text(_with_rare_counters(record.memory, rows_of.memory(row.memory))),
                        "running": record.name,
                        "runs": record.runs,
                        "kept_failures": record.kept_failures,
                        "overhead_ratio": record.overhead_ratio,
                    }
                )
        update_rows(self._connection, table, changed)
        return new

    # --- growing

    def processes(self, given: list[ProcessRecord]) -> int:
        table = tables.processes
        latest: dict[str, ProcessRecord] = {}
        for record in given:
            known = latest.get(record.uid)
            if known is None or (record.ended_at_s is not None and not _ended_properly(known)):
                latest[record.uid] = record
        found = locked(
            self._connection, table, latest, (table.c.uid, table.c.ended_at_s, table.c.ended_how, table.c.seen_at_s)
        )
        new = [rows_of.process_row(record) for uid, record in sorted(latest.items()) if uid not in found]
        insert_all(self._connection, table, new)
        changed = []
        for uid, row in found.items():
            record = latest[uid]
            if record.ended_at_s is None or row.ended_how not in ("", "killed"):
                continue
            if row.ended_at_s is None or record.ended_how != "killed":
                changed.append(
                    {
                        "uid": uid,
                        "ended_at_s": record.ended_at_s,
                        "ended_how": record.ended_how,
                        "seen_at_s": max(row.seen_at_s, record.ended_at_s),
                        "running": "",
                    }
                )
        update_rows(self._connection, table, changed)
        return len(new)

    def rollups(self, given: list[Rollup]) -> int:
        table = tables.rollups
        latest: dict[str, Rollup] = {}
        for record in given:
            key = record.key
            if key not in latest or latest[key].seq < record.seq:
                latest[key] = record
        found = locked(self._connection, table, latest)
        fresh = {key: record for key, record in latest.items() if key not in found}
        insert_all(self._connection, table, [rows_of.ROLLUPS.row(record) for _, record in sorted(fresh.items())])
        newer = {key: latest[key] for key, row in found.items() if row.seq < latest[key].seq}
        update_rows(self._connection, table, [rows_of.ROLLUPS.row(record) for record in newer.values()])
        steps: list[tuple[Rollup, Rollup | None]] = [(record, None) for record in fresh.values()]
        steps += [(record, rows_of.ROLLUPS.record(found[key])) for key, record in newer.items()]
        self._add_to_totals(steps)
        return len(fresh)

    def _add_to_totals(self, steps: list[tuple[Rollup, Rollup | None]]) -> None:
        """Add each rollup's increase to the totals of all processes."""
        sums: dict[str, Rollup] = {}
        by_name: dict[str, tuple[str, str, Counter[str]]] = {}
        for record, before in steps:
            progress = replace(
                record,
                process="",
                **{name: getattr(record, name) - (getattr(before, name) if before else 0) for name in SUMMED},
                durations=Histogram(_minus(record.durations.counts, before.durations.counts if before else [])),
            )
            key = rows_of.total_id(record.kind, record.name, record.bucket_s)
            sums[key] = _plus(sums[key], progress) if key in sums else progress
            named = by_name.setdefault(
                rows_of.name_id(record.kind, record.name), (str(record.kind), record.name, Counter())
            )
            named[2].update({"runs": progress.runs, "failed": progress.failed})
        found = locked(self._connection, tables.totals, sums, rows_of.TOTAL_COLUMNS)
        fresh: list[Row] = []
        changed: list[Row] = []
        for key, progress in sorted(sums.items()):
            whole = _plus(rows_of.total(found[key]), progress) if key in found else progress
            (changed if key in found else fresh).append(rows_of.total_row(whole))
        insert_all(self._connection, tables.totals, fresh)
        update_rows(self._connection, tables.totals, changed)
        known = locked(self._connection, tables.names, by_name)
        fresh, changed = [], []
        for key, (kind, name, more) in sorted(by_name.items()):
            before_row = known.get(key)
            row = {
                "id": key,
                "kind": kind,
                "name": name,
                "runs": more["runs"] + (before_row.runs if before_row else 0),
                "failed": more["failed"] + (before_row.failed if before_row else 0),
            }
            (changed if before_row else fresh).append(row)
        insert_all(self._connection, tables.names, fresh)
        update_rows(self._connection, tables.names, changed)

    def failures(self, given: list[Failure]) -> int:
        table = tables.failures
        latest: dict[str, Failure] = {}
        for record in given:
            latest[record.id] = _merge(latest[record.id], record) if record.id in latest else record
        found = locked(self._connection, table, latest)
        known = shared_captures.bases(self._connection, (row.shared for row in found.values()))
        whole = dict(sorted(latest.items()))
        for key, stored in found.items():
            whole[key] = _merge(rows_of.failure(stored.payload, known.get(stored.shared)), latest[key])
        sharing = shared_captures.Sharing(self._connection, map(rows_of.fingerprint, whole.values()), self._now_s)
        groups = _Groups()
        fresh: list[Row] = []
        changed: list[Row] = []
        texts: list[Row] = []
        weight = -sizes.weight_of(self._connection, sorted(found)) if found else 0
        for key, record in whole.items():
            before = found[key]._mapping if key in found else None
            row, searched = sharing.store(record, before)
            texts.append(searched)
            weight += sizes.weight(row["payload"], searched["text"])
            (fresh if before is None else changed).append(row)
            if before is None:
                groups.count(row, +1)
            elif row["fingerprint"] != before["fingerprint"] or _hour(row["at_s"]) != _hour(before["at_s"]):
                groups.count(before, -1)
                groups.count(row, +1)
            else:
                groups.count(row, 0)
        insert_all(self._connection, table, fresh)
        update_rows(self._connection, table, changed)
        upsert(self._connection, tables.failure_values, texts)
        self._queues((record.task.queue, str(record.kind), record.name) for record in given if record.task is not None)
        groups.write(self._connection)
        weight += sharing.write()
        self.tallies[sizes.HELD] += weight
        self.tallies[sizes.ADDED] += max(0, weight)
        self.tallies[sizes.ADDED_ROWS] += len(fresh)
        return len(fresh)

    def heap_profiles(self, given: list[HeapProfile]) -> int:
        return self._latest(rows_of.HEAP_PROFILES, tables.heap_profiles, given, "at_s")

    def time_profiles(self, given: list[TimeProfile]) -> int:
        return self._latest(rows_of.TIME_PROFILES, tables.time_profiles, given, "at_s")

    def running(self, given: list[RunningSnapshot]) -> int:
        return self._latest(rows_of.RUNNING, tables.running, given, "at_s")

    def chords(self, given: list[Chord]) -> int:
        return self._latest(rows_of.CHORDS, tables.chords, given, "at_s")

    def flows(self, given: list[Flow]) -> int:
        return self._latest(rows_of.FLOWS, tables.flows, given, "seq")

    def consuming(self, given: list[Consuming]) -> int:
        return self._latest(rows_of.CONSUMING, tables.consuming, given, "at_s")

    def schedules(self, given: list[Schedule]) -> int:
        return self._latest(rows_of.SCHEDULES, tables.schedules, given, "at_s")

    def starts(self, given: list[MessageStart]) -> int:
        """A start is written once or twice; the one with its end is the later."""
        return self._latest(rows_of.STARTS, tables.starts, given, "ended_at_s")

    def _latest(self, rows: TableOf[R], table: sa.Table, given: list[R], order: str) -> int:
        """Write records of which the one with the greatest value in one column is kept. Returns how many are new."""
        latest: dict[str, Row] = {}
        for record in given:
            row = rows.row(record)
            known = latest.get(row["id"])
            if known is None or (known[order] or 0) < (row[order] or 0):
                latest[row["id"]] = row
        found = locked(self._connection, table, latest, (table.c.id, table.c[order]))
        insert_all(self._connection, table, [row for key, row in sorted(latest.items()) if key not in found])
        newer = [latest[key] for key, row in found.items() if (row._mapping[order] or 0) < (latest[key][order] or 0)]
        update_rows(self._connection, table, newer)
        return len(latest) - len(found)

    def kept(self, given: list[Kept]) -> int:
        latest: dict[str, Kept] = {}
        for record in given:
            if record.key not in latest or _later(record, latest[record.key]):
                latest[record.key] = record
        found = locked(self._connection, tables.kept, latest)
        later = [latest[key] for key, row in found.items() if _later(latest[key], rows_of.KEPT.record(row))]
        fresh = [rows_of.KEPT.row(record) for key, record in sorted(latest.items()) if key not in found]
        insert_all(self._connection, tables.kept, fresh)
        update_rows(self._connection, tables.kept, [rows_of.KEPT.row(record) for record in later])
        return len(fresh)

    def stats(self, given: list[Stats]) -> int:
        latest: dict[str, Stats] = {}
        for record in given:
            if record.process not in latest or latest[record.process].seq < record.seq:
                latest[record.process] = record
        found = locked(self._connection, tables.stats, latest)
        fresh = [record for key, record in sorted(latest.items()) if key not in found]
        insert_all(self._connection, tables.stats, [rows_of.STATS.row(record) for record in fresh])
        newer = [latest[key] for key, row in found.items() if row.seq < latest[key].seq]
        update_rows(self._connection, tables.stats, [rows_of.STATS.row(record) for record in newer])
        for record in fresh:
            self._tally_stats(record, {}, 0.0, 0.0)
        for record in newer:
            row = found[record.process]
            self._tally_stats(record, msgspec.json.decode(row.counters or "{}"), row.overhead_s, row.process_s)
        return len(fresh)

    def _tally_stats(self, record: Stats, before: dict[str, int], overhead_s: float, process_s: float) -> None:
        for name, value in record.counters.items():
            if not name.startswith(LEVELS):
                self.tallies[f"stat:{name}"] += value - before.get(name, 0)
        self.tallies["time:overhead_us"] += round((record.overhead_s - overhead_s) * 1e6)
        self.tallies["time:process_us"] += round((record.process_s - process_s) * 1e6)


class _Groups:
    """A batch's changes to groups of failures."""

    def __init__(self) -> None:
        self._changes: Counter[str] = Counter()
        self._hours: Counter[tuple[str, int]] = Counter()
        self._latest: dict[str, Row | sa.RowMapping] = {}
        self._first_s: dict[str, float] = {}

    def count(self, row: Row | sa.RowMapping, by: int) -> None:
        """Add a failure's row to its group (+1), remove it (-1), or update it (0)."""
        key = row["fingerprint"]
        self._changes[key] += by
        self._hours[(key, _hour(row["at_s"]))] += by
        if by >= 0:
            if key not in self._latest or self._latest[key]["at_s"] <= row["at_s"]:
                self._latest[key] = row
            self._first_s[key] = min(row["at_s"], self._first_s.get(key, row["at_s"]))

    def write(self, connection: sa.Connection) -> None:
        """Write the changes."""
        found = locked(connection, tables.groups, self._changes)
        fresh: list[Row] = []
        changed: list[Row] = []
        empty: list[str] = []
        for key, by in sorted(self._changes.items()):
            before, latest = found.get(key), self._latest.get(key)
            count = by + (before._mapping["count"] if before else 0)
            if count <= 0:
                empty.append(key)
                continue
            if before is not None and (latest is None or latest["at_s"] < before.last_seen_s):
                row = dict(before._mapping)
            else:
                assert latest is not None
                row = {
                    "fingerprint": key,
                    **{name: latest[name] for name in _SHARED},
                    "latest_id": latest["id"],
                    "last_seen_s": latest["at_s"],
                    "first_seen_s": before.first_seen_s if before else self._first_s[key],
                    "resolved_at_s": before.resolved_at_s if before else None,
                    "resolved_by": before.resolved_by if before else "",
                }
            row["count"] = count
            row["first_seen_s"] = min(row["first_seen_s"], self._first_s.get(key, row["first_seen_s"]))
            (changed if before else fresh).append(row)
        insert_all(connection, tables.groups, fresh)
        update_rows(connection, tables.groups, changed)
        if empty:
            connection.execute(sa.delete(tables.groups).where(tables.groups.c.fingerprint.in_(empty)))
        self._write_hours(connection)

    def _write_hours(self, connection: sa.Connection) -> None:
        table = tables.trends
        wanted = {stable_id("trend", *key): (key, by) for key, by in self._hours.items() if by}
        found = locked(connection, table, wanted)
        fresh: list[Row] = []
        changed: list[Row] = []
        for id_, ((fingerprint, hour_s), by) in sorted(wanted.items()):
            before = found.get(id_)
            row = {
                "id": id_,
                "fingerprint": fingerprint,
                "hour_s": hour_s,
                "count": by + (before._mapping["count"] if before else 0),
            }
            (changed if before else fresh).append(row)
        insert_all(connection, table, fresh)
        update_rows(connection, table, changed)


_SHARED = ("kind", "name", "exception_type", "exception_module", "exception_message", "outcome")


def _merge(old: Failure, new: Failure) -> Failure:
    """Merge two reports of one failure; imported late, because most failures have only one report."""
    from celery_trace.failures.merge import merge

    return merge(old, new)


def _hour(at_s: float) -> int:
    return int(at_s // HOUR_S) * HOUR_S


def _with_rare_counters(memory: MemoryState, before: MemoryState | None) -> MemoryState:
    """A process's latest memory, with the counters that are read less often as they were read last."""
    if before is None or memory.uss_bytes is not None or memory.pss_bytes is not None:
        return memory
    return replace(memory, uss_bytes=before.uss_bytes, pss_bytes=before.pss_bytes)


def _ended_properly(record: ProcessRecord) -> bool:
    return record.ended_at_s is not None and record.ended_how != "killed"


def _later(record: Kept, than: Kept) -> bool:
    return (record.at_s, bool(record.gone)) > (than.at_s, bool(than.gone))


def _minus(counts: list[int], before: list[int]) -> list[int]:
    return [count - (before[index] if index < len(before) else 0) for index, count in enumerate(counts)]


def _plus(one: Rollup, other: Rollup) -> Rollup:
    """Two rollups of one name and bucket, added up."""
    longer, shorter = one.durations.counts, other.durations.counts
    if len(longer) < len(shorter):
        longer, shorter = shorter, longer
    counts = [count + (shorter[index] if index < len(shorter) else 0) for index, count in enumerate(longer)]
    return replace(
        one,
        durations=Histogram(counts),
        concurrent=one.concurrent or other.concurrent,
        **{name: getattr(one, name) + getattr(other, name) for name in SUMMED},
        **{name: max(getattr(one, name), getattr(other, name)) for name in LARGEST},
    )


def tags(records: Iterable[AnyRecord]) -> Counter[str]:
    """How many records of each tag."""
    return Counter(str(type(record).__struct_config__.tag) for record in records)
