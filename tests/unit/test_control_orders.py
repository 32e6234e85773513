"""Orders to workers: what is believed, and how it reaches the processes that run tasks."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celery_trace.clock import FakeClock
from celery_trace.control.files import forget
from celery_trace.control.orders import LONGEST_S, Order, OrderPoller, OrderReceiver, orders_file
from celery_trace.control.signing import load_key, sign, verify
from celery_trace.model import AuditEntry, ProcessRecord, new_id
from celery_trace.settings import Settings


class Worker:
    """A main process and one of its children."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(dir=str(folder))
        self.clock = FakeClock()
        self.audit: list[AuditEntry] = []
        self.process = ProcessRecord(uid=new_id(), host="h", pid=1, started_at_s=0.0, worker="w@h")
        self.receiver = OrderReceiver(self.settings, self.process, self.clock, self.audit.append)
        self.heard: list[tuple[Any, ...]] = []
        self.child = self.poller()

    def poller(self) -> OrderPoller:
        return OrderPoller(
            self.settings,
            self.process.uid,
            self.clock,
            on_mode=lambda *order: self.heard.append(("mode", *order)),
            on_profile=lambda name, claim, left_s: self.heard.append(("profile", name, claim(), left_s)),
            on_drop=lambda failure: self.heard.append(("drop", failure)),
        )

    def order(self, *, key: bytes | None = None, **values: Any) -> str:
        given = {"action": "mode", "id": new_id(), "name": "shop.task", "mode": "always", "until_s": self.now_s + 60}
        signed = {name: values.pop(name) for name in ("kind", "target", "now_s") if name in values}
        body = values.pop("body", None) or msgspec.json.encode(Order(**(given | values))).decode()
        head: dict[str, Any] = {"kind": "order", "target": self.process.uid, "now_s": self.now_s}
        data, self.nonce = sign(key or load_key(self.settings), action="mode", body=body, user="ann", **(head | signed))
        return data.decode()

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    def answered(self, reply: str) -> dict[str, Any]:
        message = verify(load_key(self.settings), reply.encode(), kind="reply", target=self.nonce, now_s=self.now_s)
        answer: dict[str, Any] = json.loads(message.body)
        return answer


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def test_an_order_reaches_a_child_once(worker: Worker) -> None:
    assert worker.answered(worker.receiver.receive(worker.order())) == {"worker": "w@h", "ok": True, "why": ""}
    worker.child.poll()
    worker.child.poll()
    assert worker.heard == [("mode", "shop.task", "always", 60.0)]
    assert [(entry.user, entry.verdict) for entry in worker.audit] == [("ann", "done")]
    assert worker.receiver.counters["control:done"] == 1


def test_a_child_that_starts_later_still_hears_what_stands(worker: Worker) -> None:
    worker.receiver.receive(worker.order())
    worker.clock.advance(45)
    worker.child.poll()
    assert worker.heard == [("mode", "shop.task", "always", 15.0)]
    worker.clock.advance(30)
    worker.poller().poll()
    assert len(worker.heard) == 1


def test_orders_stand_beside_each_other_and_a_new_one_replaces_its_like(worker: Worker) -> None:
    worker.receiver.receive(worker.order(name="a"))
    worker.receiver.receive(worker.order(name="b"))
    worker.receiver.receive(worker.order(name="a", mode="rss"))
    worker.receiver.receive(worker.order(action="drop", name="", mode="", failure="f1"))
    worker.receiver.receive(worker.order(action="drop", name="", mode="", failure="f2"))
    worker.child.poll()
    told = [order[:3] for order in worker.heard]
    assert told == [("mode", "b", "always"), ("mode", "a", "rss"), ("drop", "f1"), ("drop", "f2")]


def test_one_process_of_a_worker_profiles(worker: Worker) -> None:
    worker.receiver.receive(worker.order(action="profile", mode=""))
    worker.child.poll()
    worker.poller().poll()
    assert [order[2] for order in worker.heard] == [True, False]
    forget(worker.settings.folder, worker.process.uid)
    assert list(orders_file(worker.settings, worker.process.uid).parent.iterdir()) == []


def test_nothing_of_a_worker_is_left_when_it_ends(worker: Worker) -> None:
    for name in ("a", "b"):
        worker.receiver.receive(worker.order(action="profile", mode="", name=name))
    worker.child.poll()
    orders = orders_file(worker.settings, worker.process.uid).parent
    (orders / "another.json").touch()
    assert len(list(orders.iterdir())) == 4, "the orders, and a mark for each that was taken"
    worker.receiver.close()
    assert [path.name for path in orders.iterdir()] == ["another.json"]


def test_the_mark_of_an_order_goes_after_the_order_has_ended(worker: Worker) -> None:
    worker.receiver.receive(worker.order(action="profile", mode="", name="a", until_s=worker.now_s + 5))
    worker.child.poll()
    orders = orders_file(worker.settings, worker.process.uid).parent
    assert len(list(orders.glob("*.taken"))) == 1
    worker.clock.advance(60)
    worker.receiver.receive(worker.order(name="b"))
    assert list(orders.glob("*.taken")) == []


def test_the_orders_file_is_the_owners_alone(worker: Worker) -> None:
    worker.receiver.receive(worker.order())
    path = orders_file(worker.settings, worker.process.uid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    worker.receiver.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"key": b"a key that somebody guessed"}, "forged"),
        ({"kind": "command"}, "forged"),
        ({"target": "another"}, "wrong_target"),
        ({"now_s": 1.0}, "late"),
        ({"mode": "everything"}, "malformed"),
        ({"action": "exec"}, "malformed"),
        ({"name": ""}, "malformed"),
        ({"id": "../../x"}, "malformed"),
        ({"until_s": 9e12}, "malformed"),
        ({"until_s": 1.0}, "malformed"),
        ({"body": "[]"}, "malformed"),
    ],
)
def test_what_is_no_order_is_refused_counted_and_audited(worker: Worker, values: dict[str, Any], why: str) -> None:
    reply = worker.receiver.receive(worker.order(**values))
    assert worker.receiver.counters == {"control:refused": 1, f"control:refused:{why}": 1}
    assert not orders_file(worker.settings, worker.process.uid).exists()
    assert [entry.verdict.startswith(f"refused: {why}") for entry in worker.audit] == [True]
    if why == "forged":
        assert reply == ""
    else:
        assert not worker.answered(reply)["ok"]


@pytest.mark.parametrize("message", ["", "junk", "{}", "[" * 50_000, "\ud800", None, 5, ["x"]])
def test_whatever_remote_control_brings_is_answered_with_nothing(worker: Worker, message: Any) -> None:
    assert worker.receiver.receive(message) == ""
    assert worker.receiver.counters["control:refused"] == 1


def test_an_order_cannot_be_replayed(worker: Worker) -> None:
    order = worker.order()
    worker.receiver.receive(order)
    assert "replayed" in worker.answered(worker.receiver.receive(order))["why"]


def test_a_file_that_the_worker_did_not_write_is_refused(worker: Worker) -> None:
    path = orders_file(worker.settings, worker.process.uid)
    path.parent.mkdir()
    path.write_text(worker.order())
    worker.child.poll()
    assert worker.heard == []
    assert worker.child.counters["control:refused:forged"] == 1


def test_a_child_without_orders_looks_and_finds_nothing(worker: Worker) -> None:
    worker.child.poll()
    assert worker.heard == []


def test_an_order_that_fails_in_a_child_stops_no_other(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_order: Any) -> None:
        raise RuntimeError("broken")

    poller = OrderPoller(
        worker.settings,
        worker.process.uid,
        worker.clock,
        on_mode=broken,
        on_drop=worker.heard.append,
    )
    worker.receiver.receive(worker.order())
    worker.receiver.receive(worker.order(action="drop", name="", mode="", failure="f"))
    poller.poll()
    assert worker.heard == ["f"]
    assert "broken" in caplog.text
    assert LONGEST_S == 3600.0
