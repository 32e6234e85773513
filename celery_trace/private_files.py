"""
Files in ``trace_dir``: created for their owner alone, and opened only if no other user can have put them there.

Captured data is private, and data that is read is trusted: a file behind a link, of another user, with a second hard
link or writable by others is refused (:class:`NotOurs`). No call here blocks: a pipe in place of a file is refused too.

A process accepts files of its own user and of root, who can change them anyway. A process of root also accepts those of
the folder's owner, so that ``sudo celery … trace doctor`` works. A secret (the key that authorises code) is accepted
from its own user and from root only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from celery_trace.errors import TraceError

_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: Errors of ``open`` that show what is there: a link, a folder, a pipe or socket without its other end.
_NO_FILE = {errno.ELOOP: "a symbolic link", errno.EISDIR: "a folder", errno.ENXIO: "a pipe or a socket"}
#: Names of unfinished files, with their writer. They are short-lived: an old one was left by a killed process.
_DRAFT = re.compile(r".+\.\d+-\d+\.draft|\d+-\d+\.probe|[0-9A-Za-z_-]+\.\d+\.(box-)?nascent")
#: In a ``trace_dir`` that we make, so that captured data is not committed.
IGNORE_FILE, IGNORE = ".gitignore", b"# Made by celery-trace: what is in here is private.\n*\n"


class NotOurs(TraceError, OSError):
    """A file or folder is refused; the text is what, why and what to do."""

    def __init__(self, path: Path, why: str, next: str = "Remove it, or move it elsewhere.") -> None:
        super().__init__(f"{path} is not used", why, next)
        self.errno, self.strerror, self.filename = errno.EINVAL, why, str(path)


# --- folders ----------------------------------------------------------------------------------------------


def make_folder(path: Path) -> bool:
    """
    Make a folder and its missing parents, each level 0700. Existing ones are not changed.

    Returns:
        Whether this call made the folder itself.

    Raises:
        OSError: It can't be made, or something else is there.
    """
    if not os.path.lexists(path.parent):
        make_folder(path.parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, "it exists and is not a folder", str(path)) from None
        return False
    return True


def make_trace_dir(folder: Path) -> None:
    """
    Make ``trace_dir``. A new one gets a ``.gitignore`` for all of its contents.

    Raises:
        OSError: As :func:`make_folder`.
    """
    if make_folder(folder):
        with contextlib.suppress(OSError):
            replace(folder / IGNORE_FILE, IGNORE)


def make_part(folder: Path) -> None:
    """
    Make a folder inside ``trace_dir``, and ``trace_dir`` itself if it is missing.

    Raises:
        OSError: As :func:`make_folder`.
    """
    make_trace_dir(folder.parent)
    make_folder(folder)


def check_guarded(folder: Path) -> None:
    """
    Check that only its owner can replace files in a folder.

    Raises:
        NotOurs: Others can write there (except sticky folders like ``/tmp``, where others' files can't be replaced), or
            it belongs to another user.
        OSError: It can't be read.
    """
    status = os.stat(folder)
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise NotOurs(
            folder, f"others can write into it (mode {stat.S_IMODE(status.st_mode):04o})", f"Run: chmod 700 {folder}"
        )
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise NotOurs(folder, f"it belongs to uid {status.st_uid}, and this is uid {os.geteuid()}", _TAKE_ANOTHER)


_TAKE_ANOTHER = "Give each user a trace_dir of its own (CELERY_TRACE_DIR)."


def check_writable(folder: Path) -> None:
    """
    Make a folder inside ``trace_dir`` and check that a file can be made there, and that there is space for one.

    Raises:
        OSError: It can't.
    """
    make_part(folder)
    probe = folder / f"{os.getpid()}-{threading.get_native_id()}.probe"
    fd = create(probe)
    try:
        os.posix_fallocate(fd, 0, 4096)
    finally:
        os.close(fd)
        os.unlink(probe)


# --- files ------------------------------------------------------------------------------------------------


def open_file(path: Path, flags: int, *, secret: bool = False) -> int:
    """
    A descriptor of a file of ours; with ``os.O_CREAT`` in ``flags`` a missing one is made, 0600.

    Args:
        path: The file.
        flags: Those of ``os.open``. ``O_TRUNC`` takes effect only after the file was checked.
        secret: Refuse a file that others can read, and one that is neither this user's nor root's.

    Raises:
        NotOurs: Something else is there.
        OSError: It can't be opened.
    """
    try:
        fd = os.open(path, (flags & ~os.O_TRUNC) | _ALWAYS, 0o600)
    except OSError as error:
        what = _NO_FILE.get(error.errno or 0)
        if what is None:
            raise
        raise NotOurs(path, f"it is {what}", _instead_of_a_link(path)) from None
    try:
        _check(fd, path, secret)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _instead_of_a_link(path: Path) -> str:
    """What to do about a link. It may be intended, as Kubernetes makes them for secrets."""
    try:
        return f"Use {path.parent / os.readlink(path)} itself, or remove the link."
    except OSError:
        return "Remove it, or move it elsewhere."


def _check(fd: int, path: Path, secret: bool) -> None:
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise NotOurs(path, "it is not a regular file")
    user = os.geteuid()
    if status.st_uid not in (user, 0) and (secret or user != 0 or status.st_uid != os.stat(path.parent).st_uid):
        raise NotOurs(path, f"it belongs to uid {status.st_uid}, and this is uid {user}")
    if mode & 0o022:
        raise NotOurs(path, f"others can write to it (mode {mode:04o})", f"If it is yours, run: chmod 600 {path}")
    if secret and mode & 0o077:
        raise NotOurs(path, f"it can be read by others (mode {mode:04o})", f"Run: chmod 600 {path}, and change it.")
    if status.st_nlink > 1:
        raise NotOurs(path, f"it has {status.st_nlink} hard links, so a write to one changes them all")


def create(path: Path) -> int:
    """
    A new file, 0600, open for reading and writing. A file or link of that name is removed first, not followed.

    Raises:
        OSError: It can't be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o600)


def read(path: Path, most_bytes: int = 64 * 1024 * 1024, *, secret: bool = False) -> bytes:
    """
    The contents of a file of ours, at most ``most_bytes``.

    Raises:
        NotOurs: Something else is there.
        OSError: It can't be read.
    """
    with open(open_file(path, os.O_RDONLY, secret=secret), "rb") as file:
        return file.read(most_bytes)


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """
    Replace a file, or whatever is at its path, with one of this content, 0600, atomically.

    Args:
        path: The file.
        data: What it is to hold.
        durable: Wait until it is on the disk, so that a power cut does not leave it empty.

    Raises:
        OSError: It can't be written; the old file is unchanged.
    """
    # By process and thread: never used by two at once, and leftovers of a kill are overwritten eventually.
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.draft")
    fd = create(draft)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def open_output(path: Path) -> int:
    """
    A descriptor of an export file that a user named, emptied. A link is followed, and a pipe is waited for: that is
    their choice. A file of their own is closed to others before anything is written to it.

    Raises:
        OSError: It can't be opened.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        os.fchmod(fd, 0o600)
    return fd


def make_private(path: Path) -> None:
    """
    Remove the permissions of group and others from a file that a library made for us with the umask's mode.

    Raises:
        NotOurs: Something else is there.
        OSError: It can't be opened.
    """
    fd = os.open(path, os.O_RDONLY | _ALWAYS)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, 0o600)
        _check(fd, path, secret=True)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock on a folder among our processes, for the milliseconds that making a file takes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # NFS can't lock folders: there the last of two wins
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def clear_drafts(folder: Path) -> None:
    """Remove unfinished files of killed processes that are older than a minute."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _DRAFT.fullmatch(name):
                with contextlib.suppress(OSError):
                    if time.time() - os.lstat(folder / name).st_mtime > 60:
                        os.unlink(folder / name)


def set_aside(path: Path) -> Path:
    """
    Rename a file that is not ours, to free its name. Returns its new path.

    Raises:
        OSError: It can't be renamed.
    """
    aside = path.with_name(path.name + ".foreign")
    if os.path.lexists(aside):
        aside = path.with_name(f"{path.name}.{os.lstat(path).st_ino}.foreign")
    os.rename(path, aside)
    return aside
