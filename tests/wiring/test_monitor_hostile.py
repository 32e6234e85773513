"""Whatever stands in a parameter, a body or an address: an answer that says what is wrong with it, never a failure."""

import json
import time
from urllib.parse import quote, urlencode

import pytest

from celery_trace.settings import load
from celery_trace.stores import open_store
from flower_plugin.api.listings import LISTS
from flower_plugin.context import static_version
from flower_plugin.pages.registry import PAGES
from tests.support import monitor_facts
from tests.support.monitor_app import PASSWORD, Client, make_monitor, serving

SCRIPT = {"Authorization": f"Bearer {PASSWORD}", "Accept": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    store.close()

    def make():
        app = make_monitor(folder, settings=settings, inspect_timeout=10.0)
        app.capp.task(name="x", shared=False)(nothing)
        return app

    with serving(make) as (base, _):
        yield Client(base)


def nothing():
    """A task."""


VALUES = [
    "", "0", "-1", "1e400", "nan", "-inf", "9" * 5000, "0x10", "1_000", "٣", "true", "[]", "'; DROP TABLE x; --",
    "%", "_", "\\", "a\u202eb", "\x00", "\x1b[31m", "😀" * 300, "x" * 20_000, "../../etc/passwd", "{{ 7 * 7 }}",
]  # fmt: skip

#: As a list gives them out, but with what no list gives out in them.
CURSORS = [
    "W10", "bnVsbA", "WzEsMl0", "W251bGwsbnVsbF0", "WyJhIiwiYiJd", "WzFlMTgsIngiXQ", "W3RydWUsImEiXQ",
    "W1sxXSwiYSJd", "W1sxXSxbMl1d", "W1tb" * 5000, "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0", "=" * 100, "W", "€",
    "WyJhXHUwMDAwIiwiYiJd", "W3t9LHt9XQ", "WzEsImEiLDJd",
]  # fmt: skip


@pytest.mark.parametrize("noun", LISTS)
def test_no_parameter_of_a_list_makes_it_fail(client, noun):
    asked = [(name, value) for name in ("limit", "sort", *LISTS[noun].parameters) for value in VALUES]
    asked += [("cursor", value) for value in (*VALUES, *CURSORS)]
    for name, value in asked:
        answer = client.get(f"/api/trace/{noun}?{urlencode({name: value})}", headers=SCRIPT)
        assert answer.status in (200, 400), (name, value, answer.text)
        if answer.status == 400:
            assert answer.json()["error"]["what"], (name, value)
        else:
            assert set(answer.json()) == {noun, "next"}


def test_no_id_makes_an_answer_fail(client):
    for noun in ("leaks", "failures", "alerts", "shells"):
        for value in VALUES[1:]:
            answer = client.get(f"/api/trace/{noun}/{quote(value, safe='')}", headers=SCRIPT)
            assert answer.status in (400, 404), (noun, value, answer.text)
            assert answer.json()["error"]["what"]


#: What pages take that lists do not.
FURTHER = ("id", "process", "page", "limit", "view", "frame", "window")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_parameter_of_a_page_makes_it_fail(client, page):
    path = page.path.replace("(task|request|block)", "task").replace("([^/]+)", "x").replace("(.+)", "x")
    path = path.replace("/?", "")
    names = {"cursor", *(name for listing in LISTS.values() for name in listing.parameters), *FURTHER}
    for value in (*VALUES, *CURSORS):
        for asked in (dict.fromkeys(names, value), {"cursor": value}):
            query = urlencode(asked)
            if len(query) > 60_000:
                continue  # Tornado takes no address of that length
            answer = client.get(f"{path}?{query}", headers={"Authorization": f"Bearer {PASSWORD}"})
            assert answer.status in (200, 400, 404), (asked, answer.text)


def test_no_address_makes_the_monitor_fail(client):
    static = f"/trace/static/{static_version()}/"
    for value in ("%00", "%FF", "%", "%2e%2e%2f", "a%2fb", "x" * 8000, "%F0%9F%98%80", "%0d%0aX: y", ";", "//", "/.."):
        for start in ("/trace/", "/trace/leaks/", "/api/trace/", "/task/", "/worker/", static, "/"):
            answer = client.get(start + value.replace(" ", "%20"), headers=SCRIPT)
            assert answer.status < 500, (start, value, answer.text)


BODIES = [
    b"[" * 100_000, b'{"a":' * 100_000, b'{"rules":' + b"[" * 500 + b"]" * 500 + b"}", b"[]", b"null", b"true", b"1",
    b'"x"', b"NaN", b"{", b"\xff", b"\x00", b'{"rules": NaN}', b'{"rules": [{"rule": "leak", "above": 1e999}]}',
    b'{"seconds": 1e999}', b'{"seconds": ' + b"9" * 400 + b"}", b'{"seconds": ' + b"9" * 20_000 + b"}",
    b'{"seconds": 1, "seconds": 2}', b'{"name": "\\ud800"}', b'{"args": ' + b"[" * 100_000, b'{"kwargs": [1]}',
    b'{"args": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"countdown": "x"}', b'{"eta": 5}', b'{"expires": []}',
    b" " * (3 * 1024 * 1024),
]  # fmt: skip

ORDERS = (
    "alerts/rules", "alerts/test", "alerts/alert-leak/silence", "failures/x/retry", "failures/x/drop", "tasks/trace",
    "tasks/profile", "leaks/x/resolve", "groups/x/resolve", "groups/group-0/assign", "groups/group-0/ignore",
    "groups/group-0/comments", "groups/x/retry", "groups/resolve", "groups/ignore", "views",
)  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_no_body_makes_an_order_fail(client, order):
    for body in BODIES:
        answer = client.post(f"/api/trace/{order}", body, headers=SCRIPT)
        # Some orders read no body, and there is no such failure; none was meant and none was carried out.
        assert answer.status in (200, 400, 404, 409), (body[:50], answer.text)
        assert isinstance(answer.json(), dict)


@pytest.mark.parametrize("order", ["alerts/rules", "alerts/alert-leak/silence", "tasks/trace", "tasks/profile"])
def test_a_body_that_can_not_be_read_is_refused_with_what_why_and_next(client, order):
    for body in BODIES:
        answer = client.post(f"/api/trace/{order}", body, headers=SCRIPT)
        if answer.status != 400:
            # Nothing of ours is in it.
            assert body.startswith((b'{"args"', b'{"kwargs"', b'{"countdown"', b'{"eta"', b'{"expires"', b'{"a"'))
            continue
        assert answer.json()["error"]["what"]
    error = client.post(f"/api/trace/{order}", b"[" * 100_000, headers=SCRIPT).json()["error"]
    assert error == {
        "what": "Invalid body.",
        "why": "It is nested too deeply.",
        "next": "Send one JSON object.",
    }


@pytest.mark.parametrize("order", ["apply/x", "async-apply/x", "send-task/x"])
def test_no_body_of_flowers_orders_ends_its_parser(client, order):
    for body in BODIES:
        dates = (b'"eta"', b'"expires"') if order != "send-task/x" else ()  # which reads no dates at all
        if b"[" * 500 in body or body.startswith((b'{"kwargs"', *(b"{" + date for date in dates))):
            answer = client.post(f"/api/task/{order}", body, headers=SCRIPT)
            assert answer.status == 400, (body[:50], answer.text)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"seconds": True}, "must be from 0"),
        ({"seconds": "60"}, "must be from 0"),
        ({"seconds": -1}, "must be from 0"),
        ({"seconds": [1]}, "must be from 0"),
        ({"seconds": 1e18}, "must be from 0"),
    ],
)
def test_a_silence_of_a_wrong_length_is_refused(client, body, says):
    answer = client.post("/api/trace/alerts/alert-leak/silence", body, headers=SCRIPT)
    assert (answer.status, says in answer.text) == (400, True)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "http://a@[b", "http://" + "x" * 5000])
def test_an_origin_that_is_no_address_is_another_sites(client, origin):
    headers = {"Authorization": f"Bearer {PASSWORD}", "Origin": origin}
    assert client.post("/api/trace/groups/x/resolve", headers=headers).status == 403


@pytest.mark.parametrize(
    "target", ["/[", "//[", "/x//[", "/\x7f", "/\x85", "/\u2028", "/é😀", "/" + "[" * 1000, "http://["]
)
def test_a_login_with_a_broken_target_leads_to_the_overview_or_to_a_path_of_ours(client, target):
    visitor = Client(client.base)
    assert visitor.get(f"/login?{urlencode({'next': target})}").status == 200
    answer = visitor.post(
        "/login",
        {"password": PASSWORD, "next": target, "_xsrf": visitor.cookies["_xsrf"]},
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status == 302
    assert json.dumps(answer.headers["Location"]).startswith('"/')
    assert not answer.headers["Location"].startswith("//")
