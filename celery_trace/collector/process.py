"""Starting, watching and ending the collector from a worker or a monitor."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from celery_trace import private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.collector.status import LOCK_FILE, Status, read_status
from celery_trace.settings import Settings
from celery_trace.spool import unrecorded

logger = logging.getLogger("celery_trace")

#: Pause before a collector that ended is started again, seconds: doubles up to the second number.
RESTART_S = (1.0, 60.0)
#: While another collector has the folder, it is looked after this often, seconds.
ELSEWHERE_S = 5.0
#: One that ran this long was no failed start, seconds.
STEADY_S = 30.0
#: Exit status when another collector has the folder.
ANOTHER_ONE = 75


class CollectorProcess:
    """
    The collector as a child process of this one.

    It inherits no descriptor and gets its settings over standard input. If this process is killed, it drains
    the spool once more and ends by itself.

    Args:
        settings: Those of this process.
        app: The Celery app whose broker the transport ``broker`` uses; by default the current one.
        clock: Times the restarts.
    """

    def __init__(self, settings: Settings, *, app: Any = None, clock: Clock | None = None) -> None:
        self._settings = settings
        self._app = app
        self._clock = clock or SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._again_at_s = 0.0
        self._pause_s = RESTART_S[0]
        self._stopped = False
        self._lock = threading.Lock()
        #: How often it had to be started again.
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The collector's process id while we have one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it; returns at once. A second call while it runs, or while another one does the work, does nothing."""
        with self._lock:
            self._stopped = False
            if self.pid is None:
                self._spawn_unless_taken()

    def _spawn_unless_taken(self) -> None:
        """Look at the folder before a Python is started only to find it taken, or not writable."""
        folder = self._settings.spool_folder
        self._again_at_s = self._clock.monotonic_s() + ELSEWHERE_S
        if folder_is_taken(folder):
            return
        try:
            private_files.check_writable(folder)
        except OSError as error:  # a collector would find no room either, not even for its lock
            unrecorded.log_once(folder, error)
            if not unrecorded.is_full(error):
                return
        self._again_at_s = 0.0
        self._spawn()

    def _spawn(self) -> None:
        job = msgspec.json.encode(
            {
                "settings": msgspec.to_builtins(self._settings.over(dir=str(self._settings.folder))),
                "parent": os.getpid(),
                "django": os.environ.get("DJANGO_SETTINGS_MODULE", ""),
                "broker": broker_of(self._app) if self._settings.transport == "broker" else None,
            }
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery_trace.collector"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the worker's terminal must not take it before the last records
        )
        self._started_s = self._clock.monotonic_s()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(job)

    def watch(self) -> None:
        """Look after it, every second or so: start it again when it has ended, with growing pauses."""
        with self._lock:
            process = self._process
            if self._stopped:
                return
            now_s = self._clock.monotonic_s()
            if self._again_at_s:
                if now_s >= self._again_at_s:
                    self._spawn_unless_taken()
                return
            if process is None:
                return
            status = process.poll()
            if status is None:
                return
            if status == ANOTHER_ONE:  # all is well: somebody else does it; look again later
                self._again_at_s = now_s + ELSEWHERE_S
                return
            if now_s - self._started_s > STEADY_S:
                self._pause_s = RESTART_S[0]
            self.restarts += 1
            logger.warning(
                "celery-trace: the collector ended with status %s; again in %g s. Records wait in the spool.",
                status,
                self._pause_s,
            )
            self._again_at_s = now_s + self._pause_s
            self._pause_s = min(self._pause_s * 2, RESTART_S[1])

    def stop(self, timeout: float = 30.0) -> None:
        """Let it drain the spool once more and end; one that does not within ``timeout`` seconds is killed."""
        with self._lock:
            self._stopped = True
            process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def status(self) -> Status | None:
        """What the folder's collector, ours or another, said last."""
        return read_status(self._settings.folder)

    def drained_once(self) -> bool:
        """Whether the folder's collector has finished a round since this one was started."""
        status = self.status()
        return status is not None and status.state in {"ready", "ended"}


def folder_is_taken(spool_folder: Path) -> bool:
    """Whether a collector holds the lock of a spool folder. Shared, so that two who ask do not see each other."""
    try:
        descriptor = private_files.open_file(spool_folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def broker_of(app: Any = None) -> dict[str, Any]:
    """
    How to reach an app's broker, as plain values that another process can read.

    Args:
        app: The Celery app; by default the current one.
    """
    from celery import current_app

    connection = (app or current_app).connection_for_write()
    return {
        "hostname": connection.as_uri(include_password=True),
        "ssl": _plain(connection.ssl) or False,
        "transport_options": _plain(dict(connection.transport_options or {})) or {},
        "failover": [str(url) for url in connection.alt or ()],
    }


def _plain(value: Any) -> Any:
    """What JSON can carry of a value; the rest (functions, contexts) can't cross into another process."""
    if isinstance(value, dict):
        return {str(key): plain for key, item in value.items() if (plain := _plain(item)) is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return None
