"""The brokers that people run, under a project that knows nothing of us."""

import subprocess
import sys

import pytest

from tests.support.processes import REPOSITORY, trace_environment

PLAIN = REPOSITORY / "examples" / "plain"


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_a_plain_project_is_traced_on_each_broker(broker, request, start_worker, records):
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
    worker.stop()
    assert worker.wait() == 0, worker.tail()
    assert "celery-trace:" not in worker.output, "an error of ours was logged"
