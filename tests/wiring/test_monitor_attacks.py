"""
Every route of the monitor, Flower's own included, is tried with every method as everybody.

The routes come from the application's own list of rules, what each needs from the table here: a new route fails
until it stands in the table.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sqlite3
import time
from base64 import b64encode
from contextlib import closing
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from tornado.web import create_signed_value

from celery_trace.model import Kept, Node, failure_id
from celery_trace.model.searches import SavedView
from celery_trace.model.triage import Comment
from celery_trace.settings import load
from celery_trace.stores import open_store, triage
from flower_plugin import retries
from flower_plugin.auth.roles import UserRole
from flower_plugin.context import static_version
from tests.support import monitor_facts
from tests.support.monitor_app import Client, make_monitor, serving
from tests.support.routes import every_address

# --- what each address needs --------------------------------------------------------------------------

#: Who may read an address: GET, HEAD, OPTIONS.
READ = {
    UserRole.PUBLIC: f"""
        /login /login/ /trace/static/{static_version()}/x /static/x /favicon.ico /robots.txt
    """,
    UserRole.LOOK: """
        / /workers /broker /api/task/types /api/queues/length /healthcheck /metrics /logout /x
        /api/worker/shutdown/x /api/worker/pool/restart/x /api/worker/pool/grow/x /api/worker/pool/shrink/x
        /api/worker/pool/autoscale/x /api/worker/queue/add-consumer/x /api/worker/queue/cancel-consumer/x
        /api/task/apply/x /api/task/async-apply/x /api/task/send-task/x /api/task/abort/x /api/task/timeout/x
        /api/task/rate-limit/x /api/task/revoke/x
        /trace /trace/ /trace/leaks /trace/leaks/x /trace/failures /trace/failures/all /trace/failures/x /trace/workers
        /trace/failures/groups/x
        /trace/runs /trace/runs/task/x /trace/runs/request/x /trace/runs/block/x /trace/alerts /trace/statistics
        /trace/queues /trace/running /trace/running/x/x
        /trace/flame/task/x /trace/flame/request/x /trace/flame/block/x /trace/flame/process/x
        /trace/workflow/x /api/trace/workflows/x /trace/x /trace/live
        /api/trace /api/trace/ /api/trace/stats /api/trace/leaks /api/trace/failures /api/trace/groups /api/trace/runs
        /api/trace/workers /api/trace/alerts /api/trace/alerts/rules /api/trace/leaks/x /api/trace/failures/x
        /api/trace/groups/x
        /api/trace/alerts/x /api/trace/profiles/x /api/trace/forecasts /api/trace/queues /api/trace/suggestions
        /api/trace/views
        /api/trace/running
    """,
    UserRole.LOCALS: """
        /worker/x /task/x /tasks /tasks/datatable /api/workers /api/tasks /api/task/info/x /api/task/result/x
        /trace/shells /trace/shells/x /trace/profiles /trace/profiles/x /trace/profiles/x/flamegraph
        /api/trace/shells /api/trace/shells/x /api/trace/failures/x/test
    """,
    UserRole.RECREATED: "/trace/shell/x",
    #: Nothing is read there.
    UserRole.NOBODY: """
        /api/trace/alerts/test /api/trace/alerts/x/ack /api/trace/alerts/x/silence
        /api/trace/leaks/x/resolve /api/trace/groups/x/resolve /api/trace/failures/x/retry /api/trace/failures/x/drop
        /api/trace/groups/x/reopen /api/trace/groups/x/assign /api/trace/groups/x/ignore /api/trace/groups/x/comments
        /api/trace/comments/x/remove /api/trace/groups/x/retry /api/trace/groups/x/retry/stop
        /api/trace/groups/resolve /api/trace/groups/ignore /api/trace/views/x/remove
        /api/trace/tasks/trace /api/trace/tasks/profile
    """,
}
#: Who may change something there, with POST; nobody where the monitor is read-only.
CHANGE = {
    UserRole.LOCALS: """
        /api/trace/alerts/test /api/trace/alerts/x/ack /api/trace/alerts/x/silence
        /api/trace/leaks/x/resolve /api/trace/groups/x/resolve
        /api/trace/groups/x/reopen /api/trace/groups/x/assign /api/trace/groups/x/ignore /api/trace/groups/x/comments
        /api/trace/comments/x/remove /api/trace/groups/resolve /api/trace/groups/ignore
        /api/trace/views /api/trace/views/x/remove
    """,
    UserRole.LIVE: """
        /api/trace/alerts/rules /api/trace/failures/x/retry /api/trace/failures/x/drop
        /api/trace/tasks/trace /api/trace/tasks/profile /api/trace/groups/x/retry /api/trace/groups/x/retry/stop
        /api/worker/shutdown/x /api/worker/pool/restart/x /api/worker/pool/grow/x /api/worker/pool/shrink/x
        /api/worker/pool/autoscale/x /api/worker/queue/add-consumer/x /api/worker/queue/cancel-consumer/x
        /api/task/apply/x /api/task/async-apply/x /api/task/send-task/x /api/task/abort/x /api/task/timeout/x
        /api/task/rate-limit/x /api/task/revoke/x
    """,
}
#: POST changes nothing there beyond the visitor's own login: whoever may read may do it, read-only or not.
READ_BY_POST = {"/tasks/datatable", "/login", "/login/", "/logout"}

READ_NEEDS = {address: role for role, text in READ.items() for address in text.split()}
CHANGE_NEEDS = {address: role for role, text in CHANGE.items() for address in text.split()}

READING, CHANGING = ("GET", "HEAD", "OPTIONS"), ("POST", "PUT", "DELETE", "PATCH")
PEOPLE = {
    "stranger": UserRole.PUBLIC,
    "lou": UserRole.LOOK,
    "val": UserRole.LOCALS,
    "sue": UserRole.RECREATED,
    "liv": UserRole.LIVE,
}


def may(person: str, method: str, address: str, read_only: bool) -> bool | None:
    """Whether the table lets somebody in; None where there is nothing to do, which who is logged in may be told."""
    role = PEOPLE[person]
    if method in READING or (method == "POST" and address in READ_BY_POST):
        return None if READ_NEEDS[address] is UserRole.NOBODY else role >= READ_NEEDS[address]
    if method == "POST" and address in CHANGE_NEEDS:
        return not read_only and role >= CHANGE_NEEDS[address]
    return None


# --- the monitor that is attacked ---------------------------------------------------------------------

FAILURE = failure_id("7e1f9b3a-0000-4000-8000-000000000000", 0)

#: What makes an order one that would be carried out.
BODIES = {
    "/api/trace/alerts/x/silence": {"seconds": 60},
    "/api/trace/alerts/rules": {"rules": None},
    "/api/trace/tasks/trace": {"name": "x", "seconds": 5},
    "/api/trace/tasks/profile": {"name": "x", "seconds": 5},
    "/api/task/apply/x": {"timeout": 0.01},
}
QUERY = "?min=1&max=2&n=1&queue=q&workername=x&ratelimit=1/s&soft=1&hard=2"
TABLE_QUERY = "?draw=1&start=0&length=10&order[0][column]=0"


#: What Flower asks workers to show their page.
QUESTIONS = (
    "stats", "conf", "registered", "active_queues", "active", "scheduled", "reserved", "revoked",
)  # fmt: skip
#: Flower answers 503 there: it looks for the result backend of the process's default app.
NO_BACKEND = {"/api/task/result/x", "/api/task/abort/x"}


class Effects(NamedTuple):
    """What reached a worker or the broker."""

    commands: list[str]
    messages: list[str]

    def clear(self) -> None:
        self.commands.clear()
        self.messages.clear()


@pytest.fixture
def effects(monkeypatch):
    """Records each remote control command and each message instead of sending it. Every worker says yes."""
    found = Effects([], [])

    def broadcast(_, command, *arguments, destination=None, **keywords):
        if command in QUESTIONS:
            return []
        found.commands.append(command)
        replies = [{name: {"ok": "done"}} for name in destination or ["x"]]
        if command == "trace_hello":
            replies = [{"x": {"uid": "a-process"}}]
        for reply in replies:
            if "callback" in keywords:
                keywords["callback"](reply)
        return replies

    def publish(_, message, exchange, routing_key, **keywords):
        found.messages.append(message["headers"]["task"])

    monkeypatch.setattr("celery.app.control.Control.broadcast", broadcast)
    monkeypatch.setattr("kombu.transport.virtual.base.Channel.basic_publish", publish)
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with facts, and a failure that a process holds alive and that can be retried."""
    folder = tmp_path_factory.mktemp("filled")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    store = open_store(settings)
    now_s = time.time()
    monitor_facts.fill(store, now_s)
    failure = next(monitor_facts.failures(now_s))
    heap = [Node("tuple", "tuple", None, [], [], 0), Node("dict", "dict", None, [], [], 0)]
    capture = replace(failure.capture, heap=[*failure.capture.heap, *heap], args=len(failure.capture.heap))
    capture = replace(capture, kwargs=capture.args + 1)
    kept = Kept(process="child-1", failure=FAILURE, at_s=now_s, until_s=now_s + 900, address="q")
    store.write([replace(failure, id=FAILURE, name="x", capture=capture), kept])
    store.close()
    return folder


def nothing() -> None:
    """A task."""


def attacked(folder, filled, *, read_only, prefix):
    """Make a monitor whose orders would be carried out."""
    shutil.copytree(filled, folder, dirs_exist_ok=True)
    settings = load(
        {"trace_dir": str(folder), "trace_collector": False, "trace_alert_channels": "log:"}, environment={}
    )
    pairs = [f"{name}:{name}'s" for name in PEOPLE if name != "stranger"]
    roles = [f"{name}:{role.word}" for name, role in PEOPLE.items() if name != "stranger"]
    options = {"url_prefix": prefix.strip("/")} if prefix else {}
    app = make_monitor(
        folder, settings=settings, pairs=tuple(pairs), roles=tuple(roles), trace_read_only=read_only, **options
    )
    app.capp.conf.result_backend = "cache+memory://"
    app.capp.task(name="x", shared=False)(nothing)
    app.inspector.workers["x"] = {}
    return app


def rows(folder) -> list[str]:
    """Everything in the store but the audit log and what counts its entries."""
    with closing(sqlite3.connect(folder / "trace.db")) as database:
        return [line for line in database.iterdump() if "audit" not in line and "'changes'" not in line]


class Visitor:
    """A browser of one person: their session, one connection that is kept open."""

    def __init__(self, base: str, name: str, prefix: str) -> None:
        self.address = urlsplit(base)
        client = Client(base)
        client.get(f"{prefix}/login")
        if name != "stranger":
            assert client.log_in(f"{name}'s", name, prefix).status == 302
        self.cookies = client.cookies
        self._line = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=30)

    def close(self) -> None:
        self._line.close()

    def send(self, method, address, body=b"", **headers) -> tuple[int, str]:
        """The status, and where a redirect leads. A header of None is left out."""
        sent = {
            "Host": self.address.netloc,
            "Origin": f"http://{self.address.netloc}",
            "Accept": "text/html",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            "X-XSRFToken": self.cookies["_xsrf"],
        }
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        if body:
            sent["Content-Type"] = "application/json"
        self._line.putrequest(method, address, skip_host=True, skip_accept_encoding=True)
        for name, value in {**sent, "Content-Length": str(len(body))}.items():
            if value is not None:
                self._line.putheader(name, value)
        self._line.endheaders(body)
        answer = self._line.getresponse()
        if answer.status == 101:
            self._line.close()
        else:
            answer.read()
        return answer.status, answer.headers.get("Location") or ""


def denied(status: int, location: str) -> bool:
    return status in (401, 403) or (status == 302 and "/login?" in location)


#: What an answer may be to somebody who was let in: done, there is no such thing, not this method, not possible now.
LET_IN = {200, 204, 302, 304, 400, 404, 405, 409}


def fits(answer: tuple[int, str], allowed: bool | None, name: str, method: str, address: str) -> bool:
    """Whether an answer is what the table asks for."""
    if allowed:
        return (answer[0] in LET_IN and not denied(*answer)) or (answer[0] == 503 and address in NO_BACKEND)
    # Where the lists of the API share a handler, it is GET that asks for more than the others.
    nothing = allowed is None or method in ("HEAD", "OPTIONS")
    return denied(*answer) or (nothing and answer[0] in (404, 405) and name != "stranger")


def ask(visitor: Visitor, method: str, address: str, prefix: str, **headers) -> tuple[int, str]:
    """Send what would be done if it were allowed."""
    path = address
    for noun, known in (("alerts", "alert-leak"), ("failures", FAILURE)):
        path = path.replace(f"/{noun}/x", f"/{noun}/{known}")
    query = TABLE_QUERY if address == "/tasks/datatable" else QUERY if address.startswith("/api/task/") else ""
    query = QUERY if address.startswith("/api/worker/") else query
    body = b"" if method in READING else json.dumps(BODIES.get(address, {})).encode()
    return visitor.send(method, f"{prefix}{path}{query}", body, **headers)


def served(application, prefix: str) -> list[str]:
    """The addresses below the prefix, as the table has them."""
    found = []
    for address in every_address(application):
        if prefix and not address.startswith(prefix):
            assert address in ("/favicon.ico", "/robots.txt"), f"{address} is outside of the prefix"
            continue
        found.append(address.removeprefix(prefix) or "(the prefix)")
    return [address if address != "x" else "/x" for address in found if address != "(the prefix)"]


# --- the attacks --------------------------------------------------------------------------------------


def test_every_route_is_in_the_table_and_every_entry_is_a_route(tmp_path, filled):
    with serving(lambda: attacked(tmp_path, filled, read_only=False, prefix="")) as (_, app):
        assert set(served(app, "")) == set(READ_NEEDS)
        assert set(CHANGE_NEEDS) <= set(READ_NEEDS)


@pytest.mark.parametrize("prefix", ["", "/deep/er"], ids=["at the root", "below a prefix"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_everybody_gets_what_their_role_allows_and_nothing_else(tmp_path, filled, effects, read_only, prefix):
    with serving(lambda: attacked(tmp_path, filled, read_only=read_only, prefix=prefix)) as (base, app):
        before = rows(tmp_path)
        visitors = {name: Visitor(base, name, prefix) for name in PEOPLE}
        # The login is tried elsewhere; a POST to the logout, last, as it ends the session.
        tries = [
            (name, method, address)
            for name in PEOPLE
            for address in served(app, prefix)
            for method in (*READING, *CHANGING)
            if not (prefix and method not in ("GET", "POST"))
            if not (method == "POST" and address.startswith(("/login", "/logout")))
        ]
        tries += [(name, "POST", "/logout") for name in PEOPLE]
        for allowed in (False, None, True):
            wrong = []
            for name, method, address in tries:
                if may(name, method, address, read_only) is allowed:
                    answer = ask(visitors[name], method, address, prefix)
                    if not fits(answer, allowed, name, method, address):
                        wrong.append((name, method, address, answer))
            assert not wrong, wrong
            if not allowed:
                assert effects == ([], [])
                assert rows(tmp_path) == before
        for visitor in visitors.values():
            visitor.close()
    if read_only:
        assert effects == ([], [])
    else:
        # The orders of this test are such as are carried out: what was denied above would have been done.
        assert {"shutdown", "pool_restart", "pool_grow", "pool_shrink", "autoscale", "add_consumer"} <= set(
            effects.commands
        )
        assert {"cancel_consumer", "revoke", "rate_limit", "time_limit", "trace_order"} <= set(effects.commands)
        assert len(effects.messages) >= 4  # three ways of Flower's to send a task, and our retry
        assert rows(tmp_path) != before


#: What another site, or nobody's page at all, would send in a logged-in person's browser.
FOREIGN = {
    "no token": {"X_XSRFToken": None},
    "a token of somebody else": {"X_XSRFToken": "2|00000000|00000000000000000000000000000000|1700000000"},
    "another site's page": {"Origin": "http://evil.example"},
    "a page in a sandbox": {"Origin": "null"},
    "another port's page": {"Origin": "http://127.0.0.1:1"},
    "no address at all": {"Origin": "http://["},
    "another site, as the browser says": {"Sec_Fetch_Site": "cross-site"},
    "a neighbour, as the browser says": {"Sec_Fetch_Site": "same-site"},
}


def test_no_page_of_somebody_else_changes_anything(tmp_path, filled, effects):
    with serving(lambda: attacked(tmp_path, filled, read_only=False, prefix="")) as (base, app):
        before = rows(tmp_path)
        owner, wrong = Visitor(base, "liv", ""), []
        for kind, headers in FOREIGN.items():
            for address in served(app, ""):
                for method in CHANGING if kind == "no token" else ("POST", "DELETE"):
                    answer = ask(owner, method, address, "", **headers)
                    if answer[0] != 403:
                        wrong.append((kind, method, address, answer))
        assert not wrong, wrong
        assert effects == ([], [])
        assert rows(tmp_path) == before
        assert ask(owner, "GET", "/trace", "")[0] == 200  # the session is as it was
        owner.close()


@pytest.mark.parametrize("prefix", ["", "/deep/er"], ids=["at the root", "below a prefix"])
def test_no_route_answers_under_a_name_that_is_not_ours(tmp_path, filled, effects, prefix):
    with serving(lambda: attacked(tmp_path, filled, read_only=False, prefix=prefix)) as (base, app):
        owner = Visitor(base, "liv", prefix)
        for address in served(app, prefix):
            for method in ("GET", "POST"):
                for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
                    answer = ask(owner, method, address, prefix, Host=host, Origin=f"http://{host}")
                    assert answer[0] == 421, (method, address, host, answer)
        assert effects == ([], [])
        owner.close()


SOCKETS = {"/trace/live": UserRole.LOOK, "/trace/shell/x": UserRole.RECREATED}
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_a_websocket_opens_to_whom_it_is_for_from_our_own_page(tmp_path, filled, effects, read_only):
    with serving(lambda: attacked(tmp_path, filled, read_only=read_only, prefix="")) as (base, app):
        for name, role in PEOPLE.items():
            visitor = Visitor(base, name, "")
            for address in served(app, ""):
                status, location = ask(visitor, "GET", address, "", **HANDSHAKE)
                if address in SOCKETS:
                    assert (status == 101) is (role >= SOCKETS[address]), (name, address, status)
                    assert status in (101, 401, 403)
                    for foreign in ({"Origin": None}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
                        assert ask(visitor, "GET", address, "", **HANDSHAKE, **foreign)[0] in (401, 403)
                    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
                    assert ask(visitor, "GET", address, "", **HANDSHAKE, **foreign)[0] == 421
                else:
                    assert status != 101, address
                    assert role >= READ_NEEDS[address] or denied(status, location) or status == 405, (name, address)
            visitor.close()
        assert effects == ([], [])


def test_a_method_that_http_does_not_have_is_refused_everywhere(tmp_path, filled, effects):
    with serving(lambda: attacked(tmp_path, filled, read_only=False, prefix="")) as (base, app):
        owner = Visitor(base, "liv", "")
        for address in served(app, ""):
            for method in ("TRACE", "PROPFIND", "get", "POST2"):
                assert ask(owner, method, address, "")[0] == 405, (method, address)
        owner.close()


def test_the_token_of_a_script_is_limited_by_its_role_too(tmp_path, filled, effects):
    """By header there is no cookie and no token against foreign pages; roles and read-only hold all the same."""
    with serving(lambda: attacked(tmp_path, filled, read_only=True, prefix="")) as (base, _app):
        for pair in ("lou:lou's", "liv:liv's"):
            header = {"Authorization": "Basic " + b64encode(pair.encode()).decode(), "Accept": "application/json"}
            client = Client(base)
            assert client.get("/api/trace/stats", headers=header).status == 200
            for address in CHANGE_NEEDS:
                assert client.post(address, BODIES.get(address, {}), headers=header).status == 403, address
        assert effects == ([], [])


def test_behind_an_oauth_provider_every_route_is_closed_the_same_way(tmp_path, effects):
    address = "lou@example.org"
    with serving(lambda: make_monitor(tmp_path, auth=address, roles=(f"{address}:look",))) as (base, app):
        stranger, lou = Client(base), Client(base)
        lou.cookies["user"] = create_signed_value(app.settings["cookie_secret"], "user", address).decode()
        assert lou.get("/trace").status == 200
        assert set(served(app, "")) == set(READ_NEEDS)
        for path in served(app, ""):
            for method in ("GET", "POST", "DELETE"):
                answer = stranger.request(method, path)
                if method == "GET" and READ_NEEDS[path] is UserRole.PUBLIC:
                    assert answer.status in (200, 404), path
                else:
                    assert denied(answer.status, answer.headers["Location"] or ""), (method, path, answer.status)
            if path in CHANGE_NEEDS:
                assert lou.post(path, BODIES.get(path, {}), xsrf=True).status == 403, path
    assert effects == ([], [])


# --- what read-only says ------------------------------------------------------------------------------


def test_a_read_only_monitor_says_so_in_one_sentence_wherever_it_refuses(tmp_path, filled, effects):
    with serving(lambda: attacked(tmp_path, filled, read_only=True, prefix="")) as (base, _app):
        client = Client(base)
        assert client.log_in("liv's", "liv").status == 302
        said = "This monitor is read-only."
        for address in CHANGE_NEEDS:
            answer = client.post(f"{address}{QUERY}", xsrf=True)
            assert (answer.status, said in answer.text) == (403, True), (address, answer.text)
        assert client.post("/logout", xsrf=True).status == 302
    refused = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert "refused: the monitor is read-only" in refused[-2]["verdict"]


def on_worker_page(folder, filled, person, *, read_only):
    """Flower's page of a worker as somebody gets it."""

    def make():
        app = attacked(folder, filled, read_only=read_only, prefix="")
        stats = {"pool": {"max-concurrency": 1, "processes": [1], "timeouts": [0, 0]}, "broker": {}, "total": {}}
        app.inspector.workers["x"] = {
            "stats": stats, "active_queues": [], "registered": ["x"], "conf": {},
            "active": [], "scheduled": [], "reserved": [], "revoked": [],
        }  # fmt: skip
        return app

    with serving(make) as (base, _):
        client = Client(base)
        client.log_in(f"{person}'s", person)
        answer = client.get("/worker/x")
        assert answer.status == 200
        return answer.text


@pytest.mark.parametrize(
    ("person", "read_only", "offered"), [("liv", False, True), ("liv", True, False), ("sue", False, False)]
)
def test_flowers_page_offers_no_button_that_would_be_refused(tmp_path, filled, effects, person, read_only, offered):
    text = on_worker_page(tmp_path, filled, person, read_only=read_only)
    assert ('id="worker-shutdown"' in text) is offered


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_our_pages_offer_what_is_allowed_and_nothing_that_would_be_refused(
    tmp_path, filled, effects, read_only, monkeypatch
):
    monkeypatch.setattr(retries, "PACE_S", 60.0)  # an order that goes on
    words = "leaks failures workers runs runs/task/shop.tasks.remember_order alerts profiles statistics"
    pages = ["/trace", f"/trace/failures/{FAILURE}", *(f"/trace/{word}" for word in words.split())]
    pages += [*(f"/trace/failures/groups/group-{number}" for number in range(3)), "/trace/failures?q=is:open"]
    known = {address: re.compile(re.escape(address).replace("/x/", "/[^/]+/") + "$") for address in CHANGE_NEEDS}
    offered = {name: set() for name in PEOPLE if name != "stranger"}
    with serving(lambda: attacked(tmp_path, filled, read_only=read_only, prefix="")) as (base, app):
        row = app.context.queries.leaks(limit=1).rows[0]
        store = app.context.store
        store.resolve_group("group-1", "ada", time.time() + 1)
        remark = Comment(id="c1", fingerprint="group-1", at=1.0, user="val", text="seen")
        store.in_transaction(lambda connection: triage.comment(connection, remark))
        for user in ("val", "liv"):
            view = SavedView(id=user, user=user, noun="groups", title="mine", query="", at=1.0)
            store.in_transaction(partial(triage.save_view, view=view))
        app.context.retries.begin("group-2", ["gone", "gone too"], "ada")
        for name, found in offered.items():
            client = Client(base)
            client.log_in(f"{name}'s", name)
            for page in (*pages, f"/trace/leaks/{row.id}"):
                answer = client.get(page)
                assert answer.status == (403 if page == "/trace/profiles" and name == "lou" else 200), (name, page)
                for address in re.findall(r'data-(?:post|save-view)="([^"]+)"', answer.text):
                    found.update(route for route, pattern in known.items() if pattern.match(address))
                    assert any(pattern.match(address) for pattern in known.values()), address
    for name, found in offered.items():
        assert all(may(name, "POST", address, read_only) for address in found), (name, found)
    if not read_only:
        # The button of the rules takes them back, and there is nothing to take back.
        ours = {address for address in CHANGE_NEEDS if address.startswith("/api/trace/")} - {"/api/trace/alerts/rules"}
        assert offered["liv"] == ours
        assert offered["val"] == {address for address in ours if CHANGE_NEEDS[address] is UserRole.LOCALS}
