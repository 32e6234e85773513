"""The collector keeps the store within its bounds, with no monitor and no cron job."""

import os
import random

import pytest

from celery_trace.clock import FakeClock
from celery_trace.collector import Collector
from celery_trace.collector.maintenance import GIVE_BACK_EVERY_S, PRUNE_EVERY_S, Maintenance
from celery_trace.model import Capture, Node
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.spool import SpoolWriter
from celery_trace.stores import open_store
from celery_trace.transports.direct import DirectTransport
from tests.support.store_records import NOW_S, failure, process


@pytest.fixture
def settings(tmp_path):
    return Settings(dir=str(tmp_path), retention_days=0.0, retention_failures=50)


@pytest.fixture
def clock():
    return FakeClock(NOW_S)


@pytest.fixture
def collector(settings, clock):
    maintenance = Maintenance(settings, clock)
    transport = DirectTransport(
        lambda: open_store(settings, clock=clock), maintenance.after_records, maintenance.after_round
    )
    collector = Collector(settings.spool_folder, transport, clock)
    yield collector
    collector.close()


def size(settings):
    store = open_store(settings, create=False)
    try:
        return Queries(store).stats().size
    finally:
        store.close()


def test_failures_beyond_their_bound_go_and_the_file_shrinks_while_the_collector_is_idle(settings, clock, collector):
    writer = SpoolWriter(settings.spool_folder, process("p1", pid=os.getpid()), cap_bytes=2**26, clock=clock)
    for number in range(2000):
        heap = [Node("str", "plain", random.Random(number).randbytes(700).hex())]
        writer.append(failure(f"t{number}", at_s=NOW_S + number, fingerprint=f"fp{number}", capture=Capture(heap=heap)))
    while collector.round():
        pass
    full = size(settings)
    assert full.failures == 2000
    clock.advance(PRUNE_EVERY_S)
    for _ in range(200):
        collector.round()
        if size(settings).failures <= 50:
            break
    assert size(settings).failures == 50
    clock.advance(GIVE_BACK_EVERY_S)
    for _ in range(200):
        collector.round()
        clock.advance(GIVE_BACK_EVERY_S)
        if size(settings).bytes < full.bytes / 2:
            break
    assert size(settings).bytes < full.bytes / 2
    assert collector.status.state == "ready"
    writer.close("exit")
