"""A real worker under load whose main process, child or collector is killed: what failed against what is recorded."""

import psutil
import pytest
from celery import Celery

from celery_trace.collector import CollectorProcess
from celery_trace.model import Outcome, Role
from celery_trace.settings import Settings
from tests.support.waiting import wait_until

CHILDREN = 3

BAKERY = """
import os
import time

from celery import Celery

app = Celery("bakery")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)


def tell(file, task):
    fd = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(fd, f"{task.request.id}\\n".encode())
    os.close(fd)


@app.task(bind=True)
def burn(self, number):
    tell("burnt", self)
    raise ValueError(f"loaf {number} is burnt")


@app.task(bind=True)
def bake(self):
    tell("baking", self)
    time.sleep(600)
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "bakery.py").write_text(BAKERY)
    return folder


@pytest.fixture
def send(own_broker_url):
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    yield lambda name, *args: client.send_task(f"bakery.{name}", args).id
    client.close()


def told(project, file):
    """The ids of tasks that went so far."""
    path = project / file
    return path.read_text().split() if path.exists() else []


def wait_told(project, file, least, worker):
    wait_until(lambda: len(told(project, file)) >= least, f"{least} tasks in {file}", explain=worker.tail)


def traced(worker):
    """The worker's processes without its collector: the main process first."""
    return [process for process in worker.family() if "celery_trace.collector" not in " ".join(process.cmdline())]


def outcomes(records):
    """Outcome by task; how many rows that are; how many the groups count."""
    rows = records.queries.failures(limit=1000).rows
    counted = sum(group.count for group in records.queries.groups(limit=1000).rows)
    return {row.task_id: row.outcome for row in rows}, len(rows), counted


def assert_all_recorded(project, records, settings):
    """Whatever the old collector still did: with the next one at work, everything stands there once."""
    burnt, baking = told(project, "burnt"), told(project, "baking")
    collector = CollectorProcess(settings)
    collector.start()
    try:
        records.wait(
            lambda _: len(outcomes(records)[0]) >= len(burnt) + len(baking), "all failures",
            explain=lambda: str((len(outcomes(records)[0]), len(burnt), collector.status())),
        )  # fmt: skip
        wait_until(lambda: not list(settings.spool_folder.glob("*.lock")), "all the dead are adopted")
    finally:
        collector.stop()
    found, rows, counted = outcomes(records)
    assert set(found) == set(burnt) | set(baking)
    assert rows == counted == len(burnt) + len(baking)
    assert [found[task_id] for task_id in baking] == [Outcome.LOST]
    # A task that was killed after its last word and before its exception was lost in fact: one a child at most.
    assert [found[task_id] for task_id in burnt].count(Outcome.FAILED) >= len(burnt) - CHILDREN
    assert set(found.values()) == {Outcome.FAILED, Outcome.LOST}


def killed_children(records):
    views = [view for row in records.queries.workers(since_s=0).rows for view in row.processes]
    return [view.ended_how for view in views if view.role == Role.CHILD].count("killed")


def begin(project, start_worker, send):
    """A worker that has failed often, fails on, and is in the middle of one run that does not fail."""
    worker = start_worker("bakery", project, settings={"memory": "rss"}, concurrency=CHILDREN)
    send("bake")
    for number in range(400):
        send("burn", number)
    wait_told(project, "baking", 1, worker)
    wait_told(project, "burnt", 100, worker)
    return worker


def test_a_worker_killed_as_a_whole_loses_no_failure_and_its_run_in_progress_is_told(
    project, start_worker, send, records, trace_dir
):
    worker = begin(project, start_worker, send)
    family = traced(worker)
    for process in family:  # as the kernel or an orchestrator does it
        process.kill()
    worker.wait()
    psutil.wait_procs(family[1:], timeout=30)
    assert len(told(project, "burnt")) < 400, "it was killed in the middle"
    assert_all_recorded(project, records, Settings(dir=str(trace_dir)))
    assert killed_children(records) == CHILDREN


def test_a_main_process_that_is_killed_leaves_nothing_unsaid_by_its_children(
    project, start_worker, send, records, trace_dir
):
    worker = begin(project, start_worker, send)
    family = traced(worker)
    worker.kill()
    _, orphans = psutil.wait_procs(family[1:], timeout=30)
    assert orphans == [], "Celery asks the kernel to end the children of a main process that dies"
    assert_all_recorded(project, records, Settings(dir=str(trace_dir)))
    assert killed_children(records) == CHILDREN


def test_a_collector_killed_under_a_worker_is_started_again_and_nothing_is_lost_or_doubled(
    project, start_worker, send, records, trace_dir
):
    worker = start_worker("bakery", project, settings={"memory": "rss"}, concurrency=CHILDREN)
    for number in range(300):
        send("burn", number)
    collectors = []

    def others(known):
        return [process for process in worker.children("celery_trace.collector") if process not in known]

    for least in (30, 120):
        wait_told(project, "burnt", least, worker)
        collectors.append(
            wait_until(lambda: others(collectors), "a collector, again and again", timeout_s=60, explain=worker.tail)[0]
        )
        collectors[-1].kill()
    wait_told(project, "burnt", 300, worker)
    records.wait(lambda _: outcomes(records)[1] == 300, "all failures", explain=worker.tail)
    worker.stop()
    found, rows, counted = outcomes(records)
    assert set(found) == set(told(project, "burnt"))
    assert rows == counted == 300
