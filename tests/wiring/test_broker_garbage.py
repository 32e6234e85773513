"""What anybody with the broker can lay down for us: bombs and garbage cost no memory, no connection and no time."""

from __future__ import annotations

import bz2
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Producer

from celery_trace.clock import SystemClock
from celery_trace.control import orders as control
from celery_trace.control.channel import command_address, reply_address
from celery_trace.control.orders import OrderReceiver
from celery_trace.model import ProcessRecord, new_id
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.transports import broker
from tests.support.processes import REPOSITORY
from tests.support.shells import LiveProcess, answer
from tests.support.transport_contract import site
from tests.support.waiting import wait_until

MIB = 1024 * 1024
BOMB_BYTES = 200 * MIB

#: Entries that kombu can't read, or stumbles over.
GARBAGE: list[bytes] = [
    b"",
    b"\x00\xff\xfe",
    b"not json",
    b"[" * 100_000,
    b"null",
    b"17",
    b'"text"',
    b"[1, 2]",
    b"{}",
    b'{"body": 5, "properties": {}}',
    b'{"body": "aGk=", "properties": null}',
    b'{"body": "aGk=", "properties": []}',
    b'{"body": "aGk=", "properties": {"delivery_tag": "t"}, "headers": "none"}',
    b'{"body": "aGk=", "properties": {"delivery_tag": {}, "body_encoding": "base64"}, "headers": {}}',
    b'{"body": "aGk=", "properties": {"delivery_tag": "t", "body_encoding": "no-such"}, "headers": {}}',
    b'{"body": "a", "properties": {"delivery_tag": "t", "body_encoding": "base64"}, "headers": {}}',
    b'{"body": "aGk=", "properties": {"delivery_tag": "t", "body_encoding": 7}, "headers": {"compression": 9}}',
    b'{"body": "aGk=", "headers": {"x": {"__type__": "datetime", "__value__": 5}}, "properties": {}}',
    b'{"body": "aGk=", "headers": {"x": ' + b"[" * 5000 + b"]" * 5000 + b'}, "properties": {}}',
    b'{"body": "aGk=", "headers": {"x": ' + b"9" * 20_000 + b'}, "properties": {}}',
    b'{"body": "aGk=", "headers": {"x": "' + b"y" * 200_000 + b'"}, "properties": {}}',
]


def inflated(compressor: Any) -> bytes:
    """A few hundred bytes, or thousands with zlib, that become :data:`BOMB_BYTES`."""
    zeros = bytes(4 * MIB)
    return b"".join(compressor.compress(zeros) for _ in range(BOMB_BYTES // len(zeros))) + compressor.flush()


@pytest.fixture(scope="module")
def bz2_bomb() -> bytes:
    made = inflated(bz2.BZ2Compressor(9))
    assert len(made) < 1000
    return made


def drop_bomb(channel: Any, queue: str, data: bytes) -> None:
    Producer(channel, auto_declare=False).publish(
        data, exchange="", routing_key=queue, content_type="application/octet-stream", content_encoding="binary",
        headers={"compression": "application/x-bz2"},
    )  # fmt: skip


@pytest.fixture
def live(tmp_path: Path, own_broker_url: str) -> Iterator[LiveProcess]:
    process = LiveProcess(tmp_path, own_broker_url)
    yield process
    process.close()


@pytest.fixture
def channel(own_broker_url: str) -> Iterator[Any]:
    with Connection(own_broker_url) as connection:
        yield connection.channel()


# --- the live shell ---------------------------------------------------------------------------------------

VICTIM = """
import resource, sys, time
from pathlib import Path
from celery_trace.control.channel import command_address
from tests.support.shells import LiveProcess
resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))
live = LiveProcess(Path(sys.argv[1]), sys.argv[2])
kept = live.fail()
deadline_s = time.monotonic() + 60
while live.keeper._receiver is None or not live.keeper._receiver.connected:
    assert time.monotonic() < deadline_s
    time.sleep(0.02)
print(command_address(live.process.uid), flush=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while live.keeper.counters["live:refused"] < int(sys.argv[3]):
    assert time.monotonic() < deadline_s, live.keeper.counters
    time.sleep(0.02)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, dict(live.keeper.counters), flush=True)
live.keeper.close("shutdown")
"""


def test_a_bomb_on_the_live_queue_costs_a_process_no_memory(
    tmp_path: Path, own_broker_url: str, channel: Any, bz2_bomb: bytes
) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path), own_broker_url, "3"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert victim.stdout is not None
        address = victim.stdout.readline().strip()
        for _ in range(3):
            drop_bomb(channel, address, bz2_bomb)
        grown_kib, counters = victim.stdout.readline().split(" ", 1)
        assert int(grown_kib) < 24 * 1024, f"{BOMB_BYTES // MIB} MiB would be the bomb"
        assert "'live:refused:compressed': 3" in counters
    finally:
        victim.kill()
        victim.wait()
        assert victim.stdout is not None
        victim.stdout.close()


def test_garbage_in_the_list_is_dropped_and_counted_and_what_stands_behind_it_is_served(
    live: LiveProcess, channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connections: list[Connection] = []
    connect = live.connect
    live.keeper._connect = lambda: connections.append(connect()) or connections[-1]  # type: ignore[func-returns-value]
    kept = live.fail()
    address = command_address(live.process.uid)
    with live.session(kept) as session:
        made = len(connections)
        for _ in range(5):
            channel.client.lpush(address, *GARBAGE)
        assert answer(session, "1 + 1") == "2"
        wanted = 5 * len(GARBAGE)
        wait_until(
            lambda: live.keeper.counters["live:refused"] == wanted,
            "all of it is counted",
            explain=lambda: str(live.keeper.counters),
        )
        assert answer(session, "2 + 2") == "4"
        assert len(connections) == made, "the receiver kept its connection"
    assert len([line for line in caplog.messages if "was refused" in line]) <= 20, "a flood does not fill the log"


def test_a_client_passes_over_bombs_and_garbage_among_its_replies(
    live: LiveProcess, channel: Any, bz2_bomb: bytes
) -> None:
    kept = live.fail()
    with live.session(kept) as session:
        drop_bomb(channel, reply_address(session.id), bz2_bomb)
        channel.client.lpush(reply_address(session.id), *GARBAGE)
        assert answer(session, "1 + 1") == "2"
        wait_until(lambda: session.refused == 1 + len(GARBAGE), "all are counted", explain=lambda: str(session.refused))


# --- orders -----------------------------------------------------------------------------------------------


def test_an_order_is_answered_among_bombs_and_garbage_on_its_reply_queue(
    own_broker_url: str, tmp_path: Path, channel: Any, bz2_bomb: bytes
) -> None:
    app = Celery("orders", broker=own_broker_url, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    settings = Settings(dir=str(tmp_path))
    process = ProcessRecord(uid=new_id(), host="here", pid=1, started_at_s=0.0, worker="orders@here")
    receiver = OrderReceiver(settings, process, SystemClock(), None)
    receiver.install()
    over = threading.Event()
    hit: set[str] = set()

    def attack() -> None:
        bindings = "_kombu.binding.reply.celery.pidbox"
        while not over.is_set():
            for member in channel.client.smembers(bindings):
                queue = member.decode().split("\x06\x16")[-1]
                if queue not in hit:
                    hit.add(queue)
                    channel.client.lpush(queue, *GARBAGE)
                    drop_bomb(channel, queue, bz2_bomb)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, hostname="orders@here", shutdown_timeout=60.0):
            answers = control.arm(app, settings, "shop.task", 120.0, user="ann")
    finally:
        over.set()
        attacker.join()
        receiver.close()
        app.close()
    assert answers == [{"worker": "orders@here", "ok": True, "why": ""}]
    assert len(hit) >= 2, "the queues of both questions were hit"


@pytest.mark.parametrize("message", [None, 5, [], {"a": 1}, "", "{", "\ud800", "[" * 100_000, "x" * (2 * MIB)])
def test_the_desk_answers_no_order_of_a_wrong_type_or_size(tmp_path: Path, message: Any) -> None:
    process = ProcessRecord(uid=new_id(), host="here", pid=1, started_at_s=0.0)
    receiver = OrderReceiver(Settings(dir=str(tmp_path)), process, SystemClock(), None)
    assert receiver.receive(message) == ""
    assert receiver.counters["control:refused"] == 1


# --- records ----------------------------------------------------------------------------------------------


def test_bombs_and_garbage_among_the_records_are_set_aside_and_the_rest_is_stored(
    own_broker_url: str, tmp_path: Path, channel: Any, bz2_bomb: bytes
) -> None:
    with site(own_broker_url, tmp_path) as here:
        drop_bomb(channel, here.queue, bz2_bomb)
        drop_bomb(channel, here.queue, inflated(zlib.compressobj(9)))
        channel.client.lpush(here.queue, *GARBAGE)
        here.fail(range(10))
        here.collector.round()
        with here.consuming() as consumer:
            here.wait_for(range(10))
            wanted = 2 + len(GARBAGE)
            wait_until(lambda: consumer.counters["set_aside"] == wanted, "all of it is set aside", timeout_s=30)
            wait_until(lambda: here.waiting() == 0, "the queue is empty", timeout_s=30)
        assert Queries(here.store).stats().corrupt_lines == wanted


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of another process's memory is Linux's to tell"
)
def test_bombs_among_the_records_cost_a_monitor_no_memory(
    own_broker_url: str, tmp_path: Path, channel: Any, bz2_bomb: bytes
) -> None:
    with site(own_broker_url, tmp_path) as here, here.killable() as monitor:
        here.fail(range(10))
        here.collector.round()
        here.wait_for(range(10))
        before_kib = peak_kib(monitor.pid)
        zlib_bomb = inflated(zlib.compressobj(9))
        for _ in range(3):
            drop_bomb(channel, here.queue, bz2_bomb)
            Producer(channel, auto_declare=False).publish(
                zlib_bomb, exchange="", routing_key=here.queue,
                content_type=broker.CONTENT_TYPE, content_encoding="binary",
            )  # fmt: skip
        channel.client.lpush(here.queue, *GARBAGE)
        here.fail(range(10, 20))
        here.collector.round()
        here.wait_for(range(20))
        assert peak_kib(monitor.pid) - before_kib < 80 * 1024, f"each bomb has {BOMB_BYTES // MIB} MiB"


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_what_no_longer_fits_into_the_queue_of_what_is_set_aside_is_counted_as_dropped(
    own_broker_url: str, tmp_path: Path, channel: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broker, "MOST_SET_ASIDE", 3)
    with site(own_broker_url, tmp_path) as here:
        channel.client.lpush(here.queue, *[b"garbage"] * 8)
        with here.consuming() as consumer:
            wait_until(lambda: consumer.counters["set_aside"] == 8, "all are dealt with", timeout_s=30)
            wait_until(lambda: here.waiting() == 0, "the queue is empty", timeout_s=30)
            wait_until(lambda: Queries(here.store).stats().dropped == {"set_aside": 5}, "five are told as dropped")
        assert Queries(here.store).stats().corrupt_lines == 8
        with kombu.Connection(own_broker_url) as connection:
            aside = broker.records_queue(broker.SET_ASIDE_QUEUE, 3)(connection.default_channel)
            assert aside.queue_declare().message_count == 3
    lines = [line for line in caplog.messages if "set_aside" in line]
    assert 2 <= len(lines) <= 4, "each is said once a minute"
    assert any("were dropped" in line for line in lines)


def test_a_row_of_large_batches_is_written_in_several_transactions(
    own_broker_url: str, tmp_path: Path, channel: Any
) -> None:
    """Sixteen are taken at once; each may inflate to the limit, and all of them together may not."""
    sizes: list[int] = []
    with site(own_broker_url, tmp_path) as here:
        line = json.dumps({"record": "of-tomorrow", "padding": "x" * (6 * MIB)}).encode()
        good = broker.pack_batch([])
        assert zlib.decompress(good) == b""
        whole = zlib.decompress(broker.pack_batch([process_record()]))
        for _ in range(6):
            Producer(channel, auto_declare=False).publish(
                zlib.compress(whole + b"\n" + line, 1), exchange="", routing_key=here.queue,
                content_type=broker.CONTENT_TYPE, content_encoding="binary",
            )  # fmt: skip

        class Counting:
            def write(self, records: Any) -> Any:
                sizes.append(sum(1 for record in records if isinstance(record, ProcessRecord)))
                return here.store.write(records)

        class Facts:
            store = Counting()

        with here.consuming(Facts()) as consumer:
            wait_until(lambda: consumer.counters["batches"] == 6, "all are written", timeout_s=60)
    assert max(sizes) == 2


def process_record() -> ProcessRecord:
    return ProcessRecord(uid=new_id(), host="far", pid=1, started_at_s=1.0)
