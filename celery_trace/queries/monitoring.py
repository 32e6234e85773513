"""Alerts, shell sessions, and celery-trace's own statistics."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from celery_trace.alerting.rules import StoredRules
from celery_trace.intervals import SILENT_S
from celery_trace.model import AlertView, AuditEntry, Delivery, Page, ShellView, StatsView
from celery_trace.queries import searches
from celery_trace.queries.base import QueryBase
from celery_trace.stores import lineage, migration, sizes, tables
from celery_trace.stores import rows as rows_of
from celery_trace.stores.mapping import T, TableOf
from celery_trace.stores.state import RULES
from celery_trace.stores.tables import AnyColumn, AnyRow

_alerts = tables.alerts
_deliveries = tables.deliveries
_shells = tables.shells
_audit = tables.audit
_tallies = tables.tallies

#: The name of the collector's rows among the statistics of processes.
COLLECTORS = "collector:"
#: Living processes whose statistics are read.
MOST_ASKED = 2000
#: Older statistics are not shown as gauges any more, seconds.
STALE_S = 600.0


class MonitoringQueries(QueryBase):
    """Alerts, shell sessions and statistics."""

    def alerts(
        self, *, state: str | None = None, query: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[AlertView]:
        """Alerts, newest first. ``query`` is a search."""
        further = searches.of_alerts(searches.understood("alerts", query, self._now_s()))
        return self._newest(rows_of.ALERTS, _alerts.c.since_s, limit, cursor, "alerts", further, state=state)

    def alert(self, id: str) -> AlertView | None:
        """One alert."""
        with self.store.reading() as connection:
            row = connection.execute(sa.select(_alerts).where(_alerts.c.id == id)).first()
        return rows_of.ALERTS.record(row) if row is not None else None

    def alert_rules(self) -> StoredRules | None:
        """The rules set in the monitor; None if the configured ones apply."""
        with self.store.reading() as connection:
            value = connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.id == RULES)).scalar()
        return msgspec.json.decode(value, type=StoredRules) if value else None

    def deliveries(self, alert_id: str | None = None, *, limit: int = 100, cursor: str | None = None) -> Page[Delivery]:
        """Delivery attempts of one alert or of all, newest first."""
        return self._newest(rows_of.DELIVERIES, _deliveries.c.at_s, limit, cursor, "deliveries", alert=alert_id)

    # --- shells

    def shells(self, *, failure_id: str | None = None, limit: int = 100, cursor: str | None = None) -> Page[ShellView]:
        """Shell sessions without their lines, newest first."""
        return self._newest(rows_of.SHELLS, _shells.c.started_at_s, limit, cursor, "shells", failure=failure_id)

    def shell(self, id: str) -> ShellView | None:
        """One session with its transcript."""
        lines = tables.shell_lines
        with self.store.reading() as connection:
            row = connection.execute(sa.select(_shells).where(_shells.c.id == id)).first()
            if row is None:
                return None
            said = connection.execute(sa.select(lines).where(lines.c.shell == id).order_by(lines.c.seq))
            return rows_of.SHELLS.record(row, lines=rows_of.SHELL_LINES.records(said))

    def audit(
        self, *, failure_id: str | None = None, session: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[AuditEntry]:
        """Commands to processes, executed or refused, newest first."""
        return self._newest(rows_of.AUDIT, _audit.c.at_s, limit, cursor, "audit", failure=failure_id, session=session)

    def _newest(
        self,
        rows: TableOf[T],
        time: AnyColumn,
        limit: int,
        cursor: str | None,
        noun: str,
        further: Sequence[sa.ColumnElement[bool]] = (),
        **equal: str | None,
    ) -> Page[T]:
        """
        A page of a table's rows, newest first.

        Args:
            further: Further conditions.
            equal: Values of columns; empty ones are left out.
        """
        columns = time.table.c
        given = (columns[name] == value for name, value in equal.items() if value)
        wanted = sa.select(time.table).where(*given, *further)
        with self.store.reading() as connection:
            order = ((time, True), (columns.id, True))
            return self._page(connection, noun, wanted, order, limit, cursor, rows.records)

    # --- statistics

    def stats(self) -> StatsView:
        """Stored and lost records, from running sums: no table is counted."""
        now_s = self._now_s()
        table = tables.stats
        with self.store.reading() as connection:
            sums = {row.id: row.value for row in connection.execute(sa.select(_tallies))}
            collectors = connection.execute(
                sa.select(table).where(
                    table.c.process >= COLLECTORS,
                    table.c.process < COLLECTORS[:-1] + ";",
                    table.c.at_s > now_s - STALE_S,
                )
            ).all()
            version = migration.version(connection) or ""
            lost_stores = lineage.lost(connection)
            size = sizes.read(connection, self.store.settings, now_s)
        # The newest of each folder: a restarted collector has another number at the end of its name.
        accounts = {
            row.process.removeprefix(COLLECTORS).rpartition(":")[0]: msgspec.json.decode(row.counters)
            for row in collectors
        }
        process_us = sums.get("time:process_us", 0)
        own_errors = _part(sums, "stat:own_error:")
        return StatsView(
            records={tag: rows for tag, table in tables.RECORDS.items() if (rows := sums.get(f"rows:{table.name}", 0))},
            written=_part(sums, "stat:written:"),
            dropped=_part(sums, "stat:dropped:"),
            cut=_part(sums, "stat:cut:"),
            own_errors=own_errors,
            live=_part(sums, "stat:live:"),
            overhead_ratio=sums.get("time:overhead_us", 0) / process_us if process_us > 0 else 0.0,
            spool_bytes=sum(account.get("spool:bytes", 0) for account in accounts.values()),
            spool_records=sum(account.get("spool:records", 0) for account in accounts.values()),
            corrupt_lines=sums.get("stat:corrupt:lines", 0),
            store=self.store.address,
            schema=version,
            collector=accounts,
            lost_stores=lost_stores,
            size=size,
        )

    def heap_conditions(self) -> dict[str, list[str]]:
        """Conditions that impede heap sampling, and the living processes with them: ``{"gc_off": ["w1@h pid 12"]}``."""
        table, processes = tables.stats, tables.processes
        wanted = (
            sa.select(table.c.counters, processes.c.worker, processes.c.role, processes.c.host, processes.c.pid)
            .join(processes, processes.c.uid == table.c.process)
            .where(processes.c.ended_at_s.is_(None), processes.c.seen_at_s > self._now_s() - SILENT_S)
            .order_by(processes.c.worker, processes.c.pid)
        )
        found: dict[str, list[str]] = {}
        with self.store.reading() as connection:
            for row in connection.execute(wanted.limit(MOST_ASKED)):
                for name in _part(msgspec.json.decode(row.counters), "heap:"):
                    found.setdefault(name, []).append(_name_of(row))
        return found

    def not_looking(self) -> dict[str, list[str]]:
        """Living processes in which no leak can be found: reason to names, such as ``w1@h pid 12``."""
        table = tables.processes
        wanted = sa.select(table.c.mode, table.c.worker, table.c.role, table.c.host, table.c.pid).where(
            table.c.ended_at_s.is_(None),
            table.c.seen_at_s > self._now_s() - SILENT_S,
            table.c.mode.in_(("off", "rss")),
        )
        found: dict[str, list[str]] = {}
        with self.store.reading() as connection:
            for row in connection.execute(wanted.order_by(table.c.worker, table.c.pid).limit(MOST_ASKED)):
                found.setdefault(f"trace_memory is {row.mode} there", []).append(_name_of(row))
        return found

    def change_token(self) -> str:
        """A text that changes with every write; one row is read."""
        wanted = sa.select(_tallies.c.value).where(_tallies.c.id == "changes")
        with self.store.reading() as connection:
            return str(connection.execute(wanted).scalar() or 0)


def _name_of(process: AnyRow) -> str:
    """``w1@h pid 12``; without a worker ``web@h pid 12``."""
    return f"{process.worker or f'{process.role}@{process.host}'} pid {process.pid}"


def _part(sums: dict[str, int], prefix: str) -> dict[str, int]:
    return {key[len(prefix) :]: value for key, value in sorted(sums.items()) if key.startswith(prefix) and value}
