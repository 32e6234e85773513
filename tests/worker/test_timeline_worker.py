"""A real prefork worker and a real monitor: the timeline of a chain, and of a chord that waits for a member."""

import pytest
from celery import Celery

from tests.support.monitor_app import Client
from tests.support.waiting import wait_until
from tests.worker.test_monitor_command import monitor, printed

HEADER = {"Authorization": "Bearer letmein"}
TASKS = """
import pathlib, time
from celery import chain, chord
HERE = pathlib.Path(__file__).parent
app.conf.update(task_send_sent_event=True, result_backend=f"file://{HERE / 'results'}", result_chord_retry_interval=0.2)
(HERE / "results").mkdir(exist_ok=True)
@app.task
def step(value):
    time.sleep(0.2)
    return value + 1
@app.task
def breaks(value):
    raise ValueError(value)
@app.task
def held(value):
    while not (HERE / "go").exists():
        time.sleep(0.05)
    return value
@app.task
def total(values):
    return sum(values)
@app.task
def sends_chain():
    chain(step.s(1), step.s(), breaks.s()).delay()
@app.task
def sends_chord(*members):
    chord([app.tasks["proj." + member].s(2) for member in members])(total.s())
"""


@pytest.fixture
def standing(tmp_path, own_broker_url, start_worker):
    with monitor(tmp_path, own_broker_url, "--port=0", more=TASKS, CELERY_TRACE_MONITOR_PASSWORD="letmein") as program:
        address = printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n")
        node = start_worker("proj", tmp_path, pool="prefork", concurrency=3).node
        client = Client(address)

        def get(path):
            return client.get(path, headers=HEADER)

        wait_until(lambda: node in get("/workers?json=1").text, "the worker is shown")
        yield Celery(broker=own_broker_url, set_as_current=False), get


def timeline(get, id, until):
    """The timeline once it is as wanted."""

    def look():
        answer = get(f"/api/trace/workflows/{id}")
        found = answer.json() if answer.status == 200 else {"rows": [], "chords": []}
        return found if until(found) else None

    return wait_until(look, "the timeline", explain=lambda: get(f"/api/trace/workflows/{id}").text)


def names(found):
    return [(row["depth"], row["name"], row["outcome"]) for row in found["rows"]]


def test_a_chain_is_a_staircase_with_the_failure_of_its_last_task(standing):
    app, get = standing
    root = app.send_task("proj.sends_chain").id
    found = timeline(get, root, lambda found: any(row["failure"] for row in found["rows"]))
    assert names(found) == [
        (0, "proj.sends_chain", "succeeded"), (1, "proj.step", "succeeded"), (2, "proj.step", "succeeded"),
        (3, "proj.breaks", "failed"),
    ]  # fmt: skip
    for row in found["rows"][1:3]:
        waiting, running = row["spans"]
        assert (waiting["kind"], running["kind"]) == ("waiting", "running")
        assert waiting["ends_at"] == running["starts_at"]
        assert 0.15 < row["running_s"] < 30
    starts = [row["spans"][-1]["starts_at"] for row in found["rows"]]
    assert starts == sorted(starts)
    page = get(f"/trace/workflow/{root}").text
    assert f'href="/trace/failures/{found["rows"][3]["failure"]}"' in page


def whole(found):
    """Whether its chord is known with all members, as its unlock task records it; before, members record themselves."""
    return found["chords"] and found["chords"][0]["complete"]


def test_a_chord_says_which_member_its_body_waits_for_and_then_nothing(standing, tmp_path):
    app, get = standing
    root = app.send_task("proj.sends_chord", ["step", "held"]).id
    found = timeline(get, root, lambda found: whole(found) and len(found["chords"][0]["missing"]) == 1)
    (waiting,) = found["chords"]
    assert (waiting["body"], waiting["members"]) == ("proj.total", 2)
    assert (waiting["complete"], waiting["blocked"]) == (True, False)
    assert [(one["name"], one["outcome"]) for one in waiting["missing"]] == [("proj.held", "running")]
    assert "proj.total</bdi>, the body of a chord, waits for" in " ".join(get(f"/trace/workflow/{root}").text.split())
    (tmp_path / "go").touch()
    found = timeline(get, root, lambda found: any(row[1:] == ("proj.total", "succeeded") for row in names(found)))
    assert found["chords"] == []


def test_a_chord_with_a_member_that_failed_says_that_its_body_will_not_run(standing, tmp_path):
    app, get = standing
    root = app.send_task("proj.sends_chord", ["breaks", "held"]).id
    found = timeline(get, root, lambda found: whole(found) and found["chords"][0]["blocked"])
    missing = [(one["name"], one["outcome"]) for one in found["chords"][0]["missing"]]
    assert missing == [("proj.breaks", "failed"), ("proj.held", "running")]
    (tmp_path / "go").touch()
    found = timeline(get, root, lambda found: ("celery.chord_unlock", "succeeded") in {row[1:] for row in names(found)})
    (chord,) = found["chords"]
    assert (chord["body"], chord["blocked"]) == ("proj.total", True)
    assert "will not run" in get(f"/trace/workflow/{root}").text
