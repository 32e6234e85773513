"""The transport ``broker`` on Redis and RabbitMQ, and the store behind a line that breaks."""

import re
import time

import pytest
import sqlalchemy as sa

from celery_trace.clock import SystemClock
from celery_trace.collector import Collector, CollectorProcess
from celery_trace.model import ProcessRecord
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.stores import StoreUnavailable, leak_rows, open_store, schema, tables
from celery_trace.transports import TransportUnavailable
from celery_trace.transports.direct import DirectTransport
from tests.support.store_records import failure
from tests.support.tcp_relay import Relay
from tests.support.transport_contract import CONTRACT, site
from tests.support.waiting import wait_until


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_a_broker_keeps_the_promise(promise, broker, request, tmp_path):
    promise(request.getfixturevalue(broker), tmp_path)


def test_rabbitmq_that_is_stopped_and_started_again_loses_nothing(rabbitmq, tmp_path):
    with site(rabbitmq.url, tmp_path) as here:
        here.fail(range(50))
        here.collector.round()
        waiting = here.waiting()
        rabbitmq.control("stop_app")
        try:
            here.fail(range(50, 100))
            with pytest.raises(TransportUnavailable, match="wait in the spool"):
                here.collector.round()
        finally:
            rabbitmq.control("start_app")
        assert here.waiting() == waiting >= 1, "what it had confirmed stands on its disk"
        with here.consuming():
            wait_until(lambda: catches_up(here), "the spool is emptied", timeout_s=60)
            here.wait_for(range(100))


def test_rabbitmq_that_takes_nothing_for_want_of_memory_loses_nothing_and_holds_nobody_up(rabbitmq, tmp_path):
    """It stops reading from whoever publishes: without a limit of time the collector would hang for as long."""
    with site(rabbitmq.url, tmp_path) as here:
        here.fail(range(20))
        here.collector.round()
        with here.consuming():
            here.wait_for(range(20))
            rabbitmq.control("set_vm_memory_high_watermark", "0.000001")
            try:
                here.fail(range(20, 60))
                with pytest.raises(TransportUnavailable, match="wait in the spool"):
                    here.collector.round()
            finally:
                rabbitmq.control("set_vm_memory_high_watermark", "0.6")
            wait_until(lambda: catches_up(here), "the spool is emptied", timeout_s=60)
            here.wait_for(range(60))


def catches_up(here):
    try:
        here.collector.round()
    except TransportUnavailable:
        return False
    return True


@pytest.fixture(params=["postgres_url", "mariadb_url"])
def relayed(request):
    """A database behind a relay: the relay, and the address through it."""
    url = sa.make_url(request.getfixturevalue(request.param))

    def clear():
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            tables.metadata.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {schema.VERSION_TABLE}"))
        engine.dispose()

    clear()
    with Relay(url.port) as relay:
        yield relay, url.set(port=relay.port).render_as_string(hide_password=False)
    clear()


def test_a_store_that_stops_and_slows_down_loses_nothing_and_no_append_waits(relayed, tmp_path):
    relay, url = relayed
    settings = Settings(dir=str(tmp_path), store=url)
    process = ProcessRecord(uid="p1", host="h", pid=1, started_at_s=1.0)
    writer = SpoolWriter(settings.spool_folder, process, cap_bytes=2**26, clock=SystemClock())
    collector = Collector(
        settings.spool_folder, DirectTransport(lambda: open_store(settings), leak_rows.refresh), SystemClock()
    )
    took_s = []

    def fail(first):
        for n in range(first, first + 50):
            begun_s = time.monotonic()
            writer.append(failure(f"t{n}"))
            took_s.append(time.monotonic() - begun_s)

    try:
        fail(0)
        collector.round()
        for part in range(1, 4):
            relay.cut()
            fail(part * 50)
            with pytest.raises(TransportUnavailable) as refused:
                collector.round()
            assert re.search(r"records wait in the spool", str(refused.value), re.IGNORECASE)
            relay.open()
            relay.delay_s = 0.02 * part
            collector.round()
        relay.delay_s = 0.0
        store = open_store(settings)
        rows = Queries(store).failures(limit=1000).rows
        groups = Queries(store).groups().rows
        store.close()
        assert sorted(row.task_id for row in rows) == sorted(f"t{n}" for n in range(200))
        assert [group.count for group in groups] == [200]
        assert max(took_s) < 5  # no append waits for the store; benchmarks/store.py tells how long one takes
    finally:
        writer.close("exit")
        collector.close()


def test_a_collector_outlasts_a_store_that_goes_away_again_and_again_and_says_so(relayed, tmp_path):
    relay, url = relayed
    settings = Settings(dir=str(tmp_path), store=url)
    process = ProcessRecord(uid="p1", host="h", pid=1, started_at_s=1.0)
    writer = SpoolWriter(settings.spool_folder, process, cap_bytes=2**26, clock=SystemClock())
    collector = CollectorProcess(settings)
    numbers = iter(range(10_000))
    took_s = []

    def fail():
        begun_s = time.monotonic()
        writer.append(failure(f"t{next(numbers)}"))
        took_s.append(time.monotonic() - begun_s)

    def stored():
        store = open_store(settings)
        try:
            return [row.task_id for row in Queries(store).failures(limit=1000).rows]
        except StoreUnavailable:
            return []
        finally:
            store.close()

    def complains():
        fail()
        status = collector.status()
        return status is not None and status.state == "waiting" and status.why

    collector.start()
    try:
        fail()
        wait_until(lambda: stored() == ["t0"], "the first is stored", timeout_s=60, explain=lambda: collector.status())
        for _ in range(3):
            relay.cut()
            wait_until(complains, "the collector says that the store is away", timeout_s=60)
            relay.open()
            relay.delay_s = 0.01
            wait_until(
                lambda: len(stored()) == len(took_s), "it has caught up", timeout_s=60,
                explain=lambda: str((len(stored()), collector.status())),
            )  # fmt: skip
        relay.delay_s = 0.0
        tasks = stored()
        assert sorted(tasks) == sorted(f"t{n}" for n in range(len(took_s)))
        assert max(took_s) < 5  # no append waits for the store; benchmarks/store.py tells how long one takes
    finally:
        writer.close("exit")
        collector.stop()
