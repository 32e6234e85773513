"""
The corpus in a real prefork worker, all cases in turns in the same children, as in any worker; and what it found.

Used by the worker tier (some cases, until they are named) and by ``benchmarks`` (all of them).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from celery import Celery

from celery_trace.heap.leaks import leak_table
from celery_trace.heap.tags import PROCESS
from celery_trace.model import AnyRecord, Leak, Stats, Verdict, Window
from celery_trace.spool.lines import unpack
from tests.corpus import cases
from tests.corpus.cases import DECOYS, LEAKS, LeakCase, marked_lines
from tests.support.processes import REPOSITORY, WorkerProcess, trace_environment
from tests.support.waiting import wait_until

#: Rounds that are sent at a time.
BATCH = 10
cases.load()


def attributes_of(path: Sequence[str]) -> str:
    """A way to a holder as attributes with dots: ``shop.tasks.Bus.handlers``."""
    steps = [step.partition(": ")[0] if ": " in step else step.rpartition(" (")[0] for step in path]
    return ".".join(step.removesuffix("()") for step in steps if step)


def said_of(row: Leak) -> str:
    """A row in short, without the path of a machine."""
    place = f"{row.name} {Path(row.file).name}:{row.line}"
    return f"{place}, {row.kept_bytes_per_run} bytes a run, {attributes_of(row.retained_by) or 'no holder'}"


class CorpusRun:
    """What a worker wrote about the cases that it ran."""

    def __init__(self, records: Sequence[AnyRecord], output: str, pauses_s: list[float], rounds: int) -> None:
        self.windows = sorted((one for one in records if isinstance(one, Window)), key=lambda one: one.at_s)
        self.stats = [one for one in records if isinstance(one, Stats)]
        self.output = output
        self.pauses_s = pauses_s
        self.rounds = rounds
        self.rows = leak_table(self.windows, now_s=time.time())

    def rows_of(self, name: str) -> list[Leak]:
        """The rows of a case."""
        return [row for row in self.rows if row.name == name]

    def named_at_run(self, name: str) -> int | None:
        """The run of a case, in its process, by which it was first said to leak; None where it never was."""
        case = LEAKS[name]
        for window in self.windows:
            if window.name == case.task and window.verdict is Verdict.LEAKING and is_about(window, case):
                return window.run_number
        return None

    def judge_leak(self, name: str) -> list[str]:
        """What is wrong with what was found of a leak; empty when all is right."""
        case = LEAKS[name]
        if case.native:
            # Which of several tasks that run in turns it was, no level tells.
            growing = [row for row in self.rows if row.resource == case.native and row.verdict is not Verdict.STEADY]
            return [] if growing else [f"no growth of {case.native}"]
        rows = self.rows_of(case.task) + (self.rows_of(PROCESS) if case.by_process else [])
        at_mark = [row for row in rows if (row.file, row.line) in case.lines]
        leaking = [row for row in at_mark if row.verdict is Verdict.LEAKING]
        if not leaking:
            said = [
                f"{row.verdict} {Path(row.file).name}:{row.line} {row.kept_bytes_per_run} bytes, "
                f"{row.confidence:.2f}, {row.why}, waits for {row.waits_for or 'nothing'}, "
                f"{' → '.join(row.retained_by) or 'no holder'}"
                for row in at_mark or self.rows_of(case.task)
            ]
            return [f"not leaking at its line: {said}" if at_mark else f"no row of its line: {said}"]
        faults = []
        found = sum(row.kept_bytes_per_run for row in leaking)
        if case.kept_bytes is not None:
            tolerance = self._tolerance(case, found / case.kept_bytes)
            least = (1 - tolerance) * (1 - case.begins_at / max(1, self.rounds))
            if not least <= found / case.kept_bytes <= 1 + tolerance:
                faults.append(f"keeps {case.kept_bytes} bytes a run, found {found}")
        way = attributes_of(leaking[0].retained_by)
        if not any(f".{holder}." in f".{way}." or holder in leaking[0].why for holder in case.holders):
            faults.append(f"retained by {' → '.join(leaking[0].retained_by) or 'nothing'} ({leaking[0].why})")
        return faults

    def _tolerance(self, case: LeakCase, found: float) -> float:
        """
        The share by which a rate may be off: 15 %, or four deviations where few picks were to be expected.

        Args:
            case: The leak.
            found: The rate that was found, as a share of the true one.
        """
        picks: dict[str, int] = {}
        for window in self.windows:
            if window.name == case.task and window.evidence is not None and is_about(window, case):
                picks[window.process] = window.evidence.picks
        return max(0.15, 4 / math.sqrt(max(1.0, sum(picks.values()) / found)))

    def judge_decoy(self, name: str) -> list[str]:
        """What is wrong with what was found of a decoy: it is never leaking, not even for a while."""
        wrong = [window for window in self.windows if window.name == name and window.verdict is Verdict.LEAKING]
        return [
            f"leaking at run {window.run_number}: {window.kept_bytes_per_run:.0f} bytes, {window.note}, "
            f"line {window.sites[0].line if window.sites else '-'}, {window.retained_by}"
            for window in wrong
        ]

    def shares_spent(self) -> list[float]:
        """What measuring took of each process's time by its last account."""
        last = {one.process: one for one in sorted(self.stats, key=lambda one: one.seq)}
        return [one.overhead_s / one.process_s for one in last.values() if one.process_s > 0]

    def strangers(self) -> list[str]:
        """What was said to leak and is no line of a leak, look-alikes and natives aside."""
        places = frozenset().union(*marked_lines().values())
        tasks = {*(case.task for case in LEAKS.values()), PROCESS}
        return [
            said_of(row)
            for row in self.rows
            if row.verdict is Verdict.LEAKING
            and not row.native
            and row.name not in DECOYS
            and not (row.name in tasks and (row.file, row.line) in places)
        ]


def is_about(window: Window, case: LeakCase) -> bool:
    """Whether a window is about the lines of a case."""
    return any((site.file, site.line) in case.lines for site in window.sites) or bool(case.native and window.native)


def run_corpus(
    names: Sequence[str],
    *,
    broker_url: str,
    work: Path,
    seed: int = 0,
    rounds: int = 220,
    most_rounds: int = 0,
    until: Callable[[CorpusRun], bool] = lambda _: True,
    concurrency: int = 1,
    pause_s: float = 0.05,
    between: str = "corpus.pause",
    settings: dict[str, object] | None = None,
    timeout_s: float = 240.0,
) -> CorpusRun:
    """
    Run cases in turns in a worker, and read what it wrote.

    Args:
        names: Cases of the corpus; each round runs the task of each of them once in an order of its own.
        broker_url: A broker of this run's own.
        work: A folder for logs and the spool.
        seed: For the order and for the numbers that the tasks are given.
        rounds: At least so many.
        most_rounds: Go on until so many.
        until: Whether what was found is enough; asked after each batch of rounds, once there were enough.
        concurrency: Children.
        pause_s: Waiting in each round, as tasks wait for databases.
        between: The task that waits; ``corpus.compute`` computes instead.
        settings: celery-trace's, by bare name; the defaults otherwise.
        timeout_s: How long one batch may take.
    """
    chooser = random.Random(seed)
    tasks = sorted({LEAKS[name].task if name in LEAKS else name for name in names})
    trace_dir = work / "trace"
    environment = trace_environment(
        broker_url=broker_url, trace_dir=trace_dir, settings={"collector": "0", **(settings or {})}
    )
    environment["PYTHONPATH"] = str(REPOSITORY)
    environment["CORPUS_PAUSES"] = str(work / "pauses")
    client = Celery("corpus-sender", broker=broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    worker = WorkerProcess(
        "tests.corpus.app", cwd=REPOSITORY, work=work, environment=environment, concurrency=concurrency,
        name=f"corpus{seed}",
    )  # fmt: skip
    started = 10_000_000 + chooser.randrange(10**6) * 10
    done = 0
    with worker:
        worker.wait_ready()
        with client.connection_for_write() as connection, client.amqp.Producer(connection) as producer:
            while True:
                for number in range(done, done + BATCH):
                    for name in chooser.sample([*tasks, between], len(tasks) + 1):
                        from_zero = name in DECOYS and DECOYS[name].from_zero
                        argument = pause_s if name == between else number if from_zero else started + number
                        client.send_task(name, args=[argument], producer=producer, ignore_result=True)
                done += BATCH
                mark = work / f"done-{done}"
                client.send_task("corpus.mark", args=[str(mark)], producer=producer, ignore_result=True)
                wait_until(mark.exists, f"{done} rounds have run", timeout_s=timeout_s, explain=worker.tail)
                if done >= rounds and (done >= most_rounds or until(CorpusRun(read_spool(trace_dir), "", [], done))):
                    break
    client.close()
    pauses = work / "pauses"
    longest = [float(line) for line in pauses.read_text().split()] if pauses.exists() else []
    return CorpusRun(read_spool(trace_dir), worker.output, longest, done)


def read_spool(trace_dir: Path) -> list[AnyRecord]:
    """The records that processes left in a spool that nobody collects, so far."""
    records = []
    for path in (trace_dir / "spool").glob("*.spool"):
        lines = path.read_bytes().split(b"\n")[1:-1]  # the first is the file's head, the last may be half written
        records += [unpack(line) for line in lines if line]
    return records


def named(names: Sequence[str]) -> Callable[[CorpusRun], bool]:
    """Whether all leaks among these are named rightly, for :func:`run_corpus` to wait for."""
    wanted = [name for name in names if name in LEAKS]
    return lambda run: all(not run.judge_leak(name) for name in wanted)
