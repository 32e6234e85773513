"""
Real processes under test: a program, a Celery worker, the monitor.

Each writes to a log file of its own, says when it is ready, and is ended with everything that it started.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]

#: Variables of the developer's shell that would change what a program under test does.
_OTHERS = ("CELERY_", "DJANGO_", "FLOWER_", "TRACE_DEMO_")


def free_port() -> int:
    """A TCP port on loopback that nothing listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean_environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This environment without what steers Celery, Django, Flower or us; ``None`` in ``extra`` takes a name out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONWARNINGS"] = "default"
    for name, value in (extra or {}).items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


class Program:
    """
    A subprocess in a session of its own; a context manager that starts and ends it.

    Args:
        words: The command.
        cwd: Where it runs; relative files that it makes land there.
        environment: The whole environment; :func:`clean_environment` by default.
        log: The file that takes both of its outputs.
    """

    def __init__(
        self, words: Sequence[str], *, cwd: Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.words = list(words)
        self.cwd = cwd
        self.log = log
        self.environment = dict(clean_environment() if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None

    # --- its life ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it; does not wait for anything."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.words,
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.words[0]} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """Its living processes, itself first."""
        try:
            own = psutil.Process(self.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def children(self, word: str = "") -> list[psutil.Process]:
        """Its living descendants whose command line holds ``word``."""
        found = []
        for process in self.family()[1:]:
            try:
                if word in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, not to what it started."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until it has ended by itself; gives its status."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {timeout_s:g} s.\n{self.tail()}") from None

    def stop(self, timeout_s: float = 30.0) -> int | None:
        """Ask it to end (SIGTERM), wait, and kill what is left of its family; gives its status."""
        if self._process is None:
            return None
        family = self.family()
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # A collector drains the spool after its worker has gone: give it the time to end by itself.
        _gone, alive = psutil.wait_procs(family[1:], timeout=10)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=5)
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL to the process itself."""
        if self.running:
            assert self._process is not None
            self._process.kill()
            self._process.wait()

    # --- what it said --------------------------------------------------------------------------------

    @property
    def output(self) -> str:
        """All that it has written so far, both outputs."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, characters: int = 4000) -> str:
        """The end of its output, for a message."""
        return f"--- the end of {self.log.name} ---\n{self.output[-characters:]}"

    def wait_for(self, pattern: str, *, timeout_s: float = 60.0) -> re.Match[str]:
        """
        Wait until its output matches a regular expression.

        Raises:
            AssertionError: It ended first, or time was up; with the end of its output.
        """

        def look() -> re.Match[str] | None:
            match = re.search(pattern, self.output, re.MULTILINE)
            if match is None and not self.running:
                match = re.search(pattern, self.output, re.MULTILINE)  # its last words
                assert match, f"{self} ended with status {self.wait()} before it said {pattern!r}.\n{self.tail()}"
            return match

        match = wait_until(look, f"{self} says {pattern!r}", timeout_s=timeout_s, explain=self.tail)
        assert match is not None
        return match

    def __str__(self) -> str:
        return f"{Path(self.words[0]).name} {' '.join(self.words[1:5])}"


def trace_environment(
    *, broker_url: str, trace_dir: Path | None = None, switch: bool = True, settings: Mapping[str, object] | None = None
) -> dict[str, str]:
    """
    What a user would export to switch celery-trace on by the environment alone.

    Args:
        trace_dir: ``CELERY_TRACE_DIR``.
        switch: Whether to set ``CELERY_TRACE=1``.
        settings: Further settings by their bare names, such as ``{"memory": "off"}``.
    """
    environment = clean_environment({"CELERY_BROKER_URL": broker_url})
    if switch:
        environment["CELERY_TRACE"] = "1"
    if trace_dir is not None:
        environment["CELERY_TRACE_DIR"] = str(trace_dir)
    for name, value in (settings or {}).items():
        environment[f"CELERY_TRACE_{name.upper()}"] = str(value)
    return environment


class WorkerProcess(Program):
    """
    ``celery -A app worker`` as a user starts it.

    Args:
        app: What follows ``-A``, found from ``cwd``.
        cwd: The project's folder.
        work: A folder for the log; a test's ``tmp_path``.
        environment: See :func:`trace_environment`.
        pool: Celery's pool; ``concurrency`` processes, threads or greenlets.
        options: Further words after ``worker``, such as ``["-I", "celery_trace.auto"]``.
    """

    def __init__(
        self,
        app: str,
        *,
        cwd: Path,
        work: Path,
        environment: Mapping[str, str],
        pool: str = "prefork",
        concurrency: int = 2,
        name: str = "w1",
        options: Sequence[str] = (),
    ) -> None:
        self.node = f"{name}@{socket.gethostname()}"
        words = [sys.executable, "-m", "celery", "-A", app, "worker", "-E", "-l", "INFO", "-n", f"{name}@%h"]
        words += ["-P", pool, "-c", str(concurrency), "--without-gossip", "--without-mingle", *options]
        super().__init__(words, cwd=cwd, log=work / f"worker-{name}.log", environment=environment)

    def wait_ready(self, timeout_s: float = 90.0) -> Self:
        """Wait until it takes tasks."""
        self.wait_for(re.escape(self.node) + r" ready\.", timeout_s=timeout_s)
        return self


class MonitorProcess(Program):
    """``celery -A app monitor`` on a free port of loopback; its address and password are what it prints."""

    def __init__(
        self, app: str, *, cwd: Path, work: Path, environment: Mapping[str, str], options: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        words = [sys.executable, "-m", "celery", "-A", app, "monitor", f"--port={self.port}", *options]
        super().__init__(words, cwd=cwd, log=work / f"monitor-{self.port}.log", environment=environment)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, timeout_s: float = 90.0) -> Self:
        """Wait until it accepts connections."""

        def listens() -> bool:
            assert self.running, f"the monitor ended with status {self.wait()}.\n{self.tail()}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, f"the monitor listens on {self.address}", timeout_s=timeout_s, explain=self.tail)
        return self
