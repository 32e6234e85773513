"""What the transport ``broker`` promises, as functions of a broker's address and an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
from celery import Celery

from celery_trace.clock import SystemClock
from celery_trace.collector import Collector
from celery_trace.errors import Unavailable
from celery_trace.model import AnyRecord, ProcessRecord, decode, new_id
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.stores import Store, StoreUnavailable, open_store
from celery_trace.stores.writing import Written
from celery_trace.transports import TransportUnavailable, broker
from tests.support.consumer import LEASE_S
from tests.support.processes import REPOSITORY
from tests.support.store_records import failure, run
from tests.support.tcp_relay import Relay
from tests.support.waiting import wait_until

CONTRACT: list[Callable[[str, Path], None]] = []


def promise(function: Callable[[str, Path], None]) -> Callable[[str, Path], None]:
    CONTRACT.append(function)
    return function


class Site:
    """A host that collects and a monitor that consumes, over one broker and a queue of their own."""

    def __init__(self, url: str, folder: Path, stack: ExitStack, options: dict[str, Any]) -> None:
        self.url = url
        self._options = options
        self.queue = f"records-{new_id()}"
        self.host = Settings(dir=str(folder / "host"), transport="broker")
        self.monitor = Settings(dir=str(folder / "monitor"))
        self.app = Celery("site", broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = options
        self._stack = stack
        stack.callback(self.app.close)
        stack.callback(self._delete_queues)
        self.store: Store = open_store(self.monitor)
        stack.callback(self.store.close)
        process = ProcessRecord(uid=new_id(), host="far", pid=1, started_at_s=1.0)
        self.writer = SpoolWriter(self.host.spool_folder, process, cap_bytes=2**26, clock=SystemClock())
        stack.callback(self.writer.close, "exit")
        address = {"hostname": url, "transport_options": options}
        self.transport = broker.BrokerTransport(lambda: broker.connect(address), self.queue)
        self.collector = Collector(self.host.spool_folder, self.transport, SystemClock())
        stack.callback(self.collector.close)

    def _delete_queues(self) -> None:
        with kombu.Connection(self.url, connect_timeout=5, transport_options=self._options) as connection:
            for name in (self.queue, broker.SET_ASIDE_QUEUE):
                broker.records_queue(name)(connection.default_channel).delete()

    def fail(self, tasks: range) -> None:
        for n in tasks:
            self.writer.append(failure(f"t{n}"))
            self.writer.append(run(f"r{n}"))

    @contextmanager
    def consuming(self, facts: Any = None) -> Iterator[broker.BrokerConsumer]:
        facts = facts or SimpleNamespace(store=self.store)
        consumer = broker.BrokerConsumer(self.app, facts, self.monitor, queue=self.queue, lease_s=LEASE_S)
        consumer.start()
        try:
            yield consumer
        finally:
            consumer.stop()

    @contextmanager
    def killable(self, url: str = "", *words: str) -> Iterator[subprocess.Popen[str]]:
        """A consumer in a process of its own; killed at the end if the test has not done so."""
        program = [sys.executable, "-m", "tests.support.consumer", url or self.url, self.queue, self.monitor.dir]
        process = subprocess.Popen([*program, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def stored(self) -> list[str]:
        return sorted(row.task_id for row in Queries(self.store).failures(limit=1000).rows)

    def wait_for(self, tasks: range) -> None:
        wanted = sorted(f"t{n}" for n in tasks)
        wait_until(lambda: self.stored() == wanted, f"{len(wanted)} failures are stored", timeout_s=60)
        assert Queries(self.store).stats().records["run"] == len(wanted)

    def waiting(self) -> int:
        with kombu.Connection(self.url, connect_timeout=5, transport_options=self._options) as connection:
            queue = broker.records_queue(self.queue)(connection.default_channel)
            return int(queue.queue_declare().message_count)


@contextmanager
def site(url: str, folder: Path, **options: Any) -> Iterator[Site]:
    """``options`` are the broker's transport options, on both ends."""
    with ExitStack() as stack:
        yield Site(url, folder, stack, options)


@promise
def records_of_a_far_host_reach_the_store(url: str, folder: Path) -> None:
    with site(url, folder) as here, here.consuming() as consumer:
        here.fail(range(300))
        here.collector.round()
        here.wait_for(range(300))
        assert consumer.counters["set_aside"] == 0


@promise
def what_was_sent_while_no_monitor_ran_is_not_lost(url: str, folder: Path) -> None:
    with site(url, folder) as here:
        for part in range(5):
            here.fail(range(part * 20, part * 20 + 20))
            here.collector.round()
        assert here.waiting() >= 5
        assert here.stored() == []
        with here.consuming():
            here.wait_for(range(100))


@promise
def a_batch_is_acknowledged_only_after_the_store_has_it(url: str, folder: Path) -> None:
    class Down:
        asked = 0

        @property
        def store(self) -> Any:
            self.asked += 1
            raise StoreUnavailable("Can't open", "it is down", "Wait.")

    down = Down()
    with site(url, folder) as here:
        here.fail(range(50))
        here.collector.round()
        with here.consuming(down):
            wait_until(lambda: down.asked >= 2, "the batch was tried twice", timeout_s=30)
        assert here.stored() == []
        with here.consuming():  # another monitor, or the same one started again
            here.wait_for(range(50))


@promise
def what_cannot_be_read_is_set_aside_and_the_rest_goes_on(url: str, folder: Path) -> None:
    with site(url, folder) as here:
        with kombu.Connection(url) as connection:
            channel = connection.default_channel
            broker.records_queue(here.queue)(channel).queue_declare()
            for body in (b"not ours", b"\x00" * 50, b""):
                kombu.Producer(channel).publish(
                    body, routing_key=here.queue, exchange="", content_type="application/x-other",
                    content_encoding="binary",
                )  # fmt: skip
        here.fail(range(10))
        here.collector.round()
        with here.consuming() as consumer:
            here.wait_for(range(10))
            wait_until(lambda: consumer.counters["set_aside"] == 3, "all three are set aside", timeout_s=30)
            wait_until(lambda: here.waiting() == 0, "the queue is empty", timeout_s=30)
        assert Queries(here.store).stats().corrupt_lines == 3
        with kombu.Connection(url) as connection:
            aside = broker.records_queue(broker.SET_ASIDE_QUEUE, broker.MOST_SET_ASIDE)(connection.default_channel)
            assert aside.queue_declare().message_count == 3


@promise
def single_records_that_cannot_be_read_or_stored_are_kept_aside_and_counted(url: str, folder: Path) -> None:
    """A newer host's kind of record, and one that the store refuses by itself, among others that are well."""
    with site(url, folder) as here:
        whole = broker.pack_batch([failure("t0"), run("r0"), failure("bad"), failure("t1"), run("r1")])
        body = zlib.compress(zlib.decompress(whole) + b'\n{"record":"of-tomorrow","id":"x"}')
        with kombu.Connection(url) as connection:
            aside_queue = broker.records_queue(broker.SET_ASIDE_QUEUE, broker.MOST_SET_ASIDE)(
                connection.default_channel
            )
            aside_queue.queue_declare()
            aside_queue.purge()  # what an earlier promise set aside on this broker
            broker.records_queue(here.queue)(connection.default_channel).queue_declare()
            kombu.Producer(connection.default_channel).publish(
                body, routing_key=here.queue, exchange="", content_type=broker.CONTENT_TYPE, content_encoding="binary"
            )

        class Picky:
            def write(self, records: Sequence[AnyRecord]) -> Written:
                taken = [record for record in records if getattr(record, "task_id", "") != "bad"]
                written = here.store.write(taken)
                written.refused = [(record, "no such letter") for record in records if record not in taken]
                return written

        with here.consuming(SimpleNamespace(store=Picky())) as consumer:
            here.wait_for(range(2))
            wait_until(lambda: Queries(here.store).stats().corrupt_lines == 2, "both are counted", timeout_s=30)
            wait_until(lambda: consumer.counters["batches"] == 1, "the batch is acknowledged", timeout_s=30)
        aside = []
        with kombu.Connection(url) as connection:
            queue = broker.records_queue(broker.SET_ASIDE_QUEUE, broker.MOST_SET_ASIDE)(connection.default_channel)
            while (message := queue.get(no_ack=True, accept=None)) is not None:
                aside.append(zlib.decompress(message.body))
        assert len(aside) == 2
        assert aside[0] == b'{"record":"of-tomorrow","id":"x"}'
        assert decode(aside[1]) == failure("bad")


@promise
def two_monitors_on_one_queue_store_each_record_once(url: str, folder: Path) -> None:
    with site(url, folder) as here, here.consuming(), here.consuming():
        for part in range(10):
            here.fail(range(part * 30, part * 30 + 30))
            here.collector.round()
        here.wait_for(range(300))


@promise
def a_full_queue_refuses_and_records_wait_in_the_spool(url: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "MOST_WAITING", 3)
        patch.setattr(broker.records_queue, "__defaults__", (broker.QUEUE, 3))
        with site(url, folder) as here:
            refused: Unavailable | None = None
            for part in range(8):
                here.fail(range(part * 5, part * 5 + 5))
                try:
                    here.collector.round()
                except TransportUnavailable as error:
                    refused = error
            assert refused is not None
            assert here.waiting() <= 4
            with here.consuming():

                def drained() -> bool:
                    try:
                        here.collector.round()
                    except TransportUnavailable:
                        return False
                    return len(here.stored()) == 40

                wait_until(drained, "all of it went through", timeout_s=60)
                here.wait_for(range(40))


@promise
def a_monitor_that_is_killed_in_a_write_leaves_its_batches_to_the_next(url: str, folder: Path) -> None:
    with site(url, folder) as here:
        for part in range(6):
            here.fail(range(part * 10, part * 10 + 10))
            here.collector.round()
        with here.killable("", "hang") as first:
            assert first.stdout is not None
            assert first.stdout.readline().startswith("took")
            first.kill()
        with here.consuming():
            here.wait_for(range(60))


@promise
def a_monitor_killed_before_it_hears_what_the_broker_handed_it_loses_nothing(url: str, folder: Path) -> None:
    port = urlsplit(url).port
    assert port is not None
    with site(url, folder) as here, Relay(port) as relay:
        here.fail(range(10))
        here.collector.round()
        with here.killable(relay.through(url)) as first:
            here.wait_for(range(10))  # it is at work
            relay.delay_s = 2.0  # from here on the broker's answers come too late for it
            here.fail(range(10, 60))
            here.collector.round()
            wait_until(lambda: here.waiting() == 0, "the broker has handed all out", timeout_s=30, every_s=0.02)
            first.kill()
            assert first.stdout is not None
            heard = first.stdout.read()
        relay.delay_s = 0.0
        assert here.stored() == sorted(f"t{n}" for n in range(10)), heard
        with here.consuming():
            here.wait_for(range(60))


@promise
def a_monitor_that_loses_its_line_takes_back_what_it_never_heard_of(url: str, folder: Path) -> None:
    port = urlsplit(url).port
    assert port is not None
    with site(url, folder) as here, Relay(port) as relay, here.killable(relay.through(url)):
        here.fail(range(10))
        here.collector.round()
        here.wait_for(range(10))
        relay.delay_s = 2.0
        here.fail(range(10, 40))
        here.collector.round()
        wait_until(lambda: here.waiting() == 0, "the broker has handed all out", timeout_s=30, every_s=0.02)
        relay.cut()
        relay.delay_s = 0.0
        relay.open()
        here.wait_for(range(40))
