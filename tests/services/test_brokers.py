"""The brokers that people run, under a project that knows nothing of us."""

import subprocess
import sys

import pytest
from kombu import Connection

from celery_trace.control.channel import command_address, publish, reply_address
from celery_trace.control.signing import load_key
from celery_trace.settings import Settings
from celery_trace.shell.live.client import LiveClient
from tests.support.processes import REPOSITORY, trace_environment
from tests.support.shells import answer
from tests.support.waiting import wait_until

PLAIN = REPOSITORY / "examples" / "plain"


def exists(connection, queue):
    """Whether the broker has a queue of this name."""
    with connection.channel() as channel:
        if hasattr(channel, "client"):
            return bool(channel.client.exists(queue))
        try:
            channel.queue_declare(queue, passive=True)
        except connection.channel_errors:
            return False
        return True


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_a_plain_project_is_traced_on_each_broker(broker, request, start_worker, records, trace_dir):
    broker_url = request.getfixturevalue(broker)
    worker = start_worker("tasks", PLAIN, broker_url=broker_url, settings={"shell": "live"})
    sent = subprocess.run(
        [sys.executable, "send.py", "6"],
        cwd=PLAIN,
        env=trace_environment(broker_url=broker_url, switch=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    records.wait(lambda _: records.runs_of("tasks.greet") >= 6, "six runs of tasks.greet", explain=worker.tail)
    failures = records.wait(
        lambda queries: (rows := queries.failures(name="tasks.error").rows) and len(rows) == 2 and rows,
        "the two failures of tasks.error",
        explain=worker.tail,
    )
    records.wait(
        lambda queries: all(queries.kept(row.id) for row in failures),
        "both failures are kept by the processes that failed",
        explain=worker.tail,
    )
    kept = records.queries.kept(failures[0].id)
    client = LiveClient(lambda: Connection(broker_url), load_key(Settings(dir=str(trace_dir))))
    session = client.open(kept, kept.failure, "ann", timeout_s=30.0)
    assert answer(session, "trace.task.name") == "'tasks.error'"
    addresses = command_address(kept.process), reply_address(session.id)
    with Connection(broker_url) as connection:
        publish(connection.channel(), addresses[0], b"{}")  # from somebody without the key
    assert answer(session, "1 + 1") == "2"
    worker.stop()
    assert worker.wait() == 0, worker.tail()
    wait_until(lambda: session.gone, "the goodbye arrives", explain=worker.tail)
    assert "the process ends" in session.gone
    session.close()
    assert '"refused: malformed' in (trace_dir / "strangers.jsonl").read_text()
    with Connection(broker_url) as connection:
        wait_until(lambda: not any(exists(connection, address) for address in addresses), "their queues are gone")
    (said,) = [line for line in worker.output.splitlines() if "celery-trace:" in line]
    assert "was refused (malformed)" in said
