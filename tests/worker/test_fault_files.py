"""A worker whose files in trace_dir were tampered with: tasks go on, it is said, and mended once they are put right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery

from celery_trace.control import orders as control
from celery_trace.settings import Settings
from tests.support.fixtures_worker import StartWorker
from tests.support.records import Records
from tests.support.waiting import wait_until

BAKERY = """
from celery import Celery

app = Celery("bakery")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task
def burn(number):
    raise ValueError(f"loaf {number} is burnt")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "bakery.py").write_text(BAKERY)
    return folder


@pytest.fixture
def client(own_broker_url: str) -> Iterator[Celery]:
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    yield client
    client.close()


@pytest.fixture
def burn(client: Celery) -> Callable[[], str]:
    return lambda: str(client.send_task("bakery.burn", (1,)).id)


def test_a_planted_key_costs_the_orders_and_nothing_else_until_it_is_gone(
    project: Path,
    start_worker: StartWorker,
    client: Celery,
    burn: Callable[[], str],
    records: Records,
    trace_dir: Path,
    tmp_path: Path,
) -> None:
    planted = tmp_path / "planted"
    planted.write_text("k" * 40)
    planted.chmod(0o600)
    (trace_dir / "shell.key").symlink_to(planted)
    worker = start_worker("bakery", project, settings={"memory": "rss"}, concurrency=1)
    records.failure_of(burn(), explain=worker.tail)
    worker.wait_for(r"ERROR.* accepts no orders.*symbolic link")
    settings = Settings(dir=str(trace_dir), shell_key="k" * 40)
    assert control.OrderClient(client, settings).workers() == {}
    (trace_dir / "shell.key").unlink()
    orders = control.OrderClient(client, Settings(dir=str(trace_dir)))
    found = wait_until(orders.workers, "it takes orders", explain=worker.tail)
    assert list(found) == [worker.node]
    assert worker.output.count("accepts no orders") == 1


def test_what_a_killed_worker_left_is_cleared_away(
    project: Path, start_worker: StartWorker, client: Celery, burn: Callable[[], str], records: Records, trace_dir: Path
) -> None:
    worker = start_worker("bakery", project, settings={"memory": "rss"}, concurrency=1)
    records.failure_of(burn(), explain=worker.tail)
    orders = control.OrderClient(client, Settings(dir=str(trace_dir)))
    found = wait_until(orders.workers, "it takes orders", explain=worker.tail)
    (answer,) = control.arm(client, Settings(dir=str(trace_dir)), "bakery.burn", 60, user="ann", mode="rss")
    assert answer["ok"]
    (uid,) = found.values()
    assert [path.name for path in (trace_dir / "orders").iterdir()] == [f"{uid}.json"]
    wait_until(lambda: (trace_dir / "spool" / f"{uid}.lock").exists(), "the main process has written something")
    family = worker.family()
    victims = [process for process in family if "celery_trace.collector" not in " ".join(process.cmdline())]
    for process in victims:
        os.kill(process.pid, signal.SIGKILL)
    worker.wait()
    psutil.wait_procs(family, timeout=30)
    assert list((trace_dir / "orders").iterdir()) == []
    assert {path.name for path in (trace_dir / "spool").iterdir()} == {"collector"}
