"""The writer's files: private, rotated, capped, and safe when a process forks or dies."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter

import pytest

from celery_trace.clock import FakeClock
from celery_trace.model import AuditEntry, ProcessRecord, Stats
from celery_trace.spool import SpoolWriter, lives, segments
from celery_trace.spool import cap as spool_cap
from celery_trace.spool import writer as spool_writer
from celery_trace.spool.reader import SpoolReader
from tests.support.store_records import failure, process, run

CAP = 4 * 1024 * 1024


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def make_writer(folder):
    made = []

    def make(uid="p1", cap_bytes=CAP, clock=None):
        writer = SpoolWriter(folder, process(uid, pid=os.getpid()), cap_bytes=cap_bytes, clock=clock or FakeClock())
        made.append(writer)
        return writer

    yield make
    for writer in made:
        writer.close("test")


def read_all(folder, *, commit=True, living=True):
    """Everything that stands in the folder beyond the cursors, and what could not be read."""
    reader = SpoolReader(folder)
    records, corrupt = [], []
    while True:
        listing = reader.list()
        alive = {uid for uid in listing.locks if segments.lives(folder, uid)} if living else set()
        with reader.read(listing, alive) as batch:
            records += batch.records
            corrupt += batch.corrupt
            if not batch or not commit:
                return records, corrupt
            batch.commit()


def evicted(writer):
    return sum(count for name, count in writer.counters.items() if name.startswith("evicted:"))


def test_a_process_that_records_nothing_leaves_no_file(folder, make_writer):
    make_writer().close("exit")
    assert not folder.exists()


def test_files_are_private(folder, make_writer):
    writer = make_writer()
    writer.append(failure("t1"))
    writer.append(run("r1"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4  # two lanes, the lock and the reserve


def test_records_come_back_in_order_after_the_process_that_wrote_them(folder, make_writer):
    writer = make_writer()
    written = [failure(f"t{n}") for n in range(20)]
    for record in written:
        assert writer.append(record)
    records, corrupt = read_all(folder)
    assert records == [writer.process, *written]
    assert corrupt == []
    assert writer.counters["written:failure"] == 20
    assert read_all(folder) == ([], [])


def test_what_was_not_committed_comes_again(folder, make_writer):
    writer = make_writer()
    writer.append(failure("t1"))
    first, _ = read_all(folder, commit=False)
    assert read_all(folder)[0] == first


def test_precious_records_are_read_first(folder, make_writer):
    writer = make_writer()
    for n in range(50):
        writer.append(run(f"r{n}"))
    writer.append(failure("t1"))
    records, _ = read_all(folder)
    kinds = [type(record).__name__ for record in records if not isinstance(record, ProcessRecord)]
    assert kinds == ["Failure"] + ["Run"] * 50


def test_a_living_process_holds_its_lock_and_a_closed_one_leaves_none(folder, make_writer):
    writer = make_writer()
    writer.append(run("r1"))
    assert lives(folder, "p1")
    writer.close("exit")
    assert not lives(folder, "p1")
    assert SpoolReader(folder).list().locks == set()
    assert read_all(folder)[0][1].ended_how == "exit"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_who_can_not_look_takes_nobody_for_dead(folder, make_writer, monkeypatch, error):
    make_writer().append(run("r1"))

    def refuse(path, *, write):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(segments, "open_file", refuse)
    assert lives(folder, "p1")


def test_files_are_rotated_and_each_begins_with_the_process(folder, make_writer):
    writer = make_writer()
    for n in range(2000):
        writer.append(failure(f"t{n}"))
    files = sorted(folder.glob("*.spool"))
    assert len(files) > 5
    for path in files:
        assert path.stat().st_size <= CAP // 64 + 4096
        assert b'{"record":"process"' in path.read_bytes().splitlines()[1]
    records, _ = read_all(folder)
    assert len([record for record in records if not isinstance(record, ProcessRecord)]) == 2000


def test_a_full_spool_counts_what_it_drops_and_drops_no_failure(folder, make_writer):
    writer = make_writer(cap_bytes=1024 * 1024)
    for n in range(12_000):
        writer.append(run(f"r{n}", task_id="x" * 200))
        if n % 100 == 0:
            writer.append(failure(f"t{n}"))
    records, _ = read_all(folder)
    kinds = Counter(type(record).__name__ for record in records)
    assert kinds["Failure"] == 120
    assert kinds["Run"] + writer.counters["evicted:run"] == 12_000
    assert writer.counters["evicted:run"] > 5000
    kept = [int(record.id[1:]) for record in records if type(record).__name__ == "Run"]
    assert max(kept) == 11_999, "the newest stay"
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert total < 1024 * 1024 * 1.1
    (tombstone,) = SpoolReader(folder).list().dropped
    assert segments.dropped_counts(tombstone) == {"run": writer.counters["evicted:run"]}


def test_when_only_failures_are_left_the_oldest_go_and_are_counted(folder, make_writer):
    writer = make_writer(cap_bytes=256 * 1024)
    for n in range(3000):
        writer.append(failure(f"t{n}", note="x" * 200))
    records, _ = read_all(folder)
    kept = [record for record in records if type(record).__name__ == "Failure"]
    assert 0 < len(kept) < 3000
    assert len(kept) + writer.counters["evicted:failure"] == 3000
    assert kept[-1].task_id == "t2999"


class Counting:
    """The module ``os`` for one module of ours: every call is noted down."""

    def __init__(self):
        self.calls = Counter()

    def __getattr__(self, name):
        found = getattr(os, name)
        if not callable(found):
            return found

        def call(*words, **named):
            self.calls[name] += 1
            return found(*words, **named)

        return call


@pytest.fixture
def counting(monkeypatch):
    counting = Counting()
    for module in (spool_writer, spool_cap, segments):
        monkeypatch.setattr(module, "os", counting)
    return counting


def test_an_append_is_one_write_and_waits_for_nothing(folder, make_writer, counting):
    """No time is measured: no lock of others, no disk and no network are asked, whatever the store is doing."""
    writer = make_writer()
    writer.append(run("first"))
    writer.append(failure("first"))
    counting.calls.clear()
    for n in range(50):
        writer.append(run(f"r{n}"))
        writer.append(failure(f"t{n}"))
    # Before a failure, whether the lock and both files still have their names.
    assert counting.calls == {"getpid": 100, "write": 100, "fstat": 50 * 3}


def test_the_calls_of_an_append_to_a_full_spool_are_bounded(folder, make_writer, counting):
    writer = make_writer(cap_bytes=512 * 1024)
    writer.append(run("first"))  # says that the process lives, and takes its reserve
    most = Counter()
    for n in range(6000):
        counting.calls.clear()
        writer.append(run(f"r{n}" + "x" * 200))
        most |= counting.calls
    assert evicted(writer) > 1000, "the cap was at work"
    # Its own line and the head of the next file; one look into the folder; two files that give way.
    assert most["write"] == 2
    assert most["listdir"] == 1
    assert most["rename"] <= spool_cap.MOST_AT_ONCE
    assert most["pread"] <= 2 * spool_cap.MOST_AT_ONCE
    assert set(most) <= {"getpid", "write", "open", "close", "listdir", "rename", "pread", "fstat", "ftruncate"}


def test_what_the_collector_has_delivered_is_not_counted_as_dropped(folder, make_writer):
    writer = make_writer(cap_bytes=512 * 1024)
    delivered = 0
    for n in range(9000):
        writer.append(run(f"r{n}", task_id="x" * 200))
        if n in (700, 2500, 6000):
            delivered += sum(type(record).__name__ == "Run" for record in read_all(folder)[0])
    rest = sum(type(record).__name__ == "Run" for record in read_all(folder)[0])
    assert delivered + rest + writer.counters["evicted:run"] == 9000


def test_a_file_that_is_being_delivered_does_not_give_way(folder, make_writer):
    writer = make_writer(cap_bytes=256 * 1024)
    for n in range(400):
        writer.append(run(f"r{n}", task_id="x" * 200))
    reader = SpoolReader(folder, batch_records=10)
    with reader.read(reader.list(), {"p1"}) as batch:
        held = {record.id for record in batch.records if type(record).__name__ == "Run"}
        for n in range(400, 6000):
            writer.append(run(f"r{n}", task_id="x" * 200))
        batch.commit()
    left = sum(type(record).__name__ == "Run" for record in read_all(folder)[0])
    assert len(held) + left + writer.counters["evicted:run"] == 6000


def test_processes_share_one_cap(folder, make_writer):
    clock = FakeClock()
    writers = [make_writer(f"p{n}", cap_bytes=1024 * 1024, clock=clock) for n in range(5)]
    for n in range(3000):
        clock.advance(0.001)
        for writer in writers:
            writer.append(run(f"{writer.process.uid}-{n}", task_id="x" * 200))
    records, _ = read_all(folder)
    left = sum(type(record).__name__ == "Run" for record in records)
    assert left + sum(evicted(writer) for writer in writers) == 15_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1024 * 1024 * 1.5


def test_each_of_many_threads_writes_whole_lines(folder, make_writer):
    writer = make_writer(cap_bytes=64 * 1024 * 1024)

    def write(name):
        for n in range(500):
            writer.append(run(f"{name}-{n}"))

    threads = [threading.Thread(target=write, args=(f"thread{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records, corrupt = read_all(folder)
    assert corrupt == []
    assert len({record.id for record in records if type(record).__name__ == "Run"}) == 4000
    assert writer.counters["written:run"] == 4000


def test_a_forked_child_writes_files_of_its_own_and_keeps_no_lock_of_its_parent(folder, make_writer):
    writer = make_writer()
    writer.append(run("parent-1"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # must not return into the test
        try:
            writer.append(run("child-1"))
            os.write(writing, writer.process.uid.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    uid = os.read(reading, 100).decode()
    os.close(reading)
    writer.append(run("parent-2"))
    assert uid not in ("", "p1")
    records, corrupt = read_all(folder)
    assert corrupt == []
    processes = {record.uid: record for record in records if isinstance(record, ProcessRecord)}
    assert processes[uid].parent_uid == "p1"
    assert processes[uid].pid == child
    assert {record.id for record in records if type(record).__name__ == "Run"} == {"parent-1", "parent-2", "child-1"}
    assert lives(folder, "p1")
    assert not lives(folder, uid), "it ended without a word"


def test_a_child_that_outlives_its_parent_does_not_make_it_look_alive(folder, tmp_path):
    program = f"""
import os, sys, time
from pathlib import Path
from celery_trace.clock import SystemClock
from celery_trace.spool import SpoolWriter
from tests.support.store_records import process, run
writer = SpoolWriter(Path({str(folder)!r}), process("parent"), cap_bytes={CAP}, clock=SystemClock())
writer.append(run("r1"))
begun, begins = os.pipe()
if os.fork() == 0:
    os.write(begins, b".")  # by now it has closed what it inherited
    sys.stdin.read()
    os._exit(0)
os.read(begun, 1)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert parent.wait(30) == -9
    try:
        assert not lives(folder, "parent")
    finally:
        parent.stdin.close()


def test_a_record_that_cannot_be_encoded_is_counted_and_hurts_nobody(folder, make_writer, caplog):
    writer = make_writer()
    assert not writer.append(AuditEntry(id="a", at_s=1.0, where="worker", command="\udc80"))
    assert writer.append(AuditEntry(id="b", at_s=1.0, where="worker"))
    assert writer.counters == {"dropped:audit": 1, "written:audit": 1}


def test_a_record_larger_than_the_limit_is_dropped_and_counted(make_writer):
    writer = make_writer()
    assert not writer.append(failure("t1", note="x" * (9 * 1024 * 1024)))
    assert writer.counters == {"dropped:failure": 1}


def test_a_record_larger_than_a_batch_is_read_whole(folder, make_writer):
    writer = make_writer(cap_bytes=64 * 1024 * 1024)
    writer.append(failure("big", note="x" * (4 * 1024 * 1024)))
    writer.append(failure("small"))
    records, corrupt = read_all(folder)
    assert {record.task_id for record in records if type(record).__name__ == "Failure"} == {"big", "small"}
    assert corrupt == []


def test_a_folder_that_was_removed_is_made_again(folder, make_writer):
    writer = make_writer()
    writer.append(run("r1"))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for n in range(2000):
        writer.append(run(f"later{n}"))
    assert len(read_all(folder)[0]) > 1000


def test_a_folder_that_was_removed_is_noticed_before_the_next_file(folder, make_writer, caplog):
    writer = make_writer()
    writer.append(failure("t0"))
    shutil.rmtree(folder)
    writer.retry_pending()
    writer.append(failure("t1"))
    writer.append(run("r1"))
    assert lives(folder, "p1")
    assert [record.key for record in read_all(folder)[0][1:]] == [failure("t0").id, failure("t1").id, "p1", "r1"]
    assert caplog.text.count("was removed while this process wrote to it") == 1


@pytest.mark.parametrize("nearly_full", [False, True])
def test_after_the_loss_of_the_store_what_is_kept_is_read_again_in_whole_records(
    folder, make_writer, monkeypatch, nearly_full
):
    monkeypatch.setattr("celery_trace.spool.reader.FEW_FREE", 1.1 if nearly_full else 0.0)
    monkeypatch.setattr("celery_trace.spool.reader.FEW_FREE_BYTES", 0)
    writer = make_writer()
    for number in range(400):
        writer.append(failure(f"t{number}"))
    first, _ = read_all(folder)
    reader = SpoolReader(folder)
    again = reader.rewind(reader.list())
    records, corrupt = read_all(folder)
    assert corrupt == []
    delivered, sent_again = (
        [record.key for record in some if type(record).__name__ == "Failure"] for some in (first, records)
    )
    assert len(sent_again) == again
    assert (again == 400) is not nearly_full
    assert sent_again == [key for key in delivered if key in set(sent_again)]


def test_a_clock_that_steps_back_breaks_nothing(folder, make_writer):
    clock = FakeClock()
    writer = make_writer(clock=clock)
    for n in range(3000):
        writer.append(failure(f"t{n}"))
        if n % 500 == 0:
            clock.step_back(86400)
    records, _ = read_all(folder)
    assert [record.task_id for record in records if type(record).__name__ == "Failure"] == [
        f"t{n}" for n in range(3000)
    ]


def test_a_corrupt_line_is_set_aside_and_the_rest_goes_on(folder, make_writer):
    writer = make_writer()
    for n in range(5):
        writer.append(failure(f"t{n}"))
    path = writer.path
    data = path.read_bytes().replace(b'"t2"', b'"tX"')
    path.write_bytes(data)
    records, corrupt = read_all(folder)
    assert [record.task_id for record in records[1:]] == ["t0", "t1", "t3", "t4"]
    assert len(corrupt) == 1
    assert "checksum" in corrupt[0].why


def test_a_line_that_its_dead_process_did_not_finish_is_set_aside(folder, make_writer):
    writer = make_writer()
    writer.append(failure("t1"))
    with writer.path.open("ab") as file:
        file.write(b'1 00000000 {"record":"fail')
    assert [type(record).__name__ for record in read_all(folder)[0]] == ["ProcessRecord", "Failure"]
    assert read_all(folder)[1] == [], "the process lives and may still finish it"
    _, corrupt = read_all(folder, living=False)
    assert [one.why for one in corrupt] == ["it was cut: its end is missing"]


def test_the_account_of_a_process_survives_its_own_runs(folder, make_writer):
    """Statistics stand in the lane that gives way last: they tell what gave way."""
    writer = make_writer(cap_bytes=256 * 1024)
    writer.append(Stats(process="p1", seq=1, at_s=1.0, counters={"written:run": 1}))
    for n in range(5000):
        writer.append(run(f"r{n}", task_id="x" * 100))
    assert any(isinstance(record, Stats) for record in read_all(folder)[0])


def test_a_writer_imports_nothing_heavy():
    program = "import sys, celery_trace.spool; print(*({'sqlalchemy', 'sqlite3', 'alembic'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []


def test_what_was_dropped_is_told_as_a_growing_total_so_that_telling_it_twice_changes_nothing(tmp_path):
    told = [
        (segments.dropper_of(name), segments.dropped_counts(name))
        for name in (
            segments.dropped_name("d1", 1, [("run", 5)]),
            segments.dropped_name("d1", 2, [("rollup", 1), ("run", 12)]),
        )
    ]
    assert told == [(("d1", 1), {"run": 5}), (("d1", 2), {"rollup": 1, "run": 12})]


def test_files_that_somebody_removed_are_begun_anew_with_what_stood_in_them(folder, make_writer):
    clock = FakeClock()
    writer = make_writer(clock=clock)
    for n in range(5):
        writer.append(failure(f"t{n}"))
        writer.append(run(f"r{n}"))
    shutil.rmtree(folder)
    clock.advance(spool_writer.LOOK_S)
    writer.append(failure("t5"))
    writer.append(run("r5"))
    records, corrupt = read_all(folder)
    assert corrupt == []
    written = {record.key for record in records if not isinstance(record, ProcessRecord)}
    assert written == {failure(f"t{n}").key for n in range(6)} | {f"r{n}" for n in range(6)}
    assert segments.lives(folder, writer.process.uid)


def test_a_lock_file_that_somebody_removed_does_not_make_the_process_look_dead(folder, make_writer):
    clock = FakeClock()
    writer = make_writer(clock=clock)
    writer.append(failure("t0"))
    (folder / f"{writer.process.uid}.lock").unlink()
    clock.advance(spool_writer.LOOK_S)
    writer.append(failure("t1"))
    assert segments.lives(folder, writer.process.uid)


def test_a_folder_that_was_removed_at_the_very_end_still_gets_the_last_records(folder, make_writer):
    writer = make_writer()
    writer.append(failure("t0"))
    shutil.rmtree(folder)
    writer.close("exit")
    records, _ = read_all(folder)
    assert [type(record).__name__ for record in records] == ["ProcessRecord", "Failure", "ProcessRecord"]
    assert records[-1].ended_how == "exit"
