"""
What every database must do, as functions of an empty store.

The wiring tier runs them on SQLite, the services tier on PostgreSQL and MariaDB.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from celery_trace.clock import FakeClock
from celery_trace.model import (
    AlertView,
    AuditEntry,
    Capture,
    CapturedException,
    Delivery,
    Evidence,
    ExceptionInfo,
    Failure,
    Frame,
    Histogram,
    Kept,
    Measure,
    Node,
    Outcome,
    Role,
    ShellLine,
    ShellView,
    Stats,
    TaskContext,
    Variable,
    Verdict,
)
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, leak_rows, migration, open_store, rows, schema, sizes, tables
from tests.support.paging_contract import the_pages_of_every_list_are_the_list
from tests.support.search_contract import SEARCHES
from tests.support.store_records import (
    NOW_S,
    failure,
    heap_profile,
    process,
    rollup,
    run,
    running_run,
    sample,
    snapshot,
    time_profile,
    window,
)
from tests.support.triage_contract import TRIAGE

CONTRACT: list[Callable[[Store], None]] = []


def promise(function: Callable[[Store], None]) -> Callable[[Store], None]:
    CONTRACT.append(function)
    return function


promise(the_pages_of_every_list_are_the_list)
for _further in (*TRIAGE, *SEARCHES):
    promise(_further)


def counted(store: Store) -> dict[str, int]:
    """Rows as the database counts them, for the tables that the store keeps running sums of."""
    with store.reading() as connection:
        counts = {
            table.name.removeprefix(schema.PREFIX): connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in tables.metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


def sums(store: Store) -> dict[str, int]:
    return Queries(store).stats().records


@promise
def a_batch_that_comes_twice_changes_nothing(store: Store) -> None:
    batch = [
        process(),
        sample(NOW_S, 50_000_000, runs=4),
        rollup(3, 12, failed=2),
        run("r1"),
        window("w1"),
        failure("t1"),
        failure("t2", at_s=NOW_S + 1),
        Kept(process="p1", failure=failure("t1").id, at_s=NOW_S, until_s=NOW_S + 900, address="q1"),
        Stats(
            process="p1",
            seq=2,
            at_s=NOW_S,
            counters={"written:run": 12, "cut:values": 3},
            overhead_s=1.0,
            process_s=80.0,
        ),
        AuditEntry(id="a1", at_s=NOW_S, where="worker", user="ann", command="a + b"),
    ]
    first = store.write(batch)
    before = counted(store), sums(store), Queries(store).groups().rows, Queries(store).rollups(), Queries(store).names()
    again = store.write(list(reversed(batch)))
    assert not first.refused
    assert sum(first.new.values()) == len(batch)
    assert sum(again.new.values()) == 0
    after = counted(store), sums(store), Queries(store).groups().rows, Queries(store).rollups(), Queries(store).names()
    assert after == before
    stats = Queries(store).stats()
    assert stats.written == {"run": 12}
    assert stats.cut == {"values": 3}
    assert stats.overhead_ratio == 1.0 / 80.0


@promise
def the_running_sums_are_what_the_database_counts(store: Store) -> None:
    store.write([process(), *(run(f"r{n}") for n in range(30)), *(failure(f"t{n}") for n in range(20))])
    store.write([run("r5"), run("r31"), failure("t3")])
    real = counted(store)
    assert sums(store) == {"process": real["processes"], "run": real["runs"], "failure": real["failures"]}
    assert real["runs"] == 31


@promise
def the_newest_rollup_of_a_bucket_counts_and_an_older_one_does_not(store: Store) -> None:
    store.write([rollup(1, 5), rollup(4, 9, failed=1)])
    store.write([rollup(2, 7)])
    store.write([rollup(6, 11, failed=2)])
    store.write([rollup(1, 4, process="p2", duration_max_s=3.0)])
    (total,) = Queries(store).rollups(name="shop.charge")
    assert (total.runs, total.failed, total.duration_s, total.duration_max_s) == (15, 2, 7.5, 3.0)
    assert total.durations.counts == [0, 15]
    assert Queries(store).names() == [("task", "shop.charge", 15, 2)]


@promise
def two_witnesses_of_one_failure_are_one_row_and_count_once(store: Store) -> None:
    main = failure(
        "t1", witness="main", outcome=Outcome.LOST, fingerprint="fp-lost",
        exception=ExceptionInfo("WorkerLostError", "billiard.exceptions", "signal 9"),
    )  # fmt: skip
    child = failure("t1", capture=Capture(args=0))
    store.write([main])
    assert [group.fingerprint for group in Queries(store).groups().rows] == ["fp-lost"]
    store.write([child])
    store.write([main, child])
    merged = Queries(store).failure_record(child.id)
    assert merged is not None
    assert merged.capture is not None
    groups = Queries(store).groups().rows
    assert [(group.fingerprint, group.count) for group in groups] == [(merged.fingerprint, 1)]
    assert sum(count for _, count in groups[0].trend) in (0, 1)
    assert sums(store) == {"failure": 1}


@promise
def writers_at_the_same_time_count_each_record_once(store: Store) -> None:
    # As two monitors that read one queue, where a batch was delivered to both.
    batches = [
        [
            rollup(n, n * 2, process=f"p{n % 3}"),
            failure(f"t{n}", fingerprint=f"fp{n % 4}"),
            failure(f"t{n + 1}", fingerprint=f"fp{(n + 1) % 4}"),
            run(f"r{n}"),
            Stats(process=f"p{n % 3}", seq=n, at_s=NOW_S, counters={"written:run": n}),
        ]
        for n in range(1, 25)
    ]
    errors: list[BaseException] = []

    def write_all(seed: int) -> None:
        shuffled = list(batches)
        random.Random(seed).shuffle(shuffled)
        try:
            for batch in shuffled:
                while True:
                    try:
                        store.write(batch)
                        break
                    except Exception as error:
                        if "other writers" not in str(error):
                            raise
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    queries = Queries(store)
    assert sums(store) == {"failure": 25, "rollup": 3, "run": 24, "stats": 3}
    assert sum(group.count for group in queries.groups().rows) == 25
    assert queries.names() == [("task", "shop.charge", (24 + 23 + 22) * 2, 0)]
    assert sum(total.runs for total in queries.rollups()) == (24 + 23 + 22) * 2
    assert queries.stats().written == {"run": 24 + 23 + 22}


@promise
def no_text_and_no_number_makes_the_database_refuse_a_record(store: Store) -> None:
    long = "é☃𝄞\x00" * 20_000
    written = store.write(
        [
            process("p9", host=long, worker=long),
            failure("t9", name=long, worker=long, exception=ExceptionInfo(long, long, long), note=long),
            run("r9", name=long, task_id=long, kept_bytes=2**70, queue="\x00"),
            rollup(1, 2**66, name=long),
            AuditEntry(id="a9", at_s=float("inf"), where="worker", command=long, user=long),
        ]
    )
    assert not written.refused
    assert sum(written.new.values()) == 5
    record = Queries(store).failure_record(failure("t9").id)
    assert record is not None
    assert record.note == long  # the payload is whole, whatever the columns hold


@promise
def pages_give_every_row_once_while_others_are_written(store: Store) -> None:
    store.write([failure(f"t{n}", at_s=NOW_S + n // 3) for n in range(50)])
    queries = Queries(store)
    seen: list[str] = []
    page = queries.failures(limit=7)
    while True:
        seen += [row.task_id for row in page.rows]
        store.write([failure(f"new{len(seen)}", at_s=NOW_S + 1000)])
        if page.next is None:
            break
        page = queries.failures(limit=7, cursor=page.next)
    assert sorted(seen) == sorted(f"t{n}" for n in range(50))
    assert [row.at for row in queries.failures(limit=60).rows] == sorted(
        (row.at for row in queries.failures(limit=60).rows), reverse=True
    )


@promise
def failures_are_found_by_each_filter(store: Store) -> None:
    store.write(
        [
            process("p1"),
            process("p2", worker="w2@h2"),
            failure("t1", at_s=NOW_S),
            failure("t2", at_s=NOW_S + 10, worker="w2@h2", process="p2", name="mail.send", fingerprint="fp-mail"),
            failure("t3", at_s=NOW_S + 20, outcome=Outcome.LOST, fingerprint="fp-lost",
                    exception=ExceptionInfo("Boom", "m", "100% sure_of it")),
            Kept(process="p2", failure=failure("t2").id, at_s=NOW_S, until_s=NOW_S + 900, address="q2"),
        ]
    )  # fmt: skip
    queries = Queries(store)

    def found(**wish: object) -> list[str]:
        return [row.task_id for row in queries.failures(**wish).rows]  # type: ignore[arg-type]

    assert found() == ["t3", "t2", "t1"]
    assert found(name="mail.send") == ["t2"]
    assert found(outcome="lost") == ["t3"]
    assert found(worker="w2@h2") == ["t2"]
    assert found(fingerprint="fp-value") == ["t1"]
    assert found(since_s=NOW_S + 10, until_s=NOW_S + 20) == ["t2"]
    assert found(task_id="t1") == found(search="t1") == found(search=failure("t1").id) == ["t1"]
    assert found(search="100% SURE_of") == ["t3"]
    assert found(search="100%%") == []
    assert found(search="mail") == ["t2"]
    assert found(live=True) == ["t2"]
    assert found(live=False) == ["t3", "t1"]
    assert found(kind="request") == []


@promise
def leaks_are_found_by_queue_and_sorted_over_all_of_them(store: Store) -> None:
    store.write([
        window("w1", kept_bytes_per_run=100.0, run_number=900),
        window("w2", name="shop.mail", kept_bytes_per_run=900.0, run_number=10, at_s=NOW_S + 50),
        run("r1", queue="slow"), run("r2", queue="fast", name="shop.mail"), run("r3", queue="fast", name="shop.mail"),
        failure("t1", task=TaskContext(queue="odd"), name="shop.mail"),
    ])  # fmt: skip
    queries = Queries(store)

    def names(**wish: Any) -> list[str]:
        return [leak.name for leak in queries.leaks(**wish).rows]

    assert queries.queues() == ["fast", "odd", "slow"]
    assert names(queue="slow") == names(queue="slow", worker="") == ["shop.charge"]
    assert names(queue="odd") == names(queue="fast") == ["shop.mail"]
    assert names(queue="none") == []
    assert names(sort="per_run") == names(sort="seen") == ["shop.mail", "shop.charge"]
    assert names(sort="runs") == names(sort="name") == ["shop.charge", "shop.mail"]
    first = queries.leaks(sort="name", limit=1)
    assert [leak.name for leak in queries.leaks(sort="name", limit=1, cursor=first.next).rows] == ["shop.mail"]
    store.write([process()])
    assert names(queue="slow", worker="w1@h1") == ["shop.charge"]


@promise
def groups_are_sorted_over_all_of_them(store: Store) -> None:
    store.write([
        failure("t1", fingerprint="fp-a", at_s=NOW_S + 9), failure("t2", fingerprint="fp-b"),
        failure("t3", fingerprint="fp-b", at_s=NOW_S + 1), failure("t4", fingerprint="fp-c", at_s=NOW_S + 5),
    ])  # fmt: skip
    queries = Queries(store)

    def prints(**wish: Any) -> list[str]:
        return [group.fingerprint for group in queries.groups(**wish).rows]

    assert prints() == ["fp-a", "fp-c", "fp-b"]
    assert prints(sort="count")[0] == "fp-b"
    assert prints(sort="first") == ["fp-a", "fp-c", "fp-b"]
    first = queries.groups(sort="count", limit=1)
    assert "fp-b" not in [group.fingerprint for group in queries.groups(sort="count", cursor=first.next).rows]


@promise
def a_search_finds_the_values_of_the_newest_failures(store: Store) -> None:
    def holding(task_id: str, number: str, **fields: Any) -> Failure:
        frame = Frame(file="a.py", line=1, function="f", locals=[Variable("order_id", 0), Variable("secret", 1)])
        raised = CapturedException(type="ValueError", module="builtins", message="no such card", frames=[frame])
        heap = [Node("str", "plain", number), Node("str", "redacted")]
        return failure(task_id, capture=Capture(exceptions=[raised], heap=heap), **fields)

    store.write([
        holding("t1", "A-84213"), holding("t2", "B_7 100%", at_s=NOW_S + 1, fingerprint="fp-b"),
        holding("t3", "C\x00é", at_s=NOW_S + 2, name="shop.mail"),
    ])  # fmt: skip
    queries = Queries(store)

    def found(**filters: Any) -> list[str]:
        return [row.task_id for row in queries.failures(**filters).rows]

    assert found(search="a-842") == found(search="Order_ID = A-84213") == ["t1"]
    assert found(search="b_7 100%") == ["t2"]
    assert found(search="BX7 100%") == found(search="order_id=84") == []
    assert found(search="É") == ["t3"]
    assert found(search="order_id", name="shop.mail") == ["t3"]
    assert found(search="order_id", since_s=NOW_S + 1, until_s=NOW_S + 2) == ["t2"]
    assert [group.fingerprint for group in queries.groups(search="84213").rows] == ["fp-value"]
    assert queries.groups(search="84213", name="shop.mail").rows == []
    # A second witness completes the row, and what it held can be found.
    store.write([failure("t4")])
    assert found(search="d-1") == []
    store.write([holding("t4", "D-1")])
    store.write([failure("t4", witness="main")])
    assert found(search="d-1") == ["t4"]
    assert found(search="no such card", name="shop.charge") == found(name="shop.charge") != []
    assert found(search="no such card", name="shop.refund") == []
    assert found(search="no such card", kind="request") == []
    store.prune(Settings(dir=store.settings.dir, retention_days=1), NOW_S + 2 * 86_400)
    assert "failure_values" not in counted(store)


def insert_old(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert a row into a table as an older version had it."""
    connection.execute(sa.table(table.name, *map(sa.column, row)).insert().values(row))


def move_up_from_the_first_schema(settings: Settings, monkeypatch: Any) -> None:
    """A store that the first version made, with a row, is opened by this version."""
    with monkeypatch.context() as older:
        older.setattr(migration, "HEAD", "0001")
        store = open_store(settings, clock=open_clock())
        with store.engine.begin() as connection:
            columns = [column["name"] for column in sa.inspect(connection).get_columns(tables.failures.name)]
            row = {name: value for name, value in rows.failure_row(failure("t1")).items() if name in columns}
            insert_old(connection, tables.failures, row)
            old = rollup(1, 9, gated=3, kept_bytes=300)
            insert_old(connection, tables.rollups, rows.ROLLUPS.row(old, overhead_s=0.0))
            insert_old(connection, tables.totals, rows.total_row(old) | {"overhead_s": 0.0})
        store.close()
    assert "parent_id" not in columns
    store = open_store(settings, clock=open_clock())
    try:
        with store.reading() as connection:
            assert migration.version(connection) == migration.HEAD
        assert [(total.runs, total.gated) for total in Queries(store).rollups()] == [(9, 3)]
        store.write([rollup(2, 12, gated=4, kept_bytes=400)])
        assert [(total.runs, total.gated) for total in Queries(store).rollups()] == [(12, 4)]
        store.write([failure("t2", at_s=NOW_S + 1)])
        assert [row.task_id for row in Queries(store).failures().rows] == ["t2", "t1"]
        assert Queries(store).failure(failure("t1").id) is not None
    finally:
        store.close()


@promise
def what_a_process_keeps_is_live_until_it_lets_go_or_ends(store: Store) -> None:
    first, second = failure("t1").id, failure("t2").id
    kept = Kept(process="p1", failure=first, at_s=NOW_S, until_s=NOW_S + 900, address="q1", bytes=10)
    store.write([process(), failure("t1"), failure("t2"), kept, replace(kept, failure=second)])
    queries = Queries(store)
    assert queries.kept(first) == kept
    store.write([replace(kept, at_s=NOW_S + 5, gone="evicted"), kept])  # the older one comes late
    assert queries.kept(first) is None
    assert queries.kept(second) is not None
    store.write([process(ended_at_s=NOW_S + 9, ended_how="killed")])
    assert queries.kept(second) is None


@promise
def an_end_is_not_forgotten_and_a_goodbye_beats_a_presumed_kill(store: Store) -> None:
    store.write([process(), process(ended_at_s=NOW_S + 5, ended_how="killed")])
    store.write([process()])
    assert Queries(store).processes(["p1"])["p1"].ended_how == "killed"
    store.write([process(ended_at_s=NOW_S + 4, ended_how="exit")])
    store.write([process(ended_at_s=NOW_S + 5, ended_how="killed"), process()])
    ended = Queries(store).processes(["p1", "nobody"])
    assert {uid: (one.ended_how, one.ended_at_s) for uid, one in ended.items()} == {"p1": ("exit", NOW_S + 4)}


@promise
def workers_show_their_processes_with_the_latest_memory(store: Store) -> None:
    store.write(
        [
            process("p1"),
            process("p2", pid=12),
            process("p3", pid=13, worker="w2@h1", ended_at_s=NOW_S, ended_how="exit"),
            sample(NOW_S - 5, 10, process="p1"),
            sample(NOW_S - 1, 30, process="p1", name="shop.charge"),
            sample(NOW_S - 3, 20, process="p2"),
        ]
    )
    store.write([sample(NOW_S - 4, 999, process="p1")])
    workers = {worker.name: worker for worker in Queries(store).workers().rows}
    assert (workers["w1@h1"].alive, workers["w1@h1"].rss_bytes) == (True, 50)
    assert (workers["w2@h1"].alive, workers["w2@h1"].rss_bytes) == (False, 0)
    assert [view.running for view in workers["w1@h1"].processes if view.uid == "p1"] == ["shop.charge"]
    series = Queries(store).samples(process="p1")
    assert [point.memory.rss_bytes for point in series] == [10, 999, 30]
    assert len(Queries(store).samples(worker="w1@h1")) == 4
    # A web process belongs to no worker; its host's line is found under the name that it is listed by.
    store.write([process("p4", pid=14, worker="", role=Role.WEB, host="h2"), sample(NOW_S - 2, 40, process="p4")])
    (web,) = [worker for worker in Queries(store).workers().rows if worker.role == "web"]
    assert [point.memory.rss_bytes for point in Queries(store).samples(worker=web.name)] == [40]
    first = Queries(store).workers(limit=1)
    assert [worker.name for worker in first.rows] == ["w1@h1"]
    assert [worker.name for worker in Queries(store).workers(limit=1, cursor=first.next).rows] == ["w2@h1"]


@promise
def a_long_series_of_memory_is_thinned_evenly_to_its_very_ends(store: Store) -> None:
    day_s = 86400.0
    for uid, ends_s in (("p1", NOW_S + 7 * day_s), ("p2", NOW_S + day_s)):
        store.write([process(uid, started_at_s=NOW_S)])
        at_s = NOW_S
        while at_s <= ends_s:
            store.write([sample(at_s + n * 600, 1, process=uid) for n in range(144)])
            at_s += day_s
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_trace.queries.runs.MOST_SAMPLES", 64)
        queries = Queries(store)
        series = queries.samples(worker="w1@h1")
        times_s = [point.at_s for point in series if point.process == "p1"]
        assert 50 <= len(series) <= 70
        assert {point.process for point in series} == {"p1", "p2"}
        assert times_s == sorted(times_s)
        assert times_s[0] == NOW_S
        assert times_s[-1] > NOW_S + 7.8 * day_s
        assert max(after - before for before, after in itertools.pairwise(times_s)) < 0.3 * day_s
        recent = queries.samples(process="p1", since_s=NOW_S + 7.9 * day_s)
        assert [point.at_s for point in recent] == [NOW_S + 7 * day_s + n * 600 for n in range(130, 144)]


@promise
def the_latest_snapshot_of_each_host_is_what_runs(store: Store) -> None:
    store.write([process(), process("p2"), snapshot(running_run("a")), snapshot(place="h2:0")])
    store.write([snapshot(running_run("b"), running_run("gone", process="p2"), at_s=NOW_S + 2)])
    store.write([snapshot(running_run("late"), at_s=NOW_S + 1)])
    queries = Queries(store)
    assert [row.task_id for row in queries.running().rows] == ["b", "gone"]
    assert queries.stats().records["running"] == 2
    store.write([process("p2", ended_at_s=NOW_S + 3, ended_how="killed")])
    assert [row.task_id for row in queries.running().rows] == ["b"]
    store.write([snapshot(running_run("other"), place="h2:0", at_s=NOW_S - 1000)])
    assert [row.task_id for row in queries.running().rows] == ["b"]


@promise
def a_run_is_stuck_if_it_lasts_far_longer_than_its_task_and_makes_no_progress(store: Store) -> None:
    usual = rollup(1, 100, durations=Histogram([0] * 18 + [99, 1]))  # up to 26.2 s, one up to 52.4 s
    store.write([process(), usual])
    ages_s = {"short": 75, "long": 80, "new": 31}
    runs = [running_run(id, started_at_s=NOW_S - age, stalled_since_s=NOW_S - age) for id, age in ages_s.items()]
    moves = running_run("moves", started_at_s=NOW_S - 500, unmoved_since_s=NOW_S - 500)
    recently = running_run("recently", started_at_s=NOW_S - 500, stalled_since_s=NOW_S - 29)
    other = running_run("other", name="shop.refund", started_at_s=NOW_S - 31, stalled_since_s=NOW_S - 30)
    store.write([snapshot(*runs, moves, recently, other, at_s=NOW_S - 15)])  # nothing has changed since
    rows = {row.task_id: row for row in Queries(store).running().rows}
    assert (rows["long"].p50_s, rows["long"].p99_s) == (26.2144, 26.2144)
    assert (rows["other"].p50_s, rows["other"].p99_s) == (None, None)
    assert {id for id, row in rows.items() if row.stuck} == {"long", "other"}
    assert rows["long"].elapsed_s == 80
    assert rows["long"].stack[0].code == "lock.acquire()"


@promise
def what_a_snapshot_says_of_a_process_is_newer_than_its_sample(store: Store) -> None:
    store.write([process(), sample(NOW_S - 70, 1, runs=3, name="shop.charge")])
    store.write([snapshot(at_s=NOW_S - 1, ended={"p1": 40})])
    [worker] = Queries(store).workers().rows
    [seen] = worker.processes
    assert (seen.runs, seen.running, seen.at, worker.last_seen) == (40, "", NOW_S - 1, NOW_S - 1)
    store.write([sample(NOW_S, 1, runs=41)])
    assert Queries(store).workers().rows[0].processes[0].runs == 41


@promise
def of_an_hour_the_latest_heap_profile_of_a_process_counts(store: Store) -> None:
    store.write([process(), heap_profile(100, at_s=NOW_S), heap_profile(300, at_s=NOW_S + 20)])
    store.write([heap_profile(200, at_s=NOW_S + 10), heap_profile(300, at_s=NOW_S + 20)])
    queries = Queries(store)
    assert [one.bytes for one in queries.heap_profiles("task", "shop.charge")] == [300]
    assert queries.stats().records["heap"] == 1
    store.write([heap_profile(500, at_s=NOW_S + 3700), heap_profile(70, process="p2", at_s=NOW_S + 10, release="2")])
    assert [one.bytes for one in queries.heap_profiles("task", "shop.charge")] == [70, 500]
    assert [one.bytes for one in queries.heap_profiles("task", "shop.charge", release="2")] == [70]
    assert queries.profile_releases("task", "shop.charge", Measure.MEMORY) == ["2"]


@promise
def of_time_the_hours_of_processes_add_up_and_the_latest_of_an_hour_counts(store: Store) -> None:
    store.write([process(), time_profile(3.0, at_s=NOW_S), time_profile(9.0, at_s=NOW_S + 300)])
    store.write([time_profile(5.0, at_s=NOW_S + 200), time_profile(9.0, at_s=NOW_S + 300)])
    queries = Queries(store)
    assert [one.wall_us for one in queries.time_profiles("task", "shop.charge")] == [9_000_000]
    assert queries.stats().records["time"] == 1
    later = NOW_S + 3600
    store.write([time_profile(2.0, began_s=later, at_s=later), time_profile(4.0, process="p2", release="2")])
    assert [one.wall_us for one in queries.time_profiles("task", "shop.charge")] == [4_000_000, 9_000_000, 2_000_000]
    assert [one.wall_us for one in queries.time_profiles("task", "shop.charge", since_s=later)] == [2_000_000]
    assert [one.wall_us for one in queries.time_profiles("task", "shop.charge", until_s=NOW_S)] == [4_000_000]
    assert [one.wall_us for one in queries.time_profiles("task", "shop.charge", release="2")] == [4_000_000]
    assert queries.profile_releases("task", "shop.charge", Measure.WALL) == ["2"]
    assert queries.profile_measures("task", "shop.charge") == [Measure.WALL, Measure.CPU]
    view = queries.profile_view("task", "shop.charge", Measure.CPU)
    assert (view.after.total, view.after.runs, view.after.processes) == (7_500_000, 30, 2)
    assert view.measures == [Measure.WALL, Measure.CPU]


@promise
def what_was_alive_then_is_told_of_the_processes_that_lived(store: Store) -> None:
    store.write(
        [
            process("p1", started_at_s=NOW_S - 9000),
            process("p2", started_at_s=NOW_S - 9000, ended_at_s=NOW_S - 5000, ended_how="exit"),
            sample(NOW_S, 1, process="p1"),
            heap_profile(100, at_s=NOW_S - 8000),
            heap_profile(900, at_s=NOW_S - 100),
            heap_profile(40, process="p2", at_s=NOW_S - 7000),
        ]
    )
    queries = Queries(store)
    for at_s, expected in ((NOW_S - 8500, []), (NOW_S - 6000, [40, 100]), (NOW_S - 4000, [100]), (NOW_S, [900])):
        assert sorted(one.bytes for one in queries.heap_profiles("task", "shop.charge", at_s=at_s)) == expected


@promise
def what_names_keep_is_summed_over_the_latest_words_of_processes(store: Store) -> None:
    store.write(
        [
            heap_profile(500, process="a", at_s=NOW_S - 7200),
            heap_profile(600, process="a", at_s=NOW_S),
            heap_profile(70, process="b", at_s=NOW_S),
            heap_profile(900, process="b", at_s=NOW_S - 7200, name="shop.mail"),
        ]
    )
    queries = Queries(store)
    assert queries.kept_by_name() == [("task", "shop.mail", 900), ("task", "shop.charge", 670)]
    assert queries.kept_by_name(since_s=NOW_S - 3600) == [("task", "shop.charge", 670)]
    assert queries.kept_by_name(processes=["b", "c"]) == [("task", "shop.mail", 900), ("task", "shop.charge", 70)]


@promise
def a_resolved_group_that_fails_again_has_regressed(store: Store) -> None:
    store.write([failure("t1")])
    queries = Queries(store)
    assert [group.state for group in queries.groups().rows] == ["new"]
    store.resolve_group("fp-value", "ann", NOW_S + 1)
    assert [group.state for group in queries.groups(state="resolved").rows] == ["resolved"]
    store.write([failure("t1")])  # the same one again is no relapse
    assert queries.groups(state="regressed").rows == []
    store.write([failure("t2", at_s=NOW_S + 2)])
    (group,) = queries.groups(state="regressed").rows
    assert (group.count, group.latest_id) == (2, failure("t2").id)


@promise
def what_is_old_goes_and_the_sums_go_with_it(store: Store) -> None:
    old_s = NOW_S - 20 * 86400
    store.write(
        [
            process("old", started_at_s=old_s, ended_at_s=old_s + 9, ended_how="exit"),
            process("new"),
            *(failure(f"old{n}", at_s=old_s + n) for n in range(1200)),
            *(failure(f"new{n}", at_s=NOW_S - n) for n in range(30)),
            *(run(f"old{n}", started_at_s=old_s) for n in range(700)),
            *(run(f"new{n}", started_at_s=NOW_S - n) for n in range(40)),
            rollup(1, 5, bucket_s=int(old_s) // 300 * 300),
            sample(old_s, 1, process="old"),
            window("w-old", at_s=old_s),
        ]
    )
    alert = AlertView(
        id="", rule="r", subject="s", state="", severity="warning", text="", value=1, threshold=1, since=old_s,
        fired_at=None, resolved_at=None,
    )  # fmt: skip
    for id, state, resolved_at_s in (("a1", "resolved", old_s + 1), ("a2", "resolved", NOW_S), ("a3", "firing", None)):
        store.save_alert(replace(alert, id=id, state=state, resolved_at=resolved_at_s))
    store.resolve_leak("l1", "ada", old_s)
    store.resolve_leak("l2", "ada", NOW_S)
    pruned = store.prune(Settings(retention_days=14.0, retention_runs=25), NOW_S)
    assert pruned.rows["failures"] == 1200
    assert (pruned.rows["alerts"], pruned.rows["leak_state"]) == (1, 1)
    assert {one.id for one in Queries(store).alerts().rows} == {"a2", "a3"}
    assert pruned.rows["runs"] == 715
    assert sums(store) == {"failure": 30, "process": 1, "run": 25}
    real = counted(store)
    assert (real["failures"], real["processes"], real["runs"]) == (30, 1, 25)
    assert [group.count for group in Queries(store).groups().rows] == [30]
    assert min(one.started_at_s for one in Queries(store).runs(limit=100).rows) == NOW_S - 24
    assert store.prune(Settings(retention_days=14.0, retention_runs=25), NOW_S).total == 0


@promise
def a_name_goes_with_its_last_totals_and_comes_back_when_it_runs(store: Store) -> None:
    settings = Settings(retention_days=14.0)
    now_bucket_s = int(NOW_S) // 300 * 300
    old_bucket_s = now_bucket_s - 20 * 86_400
    store.write([
        replace(rollup(1, 5, bucket_s=old_bucket_s), name="GET /old-route"),
        replace(run("r1", started_at_s=NOW_S - 20 * 86_400), name="GET /old-route", queue="slow"),
        rollup(1, 5, bucket_s=now_bucket_s),
        replace(run("r2", started_at_s=NOW_S), queue="fast"),
    ])  # fmt: skip
    names = {name for _, name, *_ in Queries(store).names()}
    pruned = store.prune(settings, NOW_S)
    kept = {name for _, name, *_ in Queries(store).names()}
    assert names - kept == {"GET /old-route"}
    assert pruned.rows["names"] == pruned.rows["queues"] == 1
    assert store.prune(settings, NOW_S).total == 0
    store.write([replace(rollup(2, 3, bucket_s=now_bucket_s), name="GET /old-route")])
    assert ("GET /old-route", 3) in {(name, runs) for _, name, runs, _ in Queries(store).names()}


@promise
def the_change_token_differs_after_each_write(store: Store) -> None:
    queries = Queries(store)
    tokens = [queries.change_token()]
    for write in (
        lambda: store.write([run("r1")]),
        lambda: store.resolve_group("nobody", "ann", NOW_S),
        lambda: store.end_shell("nobody", NOW_S, []) or store.add_shell_line("s", _line(1)),
    ):
        write()
        tokens.append(queries.change_token())
    assert len(set(tokens)) == len(tokens)
    assert queries.change_token() == tokens[-1]


def _line(seq: int) -> ShellLine:
    return ShellLine(seq=seq, at=NOW_S + seq, user="ann", kind="input", text=f"line {seq}")


@promise
def what_the_monitor_writes_comes_back_as_it_was(store: Store) -> None:
    queries = Queries(store)
    alert = AlertView(
        id="a1", rule="task_leaks", subject="shop.charge", state="pending", severity="warning", text="leaks",
        value=5000.0, threshold=4096.0, since=NOW_S, fired_at=None, resolved_at=None, link="leaks/1",
    )  # fmt: skip
    store.save_alert(alert)
    fired = replace(alert, state="firing", fired_at=NOW_S + 5, acknowledged_by="ann", acknowledged_at=NOW_S + 6)
    store.save_alert(fired)
    assert queries.alert("a1") == fired
    assert queries.alerts(state="firing").rows == [fired]
    assert queries.alerts(state="pending").rows == []
    delivery = Delivery(id="d1", alert="a1", channel="log:", at=NOW_S, ok=False, error="no", attempt=2)
    store.save_delivery(delivery)
    assert queries.deliveries("a1").rows == queries.deliveries().rows == [delivery]
    store.add_shell(ShellView(id="s1", failure="f1", mode="live", started_at=NOW_S, ended_at=None, users=["ann"]))
    for seq in (2, 1, 2):
        store.add_shell_line("s1", _line(seq))
    store.end_shell("s1", NOW_S + 60, ["ann", "bob"])
    shell = queries.shell("s1")
    assert shell is not None
    assert (shell.users, shell.ended_at, shell.lines) == (["ann", "bob"], NOW_S + 60, [_line(1), _line(2)])
    assert [row.lines for row in queries.shells(failure_id="f1").rows] == [[]]


@promise
def what_the_spool_dropped_is_counted_once_by_each_name(store: Store) -> None:
    gone = Stats(process="dropped:p1.5r", seq=1, at_s=NOW_S, counters={"dropped:run": 400, "dropped:rollup": 3})
    store.write([gone])
    store.write([gone, replace(gone, process="dropped:p1.9r")])
    assert Queries(store).stats().dropped == {"rollup": 6, "run": 800}


@promise
def the_leak_table_follows_the_windows(store: Store) -> None:
    store.write([process(), window("w1"), window("w2", at_s=NOW_S + 60, run_number=600)])
    queries = Queries(store)
    (leak,) = queries.leaks().rows
    assert (leak.name, leak.file, leak.line) == ("shop.charge", "/srv/shop/tasks.py", 7)
    assert queries.leak(leak.id) == leak
    assert [one.id for one in queries.leak_windows(leak.id)] == ["w1", "w2"]
    assert [one.id for one in queries.leaks(worker="w1@h1").rows] == [leak.id]
    assert queries.leaks(search="SEEN.append").rows == [leak]
    assert queries.leaks(search="nothing").rows == queries.leaks(worker="w9").rows == []
    store.resolve_leak(leak.id, "ann", NOW_S + 100)
    assert queries.leaks().rows == []
    store.write([window("w3", at_s=NOW_S + 200, run_number=900)])
    assert [one.last_seen for one in queries.leaks().rows] == [NOW_S + 200]


@promise
def the_runs_of_a_leak_are_counted_on_between_its_windows(store: Store) -> None:
    bucket_s = int(NOW_S) // 300 * 300
    store.write([process(), window("w1", run_number=300), rollup(1, 320), rollup(1, 50, name="shop.other")])
    (leak,) = Queries(store).leaks().rows
    assert (leak.runs, leak.kept_bytes_total, leak.last_seen) == (320, 320 * 4096, NOW_S)
    store.write([rollup(2, 500), rollup(1, 1000, bucket_s=bucket_s + 300), rollup(1, 40, process="p2")])
    assert leak_rows.update_run_counts(store) == 1
    assert leak_rows.update_run_counts(store) == 0, "nothing ran since"
    (leak,) = Queries(store).leaks(sort="total").rows
    assert (leak.runs, leak.kept_bytes_total, leak.last_seen) == (1540, 1540 * 4096, NOW_S)
    assert leak.samples[-1][1] - leak.samples[-2][1] == 1240 * 4096
    # Its own word is worth more than what was counted on, and what is steady again keeps what it had come to.
    store.write([window("w2", run_number=1540, at_s=bucket_s + 600.0, verdict=Verdict.STEADY)])
    store.write([rollup(1, 9000, bucket_s=bucket_s + 900)])
    leak_rows.refresh(store)
    assert leak_rows.update_run_counts(store) == 0
    (leak,) = Queries(store).leaks().rows
    assert (leak.verdict, leak.runs) == (Verdict.STEADY, 1540)


@promise
def runs_of_processes_that_never_looked_count_and_none_is_taken_back(store: Store) -> None:
    bucket_s = int(NOW_S) // 300 * 300
    store.write([process(), window("w1", at_s=NOW_S, run_number=100), rollup(1, 100), rollup(1, 400, process="p2")])
    store.write([rollup(1, 2000, process="p3", bucket_s=bucket_s + 300)])
    queries = Queries(store)
    (leak,) = queries.leaks().rows
    assert (leak.runs, leak.kept_bytes_total) == (2500, 2500 * 4096)
    # A process that is young looks next: what it knows of is less than what was counted.
    store.write([window("w2", process="p4", at_s=bucket_s + 700.0, run_number=30), rollup(1, 30, process="p4")])
    (leak,) = queries.leaks().rows
    assert (leak.runs, leak.samples[-1][1]) == (2530, leak.kept_bytes_total)
    clean = window(
        "w3", process="p5", at_s=bucket_s + 800.0, run_number=90, verdict=Verdict.STEADY, sites=[],
        evidence=Evidence(runs=90), holder=None,
    )  # fmt: skip
    store.write([clean])
    (leak,) = queries.leaks().rows
    assert (leak.verdict, leak.runs) == (Verdict.STEADY, 2530)
    # It ends as evenly as its windows do, and not with a step to the total.
    assert [at_s for at_s, _ in leak.samples] == [NOW_S, bucket_s + 700.0]
    assert leak.samples[0][1] < leak.samples[1][1] == leak.kept_bytes_total


@promise
def runs_before_a_window_are_not_counted_twice(store: Store) -> None:
    bucket_s = int(NOW_S) // 300 * 300
    suspected = window("w1", at_s=bucket_s - 700.0, run_number=100, verdict=Verdict.SUSPECT)
    # A third of the five minutes had gone when the verdict came, and so had a third of its runs.
    store.write([process(), suspected, window("w2", at_s=bucket_s + 100.0, run_number=300)])
    store.write([rollup(1, 90, bucket_s=bucket_s - 900), rollup(1, 300), rollup(1, 600, bucket_s=bucket_s + 300)])
    assert isinstance(store.clock, FakeClock)
    store.clock.advance(3000)
    leak_rows.update_run_counts(store)
    (leak,) = Queries(store).leaks().rows
    assert leak.runs == 300 + 200 + 600


def open_clock() -> FakeClock:
    """The clock that the contract's times are told by."""
    return FakeClock(NOW_S)


@promise
def a_worker_that_starts_children_all_the_time_hides_no_other(store: Store) -> None:
    busy = [process(f"b{n}", worker="busy@h1", started_at_s=NOW_S + n, ended_at_s=NOW_S + n) for n in range(2500)]
    store.write(
        [*busy, process("quiet", worker="quiet@h1", started_at_s=NOW_S - 60), process("lives", worker="busy@h1")]
    )
    workers = {worker.name: worker for worker in Queries(store).workers().rows}
    assert set(workers) == {"busy@h1", "quiet@h1"}
    assert workers["busy@h1"].processes[0].uid == "lives"
    assert len(workers["busy@h1"].processes) == 1000


@promise
def the_windows_of_a_busy_name_hide_no_other_leak_of_a_worker(store: Store) -> None:
    store.write([
        process(),
        window("old", name="shop.rare", at_s=NOW_S - 9999),
        *(window(f"w{n}", at_s=NOW_S + n, run_number=300 * n) for n in range(2100)),
    ])  # fmt: skip
    assert {leak.name for leak in Queries(store).leaks(worker="w1@h1").rows} == {"shop.charge", "shop.rare"}


@promise
def a_leak_that_is_resolved_is_gone_from_its_workers_table_too(store: Store) -> None:
    store.write([process(), window("w1")])
    queries = Queries(store)
    (leak,) = queries.leaks(worker="w1@h1").rows
    store.resolve_leak(leak.id, "ada", NOW_S + 1)
    assert queries.leaks(worker="w1@h1").rows == []


def alike(number: int, **fields: Any) -> Failure:
    """A failure of a group whose captures differ in one value each."""
    locals_ = [Variable("order_id", 0), Variable("options", 1)]
    frame = Frame(file="a.py", line=1, function="f", locals=locals_, context=["line of code " * 5] * 9)
    raised = CapturedException(type="ValueError", module="builtins", message=f"no card {number}", frames=[frame])
    heap = [
        Node("int", "plain", number),
        Node("dict", "dict", None, list(range(2, 42))),
        *(Node("str", "plain", f"option {n} of {fields.get('name', 'the shop')}") for n in range(40)),
    ]
    known: dict[str, Any] = {"at_s": NOW_S + number, "capture": Capture(exceptions=[raised], heap=heap)}
    return failure(f"t{number}", **known | fields)


def captures(store: Store) -> list[tuple[str, int]]:
    """Group and served failures of each shared capture."""
    table = tables.captures
    with store.reading() as connection:
        found = connection.execute(sa.select(table.c.fingerprint, table.c.failures).order_by(table.c.id))
        return [(fingerprint, served) for fingerprint, served in found]


def stored_bytes(store: Store) -> dict[str, int]:
    table = tables.failures
    with store.reading() as connection:
        return {
            row.task_id: len(row.payload) for row in connection.execute(sa.select(table.c.task_id, table.c.payload))
        }


@promise
def failures_that_are_alike_are_stored_once_and_come_back_as_they_were(store: Store) -> None:
    given = [alike(number) for number in range(10, 50)]
    store.write(given[:20])
    for record in given[20:]:
        store.write([record])
    store.write(given[5:15])
    assert captures(store) == [("fp-value", 40)]
    assert max(stored_bytes(store).values()) < 200 < len(rows.squeeze(rows.encoded(given[0])))
    queries = Queries(store)
    assert [queries.failure_record(record.id) for record in given] == given
    # Each is found by its own values and by those that all have, and not by another's.
    assert [row.task_id for row in queries.failures(search="order_id=17").rows] == ["t17"]
    assert len(queries.failures(search="option 3 of the shop", limit=1000).rows) == 40
    assert [row.task_id for row in queries.failures(search="order_id=10").rows] == ["t10"], "the first one's own"


@promise
def a_second_witness_completes_a_failure_that_is_stored_as_a_difference(store: Store) -> None:
    store.write([alike(1), alike(2)])
    store.write([alike(2, capture=None, witness="main", worker="", hostname="h9")])
    record = Queries(store).failure_record(failure("t2").id)
    assert record is not None
    assert record.capture == alike(2).capture
    assert captures(store) == [("fp-value", 2)]


@promise
def a_shared_capture_goes_with_the_last_failure_that_needs_it(store: Store) -> None:
    store.write([alike(number, at_s=NOW_S - 20 * 86_400 + number) for number in range(10)])
    store.write([alike(11)])
    keep = Settings(dir=store.settings.dir, retention_days=14)
    store.prune(keep, NOW_S)
    assert captures(store) == [("fp-value", 1)]
    assert Queries(store).failure_record(failure("t11").id) == alike(11)
    store.prune(keep, NOW_S + 20 * 86_400)
    assert "captures" not in counted(store)


@promise
def a_capture_serves_new_failures_for_a_day(store: Store) -> None:
    store.write([alike(1), alike(2)])
    assert isinstance(store.clock, FakeClock)
    store.clock.advance(86_401)
    store.write([alike(3)])
    assert sorted(captures(store)) == [("fp-value", 1), ("fp-value", 2)]
    assert Queries(store).failure_record(failure("t3").id) == alike(3)


@promise
def failures_of_a_group_that_are_all_different_are_stored_whole(store: Store) -> None:
    chance = random.Random(7)
    given = []
    for number in range(12):
        heap = [Node("str", "plain", chance.randbytes(40).hex()) for _ in range(60)]
        given.append(failure(f"t{number}", capture=Capture(heap=heap)))
    store.write(given)
    assert captures(store) == [("fp-value", 1)] * 4
    assert [Queries(store).failure_record(record.id) for record in given] == given


@promise
def who_writes_and_who_prunes_do_not_take_a_capture_from_each_other(store: Store) -> None:
    old_s = NOW_S - 20 * 86_400
    keep = Settings(dir=store.settings.dir, retention_days=14)
    errors: list[Exception] = []

    def write(first: int) -> None:
        try:
            for number in range(first, first + 60):
                store.write([alike(number, at_s=old_s if number % 2 else NOW_S)])
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        store.prune(keep, NOW_S)
    for writer in writers:
        writer.join()
    assert errors == []
    store.prune(keep, NOW_S)
    queries = Queries(store)
    kept = [number for first in (0, 100) for number in range(first, first + 60) if number % 2 == 0]
    assert sorted(row.task_id for row in queries.failures(limit=1000).rows) == sorted(f"t{n}" for n in kept)
    assert all(queries.failure_record(failure(f"t{n}").id) == alike(n, at_s=NOW_S) for n in kept)
    assert sum(served for _, served in captures(store)) == len(kept)


def left(store: Store) -> list[str]:
    """Task ids of the failures that are left, the oldest first."""
    return [row.task_id for row in Queries(store).failures(limit=1000).rows][::-1]


@promise
def failures_are_bounded_by_number_and_the_first_and_latest_of_each_group_stay_longest(store: Store) -> None:
    store.write([failure(f"old{n}", at_s=NOW_S + n, fingerprint="rare") for n in range(4)])
    store.write([failure(f"t{n}", at_s=NOW_S + 10 + n, fingerprint="often") for n in range(1200)])
    keep = Settings(dir=store.settings.dir, retention_days=0, retention_failures=10)
    pruned = store.prune(keep, NOW_S)
    assert pruned.rows == {"failures": 1194}
    assert left(store) == ["old0", "old3", "t0", *(f"t{n}" for n in range(1193, 1200))]
    assert {group.fingerprint: group.count for group in Queries(store).groups().rows} == {"rare": 2, "often": 8}
    assert sums(store) == {"failure": 10}
    # Where even those are too many, the oldest go.
    store.prune(keep.over(retention_failures=2), NOW_S)
    assert left(store) == ["t0", "t1199"]
    assert store.prune(keep.over(retention_failures=2), NOW_S).total == 0


@promise
def failures_are_bounded_by_what_they_take(store: Store) -> None:
    chance = random.Random(3)

    def large(number: int) -> Failure:
        heap = [Node("str", "plain", chance.randbytes(500).hex()) for _ in range(20)]
        return alike(number, capture=Capture(heap=heap), fingerprint=f"fp{number % 3}")

    store.write([large(n) for n in range(60)])
    whole = Queries(store).stats().size
    assert whole is not None
    assert whole.failures == 60
    assert whole.failure_bytes > 60 * 10_000
    keep = Settings(dir=store.settings.dir, retention_days=0, retention_bytes=whole.failure_bytes // 2)
    store.prune(keep, NOW_S)
    now = Queries(store).stats().size
    assert now is not None
    assert keep.retention_bytes * 0.9 < now.failure_bytes <= keep.retention_bytes
    kept = left(store)
    assert kept[:3] == ["t0", "t1", "t2"], "the first of each group"
    assert kept[3:] == [f"t{n}" for n in range(60 - len(kept) + 3, 60)], "and the newest"
    assert store.prune(keep.over(retention_bytes=0), NOW_S).total == 0, "0 is no bound"
    store.prune(keep.over(retention_failures=0), NOW_S)
    assert Queries(store).stats().size.failure_bytes == 0  # type: ignore[union-attr]


@promise
def what_failures_take_is_right_after_witnesses_and_pruning(store: Store) -> None:
    store.write([alike(n) for n in range(30)])
    store.write([alike(3, capture=None, witness="main"), alike(31)])
    store.write([alike(n) for n in range(10)])
    store.prune(Settings(dir=store.settings.dir, retention_days=0, retention_failures=20), NOW_S)
    with store.reading() as connection:
        ids = list(connection.execute(sa.select(tables.failures.c.id)).scalars())
        real = sizes.weight_of(connection, ids) + sizes.weight_of_captures(connection, sa.true())
        assert sizes.held(connection) == (20, real)


@promise
def pruning_for_a_moment_goes_on_where_it_ended(store: Store) -> None:
    store.write([failure(f"t{n}", at_s=NOW_S - n) for n in range(1200)])
    keep = Settings(dir=store.settings.dir, retention_days=0, retention_failures=100)
    assert not store.prune(keep, NOW_S, most_s=-1.0).finished
    most_s = 0.001
    while not store.prune(keep, NOW_S, most_s=most_s).finished:
        most_s *= 2  # a server may need longer for the queries that find nothing
    assert sums(store) == {"failure": 100}


@promise
def the_store_says_how_big_it_is_and_will_be(store: Store) -> None:
    assert isinstance(store.clock, FakeClock)
    keep = Settings(dir=store.settings.dir, retention_days=0, retention_failures=1000)
    store.settings = keep
    store.prune(keep, store.clock.now_s())
    first = Queries(store).stats().size
    assert first is not None
    assert first.bytes > 0
    assert (first.failures_per_day, first.bound_at) == (None, None), "nothing is known yet"
    store.clock.advance(43_200)
    store.write([failure(f"t{n}", at_s=NOW_S + n) for n in range(100)])
    found = Queries(store).stats().size
    assert found is not None
    assert (found.failures, found.failures_per_day, found.most_failures) == (100, 200, 1000)
    assert found.failure_bytes_per_day == 2 * found.failure_bytes
    assert found.bound_at == store.clock.now_s() + 4.5 * 86_400
    words = " ".join(sizes.sentences(found, store.clock.now_s()))
    assert "100 failures take" in words
    assert "200 a day come in" in words
    assert "older ones make room in 4 d" in words
