"""The limit and use of the container, as the kernel's files say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_trace.model import Room
from celery_trace.process import limits
from celery_trace.process.limits import RoomReader

MIB = 1024 * 1024
MACHINE = Room(2000 * MIB, 8000 * MIB, "machine")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_machine", lambda: MACHINE)


def group(folder: Path, limit: str, used_mib: int, cache_mib: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used_mib * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache_mib * MIB}\nshmem 0\n")


def probe(folder: Path, groups: str) -> RoomReader:
    (folder / "groups").write_text(groups)
    return RoomReader(str(folder / "groups"), str(folder / "mount"))


def test_a_container_sees_its_own_group_as_the_mount(tmp_path: Path) -> None:
    group(tmp_path / "mount", str(512 * MIB), 300, 100)
    assert probe(tmp_path, "0::/\n").read() == Room(200 * MIB, 512 * MIB, "container")


def test_version_1_says_it_in_files_of_other_names(tmp_path: Path) -> None:
    group(tmp_path / "mount" / "memory", str(512 * MIB), 300, 100, version=1)
    found = probe(tmp_path, "4:memory,hugetlb:/docker/0123\n3:cpu:/\n0::/\n").read()
    assert found == Room(200 * MIB, 512 * MIB, "container")


def test_of_groups_within_each_other_the_one_nearest_to_its_limit_counts(tmp_path: Path) -> None:
    group(tmp_path / "mount" / "pod", str(1000 * MIB), 950, 0)
    group(tmp_path / "mount" / "pod" / "worker", str(512 * MIB), 300, 0)
    assert probe(tmp_path, "0::/pod/worker\n").read() == Room(950 * MIB, 1000 * MIB, "container")


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", str(16_000 * MIB), "nonsense"])
def test_without_a_limit_of_its_own_the_machines_memory_counts(tmp_path: Path, limit: str) -> None:
    group(tmp_path / "mount", limit, 300, 100)
    assert probe(tmp_path, "0::/\n").read() == MACHINE


def test_a_limit_that_is_changed_later_is_seen(tmp_path: Path) -> None:
    group(tmp_path / "mount", str(512 * MIB), 300, 100)
    found = probe(tmp_path, "0::/\n")
    found.read()
    group(tmp_path / "mount", str(700 * MIB), 400, 100)
    assert found.read() == Room(300 * MIB, 700 * MIB, "container")


@pytest.mark.parametrize("groups", ["", "garbage\n\n::::\n", "0::/../../etc\n"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, groups: str) -> None:
    assert probe(tmp_path, groups).read() == MACHINE
    assert RoomReader(str(tmp_path / "nothing"), str(tmp_path)).read() == MACHINE
