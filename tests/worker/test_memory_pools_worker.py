"""Pools that run tasks in the worker's own process: the one that leaks is blamed, where they overlap by its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_trace.heap.leaks import leak_table
from celery_trace.model import Role, Verdict, Window
from tests.support import memory_project
from tests.support.memory_worker import memory_worker
from tests.support.waiting import wait_until

ASYNCIO = "celery_aio_pool.pool:AsyncIOPool"


@pytest.mark.parametrize(
    ("pool", "role", "task", "mark"),
    [
        ("solo", Role.SOLO, "memory.keep_slowly", "KEEP SLOWLY"),
        ("threads", Role.THREADS, "memory.keep_slowly", "KEEP SLOWLY"),
        ("gevent", Role.GREEN, "memory.keep_slowly", "KEEP SLOWLY"),
        ("eventlet", Role.GREEN, "memory.keep_slowly", "KEEP SLOWLY"),
        (ASYNCIO, Role.GREEN, "memory.keep_slowly", "KEEP SLOWLY"),
        (ASYNCIO, Role.GREEN, "memory.keep_awaiting", "KEEP AWAITING"),
    ],
    ids=["solo", "threads", "gevent", "eventlet", "asyncio, a function", "asyncio, a coroutine"],
)
def test_the_task_that_leaks_is_blamed_with_line_and_holder(
    pool: str, role: Role, task: str, mark: str, own_broker_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    with memory_worker(
        own_broker_url, folder, pool=pool, concurrency=4, memory_recheck_runs=60, memory_budget=0.5
    ) as worker:
        with worker.app.connection_for_write() as connection, worker.app.amqp.Producer(connection) as producer:

            def leaking() -> list[Window]:
                for name in (task, "memory.wait") * 25:
                    worker.app.send_task(name, producer=producer, ignore_result=True)
                return worker.of(Window, name=task, verdict=Verdict.LEAKING)

            wait_until(leaking, "a verdict", timeout_s=90, every_s=0.3, explain=worker.process.tail)
        rows = leak_table(worker.of(Window), now_s=0.0)
    (row,) = [row for row in rows if row.verdict is Verdict.LEAKING and not row.native]
    source = Path(memory_project.__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith(f"# {mark}"))
    assert (row.name, row.role, row.file, row.line) == (task, role, memory_project.__file__, line)
    assert row.retained_by[0] == "tests.support.memory_project (module)"
    assert row.retained_by[1].startswith("_kept: list[")
    assert row.kept_bytes_per_run == pytest.approx(4_033, rel=0.4)
    assert row.concurrent == (pool in ("threads", "gevent", "eventlet"))
