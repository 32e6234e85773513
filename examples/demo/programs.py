"""The demo's processes: each in its own session, with a log, ended together with its descendants."""

import os
import re
import signal
import subprocess
import time

import psutil


class DemoError(Exception):
    """The demo can't go on; the text says what, why and what to do."""


class WrongFact(DemoError):
    """A reported fact is wrong; waiting longer would hide it."""


class Program:
    """
    A subprocess with a log file.

    Args:
        name: Its name: "worker", "monitor" ...
        words: The command.
        ready: A regular expression that its output matches once it is ready.
    """

    def __init__(self, name, words, *, cwd, environment, log, ready):
        self.name = name
        self.words = words
        self.cwd = cwd
        self.environment = environment
        self.log = log
        self.ready = ready
        self.process = None

    def start(self):
        """Start it without waiting."""
        # Its own session: Ctrl-C then reaches only the demo, which ends everything in order.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words,
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self):
        """Its output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines=25):
        """The end of its output, for a message."""
        last = self.output.splitlines()[-lines:]
        return f"the end of the {self.name}'s log:\n" + "\n".join(f"    | {line}" for line in last)

    def check(self):
        """
        Check that it still runs.

        Raises:
            DemoError: It has ended; with the end of its output.
        """
        if self.process is not None and self.process.poll() is not None:
            raise DemoError(f"the {self.name} ended with status {self.process.returncode}; {self.tail()}")

    def wait_ready(self, timeout_s=90):
        """
        Wait until its output matches ``ready``; returns the match.

        Raises:
            DemoError: It ended first, or the time was over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            match = re.search(self.ready, self.output, re.MULTILINE)
            if match:
                return match
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"the {self.name} was not ready within {timeout_s} s; {self.tail()}")
            time.sleep(0.05)

    def ask_to_end(self):
        """Send SIGTERM: it finishes its work."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait_ended(self, timeout_s):
        """Whether it ended in time."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def descendants():
    """All our living descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def marked(mark):
    """Living processes with ``mark`` (``NAME=value``) in their environment, even if their parent is gone."""
    name, _, value = mark.partition("=")
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(processes, grace_s):
    """End processes: SIGTERM, then SIGKILL after ``grace_s``; returns those that needed the second."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5)):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=wait_s)
        if number == signal.SIGTERM:
            stubborn = processes
        if not processes:
            break
    return stubborn
