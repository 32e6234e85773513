"""What grows in a worker's main process, which runs no task: it is told as the process's, with line and holder."""

from __future__ import annotations

from pathlib import Path

from celery_trace.heap.leaks import leak_table
from celery_trace.heap.tags import PROCESS
from celery_trace.model import Kind, Role, Verdict, Window
from tests.support import memory_project
from tests.support.memory_worker import memory_worker
from tests.support.waiting import wait_until


def test_a_receiver_that_keeps_each_message_is_told_at_its_line_with_its_holder(
    own_broker_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "main"
    folder.mkdir()
    # A "run" of the process is two seconds; a dozen of them, and those in flight, have to be observed.
    with memory_worker(own_broker_url, folder, state="notes", memory_recheck_runs=10, memory_budget=0.5) as worker:

        def leaking() -> list[Window]:
            for _ in range(10):
                worker.send("memory.wait")
            return [one for one in worker.of(Window, verdict=Verdict.LEAKING) if one.kind is Kind.PROCESS]

        wait_until(leaking, "a verdict", timeout_s=180, every_s=0.5, explain=worker.process.tail)
        rows = [row for row in leak_table(worker.of(Window), now_s=0.0) if row.verdict is Verdict.LEAKING]
    row = rows[0]
    source = Path(memory_project.__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith("# NOTE"))
    assert (row.name, row.role, row.file, row.line) == (PROCESS, Role.MAIN, memory_project.__file__, line)
    assert row.retained_by[0] == "tests.support.memory_project (module)"
    assert row.retained_by[1].startswith("_received: list[")
    assert row.retained_by[2].startswith("dict × ")
    # With so few runs, something that a library fills once may be taken for growth; nothing else of the project's is.
    assert {(one.name, one.line) for one in rows if one.file == row.file} == {(PROCESS, line)}
