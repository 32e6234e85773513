"""The collector, round by round: what it hands on, sets aside, adopts, counts and refuses."""

import ast
import fcntl
import json
import os
import time
from collections import Counter

import pytest

from celery_trace.clock import FakeClock
from celery_trace.collector import ACCOUNT_S, AnotherCollector, Collector, read_status
from celery_trace.model import ExceptionInfo, ProcessRecord, RunningSnapshot, Stats
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter, segments, unpack
from celery_trace.spool.losses import Losses
from celery_trace.stores import StoreUnavailable, migration, open_store
from celery_trace.transports import TransportUnavailable
from celery_trace.transports.direct import DirectTransport
from tests.support.store_records import NOW_S, failure, process, run, window


class Remembering:
    """A transport that keeps what it gets, and refuses when told to."""

    name = "remembering"

    def __init__(self):
        self.batches = []
        self.refuse_after = None
        self.refuse_record = None
        self.store = "first"

    @property
    def records(self):
        """All but the collector's own."""
        own = (Stats, RunningSnapshot)
        return [record for batch in self.batches for record in batch if not isinstance(record, own)]

    def destination(self):
        return self.store

    def maintain(self, *, idle):
        pass

    def send(self, records):
        if self.refuse_after is not None and len(self.batches) >= self.refuse_after:
            raise TransportUnavailable("Can't write", "it is down", "Wait.")
        self.batches.append(list(records))
        return [(record, "too odd") for record in records if record.key == self.refuse_record]

    def close(self):
        pass


@pytest.fixture
def clock():
    return FakeClock(NOW_S)


@pytest.fixture
def transport():
    return Remembering()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def collector(folder, transport, clock):
    collector = Collector(folder, transport, clock, name="here")
    yield collector
    collector.close()


@pytest.fixture
def writer(folder, clock):
    writer = SpoolWriter(folder, process("p1", pid=os.getpid()), cap_bytes=8 * 1024 * 1024, clock=clock)
    yield writer
    writer.close("test")


def ids(records):
    return [record.key for record in records if not isinstance(record, ProcessRecord)]


def test_each_record_is_handed_on_once(collector, writer, transport):
    for n in range(10):
        writer.append(failure(f"t{n}"))
    collector.round()
    collector.round()
    for n in range(10, 20):
        writer.append(failure(f"t{n}"))
    collector.round()
    assert ids(transport.records) == [failure(f"t{n}").id for n in range(20)]


def test_a_batch_that_was_refused_comes_again_and_none_is_skipped(collector, writer, transport):
    for n in range(5000):
        writer.append(run(f"r{n}"))
    transport.refuse_after = 1
    with pytest.raises(TransportUnavailable):
        collector.round()
    assert 0 < len(ids(transport.records)) < 5000
    transport.refuse_after = None
    collector.round()
    assert Counter(ids(transport.records)) == Counter(f"r{n}" for n in range(5000))


def test_batches_are_bounded(collector, writer, transport):
    for n in range(9000):
        writer.append(run(f"r{n}"))
    collector.round()
    assert len(transport.batches) > 3
    assert max(len(batch) for batch in transport.batches) <= 2000


def test_files_that_were_delivered_go_and_the_current_ones_stay(collector, writer, folder):
    for n in range(6000):
        writer.append(run(f"r{n}", task_id="x" * 100))
    assert len(list(folder.glob("*.spool"))) > 5
    collector.round()
    assert len(list(folder.glob("*.spool"))) == 1  # of the lane that was written to
    writer.append(run("last"))
    collector.round()
    writer.close("exit")
    collector.round()
    assert sorted(path.name for path in folder.iterdir()) == ["collector"]


def test_a_record_that_the_store_refuses_is_set_aside_and_the_rest_goes_on(collector, writer, transport, folder):
    transport.refuse_record = "r3"
    for n in range(6):
        writer.append(run(f"r{n}"))
    collector.round()
    collector.round()
    assert Counter(ids(transport.records)) == Counter(f"r{n}" for n in range(6))
    assert collector.status.corrupt == 1
    aside = (folder / "set-aside.log").read_text()
    assert "too odd" in aside
    assert '"r3"' in aside
    assert (folder / "set-aside.log").stat().st_mode & 0o777 == 0o600


def test_corrupt_cut_and_foreign_files_are_counted_and_the_rest_goes_on(collector, writer, transport, folder, clock):
    writer.append(failure("t1"))
    writer.append(failure("t2"))
    writer.append(failure("t3"))
    path = writer.path
    path.write_bytes(path.read_bytes().replace(failure("t2").id.encode(), b"0123456789abcdef", 1))
    foreign = folder / "notes.spool"
    foreign.write_text("shopping list")
    disguised = folder / "p9.17.spool"
    disguised.write_bytes(b"\x00" * 500)
    (folder / "README").write_text("not ours, not named like ours")
    for other in (foreign, disguised):
        os.utime(other, (0, 0))
    cut = SpoolWriter(folder, process("p2"), cap_bytes=8 * 1024 * 1024, clock=clock)
    cut.append(failure("t4"))
    cut.append(failure("t5"))
    cut.close("exit")
    cut_path = next(folder.glob("p2.*.spool"))
    cut_path.write_bytes(cut_path.read_bytes()[:-100])
    collector.round()
    assert set(ids(transport.records)) == {failure(task).id for task in ("t1", "t3", "t4", "t5")}
    assert collector.status.corrupt == 2
    assert collector.status.foreign == 2
    assert foreign.with_name("notes.spool.foreign").read_text() == "shopping list"
    assert disguised.with_name("p9.17.spool.foreign").exists()
    assert (folder / "README").exists()
    account = [record for batch in transport.batches for record in batch if isinstance(record, Stats)][-1]
    clock.advance(ACCOUNT_S + 1)
    collector.round()
    account = [record for batch in transport.batches for record in batch if isinstance(record, Stats)][-1]
    assert account.counters["corrupt:lines"] == 2


def test_a_cursor_beyond_the_end_of_its_file_is_not_believed(collector, writer, transport, folder, clock):
    """Told again, records do no harm; taken for delivered, they would be gone."""
    for n in range(5):
        writer.append(failure(f"t{n}"))
    path = writer.path
    writer.close("exit")
    with path.open("r+b") as file:
        segments.write_cursor(file.fileno(), 10**9)
    collector.round()
    assert set(ids(transport.records)) == {failure(f"t{n}").id for n in range(5)}
    collector.round()
    assert not path.exists()


def test_things_that_are_no_files_hold_nobody_up(collector, writer, transport, folder):
    writer.append(failure("t1"))
    for name in ("pipe.18.spool", "pipe.lock", "pipe.box"):
        os.mkfifo(folder / name)
    (folder / "folder.19.spool").mkdir()
    (folder / "link.20.spool").symlink_to("/dev/zero")
    collector.round()
    collector.measure(collector._reader.list())
    assert ids(transport.records) == [failure("t1").id]


def test_a_failure_that_the_store_refuses_is_set_aside_whole(collector, writer, transport, folder):
    odd = failure("t1", exception=ExceptionInfo("ValueError", "builtins", "long " * 5000))
    transport.refuse_record = odd.id
    writer.append(odd)
    collector.round()
    line = (folder / "set-aside.log").read_bytes().rstrip(b"\n")
    kept = ast.literal_eval(line[line.index(b" b'") + 1 :].decode())
    assert unpack(kept.rstrip(b"\n")) == odd


def test_what_gave_way_is_told_once_under_its_own_name(collector, folder, transport, clock):
    small = SpoolWriter(folder, process("p3"), cap_bytes=256 * 1024, clock=clock)
    for n in range(4000):
        small.append(run(f"r{n}", task_id="x" * 100))
    evicted = small.counters["evicted:run"]
    assert evicted > 0
    collector.round()
    collector.round()
    told = [
        record
        for batch in transport.batches
        for record in batch
        if isinstance(record, Stats) and record.process.startswith("dropped:")
    ]
    assert [record.counters for record in told] == [{"dropped:run": evicted}]
    assert len(ids(transport.records)) + evicted == 4000
    assert list(folder.glob("*.dropped")) == []
    small.close("exit")


def test_a_killed_process_is_written_down_with_its_end(collector, folder, transport, clock):
    child = os.fork()
    if child == 0:
        try:
            writer = SpoolWriter(folder, process("victim", pid=os.getpid()), cap_bytes=2**20, clock=clock)
            writer.append(failure("t1"))
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    collector.round()
    ends = [record for record in transport.records if isinstance(record, ProcessRecord) and record.ended_how]
    assert [(record.uid, record.ended_how, record.ended_at_s) for record in ends] == [("victim", "killed", NOW_S)]
    assert ids(transport.records) == [failure("t1").id]
    collector.round()
    assert sorted(path.name for path in folder.iterdir()) == ["collector"]
    assert collector.status.adopted == 1


def test_a_folder_has_one_collector(collector, folder, transport, clock):
    with pytest.raises(AnotherCollector, match="One is enough"):
        Collector(folder, transport, clock)


def test_a_lock_that_somebody_else_holds_on_a_file_leaves_it_alone(collector, writer, transport, folder):
    writer.append(failure("t1"))
    fd = os.open(writer.path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        collector.round()
        assert transport.records == []
    finally:
        os.close(fd)
    collector.round()
    assert ids(transport.records) == [failure("t1").id]


def test_the_status_file_tells_readiness_and_what_waits(collector, writer, transport, folder):
    for n in range(100):
        writer.append(run(f"r{n}"))
    transport.refuse_after = 0
    with pytest.raises(TransportUnavailable) as refused:
        collector.round()
    collector._refused(refused.value)
    status = read_status(folder.parent)
    assert status is not None
    assert (status.state, status.retries) == ("waiting", 1)
    assert "it is down" in status.why
    assert status.spool_bytes > 100 * 100
    assert status.spool_records == 101  # with the process itself
    transport.refuse_after = None
    collector.round()
    status = read_status(folder.parent)
    assert (status.state, status.why) == ("ready", "")
    assert (folder.parent / "collector.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((folder.parent / "collector.json").read_text())["pid"] == os.getpid()


def test_a_refusal_is_logged_once_however_often_it_is_tried_again(collector, transport, writer, caplog):
    writer.append(failure("t1"))
    transport.refuse_after = 0
    tries = []
    collector.run(lambda: len(tries) >= 4, tries.append)
    assert collector.status.retries == 5, "the last round before the end is one as well"
    assert caplog.text.count("it is down") == 1
    transport.refuse_after = None
    collector.round()
    transport.refuse_after = 0
    writer.append(failure("t2"))
    collector.run(lambda: True, tries.append)
    assert caplog.text.count("it is down") == 2, "it had come back in between"


def test_what_waits_in_a_living_process_is_no_loss_yet_and_is_one_when_it_was_killed(
    collector, folder, transport, clock
):
    losses = Losses(folder, "p1")
    lock = open(folder / "p1.lock", "w")  # noqa: SIM115 - held until the process is to be dead
    fcntl.flock(lock, fcntl.LOCK_EX)

    def told():
        stats = [record for batch in transport.batches for record in batch if isinstance(record, Stats)]
        return [record for record in stats if record.process.startswith("dropped:")][-1]

    losses.lose("failure")
    losses.wait("failure", 3)
    assert losses.publish()
    for _ in range(2):
        collector.round()
    assert told().counters == {"dropped:failure": 1}
    assert collector.status.dropped == 1
    losses.wait("failure", -1)
    assert losses.publish()
    collector.round()
    first = told()
    lock.close()
    collector.round()
    assert told().counters == {"dropped:failure": 3}
    assert (told().process, told().seq > first.seq) == (first.process, True)
    assert collector.status.dropped == 3
    assert [path.name for path in folder.iterdir()] == ["collector"]


def test_losses_that_were_made_good_leave_no_name(collector, folder, transport):
    losses = Losses(folder, "p1")
    losses.wait("failure", 1)
    assert losses.publish()
    losses.wait("failure", -1)
    assert losses.publish()
    assert [path.name for path in folder.iterdir()] == ["collector"]


def test_a_name_of_the_first_version_is_still_understood(collector, folder, transport):
    (folder / "0123456789abcdef.7.run-12_rollup-3.dropped").touch(mode=0o600)
    collector.round()
    sent = [record for batch in transport.batches for record in batch if isinstance(record, Stats)]
    (stats,) = [record for record in sent if "dropped:run" in record.counters]
    assert stats.counters == {"dropped:run": 12, "dropped:rollup": 3}
    assert stats.process == "dropped:0123456789abcdef"
    assert stats.seq > 7, "an account that 0.1.0 sent before gives way to it"


def test_the_orders_of_a_worker_that_was_killed_go_with_it(collector, folder):
    orders = folder.parent / "orders"
    orders.mkdir()
    for name in ("victim.json", "victim.o1.taken", "victim.json.7-7.draft", "other.json"):
        (orders / name).touch()
    (folder / "victim.lock").touch()
    collector.round()
    assert [path.name for path in orders.iterdir()] == ["other.json"]


def test_orders_that_can_not_be_in_force_any_more_go_whoever_left_them(folder, transport, clock):
    orders = folder.parent / "orders"
    orders.mkdir()
    for name, age_s in (("old.json", 3 * 3600), ("old.o1.taken", 3 * 3600), ("new.json", 60)):
        (orders / name).touch()
        os.utime(orders / name, (time.time() - age_s,) * 2)
    Collector(folder, transport, clock).close()
    assert [path.name for path in orders.iterdir()] == ["new.json"]


def test_running_goes_on_after_a_refusal_and_ends_with_a_last_round(collector, writer, transport):
    writer.append(failure("t1"))
    transport.refuse_after = 0
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == 4:
            transport.refuse_after = None
        if len(waited) == 6:
            writer.append(failure("t2"))

    collector.run(lambda: len(waited) >= 6, wait)
    assert waited[:4] == [0.25, 0.5, 1.0, 2.0]
    assert ids(transport.records) == [failure("t1").id, failure("t2").id]


@pytest.mark.parametrize(("took_s", "most_s"), [(0.0, 0.05), (0.004, 0.15), (0.05, 1.0)], ids=["none", "lone", "many"])
def test_rounds_that_cost_much_are_further_apart_but_never_by_more_than_a_second(
    collector, writer, transport, clock, took_s, most_s, monkeypatch
):
    send, waited = transport.send, []

    def slow_send(records):
        clock.advance(took_s)
        return send(records)

    def wait(seconds):
        waited.append(seconds)
        writer.append(failure(f"t{len(waited)}"))

    monkeypatch.setattr(transport, "send", slow_send)
    writer.append(failure("t0"))
    collector.run(lambda: len(waited) >= 5, wait)
    assert max(waited[1:]) <= most_s
    assert took_s <= 0.04 * min(waited[1:]) or waited[1:] == [1.0] * 4


def test_the_last_cursor_is_kept_in_the_file_itself(collector, writer, transport, folder):
    writer.append(failure("t1"))
    collector.round()
    fd = os.open(writer.path, os.O_RDONLY)
    try:
        assert segments.read_cursor(fd) == os.fstat(fd).st_size
    finally:
        os.close(fd)


# --- direct, into SQLite


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path))


@pytest.fixture
def direct(settings, clock):
    collector = Collector(settings.spool_folder, DirectTransport(lambda: open_store(settings)), clock)
    yield collector
    collector.close()


def stored(settings):
    store = open_store(settings, create=False)
    try:
        return {row.task_id for row in Queries(store).failures(limit=1000).rows}
    finally:
        store.close()


def test_records_wait_while_the_store_is_locked_and_none_is_lost(direct, writer, settings, monkeypatch):
    import sqlite3

    monkeypatch.setattr("celery_trace.stores.engine.BUSY_S", 0.05)
    writer.append(failure("t1"))
    direct.round()
    holder = sqlite3.connect(settings.folder / "trace.db", isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        writer.append(failure("t2"))
        direct._transport.close()
        with pytest.raises(TransportUnavailable, match="locked"):
            direct.round()
    finally:
        holder.close()
    direct.round()
    assert stored(settings) == {"t1", "t2"}


def test_a_record_at_which_our_own_code_fails_holds_up_no_other(direct, writer, settings, monkeypatch):
    """Otherwise the collector would come to it again and again, and nothing of its host would arrive any more."""
    from celery_trace.stores import rows

    whole = rows.failure_row

    def failing(record, *_):
        if record.task_id == "t5":
            raise KeyError("a mistake of ours")
        return whole(record)

    monkeypatch.setattr(rows, "failure_row", failing)
    for n in range(10):
        writer.append(failure(f"t{n}"))
    direct.round()
    assert stored(settings) == {f"t{n}" for n in range(10)} - {"t5"}
    assert direct.status.corrupt == 1
    assert "a mistake of ours" in (settings.spool_folder / "set-aside.log").read_text()


def test_want_of_memory_is_no_records_fault(direct, writer, settings, monkeypatch):
    """The collector ends and is started again; nothing is set aside for it."""
    from celery_trace.stores import rows

    def failing(record, *_):
        raise MemoryError

    for n in range(4):
        writer.append(failure(f"t{n}"))
    with monkeypatch.context() as scarce:
        scarce.setattr(rows, "failure_row", failing)
        with pytest.raises(MemoryError):
            direct.round()
    direct.round()
    assert stored(settings) == {f"t{n}" for n in range(4)}
    assert direct.status.corrupt == 0


def test_what_is_computed_after_a_delivery_may_fail_and_the_delivery_stands(settings, writer, clock, caplog):
    def fail(store):
        raise KeyError("a mistake of ours")

    collector = Collector(settings.spool_folder, DirectTransport(lambda: open_store(settings), fail), clock)
    try:
        for n in range(2):
            writer.append(failure(f"t{n}"))
            collector.round()
    finally:
        collector.close()
    assert stored(settings) == {"t0", "t1"}
    assert caplog.text.count("a mistake of ours") >= 1
    assert collector.status.spool_records == 0


def test_windows_that_our_own_code_can_not_read_keep_no_other_name_from_its_row(direct, writer, settings, monkeypatch):
    from celery_trace.heap import leaks
    from celery_trace.stores import leak_rows

    whole = leaks.leak_table

    def failing(windows, *, now_s):
        if windows[0].name == "shop.odd":
            raise KeyError("a mistake of ours")
        return whole(windows, now_s=now_s)

    monkeypatch.setattr(leaks, "leak_table", failing)
    store = open_store(settings)
    try:
        store.write([window(f"w{n}", name=name) for n, name in enumerate(("shop.odd", "shop.charge"))])
        leak_rows.refresh(store)
        assert leak_rows.refresh(store) == 0, "it is not tried for ever"
        assert {leak.name for leak in Queries(store).leaks().rows} == {"shop.charge"}
    finally:
        store.close()


def test_a_store_whose_tables_are_gone_is_told_and_made_anew(direct, writer, settings):
    import sqlite3

    writer.append(failure("t1"))
    direct.round()
    holder = sqlite3.connect(settings.folder / "trace.db")
    for (name,) in holder.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall():
        holder.execute(f"DROP TABLE {name}")
    holder.commit()
    holder.close()
    writer.append(failure("t2"))
    with pytest.raises(TransportUnavailable, match="no such table"):
        direct.round()
    direct.round()
    assert stored(settings) == {"t1", "t2"}
    assert direct.status.sent_again == 1


def test_a_store_of_a_newer_version_is_left_alone_and_records_wait(direct, writer, settings):
    import sqlite3

    open_store(settings).close()
    holder = sqlite3.connect(settings.folder / "trace.db")
    holder.execute("UPDATE celery_trace_alembic SET version_num = '9999'")
    holder.commit()
    writer.append(failure("t1"))
    with pytest.raises(TransportUnavailable, match="newer celery-trace"):
        direct.round()
    holder.execute("UPDATE celery_trace_alembic SET version_num = ?", (migration.HEAD,))
    holder.commit()
    holder.close()
    direct.round()
    assert stored(settings) == {"t1"}


def test_a_store_that_a_newer_host_migrates_under_a_running_collector_refuses_no_record_for_good(
    direct, writer, settings, folder
):
    """A column that this version does not know and may not leave empty: each record would be refused by itself."""
    import sqlite3

    writer.append(failure("t1"))
    direct.round()
    holder = sqlite3.connect(settings.folder / "trace.db")
    (made,) = holder.execute("SELECT sql FROM sqlite_master WHERE name = 'celery_trace_failures'").fetchone()
    holder.execute("ALTER TABLE celery_trace_failures RENAME TO before")
    holder.execute(made.replace("id VARCHAR(64) NOT NULL", "id VARCHAR(64) NOT NULL, tomorrow INT NOT NULL", 1))
    holder.execute("UPDATE celery_trace_alembic SET version_num = '9999'")
    holder.commit()
    for n in range(2, 10):
        writer.append(failure(f"t{n}"))
    for _ in range(2):
        with pytest.raises(TransportUnavailable, match="newer celery-trace"):
            direct.round()
    assert not (folder / "set-aside.log").exists()
    holder.execute("DROP TABLE celery_trace_failures")
    holder.execute("ALTER TABLE before RENAME TO celery_trace_failures")
    holder.execute("UPDATE celery_trace_alembic SET version_num = ?", (migration.HEAD,))
    holder.commit()
    holder.close()
    direct.round()
    assert stored(settings) == {f"t{n}" for n in range(1, 10)}
    assert direct.status.corrupt == 0


def test_a_reader_does_not_make_a_store(settings):
    with pytest.raises(StoreUnavailable, match="does not exist"):
        open_store(settings, create=False)
    assert not (settings.folder / "trace.db").exists()


def test_a_place_that_can_not_be_written_is_told_with_what_to_do(tmp_path):
    with pytest.raises(StoreUnavailable) as refused:
        open_store(Settings(dir=str(tmp_path), store="sqlite:////proc/nowhere/trace.db"))
    assert "/proc/nowhere" in str(refused.value)
    assert "CELERY_TRACE_STORE" in refused.value.next


def test_a_password_is_in_no_message(tmp_path):
    with pytest.raises(StoreUnavailable) as refused:
        open_store(Settings(dir=str(tmp_path), store="postgresql://trace:hunter2@127.0.0.1:1/trace"))
    assert "hunter2" not in str(refused.value)
    assert "trace:***@127.0.0.1" in str(refused.value)


def test_the_database_file_is_private(settings):
    open_store(settings).close()
    assert (settings.folder / "trace.db").stat().st_mode & 0o777 == 0o600
