"""``celery trace doctor``: what it finds in installations that are well and in such that are not."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from msgspec.structs import replace

from celery_trace.cli import doctor
from celery_trace.cli.doctor import CHECKS, examine
from celery_trace.cli.findings import Finding
from celery_trace.collector import STATUS_FILE, Status, write_status
from celery_trace.model import AnyRecord, ProcessRecord, Role, Stats
from celery_trace.settings import Settings
from celery_trace.stores import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "trace"
    made.mkdir(mode=0o700)
    return made


def look(folder: Path, *, broker: str = "memory://", **values: Any) -> dict[str, Finding]:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = False
    findings = examine(app, Settings(dir=str(folder)).over(**values))
    return {finding.check: finding for finding in findings}


def test_a_healthy_installation_has_nothing_to_do(folder: Path, own_broker_url: str) -> None:
    open_store(Settings(dir=str(folder))).close()
    write_status(
        folder / STATUS_FILE,
        Status(pid=os.getpid(), started_at_s=time.time(), transport="direct", state="ready", at_s=time.time()),
    )
    found = look(folder, broker=own_broker_url)
    # What the machine lacks is not the installation's fault.
    of_machine = {"sandbox", "memory", "C memory", "disk"}
    assert {check for check, finding in found.items() if finding.level != "ok"} <= of_machine
    for check in ("store", "collector", "broker", "trace_dir", "alert rules", "alert channels", "python", "flower"):
        assert found[check].level == "ok", found[check]
    assert "schema" in found["store"].found
    assert found["enabled"].found == "not in this environment, but a traced process runs"


def test_an_installation_that_nothing_traces_is_told_how_to_switch_on(folder: Path) -> None:
    assert look(folder)["enabled"].level == "warn"


def test_the_library_that_a_broker_needs_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kombu's module has to be imported before: without the library, its import fails.
    monkeypatch.setattr("kombu.transport.redis.redis", None)
    monkeypatch.setitem(sys.modules, "redis", None)
    finding = look(folder, broker="rediss://127.0.0.1:9/0")["broker"]
    assert finding.level == "fail"
    assert finding.advice == 'Run: pip install "celery[redis]"'


def test_every_finding_that_is_not_ok_says_what_to_do(folder: Path) -> None:
    for finding in look(folder, broker="redis://127.0.0.1:9/0", store="sqlite:////nowhere/x.db").values():
        assert finding.level in {"ok", "warn", "fail"}
        assert bool(finding.advice) is (finding.level != "ok"), finding


def test_a_broker_that_does_not_answer_is_named_without_its_password(folder: Path) -> None:
    started = time.monotonic()
    finding = look(folder, broker="redis://ada:s3cr3t@127.0.0.1:9/0")["broker"]
    assert finding.level == "fail"
    assert "127.0.0.1:9" in finding.found
    assert "s3cr3t" not in finding.found
    assert time.monotonic() - started < 30


def test_a_folder_that_others_can_read_is_refused(folder: Path) -> None:
    folder.chmod(0o755)
    finding = look(folder)["trace_dir"]
    assert (finding.level, finding.advice) == ("fail", f"Run: chmod 700 {folder}")


def test_a_file_that_others_can_read_is_named(folder: Path) -> None:
    (folder / "shell.key").write_text("k")
    (folder / "shell.key").chmod(0o644)
    finding = look(folder)["private files"]
    assert finding.level == "fail"
    assert "shell.key" in finding.found


def test_files_that_are_not_used_are_named_with_the_reason(folder: Path) -> None:
    (folder / "spool").mkdir(mode=0o700)
    (folder / "shell.key").symlink_to(folder / "elsewhere")
    (folder / "spool" / "p1.1.spool").write_bytes(b"")
    (folder / "spool" / "p1.1.spool").chmod(0o666)
    finding = look(folder)["foreign files"]
    assert finding.level == "fail"
    assert "shell.key (it is a symbolic link)" in finding.found
    assert "spool/p1.1.spool (others can write to it" in finding.found


def test_files_that_were_set_aside_are_named(folder: Path) -> None:
    for number in range(8):
        (folder / f"p{number}.1.spool.foreign").touch(mode=0o600)
    finding = look(folder)["set aside"]
    assert finding.level == "warn"
    assert "p4.1.spool.foreign and 3 more" in finding.found


def test_something_else_in_place_of_the_folder_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(b"")
    finding = look(tmp_path / "trace")["trace_dir"]
    assert finding.level == "fail"
    assert str(tmp_path / "trace") in finding.found
    assert "CELERY_TRACE_DIR" in finding.advice
    assert "CELERY_TRACE_TRANSPORT=broker" in finding.advice


def test_a_spool_that_can_not_be_written_to_is_told(folder: Path) -> None:
    (folder / "spool").write_bytes(b"")
    finding = look(folder)["trace_dir"]
    assert finding.level == "fail"
    assert str(folder / "spool") in finding.found


def test_a_folder_that_does_not_exist_yet_is_no_fault(tmp_path: Path) -> None:
    found = look(tmp_path / "later")
    assert found["trace_dir"].level == "ok"
    assert found["store"].level == "warn"
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    ("status", "spooled", "level", "says"),
    [
        ({"state": "ready"}, 0, "ok", "ready"),
        ({"state": "waiting", "why": "database is locked"}, 7, "fail", "waits: database is locked; 7 records wait"),
        ({"state": "ended"}, 0, "warn", "not running"),
        ({"state": "ready", "at_s": 1000.0}, 9, "fail", "9 records wait in the spool"),
        ({"state": "ready", "pid": 2**22 + 1}, 0, "warn", "not running"),
    ],
)
def test_the_collector_is_judged_by_what_it_said_last(
    folder: Path, status: dict[str, Any], spooled: int, level: str, says: str
) -> None:
    values = {"pid": os.getpid(), "started_at_s": 1.0, "transport": "direct", "at_s": time.time(), **status}
    write_status(folder / STATUS_FILE, Status(spool_records=spooled, **values))
    finding = look(folder)["collector"]
    assert finding.level == level
    assert says in finding.found


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ({"alert_rules": [{"rule": "leek"}]}, "alert rules"),
        ({"alert_channels": "https://hooks.shop.test/s3cr3t"}, "alert channels"),
    ],
)
def test_alert_settings_that_would_be_refused_fail(folder: Path, values: dict[str, Any], check: str) -> None:
    finding = look(folder, **values)[check]
    assert finding.level == "fail"
    assert "s3cr3t" not in finding.found


def test_what_is_not_installed_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = look(folder)
    assert 'pip install "celery-trace[monitor]"' in found["flower"].found
    assert 'pip install "celery-trace[django]"' in found["django"].found


def test_a_check_that_breaks_does_not_end_the_examination(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor, "CHECKS", (("first", broken), *CHECKS))
    found = look(folder)
    assert found["first"].level == "fail"
    assert "RuntimeError: surprise" in found["first"].found
    assert "sandbox" in found


def test_the_sampler_and_the_sandbox_are_told_as_they_are_here(folder: Path) -> None:
    found = look(folder)
    assert "extension module" in found["memory"].found
    assert "rlimits" in found["sandbox"].found


def test_what_makes_watching_harder_is_told_with_the_processes_that_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    store = open_store(Settings(dir=str(folder)))
    said = ("gc_off", "frozen", "tracemalloc", "hooks_lost")
    records: list[AnyRecord] = []
    for number, (uid, ended_at_s) in enumerate((("lives", None), ("ended", now_s))):
        records.append(
            ProcessRecord(uid=uid, host="h", pid=70 + number, started_at_s=now_s - 9, worker="w1@h", role=Role.CHILD)
        )
        counters = {f"heap:{name}": 1 for name in said}
        records.append(Stats(process=uid, seq=1, at_s=now_s, counters=counters, overhead_s=0.1, process_s=9.0))
        if ended_at_s is not None:
            records.append(replace(records[-2], ended_at_s=ended_at_s, ended_how="exit"))
    store.write(records)
    store.close()
    found = look(folder)
    assert found["garbage"].level == found["tracemalloc"].level == found["hooks"].level == "warn"
    assert found["gc.freeze"].level == "ok"
    for check in ("garbage", "gc.freeze", "tracemalloc", "hooks"):
        assert found[check].found.endswith(": w1@h pid 70"), found[check]
    assert "Cycles are never collected" in found["garbage"].advice


def test_an_allocator_that_is_not_pythons_usual_one_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "allocators" not in look(folder)
    monkeypatch.setenv("PYTHONMALLOC", "debug")
    monkeypatch.setattr("celery_trace.process.counters.available", lambda: ["allocated_blocks"])
    found = look(folder)
    assert "PYTHONMALLOC is debug" in found["allocators"].found
    assert found["C memory"].level == "warn"


def test_memory_that_can_only_be_traced_is_told_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_trace.heap.sampler.availability", lambda: "there is no C compiler")
    found = look(folder)["memory"]
    assert found.level == "warn"
    assert "there is no C compiler" in found.found
