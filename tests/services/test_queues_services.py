"""Queues on the brokers that people run: their length, their consumers, and how long messages wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from celery_trace.queries import Queries
from celery_trace.runtime.plugin import CeleryTrace
from celery_trace.settings import Settings
from flower_plugin.incoming.queues import QueueReader
from tests.support.processes import REPOSITORY
from tests.support.records import Records

APP = "tests.support.flow_project"


@pytest.mark.parametrize(("broker", "counts_consumers"), [("redis_url", False), ("rabbitmq_url", True)])
def test_a_queues_length_consumers_and_waits_are_read(
    broker: str,
    counts_consumers: bool,
    request: pytest.FixtureRequest,
    start_worker: Callable[..., Any],
    records: Records,
    tmp_path: Path,
) -> None:
    broker_url = request.getfixturevalue(broker)
    app = Celery("flowing", broker=broker_url, set_as_current=False)
    app.conf.task_queues = [Queue("celery", routing_key="celery"), Queue("unread", routing_key="unread")]
    plugin = CeleryTrace(app, Settings(dir=str(tmp_path / "publisher")))
    reader = QueueReader(app)
    for _ in range(3):
        app.send_task("flowing.nap", (0.1,), queue="unread")
        app.send_task("flowing.nap", (0.1,), queue="celery")
    found = reader.read(["unread", "celery", "nothing", "unread"], time.time())
    assert (found["unread"].depth, found["celery"].depth) == (3, 3)
    assert found["unread"].consumers == (0 if counts_consumers else None)
    assert (found["unread"].oldest_age_s is None) == counts_consumers
    assert ("nothing" in found) != counts_consumers, "in Redis an empty queue does not exist"
    worker = start_worker(
        APP, REPOSITORY, broker_url=broker_url, settings={"memory": "off"}, extra={"PYTHONPATH": str(REPOSITORY)},
        concurrency=1,
    )  # fmt: skip

    def started(queries: Queries) -> bool:
        return any(flow.started == 3 and flow.queue == "celery" for flow in queries.task_flows())

    records.wait(started, "three starts", explain=worker.tail)
    (flow,) = records.queries.task_flows()
    assert flow.wait_p95_s is not None
    assert flow.transfer_p95_s is not None
    (state,) = records.queries.consuming()
    assert state.visibility_timeout_s == (None if counts_consumers else 3600.0)
    found = reader.read(["celery", "unread"], time.time())
    assert (found["celery"].depth, found["unread"].depth) == (0, 3)
    assert found["celery"].consumers == (1 if counts_consumers else None)
    reader.close()
    plugin.close()
    app.close()
