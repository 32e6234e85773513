"""A group of failures in the monitor: its page, what users decide about it, and sending its tasks again."""

import json
import time
from base64 import b64encode

import pytest

from celery_trace.clock import FakeClock
from celery_trace.model import Capture, Node, Outcome
from celery_trace.queries import Queries
from celery_trace.settings import load
from celery_trace.stores import open_store
from flower_plugin import retries
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.retries import MOST_REASONS, CannotBegin, Retries
from tests.support import monitor_facts
from tests.support.monitor_app import Client, eventually, make_monitor, serving
from tests.support.store_records import failure

GROUP = "/api/trace/groups/group-0"
PEOPLE = ("lou:look", "val:locals", "vic:locals", "liv:live")


def heap(redacted=False):
    value = Node("str", "redacted") if redacted else Node("int", "plain", 7)
    nodes = [Node("tuple", "tuple", None, [1], [], 1), value, Node("dict", "dict", None, [], [], 0)]
    return Capture(args=0, kwargs=2, heap=nodes)


@pytest.fixture
def settings(tmp_path):
    settings = load({"trace_dir": str(tmp_path), "trace_collector": False}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    now_s = time.time()
    store.write(
        [
            failure(f"again-{n}", fingerprint="again", name="shop.again", at_s=now_s - n, capture=heap())
            for n in range(5)
        ]
        + [failure("holed", fingerprint="again", name="shop.again", at_s=now_s - 50, capture=heap(redacted=True))]
        + [failure("by-celery", fingerprint="again", name="shop.again", outcome=Outcome.RETRIED, at_s=now_s - 60)]
    )
    store.close()
    return settings


@pytest.fixture
def monitor(settings, tmp_path):
    pairs = tuple(f"{one.partition(':')[0]}:pw" for one in PEOPLE)
    with serving(lambda: make_monitor(tmp_path, settings=settings, pairs=pairs, roles=PEOPLE)) as found:
        yield found


def ask(monitor, who, path, body=None, method="POST"):
    header = {"Authorization": "Basic " + b64encode(f"{who}:pw".encode()).decode()}
    return Client(monitor[0]).request(method, path, body, headers=header)


def page(monitor, who="liv", query=""):
    return ask(monitor, who, f"/trace/failures/groups/group-0{query}", method="GET").text


def group(monitor, who="val", fingerprint="group-0"):
    return ask(monitor, who, f"/api/trace/groups/{fingerprint}", method="GET").json()


def audited(tmp_path):
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


def test_a_groups_page_has_its_trend_tags_and_failures(monitor):
    text = page(monitor)
    for part in ("ZeroDivisionError", "Trend", "<title>", "First seen", "Worker", "Queue", "Comments", "Assign"):
        assert part in text
    rows = Queries(monitor[1].context.store).failures(fingerprint="group-0").rows
    assert all(f"/trace/failures/{row.id}" in text for row in rows)
    assert text.count("data-pick=") == len(rows)
    assert 'aria-current="true">24 hours' in " ".join(page(monitor, query="?trend=day").split()).replace("> 24", ">24")


def test_a_group_that_is_not_there_is_no_error_of_ours(monitor):
    assert ask(monitor, "val", "/trace/failures/groups/nothing", method="GET").status == 404
    assert ask(monitor, "val", "/api/trace/groups/nothing", method="GET").status == 404
    for change, body in (("assign", {"to": "x"}), ("ignore", {"seconds": 5}), ("comments", {"text": "x"}),
                         ("reopen", {}), ("retry", {})):  # fmt: skip
        assert ask(monitor, "liv", f"/api/trace/groups/nothing/{change}", body).status == 404


def test_who_may_not_see_values_sees_no_message_and_no_comment(monitor):
    ask(monitor, "val", f"{GROUP}/comments", {"text": "customer 4711 called"})
    assert "customer 4711" in page(monitor, "val")
    for text in (page(monitor, "lou"), json.dumps(group(monitor, "lou"))):
        assert "customer 4711" not in text
        assert "division by zero" not in text
    assert "data-post" not in page(monitor, "lou")


def test_every_decision_is_audited_with_its_user(monitor, tmp_path):
    for change, body in (("assign", {"to": " ann "}), ("ignore", {"seconds": 3600}), ("comments", {"text": "seen"}),
                         ("resolve", {}), ("reopen", {})):  # fmt: skip
        assert ask(monitor, "val", f"{GROUP}/{change}", body).status == 200
        assert audited(tmp_path)[-1]["user"] == "val"
        assert audited(tmp_path)[-1]["command"] == f"POST {GROUP}/{change}"
        assert ask(monitor, "lou", f"{GROUP}/{change}", body).status == 403
    found = group(monitor)
    assert (found["assigned_to"], found["state"], found["ignored_by"]) == ("ann", "ignored", "val")
    assert [(one["user"], one["text"]) for one in found["comments"]] == [("val", "seen")]
    text = page(monitor)
    assert "ann" in text
    assert "seen" in text


def test_a_comment_is_removed_by_its_author_or_a_user_with_the_role_live(monitor):
    ids = [ask(monitor, "val", f"{GROUP}/comments", {"text": text}).json()["comment"]["id"] for text in ("one", "two")]
    assert ask(monitor, "vic", f"/api/trace/comments/{ids[0]}/remove").status == 403
    assert ask(monitor, "val", f"/api/trace/comments/{ids[0]}/remove").status == 200
    assert ask(monitor, "liv", f"/api/trace/comments/{ids[1]}/remove").status == 200
    assert ask(monitor, "liv", f"/api/trace/comments/{ids[1]}/remove").status == 404
    assert group(monitor)["comments"] == []


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ("assign", {"to": 5}), ("assign", {"to": "x" * 300}), ("ignore", {}), ("ignore", {"seconds": True}),
        ("ignore", {"seconds": -1}), ("ignore", {"seconds": 1e12}), ("comments", {"text": "  "}),
        ("comments", {"text": "x" * 5000}), ("comments", {}), ("retry", {"ids": "all"}), ("retry", {"ids": [5]}),
        ("retry", {"ids": ["x"] * 2000}),
    ],
)  # fmt: skip
def test_what_is_not_a_decision_is_refused(monitor, change, body):
    answer = ask(monitor, "liv", f"{GROUP}/{change}", body)
    assert answer.status == 400
    assert answer.json()["error"]["what"]


def test_a_secret_in_a_comment_is_redacted(monitor):
    ask(monitor, "val", f"{GROUP}/comments", {"text": "try password=hunter2hunter2 first"})
    assert "hunter2" not in json.dumps(group(monitor))


# --- sending again


@pytest.fixture
def sent(monitor, monkeypatch):
    """The messages that the monitor sends."""
    found = []

    def send_task(name, args=None, kwargs=None, **options):
        found.append((name, args, kwargs))
        return type("Sent", (), {"id": f"new-{len(found)}"})()

    monkeypatch.setattr(monitor[1].capp, "send_task", send_task)
    monkeypatch.setattr(retries, "PACE_S", 0.0)
    return found


def ended(monitor, fingerprint="again"):
    def look():
        order = monitor[1].context.retries.of(fingerprint)
        return order if order is not None and order.ended else None

    return eventually(look)


def test_all_failures_of_a_group_are_sent_again_once(monitor, sent, tmp_path):
    assert ask(monitor, "liv", "/api/trace/groups/again/retry").json() == {"group": "again", "retrying": 6}
    order = ended(monitor)
    assert (order.ended, order.sent, order.refused, order.known, order.seen) == ("done", 5, 1, 0, 6)
    assert sent == [("shop.again", [7], {})] * 5
    assert list(order.reasons.values()) == [1]
    assert "redacted" in next(iter(order.reasons))
    retries_ = [line for line in audited(tmp_path) if line["command"].startswith("retry of failure")]
    assert (len(retries_), {line["user"] for line in retries_}) == (5, {"liv"})
    assert audited(tmp_path)[-1]["command"] == "retries of group again ended"
    # The one that can't be sent is tried again; the others are not.
    assert ask(monitor, "liv", "/api/trace/groups/again/retry").json()["retrying"] == 1
    ended(monitor)
    assert len(sent) == 5
    text = ask(monitor, "liv", "/trace/failures/groups/again", method="GET").text
    assert "new-5" in text
    assert "1 can’t be sent" in text


def test_a_selection_is_sent_again_and_nothing_of_another_group(monitor, sent):
    queries = Queries(monitor[1].context.store)
    mine = queries.failures(fingerprint="again").rows
    other = queries.failures(fingerprint="group-0").rows[0].id
    answer = ask(monitor, "liv", "/api/trace/groups/again/retry", {"ids": [mine[1].id, mine[1].id, other, "x"]})
    assert answer.json()["retrying"] == 1
    ended(monitor)
    assert len(sent) == 1
    assert list(queries.retried([row.id for row in mine])) == [mine[1].id]
    assert ask(monitor, "liv", "/api/trace/groups/again/retry", {"ids": [other]}).status == 409
    # One by one: what an order of everything then finds.
    assert ask(monitor, "liv", f"/api/trace/failures/{mine[2].id}/retry").status == 200
    assert ask(monitor, "liv", "/api/trace/groups/again/retry", {"ids": [mine[2].id]}).status == 200
    assert ended(monitor).known == 1
    assert len(sent) == 2


def test_only_the_role_live_sends_again(monitor, sent):
    for who in ("lou", "val"):
        assert ask(monitor, who, "/api/trace/groups/again/retry").status == 403
        assert ask(monitor, who, "/api/trace/groups/again/retry/stop").status == 403
    assert sent == []
    assert "Retry all" not in page(monitor, "val")


def test_an_order_is_stopped_between_two_messages(monitor, sent, monkeypatch, tmp_path):
    monkeypatch.setattr(retries, "PACE_S", 60.0)
    ask(monitor, "liv", "/api/trace/groups/again/retry")
    eventually(lambda: monitor[1].context.retries.of("again").sent + monitor[1].context.retries.of("again").refused)
    again = ask(monitor, "liv", "/api/trace/groups/again/retry")
    assert (again.status, "being retried already" in again.text) == (409, True)
    assert "Stop retrying" in ask(monitor, "liv", "/trace/failures/groups/again", method="GET").text
    assert ask(monitor, "liv", "/api/trace/groups/again/retry/stop").status == 200
    order = ended(monitor)
    assert (order.ended, order.ended_by, order.seen) == ("stopped", "liv", 1)
    assert len(sent) <= 1
    assert "Stopped by" in ask(monitor, "liv", "/trace/failures/groups/again", method="GET").text
    assert ask(monitor, "liv", "/api/trace/groups/again/retry/stop").status == 409


def test_a_broker_that_is_down_ends_an_order_and_nothing_is_noted(monitor, monkeypatch):
    def send_task(*_, **__):
        raise OSError("connection refused")

    monkeypatch.setattr(monitor[1].capp, "send_task", send_task)
    ask(monitor, "liv", "/api/trace/groups/again/retry")
    order = ended(monitor)
    assert "connection refused" in order.ended
    assert order.sent == 0
    rows = Queries(monitor[1].context.store).failures(fingerprint="again").rows
    assert Queries(monitor[1].context.store).retried([row.id for row in rows]) == {}


def test_few_orders_go_on_at_a_time_and_few_are_remembered(tmp_path):
    clock, started = FakeClock(), []
    orders = Retries(None, None, MonitorAuditLog(tmp_path, clock), clock, started.append)
    orders.begin("a", [], "ann")
    orders.begin("b", [], "ann")
    with pytest.raises(CannotBegin, match="2 groups"):
        orders.begin("c", [], "ann")
    for run in started:
        run()
    for number in range(60):
        orders.begin(f"g{number}", [], "ann")
        started[-1]()
    assert orders.of("a") is None
    assert orders.of("g59").ended == "done"
    assert sum(orders.of(f"g{number}") is not None for number in range(60)) == retries.MOST_REMEMBERED
    orders.close()
    with pytest.raises(CannotBegin, match="about to end"):
        orders.begin("z", [], "ann")


def test_reasons_are_counted_and_few_are_listed():
    order = retries.RetryOrder(fingerprint="a", user="ann", at_s=0.0, total=20)
    for number in range(20):
        order = order.refusing(f"reason {number % 10}")
    assert (order.refused, len(order.reasons), order.reasons["reason 0"]) == (20, MOST_REASONS, 2)


def test_the_end_of_the_monitor_ends_an_order(monitor, sent, monkeypatch):
    monkeypatch.setattr(retries, "PACE_S", 60.0)
    ask(monitor, "liv", "/api/trace/groups/again/retry")
    eventually(lambda: monitor[1].context.retries.of("again").seen)
    begun = time.monotonic()
    monitor[1].context.retries.close()
    assert ended(monitor).ended == "stopped"
    assert time.monotonic() - begun < 30


# --- searches of the API


def test_a_search_of_the_api_finds_and_completes(monitor):
    found = ask(monitor, "val", "/api/trace/groups?q=exception:Zero*%20worker:celery@web-1", method="GET").json()
    assert [row["fingerprint"] for row in found["groups"]] == ["group-0"]
    found = ask(monitor, "lou", "/api/trace/failures?q=task:shop.again%20outcome:retried", method="GET").json()
    assert [row["task_id"] for row in found["failures"]] == ["by-celery"]
    offered = ask(monitor, "lou", "/api/trace/suggestions?list=failures&q=exception:zero", method="GET").json()
    assert [one["text"] for one in offered["suggestions"]] == ["exception:ZeroDivisionError "]
    assert ask(monitor, "lou", "/api/trace/suggestions?list=other", method="GET").status == 400
    refused = ask(monitor, "val", "/api/trace/failures?q=tsak:x", method="GET")
    assert (refused.status, "Did you mean task" in refused.text) == (400, True)


@pytest.mark.parametrize("search", ["card", "message:card", "order=7", "-message:card"])
def test_a_search_that_reads_values_needs_the_role(monitor, search):
    for noun in ("failures", "groups"):
        assert ask(monitor, "lou", f"/api/trace/{noun}?q={search}", method="GET").status == 403
        assert ask(monitor, "val", f"/api/trace/{noun}?q={search}", method="GET").status == 200


def test_a_selection_of_groups_is_changed_together(monitor, tmp_path):
    body = {"fingerprints": ["group-0", "group-1", "gone", 5], "seconds": 3600}
    assert ask(monitor, "lou", "/api/trace/groups/ignore", body).status == 403
    assert ask(monitor, "val", "/api/trace/groups/ignore", body).json()["changed"] == ["group-0", "group-1"]
    assert [group(monitor, fingerprint=f"group-{number}")["state"] for number in range(3)] == [
        "ignored",
        "ignored",
        "new",
    ]
    assert audited(tmp_path)[-1]["command"] == "POST /api/trace/groups/ignore"
    assert ask(monitor, "val", "/api/trace/groups/resolve", body).status == 200
    assert group(monitor, fingerprint="group-1")["resolved_by"] == "val"
    ask(monitor, "val", "/api/trace/groups/ignore", {**body, "seconds": 0})
    assert group(monitor)["ignored_until"] is None
    for wrong in ({}, {"fingerprints": []}, {"fingerprints": ["x"] * 2000}, {"fingerprints": "x"}):
        assert ask(monitor, "val", "/api/trace/groups/resolve", wrong).status == 400
    assert ask(monitor, "val", "/api/trace/groups/ignore", {"fingerprints": ["group-0"], "seconds": "x"}).status == 400


def test_views_belong_to_the_user_who_saved_them(monitor):
    view = {"list": "failures", "title": " Mine ", "query": "task:shop.*"}
    saved = ask(monitor, "val", "/api/trace/views", view).json()["view"]
    assert (saved["title"], saved["user"], saved["noun"]) == ("Mine", "val", "failures")
    ask(monitor, "val", "/api/trace/views", {**view, "query": "outcome:lost"})
    (one,) = ask(monitor, "val", "/api/trace/views", method="GET").json()["views"]
    assert (one["id"], one["query"]) == (saved["id"], "outcome:lost")
    assert ask(monitor, "vic", "/api/trace/views", method="GET").json()["views"] == []
    assert ask(monitor, "vic", f"/api/trace/views/{saved['id']}/remove").status == 404
    assert "Mine" in ask(monitor, "val", "/trace/failures/all", method="GET").text
    assert "Mine" not in ask(monitor, "val", "/trace/failures", method="GET").text
    assert "Mine" not in ask(monitor, "vic", "/trace/failures/all", method="GET").text
    assert ask(monitor, "lou", "/api/trace/views", view).status == 403
    assert ask(monitor, "val", f"/api/trace/views/{saved['id']}/remove").status == 200
    assert ask(monitor, "val", "/api/trace/views", method="GET").json()["views"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"list": "other"},
        {"list": 5},
        {"title": " "},
        {"title": "x" * 200},
        {"query": 5},
        {"query": "x" * 600},
        {"query": "tsak:x"},
    ],
)
def test_a_view_that_can_not_be_used_is_refused(monitor, wrong):
    view = {"list": "failures", "title": "Mine", "query": "task:shop.*", **wrong}
    assert ask(monitor, "val", "/api/trace/views", view).status == 400


def test_a_user_can_not_fill_the_store_with_views(monitor, monkeypatch):
    monkeypatch.setattr("flower_plugin.api.views.MOST_VIEWS", 2)
    statuses = [
        ask(monitor, "val", "/api/trace/views", {"list": "groups", "title": title, "query": ""}).status
        for title in "abca"
    ]
    assert statuses == [200, 200, 409, 200]
