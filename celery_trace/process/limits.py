"""
The memory available to this process: limit and use of its container (cgroup, version 2 or 1), else of the machine.

Of nested groups, the one that is nearest to its limit counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from celery_trace.model import Room

#: Version 1 writes "no limit" as a number near the largest one.
_UNLIMITED: Final = 2**60

#: File names: limit, use, and the part of the use that is reclaimable cache, in ``memory.stat``.
_FILES: Final = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class RoomReader:
    """
    Reads limit and use of this process's control groups.

    Args:
        groups: The file that lists this process's groups.
        mount: Where they are mounted.
    """

    def __init__(self, groups: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> None:
        self._groups = Path(groups)
        self._mount = Path(mount)
        self._folders: list[tuple[int, Path]] | None = None

    def read(self) -> Room | None:
        """Limit and use now; None if unknown. Takes some tens of microseconds, and raises nothing."""
        machine = _machine()
        found = [room for version, folder in self._found() if (room := _of_group(version, folder)) is not None]
        found = [room for room in found if machine is None or room.limit_bytes < machine.limit_bytes]
        return min(found, key=lambda room: room.limit_bytes - room.used_bytes, default=machine)

    def _found(self) -> list[tuple[int, Path]]:
        if self._folders is None:
            self._folders = [
                (version, folder) for version, folder in self._candidates() if (folder / _FILES[version][0]).is_file()
            ]
        return self._folders

    def _candidates(self) -> list[tuple[int, Path]]:
        try:
            lines = self._groups.read_text().splitlines()
        except (OSError, ValueError):
            return []
        found: list[tuple[int, Path]] = []
        for line in lines:
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                found += [(2, folder) for folder in _upwards(self._mount, path)]
                found += [(2, folder) for folder in _upwards(self._mount / "unified", path)]
            elif "memory" in controllers.split(","):
                found += [(1, folder) for folder in _upwards(self._mount / "memory", path)]
        return found


def _upwards(mount: Path, path: str) -> list[Path]:
    """A group's folder and its parents; inside a container its own group is the mount."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _of_group(version: int, folder: Path) -> Room | None:
    limit_file, use_file, cache = _FILES[version]
    try:
        limit = (folder / limit_file).read_text().strip()
        if not limit.isdigit() or int(limit) >= _UNLIMITED:
            return None
        used = int((folder / use_file).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cache:
                used -= int(value)
                break
    except (OSError, ValueError):
        return None
    return Room(max(0, used), int(limit), "container")


def _machine() -> Room | None:
    try:
        memory = psutil.virtual_memory()
    except (OSError, ValueError, psutil.Error):
        return None
    return Room(memory.total - memory.available, memory.total, "machine")
