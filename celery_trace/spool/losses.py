"""
The records that a process has lost, counted in the name of an empty file.

A name needs no space on a full disk and survives a kill. The collector turns it into statistics. While the process
lives it ignores records that wait for space, as they may still be written.
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
        uid: The process's uid. Each object has its own file name, so two of one process add up.
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
        """Losses that are in no file name yet, because none could be written."""
        return self._lost - self._published

    def lose(self, tag: str) -> None:
        """Count a lost record."""
        self._lost[tag] += 1

    def wait(self, tag: str, by: int) -> None:
        """A record starts (1) or stops (-1) waiting in memory for space."""
        self._waiting[tag] += by

    def drop_file(self, path: Path, counts: Counter[str]) -> None:
        """
        Drop a file by renaming it: its new name counts its records and all earlier losses.

        Raises:
            OSError: The file is unchanged.
        """
        self._rename(path, self._lost + counts)

    def publish(self) -> bool:
        """Update the file name. Returns whether that succeeded."""
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
