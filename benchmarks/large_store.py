"""
A store with millions of rows, created by the database itself: half failures, half runs.

It also has the searchable values of each failure, a memory sample for each five rows, two weeks of five-minute sums,
and the groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from celery_trace.model import Histogram, Kind, MemoryState, ProcessRecord, Rollup, Sample
from celery_trace.stores import Store, tables
from celery_trace.stores.mapping import text

NAMES = 40
WORKERS = 50
GROUPS = 800
PROCESSES = 500
#: Seconds between two failures.
STEP_S = 0.1
#: Rows per memory sample; each process takes one in ten seconds.
ROWS_A_SAMPLE = 5
SAMPLE_STEP_S = 10 / PROCESSES
#: Buckets of five-minute sums: the fourteen days of the default retention.
BUCKETS = 14 * 86400 // Rollup.BUCKET_S

_NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {most}) ",
    "postgresql": "WITH numbers AS (SELECT generate_series(1, {most}) AS n) ",
    "mysql": "WITH numbers AS (SELECT seq AS n FROM seq_1_to_{most}) ",
}


class Dialect:
    """The syntax of one database for the statements here."""

    def __init__(self, name: str) -> None:
        self.name = "mysql" if name == "mariadb" else name

    def numbers_into(self, insert: str, select: str, most: int) -> str:
        """An INSERT of ``select`` over the numbers from 1 to ``most``."""
        numbers = _NUMBERS[self.name].format(most=most)
        return insert + numbers + select if self.name == "mysql" else numbers + insert + select

    def joined(self, prefix: str, what: str) -> str:
        """A text and a number as one text."""
        if self.name == "mysql":
            return f"CONCAT('{prefix}', {what})"
        return f"'{prefix}' || CAST({what} AS TEXT)"

    def divided(self, what: str, by: int) -> str:
        """The whole part of a quotient."""
        return f"({what} DIV {by})" if self.name == "mysql" else f"({what} / {by})"

    def hour(self, what: str) -> str:
        """The start of a time's hour."""
        if self.name == "sqlite":
            return f"(CAST({what} / 3600 AS INTEGER) * 3600)"
        return f"(FLOOR({what} / 3600) * 3600)"

    def quoted(self, word: str) -> str:
        """A column that has the name of a function."""
        return f"`{word}`" if self.name == "mysql" else f'"{word}"'


def fill_store(store: Store, many: int, payload: bytes) -> None:
    """Create ``many`` rows; each failure has ``payload``."""
    dialect = Dialect(store.engine.dialect.name)
    failures, runs = many // 2, many - many // 2
    now_s = time.time()
    began_s = now_s - many // ROWS_A_SAMPLE * SAMPLE_STEP_S
    with store.engine.connect().execution_options(writing=True) as connection, _in_one_go(connection):
        large = (tables.failures, tables.runs, tables.samples)
        _each_index(connection, large, lambda index: index.drop(connection))
        _fill_failures(connection, dialect, failures, now_s - failures * STEP_S, payload)
        _fill_runs(connection, dialect, runs, now_s - runs * STEP_S)
        _fill_values(connection, dialect, failures)
        _fill_samples(connection, dialect, many // ROWS_A_SAMPLE, now_s)
        _each_index(connection, large, lambda index: index.create(connection))
        _fill_sums(connection, dialect, failures, runs, now_s)
    bucket_s = int(now_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
    store.write(
        [
            ProcessRecord(uid=f"p{n}", host="h", pid=n, started_at_s=began_s, worker=f"w{n % WORKERS}")
            for n in range(PROCESSES)
        ]
    )
    memory = MemoryState(rss_bytes=80_000_000, allocated_blocks=400_000)
    store.write([Sample(process=f"p{n}", at_s=now_s, memory=memory) for n in range(PROCESSES)])
    store.write(
        [
            Rollup(
                process="p1",
                kind=Kind.TASK,
                name=f"app.tasks.t{n}",
                bucket_s=bucket_s - Rollup.BUCKET_S * back,
                seq=1,
                runs=9,
                gated=3,
                kept_bytes=n * 100,
                durations=Histogram([0] * 10 + [9]),
            )
            for n in range(NAMES)
            for back in range(BUCKETS)
        ]
    )
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        names = (table.name for table in (*large, tables.failure_values, tables.totals))
        which = f" TABLE {', '.join(names)}" if dialect.name == "mysql" else ""
        # PostgreSQL's own vacuum would run some minutes later; until then the first reader of each row pays for it.
        connection.execute(sa.text(("VACUUM " if dialect.name == "postgresql" else "") + "ANALYZE" + which))


@contextmanager
def _in_one_go(connection: sa.Connection) -> Iterator[None]:
    """One transaction; SQLite would write everything twice, with a cache a hundredth of its size."""
    lite = connection.dialect.name == "sqlite"
    driver: Any = connection.connection.driver_connection
    if lite:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4000000"):
            driver.execute(f"PRAGMA {setting}")
    with connection.begin():
        yield
    if lite:
        driver.execute("PRAGMA journal_mode=WAL")
    connection.invalidate()  # its settings must not be reused


def _each_index(connection: sa.Connection, tables: tuple[sa.Table, ...], act: Callable[[sa.Index], None]) -> None:
    for table in tables:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            act(index)


def _fill_failures(connection: sa.Connection, dialect: Dialect, many: int, start_s: float, payload: bytes) -> None:
    group = f"((n % {NAMES}) + {NAMES} * ({dialect.divided('n', NAMES)} % {GROUPS // NAMES}))"
    columns = {
        "id": dialect.joined("f", "n"),
        "process": dialect.joined("p", f"n % {PROCESSES}"),
        "kind": "'task'",
        "name": dialect.joined("app.tasks.t", f"n % {NAMES}"),
        "task_id": dialect.joined("task", "n"),
        "retries": "0",
        "root_id": "''",
        "outcome": "CASE WHEN n % 97 = 0 THEN 'lost' WHEN n % 10 = 0 THEN 'retried' ELSE 'failed' END",
        "witness": "'child'",
        "exception_type": "'ValueError'",
        "exception_module": "'builtins'",
        "exception_message": dialect.joined("no such card ", group),
        "fingerprint": dialect.joined("g", group),
        "worker": dialect.joined("w", f"n % {WORKERS}"),
        "pid": "1",
        "hostname": "'h'",
        "at_s": f"{start_s} + n * {STEP_S}",
        "payload": ":payload",
    }
    _insert(connection, dialect, tables.failures, columns, many, payload=payload)


def _fill_runs(connection: sa.Connection, dialect: Dialect, many: int, start_s: float) -> None:
    columns = {
        "id": dialect.joined("r", "n"),
        "process": dialect.joined("p", f"n % {PROCESSES}"),
        "kind": "'task'",
        "name": dialect.joined("app.tasks.t", f"n % {NAMES}"),
        "task_id": dialect.joined("task", "n"),
        "retries": "0",
        "queue": "'celery'",
        "root_id": "''",
        "started_at_s": f"{start_s} + n * {STEP_S}",
        "duration_s": "0.5",
        "state": "'SUCCESS'",
        "why": "CASE WHEN n % 50 = 0 THEN 'outlier' ELSE 'sampled' END",
        "concurrent": "1",
    }
    _insert(connection, dialect, tables.runs, columns, many)


def _fill_values(connection: sa.Connection, dialect: Dialect, many: int) -> None:
    """About six hundred characters for each failure, as from twelve frames with a few locals."""
    lines = "\n".join(f"local_{n}=some value of order {n} in shop" for n in range(15))
    columns = {"id": dialect.joined("f", "n"), "text": dialect.joined(f"{lines}\norder_id=", "n")}
    _insert(connection, dialect, tables.failure_values, columns, many)


def _fill_samples(connection: sa.Connection, dialect: Dialect, many: int, now_s: float) -> None:
    columns = {
        "id": dialect.joined("s", "n"),
        "process": dialect.joined("p", f"n % {PROCESSES}"),
        "at_s": f"{now_s - many * SAMPLE_STEP_S} + n * {SAMPLE_STEP_S}",
        "memory": ":memory",
        "runs": "n",
        "name": dialect.joined("app.tasks.t", f"n % {NAMES}"),
        "kept_failures": "0",
        "overhead_ratio": "0.001",
    }
    memory = text(MemoryState(rss_bytes=80_000_000, allocated_blocks=400_000))
    _insert(connection, dialect, tables.samples, columns, many, memory=memory)


def _insert(
    connection: sa.Connection, dialect: Dialect, table: sa.Table, columns: dict[str, str], most: int, **values: Any
) -> None:
    insert = f"INSERT INTO {table.name} ({', '.join(columns)}) "
    select = f"SELECT {', '.join(columns.values())} FROM numbers"
    connection.execute(sa.text(dialect.numbers_into(insert, select, most)), values)


def _fill_sums(connection: sa.Connection, dialect: Dialect, failures: int, runs: int, now_s: float) -> None:
    count = dialect.quoted("count")
    source = tables.failures.name
    connection.execute(
        sa.text(
            f"INSERT INTO {tables.groups.name} (fingerprint, kind, name, exception_type, exception_module, "
            f"exception_message, outcome, {count}, first_seen_s, last_seen_s, latest_id, resolved_by) "
            "SELECT fingerprint, 'task', MAX(name), 'ValueError', 'builtins', MAX(exception_message), 'failed', "
            f"COUNT(*), MIN(at_s), MAX(at_s), MAX(id), '' FROM {source} GROUP BY fingerprint"
        )
    )
    hour = dialect.hour("at_s")
    text = f"fingerprint || ':' || CAST({hour} AS TEXT)"
    key = f"CONCAT(fingerprint, ':', {hour})" if dialect.name == "mysql" else text
    connection.execute(
        sa.text(
            f"INSERT INTO {tables.trends.name} (id, fingerprint, hour_s, {count}) "
            f"SELECT {key}, fingerprint, {hour}, COUNT(*) FROM {source} "
            f"WHERE at_s > {now_s - 2 * 86400} GROUP BY fingerprint, {hour}"
        )
    )
    sums = {f"rows:{tables.failures.name}": failures, f"rows:{tables.runs.name}": runs, "changes": 1}
    connection.execute(sa.insert(tables.tallies), [{"id": key, "value": value} for key, value in sums.items()])
