"""`trace diagnose` beside a real worker: a task that runs, one that waits in the worker, one that was tried twice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from celery import Celery

from tests.support import failing_project
from tests.support.processes import trace_environment
from tests.support.waiting import wait_until


@pytest.fixture
def client(own_broker_url):
    app = Celery("client", broker=own_broker_url, backend=own_broker_url, set_as_current=False)
    yield app
    app.close()


def test_it_knows_what_runs_what_waits_and_what_was_tried(
    start_worker, tmp_path, own_broker_url, trace_dir, records, client
):
    project = failing_project.write(tmp_path / "project")
    worker = start_worker("failing", project, settings={"memory": "off"}, concurrency=1)

    def diagnose(*words):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "failing", "trace", "diagnose", *words, "--format", "json"],
            cwd=project, env=trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    tried = client.send_task("failing.retries_once").id
    records.wait(lambda queries: len(queries.failures(task_id=tried).rows) == 2, "two tries", explain=worker.tail)
    answer = diagnose(tried)
    assert "Try 1 of failing.retries_once failed" in answer["summary"]
    assert "LookupError: attempt 1" in answer["summary"]
    known = {fact["what"] for fact in answer["known"]}
    assert "2 tries of one message ended badly: 0 retried, 1 failed" in known
    assert "It neither runs nor waits in a worker that answered (1 worker)" in known
    assert any(what.startswith("The result backend has the state FAILURE since") for what in known)

    running = client.send_task("failing.sleeps", [1]).id
    waiting = client.send_task("failing.sleeps", [2]).id
    wait_until(
        lambda: running in str(client.control.inspect(timeout=1).active())
        and waiting in str(client.control.inspect(timeout=1).reserved()),
        "one task runs and one is reserved", explain=worker.tail,
    )  # fmt: skip
    answer = diagnose(running)
    pids = [process.pid for process in worker.children()]
    assert answer["summary"].startswith("It runs now")
    assert any(f"on {worker.node}, pid {pid}" in answer["summary"] for pid in pids)
    assert {"received", "running"} <= {fact["about"] for fact in answer["known"]}
    assert "received" not in {gap["about"] for gap in answer["unknown"]}
    assert diagnose(waiting)["summary"] == f"It waits in {worker.node}, which has reserved it"
    client.control.revoke([running, waiting], terminate=True, signal="SIGKILL")

    concerns = diagnose()["concerns"]
    assert any("failing.retries_once failed: LookupError" in concern["what"] for concern in concerns), concerns
    assert not any("silent" in concern["what"] or concern["what"].startswith("collector") for concern in concerns)
