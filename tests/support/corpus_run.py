"""
The corpus in a real prefork worker: each case's runs in a child process of their own, then the rows that they make.

Used by the worker tier (some cases, one seed) and by ``benchmarks`` (all of them, ten seeds).
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from celery import Celery

from celery_trace.leaks import leak_table
from celery_trace.model import Leak, Stage, Stats, Verdict, Window, decode
from tests.corpus import decoys, leaks
from tests.support.processes import REPOSITORY, WorkerProcess, trace_environment
from tests.support.waiting import wait_until

#: Runs of a case: as many as the slowest promised verdict takes, and the rare leak its time.
RUNS = 170
RARE_RUNS = 420
RARE = frozenset({"corpus.one_run_in_ten"})

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

    def __init__(self, windows: list[Window], stats: list[Stats], output: str, pauses_s: list[float]) -> None:
        self.windows = windows
        self.stats = stats
        self.output = output
        self.pauses_s = pauses_s
        self.rows = leak_table(windows, now_s=time.time())

    def rows_of(self, name: str) -> list[Leak]:
        """The rows of a case."""
        return [row for row in self.rows if row.name == name]

    def run_of(self, name: str, stage: Stage, *, verdict: Verdict | None = None) -> int | None:
        """The run at which a stage of a case ended first; None when it never did."""
        return next(
            (
                window.run_number
                for window in self.windows
                if window.name == name and window.stage is stage and verdict in (None, window.verdict)
            ),
            None,
        )

    def judge_leak(self, name: str) -> list[str]:
        """What is wrong with what was found of a leak; empty when all is right."""
        rows = self.rows_of(name)
        said = [(str(row.verdict), row.resource or f"line {row.line}", row.kept_bytes_per_run) for row in rows]
        leaking = [row for row in rows if row.verdict is Verdict.LEAKING]
        faults = []
        native = leaks.NATIVE.get(name)
        if native is not None:
            return [] if any(row.resource == native for row in leaking) else [f"not named native {native}: {said}"]
        lines = marked_lines().get(name) or marked_lines()["corpus.handlers"]
        at_mark = [row for row in leaking if row.line in lines and row.file == leaks.__file__]
        if not at_mark:
            return [f"not leaking at line {sorted(lines)}: {said}"]
        kept = leaks.KEPT_BYTES[name]
        found = sum(row.kept_bytes_per_run for row in at_mark)
        if kept is not None and abs(found / kept - 1) > 0.15:
            faults.append(f"keeps {kept} bytes a run, found {found}")
        retained = " → ".join(at_mark[0].retained_by)
        if not any(word in f"{retained} {at_mark[0].note}" for word in leaks.HOLDERS[name]):
            faults.append(f"retained by {retained or 'nothing'} ({at_mark[0].note})")
        return faults

    def judge_decoy(self, name: str) -> list[str]:
        """What is wrong with what was found of a decoy."""
        wrong = [window for window in self.windows if window.name == name and window.verdict is Verdict.LEAKING]
        return [f"leaking at run {window.run_number}: {window.kept_bytes_per_run:.0f} bytes" for window in wrong]


def run_corpus(
    names: Sequence[str],
    *,
    broker_url: str,
    work: Path,
    seed: int = 0,
    settings: dict[str, object] | None = None,
    timeout_s: float = 240.0,
) -> CorpusRun:
    """
    Run cases in a worker that gives each its own child, and read what it wrote.

    Args:
        names: Tasks of the corpus; their order is shuffled by the seed, and so are their arguments' offsets.
        broker_url: A broker of this run's own.
        work: A folder for logs and the spool.
        seed: For the order and for the numbers that the tasks are given.
        settings: celery-trace's, by bare name; the defaults otherwise.
        timeout_s: How long all runs may take.
    """
    chooser = random.Random(seed)
    order = list(names)
    chooser.shuffle(order)
    trace_dir = work / "trace"
    environment = trace_environment(
        broker_url=broker_url, trace_dir=trace_dir, settings={"collector": "0", **(settings or {})}
    )
    environment["PYTHONPATH"] = str(REPOSITORY)
    environment["CORPUS_PAUSES"] = str(work / "pauses")
    client = Celery("corpus-sender", broker=broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    worker = WorkerProcess(
        "tests.corpus.app", cwd=REPOSITORY, work=work, environment=environment, concurrency=1, name=f"corpus{seed}"
    )
    with worker:
        worker.wait_ready()
        started = 10_000_000 + chooser.randrange(10**6) * 10
        with client.connection_for_write() as connection, client.amqp.Producer(connection) as producer:
            for name in order:
                first = 0 if name == "corpus.first_run_imports" or name == "corpus.lazy_singleton" else started
                for number in range(RARE_RUNS if name in RARE else RUNS):
                    client.send_task(name, args=[first + number], producer=producer, ignore_result=True)
                client.send_task("corpus.next_case", producer=producer, ignore_result=True)
            client.send_task("corpus.last_case", args=[str(work / "done")], producer=producer, ignore_result=True)
        wait_until((work / "done").exists, "the corpus has run", timeout_s=timeout_s, explain=worker.tail)
    client.close()
    windows, stats = read_spool(trace_dir / "spool")
    pauses = work / "pauses"
    longest = [float(line) for line in pauses.read_text().split()] if pauses.exists() else []
    return CorpusRun(windows, stats, worker.output, longest)


def read_spool(folder: Path) -> tuple[list[Window], list[Stats]]:
    """Windows and accounts that processes left in a spool that nobody collected, by time."""
    records: list[Any] = []
    for path in folder.glob("*.spool"):
        for line in path.read_text().splitlines():
            if "{" in line:
                try:
                    records.append(decode(line[line.index("{") :].encode()))
                except msgspec.DecodeError:
                    continue  # the line that a killed process did not finish
    windows = sorted((record for record in records if isinstance(record, Window)), key=lambda one: one.at_s)
    return windows, [record for record in records if isinstance(record, Stats)]


def summary(run: CorpusRun, names: Sequence[str]) -> Counter[str]:
    """How many leaks and decoys of a run were judged right and wrong."""
    counts: Counter[str] = Counter()
    for name in names:
        leak = name in leaks.KEPT_BYTES
        faults = run.judge_leak(name) if leak else run.judge_decoy(name)
        counts[f"{'leak' if leak else 'decoy'}:{'wrong' if faults else 'right'}"] += 1
    assert decoys.NAMES
    return counts
