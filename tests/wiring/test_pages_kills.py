"""A message that killed several processes, and a task that finished in vain, as pages and JSON show them."""

from __future__ import annotations

import json
import time
from base64 import b64encode

import pytest
from msgspec.structs import replace

from celery_trace.model import Kill, LastSample, Line, Outcome
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.support import store_records as make
from tests.support.monitor_app import Client, make_monitor, serving


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    now_s = time.time()
    store = open_store(settings)
    store.write([make.process("p1", started_at_s=now_s - 900)])
    for number in range(6):  # each kill is a record of its own, of one id
        at_s = now_s - 600 + 60 * number
        sample = LastSample(at_s=at_s, age_s=0.1, stack=[Line("/srv/shop.py", 7, "pay")], crash="Segmentation fault")
        kill = Kill(at_s=at_s, pid=100 + number, process="main", worker="w1@h1")
        poison = make.failure(
            "poison", outcome=Outcome.LOST, exception=None, at_s=at_s, pid=100 + number, fingerprint="l"
        )
        store.write([replace(poison, kills=[kill], last_sample=sample)])
    vain = make.failure("vain", outcome=Outcome.INTERNAL_ERROR, at_s=now_s - 5)
    store.write([replace(vain, note="The task had finished; its result could not be stored", returned="[4711]")])
    store.close()
    with serving(
        lambda: make_monitor(folder, settings=settings, pairs=("lou:1", "val:2"), roles=("lou:look", "val:locals"))
    ) as (base, _):
        yield base


def get(base, pair, path):
    header = {"Authorization": "Basic " + b64encode(pair.encode()).decode()}
    answer = Client(base).get(path, headers=header)
    assert answer.status == 200, path
    return answer.text


def test_the_list_and_the_page_count_the_kills_of_one_message(monitor):
    (row,) = json.loads(get(monitor, "lou:1", "/api/trace/failures?outcome=lost"))["failures"]
    assert (row["kills"], row["count"], row["pid"]) == (6, 1, 105)
    one = json.loads(get(monitor, "lou:1", f"/api/trace/failures/{row['id']}"))
    assert [kill["pid"] for kill in one["killed"]] == [100, 101, 102, 103, 104, 105]
    assert "killed 6 times" in get(monitor, "lou:1", "/trace/failures/all?outcome=lost")
    page = get(monitor, "lou:1", f"/trace/failures/{row['id']}")
    assert "Killed 6 times" in page
    assert page.index("pid 105</li>") < page.index("pid 100</li>"), "the last one first"
    assert "Crash location" in page
    assert "Segmentation fault" in page


def test_what_a_task_returned_is_shown_to_those_who_may_see_values(monitor):
    (row,) = json.loads(get(monitor, "val:2", "/api/trace/failures?outcome=internal_error"))["failures"]
    for path in (f"/api/trace/failures/{row['id']}", f"/trace/failures/{row['id']}"):
        assert "4711" in get(monitor, "val:2", path)
        hidden = get(monitor, "lou:1", path)
        assert "4711" not in hidden
        assert "The task had finished; its result could not be stored" in hidden
