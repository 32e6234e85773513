"""Batches of celery-batches in real workers: Celery's own signals do not tell that one has failed."""

from __future__ import annotations

import pytest
from celery import Celery

TASKS = """
import os

from celery import Celery
from celery_batches import Batches

app = Celery("bulk")


@app.task(base=Batches, flush_every=3, flush_interval=60)
def store(requests):
    total = sum(request.args[0] for request in requests)
    if any(request.kwargs.get("password") for request in requests):
        raise ValueError(f"can't store {total}")


@app.task
def single(number):
    return number
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "bulk.py").write_text(TASKS)
    return folder


@pytest.fixture
def client(own_broker_url):
    app = Celery("client", broker=own_broker_url, set_as_current=False)
    app.conf.task_ignore_result = True
    yield app
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_batch_that_fails_is_recorded_once_with_the_ids_of_its_requests(
    start_worker, project, client, records, trace_dir, pool
):
    worker = start_worker("bulk", project, settings={"memory": "off"}, pool=pool, concurrency=1)
    good = [client.send_task("bulk.store", (number,)).id for number in range(3)]
    bad = [client.send_task("bulk.store", (number,), {"password": "hunter2"}).id for number in (10, 20, 30)]
    client.send_task("bulk.single", (1,))

    def look(queries):
        rows = queries.failures().rows
        assert len(rows) <= 1, rows
        return rows and queries.failure(rows[0].id)

    failure = records.wait(look, "the batch that failed", explain=worker.tail)
    assert (failure.name, failure.outcome, failure.task_id) == ("bulk.store", "failed", bad[0])
    assert (failure.exception.type, failure.exception.message) == ("ValueError", "can't store 60")
    assert failure.note == f"a batch of 3 requests: {', '.join(bad)}"
    (frame,) = [frame for frame in failure.frames if frame.in_app]
    assert frame.function == "store"
    assert {local.name: local.value for local in frame.locals}["total"] == "60"
    assert not any(id in failure.note for id in good)
    assert "celery_trace" not in "".join(frame.file for frame in failure.frames)
    assert failure.task.queue == "celery"

    def counted(queries):
        totals = {}
        for rollup in queries.rollups():
            runs, failed = totals.get(rollup.name, (0, 0))
            totals[rollup.name] = runs + rollup.runs, failed + rollup.failed
        return totals == {"bulk.store": (2, 1), "bulk.single": (1, 0)} or None

    records.wait(counted, "each batch counted as one run", explain=worker.tail)
    worker.stop()
    for path in trace_dir.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()
