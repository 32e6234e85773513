"""The transport ``broker`` on Redis and RabbitMQ, and the store behind a line that breaks."""

import re
import time

import pytest
import sqlalchemy as sa

from celery_trace.clock import SystemClock
from celery_trace.collector import Collector
from celery_trace.model import ProcessRecord
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.stores import leak_rows, migration, open_store, schema
from celery_trace.transports import TransportUnavailable
from celery_trace.transports.direct import DirectTransport
from tests.support.store_records import failure
from tests.support.tcp_relay import Relay
from tests.support.transport_contract import CONTRACT


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_a_broker_keeps_the_promise(promise, broker, request, tmp_path):
    promise(request.getfixturevalue(broker), tmp_path)


@pytest.fixture(params=["postgres_url", "mariadb_url"])
def relayed(request):
    """A database behind a relay: the relay, and the address through it."""
    url = sa.make_url(request.getfixturevalue(request.param))

    def clear():
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            schema.metadata.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {migration.VERSION_TABLE}"))
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
            begun_s = time.thread_time()
            writer.append(failure(f"t{n}"))
            took_s.append(time.thread_time() - begun_s)

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
        assert sorted(took_s)[int(len(took_s) * 0.99)] < 0.001
    finally:
        writer.close("exit")
        collector.close()
