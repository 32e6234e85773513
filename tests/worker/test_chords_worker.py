"""Chords of real workers: what their bodies wait for, also where the result backend counts the members."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery, uuid

from celery_trace.cli.diagnosis import task
from celery_trace.settings import Settings
from tests.support.fixtures_worker import StartWorker
from tests.support.records import Records

TASKS = """
import os, pathlib, time
from celery import Celery, chord
HERE = pathlib.Path(__file__).parent
app = Celery("chorded", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CHORD_BACKEND"])
app.conf.update(result_chord_retry_interval=0.1, broker_connection_retry_on_startup=True)

@app.task(name="chorded.step")
def step(value):
    return value

@app.task(name="chorded.held")
def held():
    while not (HERE / "go").exists():
        time.sleep(0.05)

@app.task(name="chorded.sends", ignore_result=True)
def sends(ids):
    members = [step.s(1), held.si(), step.s(2)]
    chord([member.set(task_id=id) for member, id in zip(members, ids)])(total.s())

@app.task(name="chorded.total")
def total(values):
    (HERE / "done").touch()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "results").mkdir(parents=True)
    (folder / "chorded.py").write_text(TASKS)
    return folder


def send(app: Celery) -> tuple[str, str]:
    """Have a task send a chord of three members, one of which is held: the ids of that and of one that ends."""
    step, held, other = uuid(), uuid(), uuid()
    app.send_task("chorded.sends", ([step, held, other],), ignore_result=True)
    return held, step


@pytest.mark.timeout(120)
@pytest.mark.parametrize("counts", [True, False])
def test_a_body_that_waits_is_explained_and_looking_for_it_is_no_failure(
    start_worker: StartWorker, records: Records, own_broker_url: str, trace_dir: Path, project: Path, counts: bool
) -> None:
    backend = own_broker_url if counts else f"file://{project / 'results'}"
    worker = start_worker(
        "chorded", project, concurrency=2, settings={"memory": "off"}, extra={"CHORD_BACKEND": backend}
    )
    with Celery(broker=own_broker_url, backend=backend, set_as_current=False) as app:
        held, step = send(app)

        def chords() -> int:
            return len(records.queries.chords_of(held))

        records.wait(lambda _: chords() >= (1 if counts else 2), "the chord is recorded", explain=worker.tail)
        (known, *_) = [one for one in records.queries.chords_of(held) if one.unlock or counts]
        assert known.body == "chorded.total"
        if counts:
            for asked in (held, step):
                records.wait(lambda _: records.queries.running().rows, "it runs")
                facts = task.chord(task.Asked(asked, records.queries, app, Settings(dir=str(trace_dir))))
                first, member = [getattr(fact, "what", "") for fact in facts]
                assert first == f"chorded.total of chord {known.group} waits for 1 of 3 members"
                assert member.startswith(f"Its member {held} (chorded.held) runs on {worker.node}, pid ")
        else:
            assert len(known.members) == 3
            assert known.complete
        (project / "go").touch()
        records.wait(lambda _: (project / "done").exists(), "the body has run")
        assert records.queries.failures().rows == []
