"""Starts, monitors and stops the collector from a worker or a monitor."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from celery_trace import private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.collector.status import LOCK_FILE, Status, read_status
from celery_trace.guard import Guard
from celery_trace.settings import Settings
from celery_trace.spool import unrecorded
from celery_trace.transports import BrokerOptions

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger("celery_trace")

#: Backoff before a collector that ended is restarted, seconds: doubles up to the second number.
RESTART_S = (1.0, 60.0)
#: How often to check a folder that another collector has, seconds.
ELSEWHERE_S = 5.0
#: A collector that ran this long did not fail at its start, seconds.
STEADY_S = 30.0
#: Exit status when another collector has the folder.
ANOTHER_ONE = 75


class CollectorJob(msgspec.Struct):
    """What a collector reads from its standard input when it starts."""

    settings: Settings
    parent: int = 0  # the process id; it ends when that one is gone
    django: str = ""  # the settings module
    broker: BrokerOptions = {}


class CollectorProcess:
    """
    The collector as a child process of this one.

    It inherits no descriptor and gets its settings over standard input. If this process is killed, the collector
    drains the spool once more and ends.

    Args:
        settings: The settings of this process.
        app: The Celery app whose broker the transport ``broker`` uses; by default the current app.
        clock: Times the restarts.
    """

    def __init__(self, settings: Settings, *, app: Celery | None = None, clock: Clock | None = None) -> None:
        self._settings = settings
        self._app = app
        self._clock = clock or SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._again_at_s = 0.0
        self._pause_s = RESTART_S[0]
        self._stopped = False
        self._lock = threading.Lock()
        #: The number of restarts.
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The collector's process id, if we run one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it and return at once. Does nothing while it runs, or while another collector has the folder."""
        with self._lock:
            self._stopped = False
            if self.pid is None:
                self._spawn_unless_taken()

    def _spawn_unless_taken(self) -> None:
        """Check the folder before starting a Python process that would find it taken or not writable."""
        folder = self._settings.spool_folder
        self._again_at_s = self._clock.monotonic_s() + ELSEWHERE_S
        if folder_is_taken(folder):
            return
        try:
            private_files.check_writable(folder)
        except OSError as error:  # a collector could not create its lock either
            unrecorded.log_once(folder, error)
            if not unrecorded.is_full(error):
                return
        self._again_at_s = 0.0
        self._spawn()

    def _spawn(self) -> None:
        job = msgspec.json.encode(
            CollectorJob(
                settings=self._settings.over(dir=str(self._settings.folder)),
                parent=os.getpid(),
                django=os.environ.get("DJANGO_SETTINGS_MODULE", ""),
                broker=self._broker(),
            )
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery_trace.collector"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the worker's terminal must not end it before the last records
        )
        self._started_s = self._clock.monotonic_s()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(job)

    def _broker(self) -> BrokerOptions:
        """The broker's options; with the transport ``direct`` it is needed only for requests for stacks."""
        if self._settings.transport == "broker":
            return broker_of(self._app)
        with Guard("broker for requests for stacks"):
            return broker_of(self._app)
        return {}

    def watch(self) -> None:
        """Called about every second: restart it when it has ended, with backoff."""
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
            if status == ANOTHER_ONE:  # another collector has the folder; check again later
                self._again_at_s = now_s + ELSEWHERE_S
                return
            if now_s - self._started_s > STEADY_S:
                self._pause_s = RESTART_S[0]
            self.restarts += 1
            logger.warning(
                "celery-trace: the collector ended with status %s; restart in %g s. Records wait in the spool.",
                status,
                self._pause_s,
            )
            self._again_at_s = now_s + self._pause_s
            self._pause_s = min(self._pause_s * 2, RESTART_S[1])

    def stop(self, timeout: float = 30.0) -> None:
        """Let it drain the spool once more and end. It is killed after ``timeout`` seconds."""
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
        """The last status of the folder's collector, ours or another."""
        return read_status(self._settings.folder)


def folder_is_taken(spool_folder: Path) -> bool:
    """Whether a collector holds the lock of a spool folder. Uses a shared lock, so two callers don't collide."""
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


def broker_of(app: Celery | None = None) -> BrokerOptions:
    """
    An app's broker options.

    Args:
        app: The Celery app; by default the current app.
    """
    from celery import current_app

    connection = (app or current_app).connection_for_write()
    return {
        "hostname": connection.as_uri(include_password=True),
        "ssl": _plain(connection.ssl) or False,
        "transport_options": _plain_dict(connection.transport_options or {}),
        "failover": [str(url) for url in connection.alt or ()],
    }


def _plain_dict(value: Mapping[object, object]) -> dict[str, object]:
    return {str(key): plain for key, item in value.items() if (plain := _plain(item)) is not None}


def _plain(value: object) -> object:
    """The part of a value that JSON can hold. Functions and contexts can't be passed to another process."""
    if isinstance(value, dict):
        return _plain_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return None
