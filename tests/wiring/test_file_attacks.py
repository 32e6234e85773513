"""
Somebody else can write into trace_dir: what they plant is neither believed nor written through.

Each case takes a file that celery-trace opens by name and puts something else there: a link, a second name, a pipe,
a file of another user. Tasks go on, what was planted stays as it was, and somebody is told.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celery_trace.clock import FakeClock, SystemClock
from celery_trace.collector import Collector, read_status
from celery_trace.collector.process import folder_is_taken
from celery_trace.control.audit import AuditLog
from celery_trace.control.orders import Order, OrderPoller, OrderReceiver, orders_file
from celery_trace.control.signing import load_key, sign
from celery_trace.heap.flamegraph import NoFlamegraph, Profile, Profiles
from celery_trace.model import AnyRecord, Failure, Kind, ProcessRecord, Role, Stats, new_id
from celery_trace.process import blackbox
from celery_trace.process.blackbox import BlackBox
from celery_trace.process.open_runs import OpenRuns
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import SettingError, Settings
from celery_trace.spool import SpoolWriter
from tests.support.store_records import failure, process

STRANGER = 54_321
WORDS = b"somebody's own words"

pytestmark = pytest.mark.timeout(30)  # a pipe that is waited for would hang

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="Only root can give a file to another user.")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(dir=str(tmp_path / "trace"), memory="rss")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file outside trace_dir, to which links lead. Nothing may ever change it."""
    path = tmp_path / "victim"
    path.write_bytes(WORDS)
    path.chmod(0o600)
    yield path
    assert path.read_bytes() == WORDS


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


class Remembering:
    name = "remembering"

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []

    def send(self, records: list[AnyRecord]) -> list[Any]:
        self.records += records
        return []

    def destination(self) -> str:
        return "here"

    def maintain(self, *, idle: bool) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def failures(self) -> list[str]:
        return [record.task_id for record in self.records if isinstance(record, Failure)]


@pytest.fixture
def transport() -> Remembering:
    return Remembering()


@pytest.fixture
def collector(settings: Settings, transport: Remembering) -> Iterator[Collector]:
    collector = Collector(settings.spool_folder, transport, SystemClock(), name="here")
    yield collector
    collector.close()


def old(path: Path) -> Path:
    """As if it had stood there for a while: what is a moment old may be in the making."""
    os.utime(path, (time.time() - 60,) * 2, follow_symlinks=False)
    return path


# --- the key ----------------------------------------------------------------------------------------------


def planted_key(settings: Settings) -> Path:
    settings.folder.mkdir(mode=0o700, exist_ok=True)
    path = settings.folder / "shell.key"
    path.write_text("k" * 40)
    path.chmod(0o600)
    return path


def test_a_key_behind_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    key = planted_key(settings)
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingError, match="symbolic link"):
        load_key(settings)


def test_a_key_named_in_the_settings_is_refused_behind_a_link_and_the_message_names_the_file(tmp_path: Path) -> None:
    # Kubernetes lays secrets out like this: the advice has to work there.
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "key").write_text("k" * 40)
    (tmp_path / "..2026" / "key").chmod(0o600)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "key").symlink_to("..data/key")
    with pytest.raises(SettingError) as refused:
        load_key(Settings(shell_key=f"file:{tmp_path / 'key'}"))
    meant = tmp_path / "..data" / "key"
    assert f"Use {meant} itself" in str(refused.value)
    assert load_key(Settings(shell_key=f"file:{meant}")) == b"k" * 40


def test_a_key_with_a_second_name_is_refused(settings: Settings, tmp_path: Path) -> None:
    os.link(planted_key(settings), tmp_path / "elsewhere")
    with pytest.raises(SettingError, match="2 hard links"):
        load_key(settings)


@as_root
def test_a_key_of_another_user_is_refused(settings: Settings) -> None:
    os.chown(planted_key(settings), STRANGER, -1)
    with pytest.raises(SettingError, match=f"belongs to uid {STRANGER}"):
        load_key(settings)


def test_a_pipe_in_place_of_the_key_is_refused_and_not_waited_for(settings: Settings) -> None:
    settings.folder.mkdir(mode=0o700)
    os.mkfifo(settings.folder / "shell.key", 0o600)
    with pytest.raises(SettingError, match="refused"):
        load_key(settings)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_no_key_is_made_or_taken_where_others_can_replace_it(settings: Settings, mode: int) -> None:
    settings.folder.mkdir()
    settings.folder.chmod(mode)
    with pytest.raises(SettingError, match="chmod 700"):
        load_key(settings)
    assert list(settings.folder.iterdir()) == []
    planted_key(settings)
    with pytest.raises(SettingError, match="chmod 700"):
        load_key(settings)


def test_processes_that_need_a_key_at_once_all_get_the_same(settings: Settings) -> None:
    program = (
        "import sys; from celery_trace.settings import Settings; from celery_trace.control.signing import load_key\n"
        "sys.stdin.read(); print(load_key(Settings(dir=sys.argv[1])).decode())"
    )
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(settings.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for one in racing:
        assert one.stdin is not None
        one.stdin.close()
        one.stdin = None
    assert len({one.communicate(timeout=25)[0] for one in racing}) == 1


# --- the spool --------------------------------------------------------------------------------------------


def finished_segment(settings: Settings, uid: str = "p1", task: str = "planted") -> Path:
    """A spool file as a process leaves it that has ended, with one failure in it."""
    writer = SpoolWriter(settings.spool_folder, process(uid), cap_bytes=1 << 24, clock=FakeClock())
    writer.append(failure(task))
    path = writer.path
    writer.close("exit")
    return path


def behind_a_link(path: Path, victim: Path) -> None:
    path.rename(victim.with_name("moved"))
    path.symlink_to(victim.with_name("moved"))


def with_a_second_name(path: Path, victim: Path) -> None:
    os.link(path, victim.with_name("moved"))


def of_another_user(path: Path, _: Path) -> None:
    os.chown(path, STRANGER, -1)


def writable_by_all(path: Path, _: Path) -> None:
    path.chmod(0o666)


def a_pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "plant",
    [behind_a_link, with_a_second_name, pytest.param(of_another_user, marks=as_root), writable_by_all, a_pipe],
)
def test_a_planted_spool_file_is_set_aside_counted_and_not_believed(
    settings: Settings,
    collector: Collector,
    transport: Remembering,
    victim: Path,
    plant: Callable[[Path, Path], None],
) -> None:
    planted = finished_segment(settings)
    plant(planted, victim)
    old(planted)
    finished_segment(settings, "p2", "ours")
    collector.round()
    assert transport.failures == ["ours"]
    assert not os.path.lexists(planted)
    assert os.path.lexists(planted.with_name(planted.name + ".foreign"))
    assert collector.status.foreign == 1
    collector.round()
    assert collector.status.foreign == 1
    moved = victim.with_name("moved")
    assert not moved.exists() or b"planted" in moved.read_bytes()


def test_a_writer_never_writes_into_what_was_laid_out_for_it(settings: Settings, victim: Path) -> None:
    clock = FakeClock()
    settings.spool_folder.mkdir(mode=0o700, parents=True)
    number = int(clock.now_s() * 1000)
    for name in ("p1.lock", f"p1.{os.getpid()}.nascent", "p1.reserve", f"p1.{number}.spool", "p1.box"):
        (settings.spool_folder / name).symlink_to(victim)
    writer = SpoolWriter(settings.spool_folder, process("p1", pid=os.getpid()), cap_bytes=1 << 24, clock=clock)
    box = BlackBox(settings.spool_folder / "p1.box", writer.process, clock, OpenRuns())
    writer.append(failure("t1"))
    clock.advance(2)
    writer.append(failure("t2"))
    assert writer.counters["waiting"] + writer.counters["written:failure"] == 2
    box.close()
    writer.close("exit")
    assert writer.counters["written:failure"] == 2


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_stands_in_place_of_the_collectors_lock_is_refused_in_words(
    settings: Settings, transport: Remembering, victim: Path, kind: str
) -> None:
    settings.spool_folder.mkdir(mode=0o700, parents=True)
    lock = settings.spool_folder / "collector"
    lock.symlink_to(victim) if kind == "link" else os.mkfifo(lock)
    assert not folder_is_taken(settings.spool_folder)
    with pytest.raises(OSError, match="is not used"):
        Collector(settings.spool_folder, transport, SystemClock())


def test_the_status_of_a_collector_is_not_read_through_a_link_nor_written_through_one(
    settings: Settings, collector: Collector, victim: Path
) -> None:
    status = settings.folder / "collector.json"
    status.unlink(missing_ok=True)
    status.symlink_to(victim)
    assert read_status(settings.folder) is None
    collector.round()
    assert not status.is_symlink()
    assert read_status(settings.folder) is not None


def test_a_black_box_behind_a_link_tells_nothing(settings: Settings, victim: Path) -> None:
    settings.spool_folder.mkdir(mode=0o700, parents=True)
    real = victim.with_name("real.box")
    box = BlackBox(real, process("p1"), SystemClock(), OpenRuns())
    try:
        assert blackbox.read(real) is not None
        (settings.spool_folder / "p1.box").symlink_to(real)
        assert blackbox.read(settings.spool_folder / "p1.box") is None
    finally:
        box.close()


# --- the audit log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", [behind_a_link, with_a_second_name, a_pipe, writable_by_all])
@pytest.mark.parametrize(("name", "stranger"), [("audit.jsonl", False), ("strangers.jsonl", True)])
def test_the_audit_log_goes_on_in_a_file_of_its_own(
    settings: Settings, victim: Path, plant: Callable[[Path, Path], None], name: str, stranger: bool
) -> None:
    path = settings.folder / name
    settings.folder.mkdir(mode=0o700)
    path.write_bytes(WORDS)
    plant(path, victim)
    AuditLog(settings.folder, "worker", SystemClock()).note("whoami", stranger=stranger)
    assert b"whoami" in path.read_bytes()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert os.path.lexists(path.with_name(name + ".foreign"))
    moved = victim.with_name("moved")
    assert not moved.exists() or moved.read_bytes() == WORDS


# --- orders -----------------------------------------------------------------------------------------------


def an_order(settings: Settings, main_uid: str, clock: FakeClock) -> str:
    body = Order(action="mode", id=new_id(), name="shop.task", mode="always", until_s=clock.now_s() + 60)
    data, _ = sign(
        load_key(settings), kind="order", target=main_uid, action="mode", now_s=clock.now_s(),
        body=msgspec.json.encode(body).decode(),
    )  # fmt: skip
    return data.decode()


@pytest.mark.parametrize("plant", [behind_a_link, with_a_second_name, pytest.param(of_another_user, marks=as_root)])
def test_orders_that_somebody_planted_are_not_carried_out(
    settings: Settings, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    clock = FakeClock()
    main = ProcessRecord(uid="main1", host="h", pid=1, started_at_s=0.0)
    receiver = OrderReceiver(settings, main, clock)
    receiver.receive(an_order(settings, "main1", clock))
    plant(orders_file(settings, "main1"), victim)
    heard: list[Any] = []
    poller = OrderPoller(settings, "main1", clock, on_mode=lambda *order: heard.append(order))
    poller.poll()
    assert heard == []
    assert poller.counters["control:refused"] == 1
    receiver.receive(an_order(settings, "main1", clock))
    poller.poll()
    assert len(heard) == 1, "the receiver put a file of its own in its place"


# --- profiles ---------------------------------------------------------------------------------------------


def a_profile(id: str = "abc1") -> Profile:
    return Profile(id=id, name="shop.load", at=1.0, state="done", host="elsewhere", pid=7)


def test_the_description_of_a_profile_is_not_written_through_a_link(settings: Settings, victim: Path) -> None:
    profiles = Profiles(settings.folder)
    profiles.folder.mkdir(mode=0o700, parents=True)
    for name in (f"abc1.{os.getpid()}.draft", f"abc1.json.{os.getpid()}-{os.getpid()}.draft", "abc1.json"):
        (profiles.folder / name).symlink_to(victim)
    profiles.write(a_profile())
    assert profiles.find("abc1") == a_profile()


def test_a_flamegraph_is_not_taken_from_behind_a_link(settings: Settings, victim: Path) -> None:
    profiles = Profiles(settings.folder)
    profiles.write(a_profile())
    (profiles.folder / "abc1.peak.html").symlink_to(victim)
    with pytest.raises(NoFlamegraph):
        profiles.flamegraph(a_profile())


def test_a_recording_behind_a_link_is_not_read(settings: Settings, victim: Path) -> None:
    profiles = Profiles(settings.folder)
    profiles.write(a_profile())
    profiles.recording("abc1").symlink_to(victim)
    with pytest.raises(NoFlamegraph, match="not a file of celery-trace"):
        profiles.flamegraph(a_profile())


def test_nothing_is_profiled_where_others_can_replace_the_files(settings: Settings) -> None:
    profiles = Profiles(settings.folder)
    profiles.folder.mkdir(parents=True)
    profiles.folder.chmod(0o777)
    with pytest.raises(OSError, match="chmod 700"):
        profiles.write(a_profile())


# --- what is made, whatever the umask ---------------------------------------------------------------------


def test_everything_in_trace_dir_is_for_its_owner_alone_whatever_the_umask(
    settings: Settings, transport: Remembering, open_umask: None
) -> None:
    settings = Settings(dir=str(settings.folder.parent / "new" / "trace"), memory="rss")
    recorder = Recorder.start(settings, role=Role.SOLO, clock=FakeClock())
    recorder.run_ended(recorder.run_started(Kind.TASK, "t", task_id="id"), "SUCCESS")
    recorder.write(failure("t1"))
    recorder.flush()
    collector = Collector(settings.spool_folder, transport, FakeClock())
    AuditLog(settings.folder, "worker", FakeClock()).note("whoami")
    receiver = OrderReceiver(settings, recorder.process, recorder.clock)
    receiver.receive(an_order(settings, recorder.process.uid, recorder.clock))  # type: ignore[arg-type]
    Profiles(settings.folder).write(a_profile())
    collector.round()
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in settings.folder.parent.rglob("*")}
    collector.close()
    recorder.close()
    assert {path.name: mode for path, mode in found.items() if mode & 0o077} == {}
    assert settings.folder.parent.stat().st_mode & 0o077 == 0
    names = " ".join(path.name for path in found)
    for ending in (
        ".spool",
        ".lock",
        ".box",
        ".reserve",
        "audit.jsonl",
        "shell.key",
        "collector.json",
        "abc1.json",
    ):
        assert ending in names


def test_the_spool_alone_makes_trace_dir_private(settings: Settings, open_umask: None) -> None:
    finished_segment(settings)
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o700
    assert "*" in (settings.folder / ".gitignore").read_text().splitlines()


def test_a_collector_alone_makes_trace_dir_private(
    settings: Settings, transport: Remembering, open_umask: None
) -> None:
    Collector(settings.spool_folder, transport, SystemClock()).close()
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o700
    assert "*" in (settings.folder / ".gitignore").read_text().splitlines()


def test_a_record_in_a_trace_dir_that_all_can_write_to_is_collected_all_the_same(
    settings: Settings, collector: Collector, transport: Remembering
) -> None:
    settings.folder.chmod(0o777)
    finished_segment(settings, task="ours")
    collector.round()
    assert transport.failures == ["ours"]
    assert not any(isinstance(record, Stats) and "dropped:failure" in record.counters for record in transport.records)
