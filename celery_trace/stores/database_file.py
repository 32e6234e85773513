"""
The file of an SQLite store: create it, detect that it was replaced, set a damaged one aside.

SQLite keeps using a file that was deleted or replaced, and in WAL mode does not notice that the header is gone. So
writers compare the open file with the one at the path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from celery_trace import private_files
from celery_trace.stores.errors import StoreUnavailable

_MAGIC = b"SQLite format 3\0"
#: Suffixes of the files that SQLite keeps next to a database.
_BESIDE = ("-shm", "-wal")
#: Most damaged files that are set aside. A disk that damages more of them needs an administrator.
MOST_SET_ASIDE = 3
#: A damaged file is one of our stores if it names one of our tables within this many first bytes.
_LOOKED_AT_BYTES = 4 * 1024 * 1024

#: Device and inode.
Identity = tuple[int, int]


class DatabaseFile:
    """
    A path, and which file was there when it was opened.

    Args:
        path: The database file.
        has_header: Whether an open file always has a header; a database of Django's may still be empty.
    """

    def __init__(self, path: Path, *, has_header: bool) -> None:
        self.path = path
        self._has_header = has_header
        self._opened: Identity | None = None
        self._fd = -1

    def look(self) -> Identity | None:
        """The identity of the file at the path now; None if there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def opened(self, identity: Identity | None) -> None:
        """The store was opened, with this file at the path before; None: it was closed."""
        self._opened = identity
        self._fd = -1

    @property
    def identity(self) -> Identity | None:
        """The open file's identity."""
        return self._opened

    def problem(self) -> str:
        """What happened to the open file: ``deleted``, ``replaced``, ``damaged``, or empty."""
        now = self.look()
        if now != self._opened:
            return "deleted" if now is None else "replaced"
        return "damaged" if self._has_header and not self._begins_as_a_database() else ""

    def _begins_as_a_database(self) -> bool:
        """
        Whether the header is present.

        It is read through SQLite's own descriptor: closing another descriptor would release this process's locks on
        the file.
        """
        if not self._is_open_as(self._fd):
            self._fd = next((fd for fd in _descriptors() if self._is_open_as(fd)), -1)
        if self._fd < 0:
            return True  # no connection is open, so SQLite reads the header with the next one
        try:
            return os.pread(self._fd, len(_MAGIC), 0) == _MAGIC
        except OSError:
            return True

    def _is_open_as(self, fd: int) -> bool:
        try:
            found = os.fstat(fd)
        except (OSError, OverflowError):
            return False
        return (found.st_dev, found.st_ino) == self._opened

    # --- creating a file

    def make(self) -> None:
        """
        Create an empty file, 0600, if there is none; SQLite would use the user's umask.

        The WAL and journal of a deleted file are removed: SQLite would apply them to the new file.

        Raises:
            OSError: The file can't be created.
        """
        if self.path.exists():
            return
        private_files.make_trace_dir(self.path.parent)
        with folder_locked(self.path.parent):
            if self.path.exists():
                return
            for ending in _BESIDE:
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
            os.close(private_files.open_file(self.path, os.O_CREAT | os.O_RDWR))

    # --- setting a file aside

    def holds_our_tables(self) -> bool:
        """Whether a file that SQLite can't read is one of our stores. No connection to it may be open."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            return b"celery_trace_" in file.read(_LOOKED_AT_BYTES)
        return False

    def set_aside(self, damaged: Identity | None, why: str) -> Path | None:
        """
        Rename a damaged database with its WAL, so that a new one can be created and this one be repaired.

        Args:
            damaged: The damaged file. If another file is there by now, another process has renamed it.
            why: SQLite's error.

        Returns:
            The new name, or None if another file is there by now.

        Raises:
            StoreUnavailable: The file can't be renamed, or too many were set aside already.
        """
        try:
            with folder_locked(self.path.parent):
                if damaged is None or self.look() != damaged:
                    return None
                before = {path.name for path in self.path.parent.glob(f"{self.path.name}.damaged-*")}
                if sum(not name.endswith(_BESIDE) for name in before) >= MOST_SET_ASIDE:
                    raise StoreUnavailable(
                        f"Can't use the store {self.path}",
                        f"the file is damaged ({why}), and so were {MOST_SET_ASIDE} before it",
                        f"Check the disk, then move {self.path.name}.damaged-* away. Records wait in the spool.",
                    )
                stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
                target = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{time.time_ns() % 10**9:09d}")
                for ending in (*_BESIDE, ""):  # the database last, so that it is never opened without its WAL
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{self.path}{ending}", f"{target}{ending}")
        except OSError as error:
            raise StoreUnavailable(
                f"Can't use the store {self.path}",
                f"the file is damaged ({why}) and can't be renamed ({error.strerror})",
                "Move it away, or restore a backup. Records wait in the spool.",
            ) from None
        return target


class Connection(sqlite3.Connection):
    """
    A connection to the file of a store.

    SQLite deletes the WAL by its name with the last connection. If another process set the file aside and created a new
    one in that moment, it would delete the new WAL with its records. So no file is set aside while one is closed.
    """

    #: The folder of the file, once the connection is configured.
    folder: Path | None = None

    def close(self) -> None:
        """Close it while no process sets its file aside."""
        with contextlib.ExitStack() as stack:
            if self.folder is not None:
                with contextlib.suppress(OSError):  # without the folder there is no file to set aside
                    stack.enter_context(folder_locked(self.folder))
            super().close()


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """One process at a time: collector and monitor may find the same damage at once."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _descriptors() -> list[int]:
    """This process's open descriptors; empty without /proc."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []
