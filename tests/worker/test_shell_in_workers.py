"""The live shell in real workers: each pool, its end, and a broker that goes away."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_trace.control.signing import load_key
from celery_trace.model import Kept
from celery_trace.settings import Settings
from celery_trace.shell.live.client import LiveClient
from celery_trace.shell.session import SessionGone
from tests.support.records import Records
from tests.support.shells import answer, say
from tests.support.waiting import wait_until

PROJECT = """
import os, time
from celery import Celery
app = Celery("shop", broker=os.environ["SHOP_BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1

@app.task
def create_error(order):
    context_data = "Hello"
    a, c, d = 5, 6, 10
    return d / 0

@app.task
def pid():
    with open(os.environ["SHOP_PIDS"], "a") as file:
        file.write(f"{os.getpid()}\\n")
"""


class Shop:
    """A worker with the live shell on, and the means to reach it."""

    def __init__(self, start_worker: Any, folder: Path, trace_dir: Path, broker_url: str, records: Records) -> None:
        (folder / "shop.py").write_text(PROJECT)
        self.folder, self.trace_dir, self.broker_url, self.records = folder, trace_dir, broker_url, records
        self._start_worker = start_worker
        self.pids = folder / "pids"
        self.app = Celery("shop", broker=broker_url, set_as_current=False)

    def start(self, pool: str = "prefork", concurrency: int = 1, *options: str, **settings: Any) -> Any:
        return self._start_worker(
            "shop",
            self.folder,
            pool=pool,
            concurrency=concurrency,
            options=options,
            settings={"shell": "live"} | settings,
            extra={"SHOP_BROKER": self.broker_url, "SHOP_PIDS": str(self.pids)},
        )

    def fail(self, worker: Any) -> Kept:
        """Let a task fail and wait until the store knows where it is kept."""
        task_id = self.app.send_task("shop.create_error", [{"id": 4}]).id
        detail = self.records.failure_of(task_id, explain=worker.tail)
        kept: Kept = self.records.wait(
            lambda queries: queries.kept(detail.id), "the failure is kept", explain=worker.tail
        )
        return kept

    def open(self, kept: Kept) -> Any:
        key = load_key(Settings(dir=str(self.trace_dir)))
        return LiveClient(self.app.connection_for_write, key).open(kept, kept.failure, "ann", timeout_s=30.0)


@pytest.fixture
def shop(start_worker: Any, tmp_path: Path, trace_dir: Path, own_broker_url: str, records: Records) -> Any:
    folder = tmp_path / "project"
    folder.mkdir()
    shop = Shop(start_worker, folder, trace_dir, own_broker_url, records)
    yield shop
    shop.app.close()


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 1), ("threads", 2), ("solo", 1), ("gevent", 2)])
def test_a_failed_task_can_be_looked_into_where_it_failed(shop: Shop, pool: str, concurrency: int) -> None:
    worker = shop.start(pool, concurrency)
    kept = shop.fail(worker)
    session = shop.open(kept)
    try:
        assert session.frames[session.frame].function == "create_error"
        assert answer(session, "trace.context_data, a + c + d") == "('Hello', 21)"
        assert answer(session, "trace.args, trace.task.name") == "([{'id': 4}], 'shop.create_error')"
        # A loop in the shell stops no task.
        done: list[Any] = []
        thread = threading.Thread(target=lambda: done.append(say(session, "while True: pass\n")))
        thread.start()
        shop.app.send_task("shop.pid")
        wait_until(shop.pids.exists, "a task runs beside the loop", explain=worker.tail)
        wait_until(lambda: session.interrupt() or not thread.is_alive(), "the loop is interrupted", every_s=0.3)
        assert "KeyboardInterrupt" in done[0][1].of("error")
        assert answer(session, "1 + 1") == "2"
        assert answer(session, "__import__('os').getpid()") == shop.pids.read_text().split()[0]
    finally:
        session.close()


def test_a_warm_shutdown_says_goodbye_and_is_not_held_up(shop: Shop) -> None:
    worker = shop.start()
    kept = shop.fail(worker)
    session = shop.open(kept)
    try:
        answer(session, "1")
        started_s = time.monotonic()
        worker.stop()
        took_s = time.monotonic() - started_s
        wait_until(lambda: session.gone, "the goodbye arrives", explain=worker.tail)
        with pytest.raises(SessionGone):
            say(session, "1")
        assert took_s < 30
    finally:
        session.close()
    shop.records.wait(lambda queries: queries.kept(kept.failure) is None, "the store knows that it is gone")


def test_a_recycled_child_says_goodbye(shop: Shop) -> None:
    worker = shop.start("prefork", 1, "--max-tasks-per-child=2")
    kept = shop.fail(worker)
    session = shop.open(kept)
    try:
        answer(session, "1")
        shop.app.send_task("shop.pid")
        wait_until(lambda: session.gone, "the goodbye arrives", explain=worker.tail)
        assert "the process" in session.gone
    finally:
        session.close()


def test_a_killed_child_is_noticed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = {"timeout_s": 3.0, "on_reply": None, "user": ""}
    monkeypatch.setattr("celery_trace.shell.live.client.LiveSession.ask.__kwdefaults__", patient)
    worker = shop.start()
    session = shop.open(shop.fail(worker))
    try:
        with pytest.raises(SessionGone, match="has not replied"):
            say(session, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    finally:
        session.close()
