"""Orders over Celery's remote control: a worker in this process, a real broker between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_trace.clock import SystemClock
from celery_trace.control import orders as control
from celery_trace.control.audit import AuditLog, _rotate
from celery_trace.control.orders import Order, OrderClient, OrderPoller, OrderReceiver
from celery_trace.model import AuditEntry, ProcessRecord, new_id
from celery_trace.settings import Settings

WORKER = "orders@here"


class Running:
    """A worker that hears orders."""

    def __init__(self, app: Any, folder: Path) -> None:
        self.app = app
        self.settings = Settings(dir=str(folder))
        self.process = ProcessRecord(uid=new_id(), host="here", pid=1, started_at_s=0.0, worker=WORKER)
        self.audit: list[AuditEntry] = []
        self.receiver = OrderReceiver(self.settings, self.process, SystemClock(), self.audit.append)


@pytest.fixture
def running(own_broker_url: str, tmp_path: Path) -> Iterator[Running]:
    app = Celery("orders", broker=own_broker_url, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    running = Running(app, tmp_path)
    running.receiver.install()
    with start_worker(app, pool="solo", perform_ping_check=False, hostname=WORKER, shutdown_timeout=60.0):
        yield running
    running.receiver.close()
    app.close()


def test_arming_a_mode_reaches_the_processes_of_the_worker(running: Running) -> None:
    heard: list[tuple[str, str, float]] = []
    poller = OrderPoller(
        running.settings,
        running.process.uid,
        SystemClock(),
        on_mode=lambda name, mode, left_s: heard.append((name, mode, left_s)),
    )
    answers = control.arm(running.app, running.settings, "shop.task", 120.0, user="ann")
    assert answers == [{"worker": WORKER, "ok": True, "why": ""}]
    poller.poll()
    assert [(name, mode) for name, mode, _left_s in heard] == [("shop.task", "always")]
    assert 60 < heard[0][2] <= 120
    assert [entry.user for entry in running.audit] == ["ann"]


def test_profile_and_drop_are_taken_too(running: Running) -> None:
    assert control.profile(running.app, running.settings, "shop.task", user="ann")[0]["ok"]
    assert control.drop(running.app, running.settings, "f1", user="ann")[0]["ok"]


def test_another_key_is_not_believed_and_the_giver_is_told(running: Running, tmp_path: Path) -> None:
    stranger = Settings(dir=str(tmp_path), shell_key="a key that somebody guessed")
    answers = control.arm(running.app, stranger, "shop.task", 60.0, user="eve")
    assert [(answer["ok"], "same shell key" in answer["why"]) for answer in answers] == [(False, True)]
    assert running.receiver.counters["control:refused:forged"] == 1
    assert running.audit[0].verdict.startswith("refused: forged")


def test_a_worker_that_restarted_does_not_take_the_orders_of_the_one_before(running: Running) -> None:
    client = OrderClient(running.app, running.settings)
    order = Order("mode", name="t", mode="rss", until_s=SystemClock().now_s() + 60)
    answers = client.give(order, user="ann", workers={WORKER: "uid-of-the-one-before"})
    assert "wrong_target" in answers[0].why


def test_where_nobody_hears_nobody_answers(own_broker_url: str, tmp_path: Path) -> None:
    app = Celery("nobody", broker=own_broker_url, set_as_current=False)
    settings = Settings(dir=str(tmp_path))
    assert control.arm(app, settings, "t", 60.0, user="ann") == []
    answers = OrderClient(app, settings).give(
        Order("drop", until_s=SystemClock().now_s() + 60), user="ann", workers={"gone@here": "x"}
    )
    assert [(answer.ok, "did not answer" in answer.why) for answer in answers] == [(False, True)]
    app.close()


@pytest.mark.parametrize(("mode", "seconds"), [("everything", 60.0), ("rss", 1e9), ("rss", -1.0)])
def test_what_is_no_order_is_not_sent(own_broker_url: str, tmp_path: Path, mode: str, seconds: float) -> None:
    app = Celery("nobody", broker=own_broker_url, set_as_current=False)
    with pytest.raises(ValueError, match=r"mode|must end"):
        control.arm(app, Settings(dir=str(tmp_path)), "t", seconds, user="ann", mode=mode)
    app.close()


def test_the_audit_log_turns_over_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_trace.control.audit.FILE_LIMIT_BYTES", 2000)
    log = AuditLog(tmp_path, "worker", SystemClock())
    for number in range(30):
        log.note(f"command {number} " + "x" * 10_000)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) <= {"audit.jsonl", "audit.jsonl.1"}
    assert max(sizes.values()) < 10_000


def test_who_notices_second_that_the_log_is_full_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_trace.control.audit.FILE_LIMIT_BYTES", 2000)
    one = AuditLog(tmp_path, "worker", SystemClock())
    one.note("a" * 2500)
    with open(tmp_path / "audit.jsonl", "wb+") as full:
        full.write(b"b" * 2500)
        full.flush()
        _rotate(tmp_path / "audit.jsonl", full.fileno())
        one.note("fresh")
        _rotate(tmp_path / "audit.jsonl", full.fileno())  # it had the full file open all the time
    assert (tmp_path / "audit.jsonl.1").read_bytes() == b"b" * 2500
    assert "fresh" in (tmp_path / "audit.jsonl").read_text()
