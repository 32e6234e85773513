"""
The corpus in a real prefork worker, all cases in turns in the same children, as in any worker; and what it found.

Used by the worker tier (some cases, until they are named) and by ``benchmarks`` (all of them).
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from celery import Celery

from celery_trace.leaks import leak_table
from celery_trace.model import AnyRecord, Leak, Stats, Verdict, Window
from celery_trace.spool.lines import unpack
from tests.corpus import decoys, leaks
from tests.support.processes import REPOSITORY, WorkerProcess, trace_environment
from tests.support.waiting import wait_until

#: Rounds that are sent at a time.
BATCH = 10
#: Cases that look at how small their number is.
COUNTS_FROM_ZERO = frozenset({"corpus.first_run_imports", "corpus.lazy_singleton"})

MARK = re.compile(r"# LEAK (\w+)\s*$")


def marked_lines(path: Path = Path(leaks.__file__)) -> dict[str, set[int]]:
    """Task name to the lines that carry its mark."""
    lines: dict[str, set[int]] = {}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        found = MARK.search(text)
        if found:
            lines.setdefault(f"corpus.{found.group(1)}", set()).add(number)
    return lines


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
        return next(
            (one.run_number for one in self.windows if one.name == name and one.verdict is Verdict.LEAKING), None
        )

    def judge_leak(self, name: str) -> list[str]:
        """What is wrong with what was found of a leak; empty when all is right."""
        native = leaks.NATIVE.get(name)
        if native is not None:
            # Which of several tasks that run in turns it was, no level tells.
            growing = [row for row in self.rows if row.resource == native and row.verdict is not Verdict.STEADY]
            return [] if growing else [f"no growth of {native}"]
        rows = self.rows_of(name)
        leaking = [row for row in rows if row.verdict is Verdict.LEAKING]
        lines = lines_of(name)
        at_mark = [row for row in leaking if row.line in lines and row.file == leaks.__file__]
        if not at_mark:
            said = [
                (str(row.verdict), f"line {row.line}", row.kept_bytes_per_run, row.confidence, row.why, row.waits_for)
                for row in rows
            ]
            return [f"not leaking at line {sorted(lines)}: {said}"]
        faults = []
        kept = leaks.KEPT_BYTES[name]
        found = sum(row.kept_bytes_per_run for row in at_mark)
        if kept is not None and abs(found / kept - 1) > self._tolerance(name, lines, found / kept):
            faults.append(f"keeps {kept} bytes a run, found {found}")
        retained = " → ".join(at_mark[0].retained_by)
        if not any(word in f"{retained} {at_mark[0].note}" for word in leaks.HOLDERS[name]):
            faults.append(f"retained by {retained or 'nothing'} ({at_mark[0].note})")
        return faults

    def _tolerance(self, name: str, lines: set[int], found: float) -> float:
        """
        The share by which a rate may be off: 15 %, or four deviations where few picks were to be expected.

        Args:
            name: The task.
            lines: Where it keeps memory.
            found: The rate that was found, as a share of the true one.
        """
        picks: dict[str, int] = {}
        for window in self.windows:
            if window.name == name and window.evidence is not None and any(one.line in lines for one in window.sites):
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
        """Who was said to leak and is no leak of the corpus, natives aside."""
        return [
            f"{row.kind} {row.name} {row.file}:{row.line}"
            for row in self.rows
            if row.verdict is Verdict.LEAKING and not row.native and row.name not in leaks.KEPT_BYTES
        ]


def lines_of(name: str) -> set[int]:
    """The lines at which a leak may be named."""
    return marked_lines().get(name) or marked_lines()["corpus.handlers"]


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
    settings: dict[str, object] | None = None,
    timeout_s: float = 240.0,
) -> CorpusRun:
    """
    Run cases in turns in a worker, and read what it wrote.

    Args:
        names: Tasks of the corpus; each round runs each of them once in an order of its own.
        broker_url: A broker of this run's own.
        work: A folder for logs and the spool.
        seed: For the order and for the numbers that the tasks are given.
        rounds: At least so many.
        most_rounds: Go on until so many.
        until: Whether what was found is enough; asked after each batch of rounds, once there were enough.
        concurrency: Children.
        pause_s: Waiting in each round, as tasks wait for databases.
        settings: celery-trace's, by bare name; the defaults otherwise.
        timeout_s: How long one batch may take.
    """
    chooser = random.Random(seed)
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
                    for name in chooser.sample([*names, "corpus.pause"], len(names) + 1):
                        argument = {"corpus.pause": pause_s}.get(name, number)
                        if name not in COUNTS_FROM_ZERO and name != "corpus.pause":
                            argument += started
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
    wanted = [name for name in names if name not in decoys.NAMES]
    return lambda run: all(not run.judge_leak(name) for name in wanted)
