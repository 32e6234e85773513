"""
What a process has lost, in the name of an empty file.

A name needs no room on a full disk, and what stands in it survives a kill. The collector turns it into statistics, and
while the process lives leaves out what still waits for room: that may yet be written.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from celery_trace import private_files
from celery_trace.model import new_id
from celery_trace.spool.segments import dropped_name


class Losses:
    """
    The losses of one process, by record tag.

    Args:
        folder: The spool folder.
        uid: The process's. Each object counts under a name of its own, so that two of one process add up.
    """

    def __init__(self, folder: Path, uid: str) -> None:
        self._folder = folder
        self._name = f"{uid}-{new_id()}"
        self._times = 0
        self._path: Path | None = None
        self._lost: Counter[str] = Counter()
        self._published: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()

    @property
    def unpublished(self) -> Counter[str]:
        """What was lost and stands in no name, as none could be made."""
        return self._lost - self._published

    def lose(self, tag: str) -> None:
        """A record is lost."""
        self._lost[tag] += 1

    def wait(self, tag: str, by: int) -> None:
        """A record begins (1) or ends (-1) to wait in memory for room."""
        self._waiting[tag] += by

    def drop_file(self, path: Path, counts: Counter[str]) -> None:
        """
        Drop a file: it becomes the account of what was in it and of all before.

        Raises:
            OSError: It stays as it was.
        """
        self._rename(path, self._lost + counts)

    def publish(self) -> bool:
        """Bring the name up to date. Whether that could be done."""
        try:
            if not self._lost and not +self._waiting:
                if self._path is not None:
                    self._path.unlink(missing_ok=True)
                    self._path = None
                return True
            if self._path is not None:
                try:
                    self._rename(self._path, self._lost)
                except FileNotFoundError:  # the collector has read it
                    self._path = None
                else:
                    return True
            private_files.make_part(self._folder)
            path = self._next(self._lost)
            os.close(private_files.create(path))
            self._renamed(path, self._lost)
        except OSError:
            return False
        return True

    def _next(self, lost: Counter[str]) -> Path:
        name = dropped_name(self._name, self._times + 1, sorted(lost.items()), sorted((+self._waiting).items()))
        return self._folder / name

    def _rename(self, path: Path, lost: Counter[str]) -> None:
        path_now = self._next(lost)
        os.rename(path, path_now)
        last = self._path
        self._renamed(path_now, lost)
        if last is not None and last != path:
            last.unlink(missing_ok=True)

    def _renamed(self, path: Path, lost: Counter[str]) -> None:
        self._path = path
        self._times += 1
        self._lost = lost
        self._published = lost.copy()
