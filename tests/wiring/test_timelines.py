"""The timeline of a workflow in a monitor: from a store and Flower's memory to the page and the JSON."""

import re
import time
from base64 import b64encode
from urllib.parse import quote

import pytest

from celery_trace.model import Chord, Kind, MemoryState, Run, Sample
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.support import monitor_facts
from tests.support.hostile_text import TEXTS
from tests.support.monitor_app import Client, eventually, make_monitor, serving
from tests.support.monitor_facts import ROOT

SECRET = "customer-4711"
CELERYS_ROOT = "c0000000-0000-4000-8000-000000000000"
REQUEST = "0123456789abcdef"
A, B = "a0000000-0000-4000-8000-000000000000", "b0000000-0000-4000-8000-000000000000"


def deliver(app, *bodies):
    """Events as the broker delivers them; returns when the loop has processed all."""
    with app.capp.connection() as connection:
        receiver = app.events.receiver(connection)
        for body in bodies:
            receiver.receive(body)
    eventually(lambda: not app.events._draining)


def event(kind, uuid, at_s, root_id=CELERYS_ROOT, **more):
    sound = {"type": kind, "uuid": uuid, "hostname": "celery@w", "timestamp": at_s, "clock": 1, "utcoffset": 0}
    return {**sound, "pid": 1, "root_id": root_id, **more}


def chord(now_s):
    """A request's task that sent a chord: one member has succeeded, one runs, and nobody has sent the body."""
    return [
        event("task-received", CELERYS_ROOT, now_s - 50, name="shop.start"),
        event("task-started", CELERYS_ROOT, now_s - 40),
        event("task-succeeded", CELERYS_ROOT, now_s - 39),
        event("task-sent", A, now_s - 39, name="shop.a", parent_id=CELERYS_ROOT, queue="slow"),
        event("task-received", A, now_s - 38, name="shop.a", parent_id=CELERYS_ROOT),
        event("task-started", A, now_s - 30),
        event("task-succeeded", A, now_s - 20),
        event("task-received", B, now_s - 38, name="shop.b", parent_id=CELERYS_ROOT),
        event("task-started", B, now_s - 30),
        event("task-received", "unlock", now_s - 38, name="celery.chord_unlock", parent_id=CELERYS_ROOT),
        event("task-started", "unlock", now_s - 37),
        event("task-retried", "unlock", now_s - 37),
    ]


def stored(now_s):
    """What the store has of that workflow."""
    return [
        # A worker records the chord when its unlock task is retried.
        Chord(
            group="g", at_s=now_s - 37, root_id=REQUEST, unlock="unlock", body="shop.total", members=[A, B],
            complete=True,
        ),
        Sample(process="child-1", at_s=now_s - 25, memory=MemoryState(rss_bytes=77 * 1024 * 1024)),
        Run(
            id="run-a", process="child-1", kind=Kind.TASK, name="shop.a", task_id=A, root_id=REQUEST, queue="slow",
            started_at_s=now_s - 30, duration_s=10.0, state="SUCCESS", kept_bytes=2048,
        ),
        Run(
            id="run-web", process="child-1", kind=Kind.REQUEST, name="GET /pay/", task_id=REQUEST,
            started_at_s=now_s - 52, duration_s=1.5, state="200",
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timelines")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    now_s = time.time()
    store = open_store(settings)
    monitor_facts.fill(store, now_s)
    store.write(stored(now_s))
    store.close()
    with serving(lambda: make_monitor(folder, settings=settings, pairs=("lou:1",), roles=("lou:look",))) as (base, app):
        deliver(app, *chord(now_s))
        header = {"Authorization": "Basic " + b64encode(b"lou:1").decode()}
        yield app, lambda path, **more: Client(base).get(path, **{"headers": header, **more})


@pytest.mark.parametrize("id", [REQUEST, CELERYS_ROOT, A])
def test_request_and_tasks_are_one_workflow_by_whatever_id_it_is_asked_for(monitor, id):
    _, get = monitor
    found = get(f"/api/trace/workflows/{id}").json()
    assert (found["id"], found["first"]) == (id, REQUEST)
    rows = [(row["depth"], row["kind"], row["name"], row["outcome"]) for row in found["rows"]]
    assert rows[:2] == [(0, "request", "GET /pay/", "succeeded"), (1, "task", "shop.start", "succeeded")]
    assert sorted(rows[2:]) == [
        (2, "task", "celery.chord_unlock", "retried"), (2, "task", "shop.a", "succeeded"),
        (2, "task", "shop.b", "running"),
    ]  # fmt: skip
    assert found["outcomes"] == {"succeeded": 3, "running": 1, "retried": 1}
    (a,) = [row for row in found["rows"] if row["id"] == A]
    assert (a["run"], a["queue"], a["kept_bytes"], a["unknown"]) == ("run-a", "slow", 2048, [])
    assert a["rss_bytes"] >= 77 * 1024 * 1024
    assert (round(a["waiting_s"]), round(a["running_s"])) == (9, 10)


def test_a_chord_says_which_member_its_body_waits_for_and_no_argument(monitor):
    _, get = monitor
    answer = get(f"/api/trace/workflows/{REQUEST}")
    (chord,) = answer.json()["chords"]
    assert chord == {
        "unlock": "unlock", "body": "shop.total", "members": 2, "complete": True, "blocked": False,
        "missing": [{"id": B, "name": "shop.b", "outcome": "running"}],
    }  # fmt: skip
    page = get(f"/trace/workflow/{REQUEST}")
    words = " ".join(page.text.split())
    assert "<bdi>shop.total</bdi>, the body of a chord, waits for" in words
    assert "<bdi>shop.b</bdi> (running)" in words
    assert SECRET not in answer.text + page.text


def test_the_page_is_a_table_that_has_the_figures_of_each_bar_in_words(monitor):
    _, get = monitor
    page = get(f"/trace/workflow/{REQUEST}").text
    assert page.count('<th scope="row"') == 5
    text = "waiting for 9 s, from 13 s after the start; running for 10 s, from 22 s after the start"
    assert f'aria-label="{text}"' in re.sub(r"(\d)\.0\d* s", r"\1 s", page)
    assert 'href="/trace/runs/task/shop.a?run=run-a"' in page
    assert f'href="/task/{B}"' in page
    assert "Unknown: when it was sent" in page
    assert " style=" not in page.partition("<main")[2]  # the content security policy refuses it


def test_failures_and_runs_of_the_store_are_enough_and_their_pages_link_to_the_timeline(monitor):
    _, get = monitor
    found = get(f"/api/trace/workflows/{ROOT}").json()
    assert {row["name"] for row in found["rows"] if row["failure"]} == {
        "shop.tasks.create_error", "shop.mail.send", "shop.tasks.charge",
    }  # fmt: skip
    failure = next(row["failure"] for row in found["rows"] if row["failure"])
    assert f'href="/trace/workflow/{ROOT}"' in get(f"/trace/failures/{failure}").text
    run = next(row for row in found["rows"] if row["run"] and not row["failure"])
    assert f'href="/trace/workflow/{ROOT}"' in get(f"/trace/runs/task/{run['name']}?run={run['run']}").text


def test_a_task_that_only_flower_has_leads_to_its_root(monitor):
    app, get = monitor
    now_s = time.time()
    deliver(app, event("task-received", "root", now_s - 9, root_id="root", name="shop.root"),
            event("task-received", "kid", now_s - 8, root_id="root", parent_id="root", name="shop.kid"))  # fmt: skip
    found = get("/api/trace/workflows/kid").json()
    assert [(row["id"], row["depth"], row["outcome"]) for row in found["rows"]] == [
        ("root", 0, "waiting"), ("kid", 1, "waiting"),
    ]  # fmt: skip


def test_an_unknown_id_is_not_found_and_nobody_sees_a_timeline_without_a_login(monitor):
    _, get = monitor
    for path in ("/trace/workflow/nothing", "/api/trace/workflows/nothing"):
        assert get(path).status == 404
    assert "Workflow not found." in get("/trace/workflow/nothing").text
    assert get(f"/api/trace/workflows/{REQUEST}", headers={}).status == 401
    assert get(f"/trace/workflow/{REQUEST}", headers={}).status == 401


def test_hostile_names_ids_parents_and_times_are_rows_like_others(monitor):
    app, get = monitor
    now_s = time.time()
    taken = app.events.check.refused
    bodies = [
        event("task-received", f"t{number} {text}"[:300], now_s - number, name=text[:300], root_id="hostile",
              parent_id=text[:300])
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    bodies += [event("task-started", "old", 1.0, root_id="hostile", name="old"),
               event("task-received", "future", now_s + 80_000, root_id="hostile", name="future")]  # fmt: skip
    deliver(app, *bodies)
    found = get("/api/trace/workflows/hostile").json()
    assert sum(found["outcomes"].values()) > 100
    assert len(found["rows"]) + found["more"] == sum(found["outcomes"].values())
    assert found["ends_at"] - found["begins_at"] < 2 * len(TEXTS) + 60
    page = get("/trace/workflow/hostile")
    assert page.status == 200
    assert "<img src=x" not in page.text
    assert "<script>window" not in page.text
    assert app.events.check.refused >= taken
    for row in [row for row in found["rows"] if row["remembered"]][:20]:
        assert get(f"/trace/workflow/{quote(row['id'], safe='')}").status == 200
