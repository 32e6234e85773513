"""
The one definition of the tables, for SQLAlchemy (:mod:`celery_trace.stores.tables`) and for Django's models.

It needs no SQLAlchemy, because Django loads its models in every process of a site. A column names the field of a
record that it holds, so that :mod:`celery_trace.stores.mapping` can map records to rows and back.

Every table has one primary key column and no foreign key: records arrive in any order, and pruning works in small
batches. Times are seconds since the epoch. Data that is only read as a whole is in ``payload``, as JSON, compressed
where that saves space.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

PREFIX = "celery_trace_"
#: The table with the tables' version, see :mod:`celery_trace.stores.migration`.
VERSION_TABLE = PREFIX + "alembic"

Scalar = str | int | float | bool


class Type(Struct, frozen=True):
    """What a column holds; only ``text`` has a length, in characters."""

    kind: Literal["text", "long text", "whole", "real", "flag", "bytes"]
    length: int | None = None


# The store cuts longer texts, so that no database refuses a record.
ID = Type("text", 64)
NAME = Type("text", 255)
WORD = Type("text", 32)
MESSAGE = Type("text", 1000)
LONG_TEXT = Type("long text")
COUNT = Type("whole")
SECONDS = Type("real")
FLAG = Type("flag")
BLOB = Type("bytes")

_EMPTY: dict[str, Scalar] = {"text": "", "long text": "", "whole": 0, "real": 0.0, "flag": False}


class Column(Struct, frozen=True, kw_only=True):
    """
    A column, and the part of a record that it holds.

    By default that is the record's field of the same name; for views with plain names for times, ``at_s`` holds
    ``at``. Values that aren't scalars are stored as JSON in a text column.
    """

    name: str
    type: Type
    key: bool = False
    nullable: bool = False
    #: Another attribute of the record, such as ``exception.type``.
    field: str = ""
    #: Not a field of the record: set when the row is made, or empty until it is filled in later.
    extra: bool = False
    #: For a payload: the fields in it. By default it holds the whole record.
    parts: tuple[str, ...] = ()
    #: How the column is merged from two rollups.
    merged: Literal["", "sum", "largest"] = ""

    @property
    def empty(self) -> Scalar | None:
        """The column's default value."""
        return None if self.nullable else _EMPTY[self.type.kind]


class Index(Struct, frozen=True):
    """An index over these columns, in their order."""

    name: str
    columns: tuple[str, ...]


class Table(Struct, frozen=True):
    """A table; the first column is its key."""

    name: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]

    @property
    def key(self) -> Column:
        """The primary key."""
        return self.columns[0]


#: All tables, in the order in which they are declared.
TABLES: list[Table] = []


def _table(name: str, *parts: Column | Index) -> Table:
    columns = tuple(part for part in parts if isinstance(part, Column))
    indexes = tuple(part for part in parts if isinstance(part, Index))
    table = Table(PREFIX + name, columns, indexes)
    TABLES.append(table)
    return table


def _index(name: str, *columns: str) -> Index:
    return Index(name, columns)


def _key(name: str, type: Type = ID, *, field: str = "") -> Column:
    return Column(name=name, type=type, key=True, field=field)


def _text(name: str, type: Type = NAME, *, field: str = "") -> Column:
    return Column(name=name, type=type, field=field)


def _number(name: str, *, field: str = "") -> Column:
    return Column(name=name, type=COUNT, field=field)


def _seconds(name: str) -> Column:
    return Column(name=name, type=SECONDS)


def _flag(name: str) -> Column:
    return Column(name=name, type=FLAG)


def _maybe(name: str, type: Type = SECONDS) -> Column:
    return Column(name=name, type=type, nullable=True)


def _payload(*parts: str) -> Column:
    return Column(name="payload", type=BLOB, nullable=True, parts=parts)


def _extra(column: Column) -> Column:
    return replace(column, extra=True)


def _sum(column: Column) -> Column:
    return replace(column, merged="sum")


def _largest(column: Column) -> Column:
    return replace(column, merged="largest")


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
    _extra(_seconds("seen_at_s")),
    # from its latest sample
    _extra(_maybe("sampled_at_s")),
    _extra(_text("memory", LONG_TEXT)),  # JSON object
    _extra(_text("running")),
    _extra(_number("runs")),
    _extra(_number("kept_failures")),
    _extra(_seconds("overhead_ratio")),
    _index("ct_processes_seen", "seen_at_s", "uid"),
    _index("ct_processes_worker", "worker", "seen_at_s"),
)

#: The counts of a rollup.
_COUNTS = (
    _sum(_number("runs")),
    _sum(_number("failed")),
    _sum(_number("retried")),
    _sum(_seconds("duration_s")),
    _largest(_seconds("duration_max_s")),
    _text("durations", LONG_TEXT, field="durations.counts"),  # JSON list
    _sum(_number("gated")),
    _sum(_number("kept_blocks")),
    _sum(_number("kept_bytes")),
    _largest(_number("rss_max_bytes")),
    _flag("concurrent"),
)

rollups = _table(
    "rollups",
    _key("id", field="key"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _number("bucket_s"),
    _number("seq"),
    *_COUNTS,
    _index("ct_rollups_bucket", "bucket_s"),
    _index("ct_rollups_process", "process", "bucket_s"),
)

#: The rollups of all processes added up, updated as rollups arrive. The pages plot these.
totals = _table(
    "totals",
    _extra(_key("id")),
    _text("kind", WORD),
    _text("name"),
    _number("bucket_s"),
    *_COUNTS,
    _index("ct_totals_bucket", "bucket_s", "id"),
    _index("ct_totals_name", "name", "bucket_s"),
)

#: One row for each name that ever ran.
names = _table(
    "names",
    _key("id"),
    _text("kind", WORD),
    _text("name"),
    _number("runs"),
    _number("failed"),
    _index("ct_names_name", "name"),
)

#: The broker queues in which names were seen, for filters.
queues = _table(
    "queues",
    _key("id"),
    _text("queue"),
    _text("kind", WORD),
    _text("name"),
    _index("ct_queues_queue", "queue", "name"),
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
    _payload("memory", "top"),
    _index("ct_runs_at", "started_at_s", "id"),
    _index("ct_runs_name", "name", "started_at_s", "id"),
    _index("ct_runs_why", "why", "started_at_s", "id"),
    _index("ct_runs_kind", "kind", "started_at_s", "id"),
    _index("ct_runs_task", "task_id"),
    _index("ct_runs_root", "root_id"),
)

#: What runs on each host: the latest snapshot.
running = _table(
    "running",
    _key("id", NAME, field="place"),
    _seconds("at_s"),
    _payload(),
    _index("ct_running_at", "at_s"),
)

#: Chords with a body that waits.
chords = _table(
    "chords",
    _key("id", field="key"),
    _text("root_id"),
    _seconds("at_s"),
    _payload(),
    _index("ct_chords_root", "root_id"),
    _index("ct_chords_at", "at_s"),
)

samples = _table(
    "samples",
    _key("id", field="key"),
    _text("process", ID),
    _seconds("at_s"),
    _text("memory", LONG_TEXT),  # JSON object
    _number("runs"),
    _text("name"),
    _number("kept_failures"),
    _seconds("overhead_ratio"),
    _index("ct_samples_process", "process", "at_s"),
    _index("ct_samples_at", "at_s"),
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
    _payload(),
    _index("ct_windows_name", "name", "kind", "at_s", "id"),
    _index("ct_windows_at", "at_s", "id"),
)

#: Retained memory by call stack: the latest profile of each process, name and hour.
heap_profiles = _table(
    "heap_profiles",
    _key("id", field="key"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("release"),
    _seconds("at_s"),
    _number("runs"),
    _number("bytes"),
    _payload(),
    _index("ct_heap_profiles_name", "name", "kind", "at_s", "id"),
    _index("ct_heap_profiles_at", "at_s"),
    _index("ct_heap_profiles_process", "process"),
)

#: Where the time of runs goes by call stack: what each process has added up of a name in an hour.
time_profiles = _table(
    "time_profiles",
    _key("id", field="key"),
    _text("process", ID),
    _text("kind", WORD),
    _text("name"),
    _text("release"),
    _seconds("at_s"),
    _number("runs"),
    _number("wall_us"),
    _number("cpu_us"),
    _payload(),
    _index("ct_time_profiles_name", "name", "kind", "at_s", "id"),
    _index("ct_time_profiles_at", "at_s"),
)

#: The leak table: a function of the windows, updated name by name.
leaks = _table(
    "leaks",
    _key("id"),
    _text("kind", WORD),
    _text("name"),
    _text("verdict", WORD),
    _extra(_number("rank")),
    _number("kept_bytes_per_run"),
    _number("kept_bytes_total"),
    _number("runs"),
    _seconds("last_seen_s"),
    _extra(_text("place", MESSAGE)),  # file, function and line of code, for the search
    _payload(),
    _index("ct_leaks_rank", "rank", "kept_bytes_per_run", "id"),
    _index("ct_leaks_name", "name", "kind"),
)

#: Names with windows that are not in the leak table yet, and resolved leaks.
leak_state = _table(
    "leak_state",
    _key("id"),  # "leak:<id>" for a resolved leak, "name:<id>" for a name that has to be recomputed
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
    _text("root_id", field="task.root_id"),
    _text("parent_id", field="task.parent_id"),
    _text("group_id", field="task.group_id"),
    _text("queue", field="task.queue"),
    _text("route", field="request.route"),
    _text("outcome", WORD),
    _text("witness", WORD),
    _text("exception_type", field="exception.type"),
    _text("exception_module", field="exception.module"),
    _text("exception_message", MESSAGE, field="exception.message"),
    _text("fingerprint", ID),
    _text("worker"),
    _number("pid", field="last_pid"),
    _text("hostname"),
    _seconds("at_s"),
    _extra(_text("shared", ID)),  # the base of its payload in captures; empty: the payload is whole
    _payload(),  # the whole record
    _index("ct_failures_at", "at_s", "id"),
    _index("ct_failures_name", "name", "at_s", "id"),
    # Without it, half a second at ten million rows for a task that rarely fails on that worker.
    _index("ct_failures_both", "name", "worker", "at_s", "id"),
    _index("ct_failures_ended", "name", "outcome", "at_s", "id"),
    _index("ct_failures_outcome", "outcome", "at_s", "id"),
    _index("ct_failures_kind", "kind", "at_s", "id"),
    _index("ct_failures_print", "fingerprint", "at_s", "id"),
    _index("ct_failures_worker", "worker", "at_s", "id"),
    _index("ct_failures_task", "task_id"),
    _index("ct_failures_root", "root_id"),
    _index("ct_failures_process", "process"),
)

#: Records that other failures of the group are stored as a difference to.
captures = _table(
    "captures",
    _key("id"),  # a hash of the payload's JSON
    _text("fingerprint", ID),
    _seconds("at_s"),
    _number("failures"),  # how many are stored against it
    _text("text", LONG_TEXT),  # its values, for the search
    _payload(),
    _index("ct_captures_print", "fingerprint", "at_s"),
)

#: A failure's values as short text for the search; a separate table, so that a search reads narrow rows.
failure_values = _table("failure_values", _key("id"), _text("text", LONG_TEXT))

groups = _table(
    "groups",
    _key("fingerprint"),
    _text("kind", WORD),
    _text("name"),
    _text("exception_type", field="exception.type"),
    _text("exception_module", field="exception.module"),
    _text("exception_message", MESSAGE, field="exception.message"),
    _text("outcome", WORD),
    _number("count"),
    _seconds("first_seen_s"),
    _seconds("last_seen_s"),
    _text("latest_id", ID),
    _maybe("resolved_at_s"),
    _text("resolved_by"),
    _index("ct_groups_seen", "last_seen_s", "fingerprint"),
)

#: What users decided about a group. A table of its own, as every failure rewrites its group's row.
triage = _table(
    "triage",
    _key("fingerprint"),
    _text("assigned_to"),
    _maybe("ignored_until_s"),
    _text("ignored_by"),
)

comments = _table(
    "comments",
    _key("id"),
    _text("fingerprint", ID),
    _seconds("at_s"),
    _text("username", field="user"),
    _text("text", LONG_TEXT),
    _index("ct_comments_print", "fingerprint", "at_s"),
)

#: Failed tasks that were sent again from the monitor.
retried = _table(
    "retried",
    _key("id"),
    _text("fingerprint", ID),
    _seconds("at_s"),
    _text("username", field="user"),
    _text("task_id"),
    _index("ct_retried_print", "fingerprint", "at_s"),
)

#: Searches that users have saved.
saved_views = _table(
    "saved_views",
    _key("id"),
    _text("username", field="user"),
    _text("noun", WORD),
    _text("title"),
    _text("query", LONG_TEXT),
    _seconds("at_s"),
    _index("ct_saved_views_user", "username", "noun"),
)

#: How often a group failed in each hour.
trends = _table(
    "trends",
    _key("id"),
    _text("fingerprint", ID),
    _number("hour_s"),
    _number("count"),
    _index("ct_trends_print", "fingerprint", "hour_s"),
    _index("ct_trends_hour", "hour_s"),
)

kept = _table(
    "kept",
    _key("id", Type("text", 130), field="key"),
    _text("process", ID),
    _text("failure", ID),
    _seconds("at_s"),
    _seconds("until_s"),
    _text("address"),
    _number("bytes"),
    _text("gone", WORD),
    _index("ct_kept_failure", "failure"),
    _index("ct_kept_until", "until_s"),
)

stats = _table(
    "stats",
    _key("process", Type("text", 200)),
    _number("seq"),
    _seconds("at_s"),
    _text("counters", LONG_TEXT),  # JSON object
    _seconds("overhead_s"),
    _seconds("process_s"),
    _index("ct_stats_at", "at_s"),
)

#: Running sums, so that no page has to count a table: ``rows:<table>``, ``stat:<counter>``, ``changes``.
tallies = _table("tallies", _key("id", Type("text", 200)), _number("value"))

#: Messages of a task in a queue, per process and five minutes.
flows = _table(
    "flows",
    _key("id", field="key"),
    _text("process", ID),
    _text("queue"),
    _text("name"),
    _number("bucket_s"),
    _number("seq"),
    _number("published"),
    _number("received"),
    _number("started"),
    _number("redelivered"),
    _text("waits", LONG_TEXT, field="waits.counts"),  # JSON list
    _text("transfers", LONG_TEXT, field="transfers.counts"),  # JSON list
    _text("reserved", LONG_TEXT, field="reserved.counts"),  # JSON list
    _seconds("wait_max_s"),
    _seconds("eta_max_s"),
    _flag("acks_late"),
    _index("ct_flows_bucket", "bucket_s"),
    _index("ct_flows_queue", "queue", "bucket_s"),
)

#: The latest state of each queue in each worker that consumes it.
consuming = _table(
    "consuming",
    _key("id", field="key"),
    _text("process", ID),
    _text("queue"),
    _seconds("at_s"),
    _text("worker"),
    _number("running"),
    _number("reserved"),
    _number("scheduled"),
    _maybe("reserved_since_s"),
    _text("ahead", LONG_TEXT),  # JSON list
    _maybe("visibility_timeout_s"),
    _flag("gone"),
    _text("idle_because"),
    _maybe("idle_since_s"),
    _index("ct_consuming_at", "at_s"),
)

#: A queue's series, as the monitor reads it from the broker.
queue_samples = _table(
    "queue_samples",
    _key("id", field="key"),
    _text("queue"),
    _seconds("at_s"),
    _maybe("depth", COUNT),
    _maybe("consumers", COUNT),
    _maybe("oldest_age_s"),
    _number("running"),
    _number("reserved"),
    _index("ct_queue_samples_queue", "queue", "at_s"),
    _index("ct_queue_samples_at", "at_s"),
)

#: Runs of messages that may have been started more than once.
starts = _table(
    "starts",
    _key("id", field="key"),
    _text("process", ID),
    _text("worker"),
    _text("queue"),
    _text("name"),
    _text("task_id"),
    _number("retries"),
    _seconds("started_at_s"),
    _maybe("ended_at_s"),
    _flag("succeeded"),
    _flag("redelivered"),
    _index("ct_starts_at", "started_at_s"),
    _index("ct_starts_task", "task_id"),
)

#: The latest state of each entry of each scheduler.
schedules = _table(
    "schedules",
    _key("id", field="key"),
    _text("process", ID),
    _text("entry"),
    _text("task"),
    _text("every"),
    _seconds("at_s"),
    _maybe("due_at_s"),
    _seconds("interval_s"),
    _maybe("published_at_s"),
    _number("published"),
    _number("missed"),
    _number("failed"),
    _seconds("late_max_s"),
    _flag("gone"),
    _index("ct_schedules_at", "at_s"),
)

audit = _table(
    "audit",
    _key("id"),
    _seconds("at_s"),
    _text("place", WORD, field="where"),
    _text("process", ID),
    _text("failure", ID),
    _text("session", ID),
    _text("username", field="user"),
    _text("command", LONG_TEXT),
    _text("verdict"),
    _index("ct_audit_at", "at_s", "id"),
)

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
    _index("ct_alerts_since", "since_s", "id"),
    _index("ct_alerts_state", "state", "since_s", "id"),
)

deliveries = _table(
    "deliveries",
    _key("id"),
    _text("alert", ID),
    _text("channel"),
    _seconds("at_s"),
    _flag("ok"),
    _text("error", LONG_TEXT),
    _number("attempt"),
    _index("ct_deliveries_at", "at_s", "id"),
    _index("ct_deliveries_alert", "alert", "at_s", "id"),
)

shells = _table(
    "shells",
    _key("id"),
    _text("failure", ID),
    _text("mode", WORD),
    _seconds("started_at_s"),
    _maybe("ended_at_s"),
    _text("users", LONG_TEXT),  # JSON list
    _index("ct_shells_started", "started_at_s", "id"),
    _index("ct_shells_failure", "failure", "started_at_s", "id"),
)

shell_lines = _table(
    "shell_lines",
    _extra(_key("id", Type("text", 90))),  # its shell and number
    _extra(_text("shell", ID)),
    _number("seq"),
    _seconds("at_s"),
    _text("username", field="user"),
    _text("kind", WORD),
    _text("text", LONG_TEXT),
    _index("ct_shell_lines_shell", "shell", "seq"),
)

meta = _table("meta", _key("id"), _text("value", LONG_TEXT))
