"""Real workers on one host, a real monitor on another, a broker between them, and a monitor that is killed."""

import sys
from contextlib import contextmanager

import pytest
from celery import Celery

from tests.support.processes import Program, trace_environment
from tests.support.records import open_records
from tests.support.waiting import wait_until

#: Longer than the lease, after which the next monitor takes what the killed one had in its hands.
DEADLINE_S = 150

PROJECT = """
from celery import Celery

app = Celery("mill")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task
def grind(number):
    if number % 2:
        raise ValueError(f"sack {number} is torn")
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mill.py").write_text(PROJECT)
    return folder


@pytest.fixture
def monitoring(project, own_broker_url, tmp_path):
    """The monitor of another host: it shares the broker with the workers, and no folder."""

    @contextmanager
    def start():
        environment = trace_environment(
            broker_url=own_broker_url, trace_dir=tmp_path / "elsewhere", settings={"transport": "broker"}
        )
        words = [sys.executable, "-m", "celery", "-A", "mill", "monitor", "--port=0"]
        with Program(words, cwd=project, environment=environment, log=tmp_path / "monitor.log") as monitor:
            yield monitor

    return start


@pytest.mark.timeout(300)
def test_what_a_far_worker_recorded_reaches_the_store_of_a_monitor_that_is_killed_and_started_again(
    project, own_broker_url, start_worker, monitoring, tmp_path
):
    worker = start_worker("mill", project, settings={"memory": "rss", "transport": "broker"}, concurrency=2)
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    failed = []

    def grind(numbers):
        for number in numbers:
            sent = client.send_task("mill.grind", [number])
            if number % 2:
                failed.append(sent.id)

    def stored(records):
        rows = records.queries.failures(limit=1000).rows
        groups = records.queries.groups(limit=10).rows
        return sorted(row.task_id for row in rows), sum(group.count for group in groups)

    try:
        with monitoring() as monitor, open_records(tmp_path / "elsewhere") as records:
            grind(range(100))
            records.wait(lambda _: stored(records)[0], "the first failures", timeout_s=90, explain=monitor.tail)
            grind(range(100, 200))
            monitor.kill()
        grind(range(200, 300))
        raised = "raised unexpected"
        wait_until(lambda: worker.output.count(raised) >= 150, "all tasks went", timeout_s=90, explain=worker.tail)
        with monitoring() as monitor, open_records(tmp_path / "elsewhere") as records:
            records.wait(
                lambda _: len(stored(records)[0]) == 150 and records.runs_of("mill.grind") == 300, "all of them",
                timeout_s=DEADLINE_S, explain=lambda: f"{stored(records)} {monitor.tail()} {worker.tail()}",
            )  # fmt: skip
            assert stored(records) == (sorted(failed), 150)
    finally:
        client.close()
    assert not (tmp_path / "trace" / "trace.db").exists(), "no store on the worker's host"
