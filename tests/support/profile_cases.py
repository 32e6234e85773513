"""Profiling the next run, in a process of its own (tests/wiring/test_profile_next_run.py): once, never two trackers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.heap.flamegraph import MISSING, NoFlamegraph, Profiles
from celery_trace.heap.profile import NextRunProfile
from celery_trace.model import ProcessRecord

memray = pytest.importorskip("memray", reason="memray is not installed")


class Setting:
    """A profiler in a folder of its own."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.clock = FakeClock()
        process = ProcessRecord(uid="p1", host="elsewhere", pid=os.getpid(), started_at_s=0.0, worker="w1@here")
        self.profile = NextRunProfile(folder, process, self.clock, **more)
        self.profiles = Profiles(folder)

    def run(self, name: str = "shop.load", work: Any = None) -> bool:
        """One run as the recorder has it; whether it was profiled."""
        run = self.profile.started(name, "t1") if name in self.profile.armed else None
        if work is not None:
            work()
        if run is not None:
            self.profile.ended(run)
        return run is not None


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_beside_greenlet_memray_starts_without_a_word(tmp_path: Path) -> None:
    """The warning that memray prints from within its start made it spin; a process of its own, should it come back."""
    program = (
        "import greenlet, os, sys\n"
        "from tests.support.profile_cases import Setting\n"
        "from pathlib import Path\n"
        "setting = Setting(Path(sys.argv[1]))\n"
        "setting.profile.arm('shop.load', lambda: True, 60)\n"
        "assert setting.run(work=lambda: bytearray(2_000_000))\n"
        "print(setting.profiles.all()[0].state)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    # What memray says of a program that is linked to fixed addresses, such as Debian's Python.
    said = [line for line in ran.stderr.splitlines() if not line.startswith("Memray WARNING: Correcting symbol for ")]
    assert (ran.stdout, said, ran.returncode) == ("done\n", [], 0)


def test_the_next_run_is_profiled_and_only_that(setting: Setting) -> None:
    held: list[bytearray] = []
    setting.profile.arm("shop.load", lambda: True, 60)
    assert not setting.run("shop.other")
    assert setting.run(work=lambda: held.append(bytearray(2_000_000)))
    assert not setting.run()
    (profile,) = setting.profiles.all()
    assert (profile.state, profile.name, profile.task_id, profile.worker) == ("done", "shop.load", "t1", "w1@here")
    assert profile.peak_bytes >= 2_000_000
    assert profile.allocations > 0
    recording = setting.profiles.recording(profile.id)
    assert recording.stat().st_mode & 0o777 == 0o600
    assert profile.file_bytes == recording.stat().st_size
    assert setting.profile.counters["profile:taken"] == 1


def test_who_does_not_get_the_claim_does_not_profile(setting: Setting) -> None:
    setting.profile.arm("shop.load", lambda: False, 60)
    assert not setting.run()
    assert setting.profiles.all() == []


def test_an_order_ends_with_its_time(setting: Setting) -> None:
    claims: list[int] = []
    setting.profile.arm("shop.load", lambda: bool(claims.append(1)) or True, 60)
    setting.clock.advance(61)
    assert not setting.run()
    assert claims == []


def test_two_names_are_never_profiled_at_once(setting: Setting) -> None:
    setting.profile.arm("shop.load", lambda: True, 60)
    setting.profile.arm("shop.inner", lambda: True, 60)
    inner: list[bool] = []
    assert setting.run(work=lambda: inner.append(setting.run("shop.inner")))
    assert inner == [False]
    assert setting.run("shop.inner"), "its order still stands"
    assert [profile.state for profile in setting.profiles.all()] == ["done", "done"]


def test_a_tracker_of_the_user_goes_on_and_the_reason_is_told(setting: Setting, tmp_path: Path) -> None:
    setting.profile.arm("shop.load", lambda: True, 60)
    with memray.Tracker(tmp_path / "theirs.bin"):
        assert not setting.run()
    (profile,) = setting.profiles.all()
    assert profile.state == "failed"
    assert "memray could not begin" in profile.why
    assert not setting.profiles.recording(profile.id).exists()
    with memray.FileReader(tmp_path / "theirs.bin") as reader:
        assert reader.metadata.total_allocations > 0


def test_where_memray_is_missing_the_page_says_so(tmp_path: Path) -> None:
    def load() -> Any:
        raise ImportError("No module named 'memray'")

    setting = Setting(tmp_path, load=load)
    setting.profile.arm("shop.load", lambda: True, 60)
    assert not setting.run()
    (profile,) = setting.profiles.all()
    assert (profile.state, profile.why) == ("failed", MISSING)


def test_a_folder_that_cannot_be_written_does_not_reach_the_task(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("a file stands where the folder should")
    setting = Setting(tmp_path)
    setting.profile.arm("shop.load", lambda: True, 60)
    assert not setting.run()
    with memray.Tracker(tmp_path / "free.bin"):
        pass  # no tracker was left on


def test_a_process_that_ends_within_the_run_ends_the_recording(setting: Setting, tmp_path: Path) -> None:
    setting.profile.arm("shop.load", lambda: True, 60)
    assert setting.profile.started("shop.load", "t1") is not None
    assert [profile.state for profile in setting.profiles.all()] == ["running"]
    setting.profile.close()
    assert [profile.state for profile in setting.profiles.all()] == ["done"]


def test_a_time_limit_that_strikes_while_it_begins_leaves_no_tracker(tmp_path: Path) -> None:
    class Stricken:
        FileDestination = memray.FileDestination
        left = 0

        class Tracker:
            def __init__(self, **_: Any) -> None: ...

            def __enter__(self) -> None:
                raise KeyboardInterrupt

            def __exit__(self, *_: Any) -> None:
                Stricken.left += 1

    setting = Setting(tmp_path, load=lambda: Stricken)
    setting.profile.arm("shop.load", lambda: True, 60)
    with pytest.raises(KeyboardInterrupt):
        setting.profile.started("shop.load", "t1")
    assert Stricken.left == 1
    assert not setting.run()


def test_a_flamegraph_is_made_once_and_for_its_owner(setting: Setting) -> None:
    setting.profile.arm("shop.load", lambda: True, 60)
    setting.run(work=lambda: [bytearray(1000) for _ in range(100)])
    (profile,) = setting.profiles.all()
    page = setting.profiles.flamegraph(profile)
    assert page.stat().st_mode & 0o777 == 0o600
    assert "<html" in page.read_text()[:500]
    made_at = page.stat().st_mtime_ns
    assert setting.profiles.flamegraph(profile).stat().st_mtime_ns == made_at
    assert sorted(path.suffix for path in setting.profiles.folder.iterdir()) == [".bin", ".html", ".json"]


def test_a_recording_that_is_damaged_is_no_flamegraph(setting: Setting) -> None:
    setting.profile.arm("shop.load", lambda: True, 60)
    setting.run()
    (profile,) = setting.profiles.all()
    setting.profiles.recording(profile.id).write_bytes(b"nonsense")
    with pytest.raises(NoFlamegraph, match="memray could not read it"):
        setting.profiles.flamegraph(profile)
    assert not list(setting.profiles.folder.glob("*.draft"))
