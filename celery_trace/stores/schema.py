"""
The tables, once for all databases: the source of truth for Alembic's migrations and for Django's models.

Every table has one primary key column and no foreign key: records arrive in any order, and pruning works in
small batches. Times are seconds since the epoch. What is only ever shown as a whole stands in ``payload``, as
JSON, compressed where that pays.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

PREFIX = "celery_trace_"

metadata = sa.MetaData()

# Lengths; what is longer is cut by the store, so that no database refuses a record for it.
ID = sa.String(64)
NAME = sa.String(255)
WORD = sa.String(32)
MESSAGE = sa.String(1000)
# MySQL's plain types hold 64 KiB.
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
BLOB = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
SECONDS: sa.types.TypeEngine[Any] = sa.Double()
COUNT = sa.BigInteger()


def _table(name: str, *parts: sa.Column[Any] | sa.Index) -> sa.Table:
    return sa.Table(
        PREFIX + name, metadata, *parts, mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB", mariadb_charset="utf8mb4", mariadb_collate="utf8mb4_bin",
    )  # fmt: skip


def _key(name: str, kind: sa.types.TypeEngine[Any] = ID) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _text(name: str, kind: sa.types.TypeEngine[Any] = NAME) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, default="")


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, COUNT, nullable=False, default=0)


def _seconds(name: str) -> sa.Column[Any]:
    return sa.Column(name, SECONDS, nullable=False, default=0.0)


def _maybe(name: str, kind: sa.types.TypeEngine[Any] = SECONDS) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=True)


processes = _table(
    "processes",
    _key("uid"),
    _text("host"),
    _number("pid"),
    _text("worker"),
    _text("role", WORD),
    _text("parent_uid", ID),
    _text("python"),
    _text("counters", LONG_TEXT),  # JSON list
    _text("mode", WORD),
    _text("release"),
    _seconds("started_at_s"),
    _maybe("ended_at_s"),
    _text("ended_how", WORD),
    # what its latest sample said
    _seconds("seen_at_s"),
    _maybe("sampled_at_s"),
    _text("memory", LONG_TEXT),  # JSON object
    _text("running"),
    _number("runs"),
    _number("kept_failures"),
    _seconds("overhead_ratio"),
    sa.Index("ct_processes_seen", "seen_at_s", "uid"),
    sa.Index("ct_processes_worker", "worker", "seen_at_s"),
)

rollups = _table(
    "rollups",
    _key("id"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _number("bucket_s"),
    _number("seq"),
    _number("runs"),
    _number("failed"),
    _number("retried"),
    _seconds("duration_s"),
    _seconds("duration_max_s"),
    _text("durations", LONG_TEXT),  # JSON list
    _number("gated"),
    _number("kept_blocks"),
    _number("kept_bytes"),
    _number("rss_max_bytes"),
    _seconds("overhead_s"),
    sa.Column("concurrent", sa.Boolean, nullable=False, default=False),
    sa.Index("ct_rollups_bucket", "bucket_s"),
    sa.Index("ct_rollups_process", "process", "bucket_s"),
)

#: Rollups of all processes added up, kept current as rollups arrive: what the pages plot.
totals = _table(
    "totals",
    _key("id"),
    _text("kind", WORD),
    _text("name"),
    _number("bucket_s"),
    _number("runs"),
    _number("failed"),
    _number("retried"),
    _seconds("duration_s"),
    _seconds("duration_max_s"),
    _text("durations", LONG_TEXT),
    _number("gated"),
    _number("kept_blocks"),
    _number("kept_bytes"),
    _number("rss_max_bytes"),
    _seconds("overhead_s"),
    sa.Column("concurrent", sa.Boolean, nullable=False, default=False),
    sa.Index("ct_totals_bucket", "bucket_s", "id"),
    sa.Index("ct_totals_name", "name", "bucket_s"),
)

#: One row for each name that ever ran.
names = _table(
    "names",
    _key("id"),
    _text("kind", WORD),
    _text("name"),
    _number("runs"),
    _number("failed"),
    sa.Index("ct_names_name", "name"),
)

#: Which names were seen in which queue of the broker, for filters.
queues = _table(
    "queues",
    _key("id"),
    _text("queue"),
    _text("kind", WORD),
    _text("name"),
    sa.Index("ct_queues_queue", "queue", "name"),
)

runs = _table(
    "runs",
    _key("id"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("task_id"),
    _number("retries"),
    _text("queue"),
    _text("root_id"),
    _seconds("started_at_s"),
    _seconds("duration_s"),
    _text("state", WORD),
    _text("why", WORD),
    _maybe("kept_blocks", COUNT),
    _maybe("kept_bytes", COUNT),
    _number("concurrent"),
    _maybe("payload", BLOB),  # memory and top
    sa.Index("ct_runs_at", "started_at_s", "id"),
    sa.Index("ct_runs_name", "name", "started_at_s", "id"),
    sa.Index("ct_runs_why", "why", "started_at_s", "id"),
    sa.Index("ct_runs_kind", "kind", "started_at_s", "id"),
    sa.Index("ct_runs_task", "task_id"),
    sa.Index("ct_runs_root", "root_id"),
)

samples = _table(
    "samples",
    _key("id"),
    _text("process", ID),
    _seconds("at_s"),
    _text("memory", LONG_TEXT),  # JSON object
    _number("runs"),
    _text("name"),
    _number("kept_failures"),
    _seconds("overhead_ratio"),
    sa.Index("ct_samples_process", "process", "at_s"),
    sa.Index("ct_samples_at", "at_s"),
)

windows = _table(
    "windows",
    _key("id"),
    _text("investigation", ID),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("stage", WORD),
    _text("verdict", WORD),
    _seconds("at_s"),
    _maybe("payload", BLOB),
    sa.Index("ct_windows_name", "name", "kind", "at_s", "id"),
    sa.Index("ct_windows_at", "at_s", "id"),
)

#: What names have left alive by call stack: the latest of each process, name and hour.
heap_profiles = _table(
    "heap_profiles",
    _key("id"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("release"),
    _seconds("at_s"),
    _number("runs"),
    _number("bytes"),
    _maybe("payload", BLOB),
    sa.Index("ct_heap_profiles_name", "name", "kind", "at_s", "id"),
    sa.Index("ct_heap_profiles_at", "at_s"),
    sa.Index("ct_heap_profiles_process", "process"),
)

#: The leak table: a function of the windows, kept up to date name by name.
leaks = _table(
    "leaks",
    _key("id"),
    _text("kind", WORD),
    _text("name"),
    _text("verdict", WORD),
    _number("rank"),
    _number("kept_bytes_per_run"),
    _number("kept_bytes_total"),
    _number("runs"),
    _seconds("last_seen_s"),
    _text("place", MESSAGE),  # file, function and line of code, for the search
    _maybe("payload", BLOB),
    sa.Index("ct_leaks_rank", "rank", "kept_bytes_per_run", "id"),
    sa.Index("ct_leaks_name", "name", "kind"),
)

#: Names with windows that the leak table does not hold yet.
leak_state = _table(
    "leak_state",
    _key("id"),  # "leak:<id>" where somebody resolved a leak, "name:<id>" where a name has to be looked at again
    _text("kind", WORD),
    _text("name"),
    _seconds("at_s"),
    _text("username"),
)

failures = _table(
    "failures",
    _key("id"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("task_id"),
    _number("retries"),
    _text("root_id"),
    _text("parent_id"),
    _text("group_id"),
    _text("outcome", WORD),
    _text("witness", WORD),
    _text("exception_type"),
    _text("exception_module"),
    _text("exception_message", MESSAGE),
    _text("fingerprint", ID),
    _text("worker"),
    _number("pid"),
    _text("hostname"),
    _seconds("at_s"),
    _text("shared", ID),  # what its payload is the difference to, in captures; empty: the payload is whole
    _maybe("payload", BLOB),  # the whole record
    sa.Index("ct_failures_at", "at_s", "id"),
    sa.Index("ct_failures_name", "name", "at_s", "id"),
    # Half a second without it at ten million rows, for a task that rarely fails on that worker.
    sa.Index("ct_failures_both", "name", "worker", "at_s", "id"),
    sa.Index("ct_failures_ended", "name", "outcome", "at_s", "id"),
    sa.Index("ct_failures_outcome", "outcome", "at_s", "id"),
    sa.Index("ct_failures_kind", "kind", "at_s", "id"),
    sa.Index("ct_failures_print", "fingerprint", "at_s", "id"),
    sa.Index("ct_failures_worker", "worker", "at_s", "id"),
    sa.Index("ct_failures_task", "task_id"),
    sa.Index("ct_failures_root", "root_id"),
    sa.Index("ct_failures_process", "process"),
)

#: Records that others of the same group are stored as a difference to.
captures = _table(
    "captures",
    _key("id"),  # a hash of the payload's JSON
    _text("fingerprint", ID),
    _seconds("at_s"),
    _number("failures"),  # how many are stored so
    _text("text", LONG_TEXT),  # what it held, for the search
    _maybe("payload", BLOB),
    sa.Index("ct_captures_print", "fingerprint", "at_s"),
)

#: What a failure held, as short text for the search; apart, so that a search reads narrow rows and a list none of them.
failure_values = _table("failure_values", _key("id"), _text("text", LONG_TEXT))

groups = _table(
    "groups",
    _key("fingerprint"),
    _text("kind", WORD),
    _text("name"),
    _text("exception_type"),
    _text("exception_module"),
    _text("exception_message", MESSAGE),
    _text("outcome", WORD),
    _number("count"),
    _seconds("first_seen_s"),
    _seconds("last_seen_s"),
    _text("latest_id", ID),
    _maybe("resolved_at_s"),
    _text("resolved_by"),
    sa.Index("ct_groups_seen", "last_seen_s", "fingerprint"),
)

#: How often a group failed in each hour.
trends = _table(
    "trends",
    _key("id"),
    _text("fingerprint", ID),
    _number("hour_s"),
    _number("count"),
    sa.Index("ct_trends_print", "fingerprint", "hour_s"),
    sa.Index("ct_trends_hour", "hour_s"),
)

kept = _table(
    "kept",
    _key("id", sa.String(130)),
    _text("process", ID),
    _text("failure", ID),
    _seconds("at_s"),
    _seconds("until_s"),
    _text("address"),
    _number("bytes"),
    _text("gone", WORD),
    sa.Index("ct_kept_failure", "failure"),
    sa.Index("ct_kept_until", "until_s"),
)

stats = _table(
    "stats",
    _key("process", sa.String(200)),
    _number("seq"),
    _seconds("at_s"),
    _text("counters", LONG_TEXT),  # JSON object
    _seconds("overhead_s"),
    _seconds("process_s"),
    sa.Index("ct_stats_at", "at_s"),
)

#: Running sums, so that no page has to count a table: ``rows:<table>``, ``stat:<counter>``, ``changes``.
tallies = _table("tallies", _key("id", sa.String(200)), _number("value"))

audit = _table(
    "audit",
    _key("id"),
    _seconds("at_s"),
    _text("place", WORD),
    _text("process", ID),
    _text("failure", ID),
    _text("session", ID),
    _text("username"),
    _text("command", LONG_TEXT),
    _text("verdict"),
    sa.Index("ct_audit_at", "at_s", "id"),
)

#: Where the records of each tag stand.
RECORDS = {
    "process": processes,
    "rollup": rollups,
    "run": runs,
    "sample": samples,
    "window": windows,
    "heap": heap_profiles,
    "failure": failures,
    "kept": kept,
    "stats": stats,
    "audit": audit,
}

alerts = _table(
    "alerts",
    _key("id"),
    _text("rule"),
    _text("subject"),
    _text("state", WORD),
    _text("severity", WORD),
    _text("text", LONG_TEXT),
    _seconds("value"),
    _seconds("threshold"),
    _seconds("since_s"),
    _maybe("fired_at_s"),
    _maybe("resolved_at_s"),
    _text("acknowledged_by"),
    _maybe("acknowledged_at_s"),
    _maybe("silenced_until_s"),
    _text("link"),
    _number("count"),
    sa.Index("ct_alerts_since", "since_s", "id"),
    sa.Index("ct_alerts_state", "state", "since_s", "id"),
)

deliveries = _table(
    "deliveries",
    _key("id"),
    _text("alert", ID),
    _text("channel"),
    _seconds("at_s"),
    sa.Column("ok", sa.Boolean, nullable=False, default=False),
    _text("error", LONG_TEXT),
    _number("attempt"),
    sa.Index("ct_deliveries_at", "at_s", "id"),
    sa.Index("ct_deliveries_alert", "alert", "at_s", "id"),
)

shells = _table(
    "shells",
    _key("id"),
    _text("failure", ID),
    _text("mode", WORD),
    _seconds("started_at_s"),
    _maybe("ended_at_s"),
    _text("users", LONG_TEXT),  # JSON list
    sa.Index("ct_shells_started", "started_at_s", "id"),
    sa.Index("ct_shells_failure", "failure", "started_at_s", "id"),
)

shell_lines = _table(
    "shell_lines",
    _key("id", sa.String(90)),
    _text("shell", ID),
    _number("seq"),
    _seconds("at_s"),
    _text("username"),
    _text("kind", WORD),
    _text("text", LONG_TEXT),
    sa.Index("ct_shell_lines_shell", "shell", "seq"),
)

meta = _table("meta", _key("id"), _text("value", LONG_TEXT))
