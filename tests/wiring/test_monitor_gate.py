"""Every route is closed unless it says otherwise, and each way in is the way that was meant."""

import json
import socket
import time
from base64 import b64encode
from urllib.parse import urlsplit

import pytest
from tornado.web import RequestHandler, create_signed_value

from celery_trace.clock import FakeClock
from flower_plugin.app import guarded
from flower_plugin.audit import AuditLog
from flower_plugin.gate import Gate, Hosts
from flower_plugin.login import Sessions
from flower_plugin.roles import Role
from tests.support.monitor_app import PASSWORD, Client, forget_guesses, make_monitor, serving


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    with serving(lambda: make_monitor(tmp_path_factory.mktemp("gate"), roles=(), token="script-token")) as found:
        yield found


@pytest.fixture
def client(monitor):
    forget_guesses(monitor[1])
    return Client(monitor[0])


def test_a_session_cookie_that_somebody_else_chose_is_not_taken_over(monitor, client):
    client.cookies["celery_trace_session"] = "chosen-by-an-attacker"
    client.log_in()
    assert client.cookies["celery_trace_session"] != "chosen-by-an-attacker"
    assert client.get("/trace").status == 200
    client.cookies = {"celery_trace_session": "chosen-by-an-attacker"}
    assert client.get("/trace").status == 302


def test_nobody_is_logged_in_by_another_sites_form(monitor, client):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/login", {"password": PASSWORD}, headers=form).status == 403
    client.get("/login")
    fields = {"password": PASSWORD, "_xsrf": client.cookies["_xsrf"]}
    for foreign in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/login", fields, headers={**form, **foreign}).status == 403
    assert client.get("/trace").status == 302


def test_the_links_token_goes_nowhere_but_to_us(monitor, client):
    token = monitor[1].gatekeeper.links.make()
    answer = client.get(f"/login?token={token}&next=/trace/leaks")
    assert answer.headers["Location"] == "/trace/leaks"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    client.get(f"/login?token={token}")
    for name in ("audit.jsonl", "strangers.jsonl"):
        assert token not in (monitor[1].trace_settings.folder / name).read_text()


def test_a_handler_without_a_declared_role_is_for_nobody():
    class Forgotten(Gate):
        def get(self):
            self.finish("open")

    assert Forgotten.role is Role.NOBODY
    assert Forgotten.change_role is Role.NOBODY


def test_a_foreign_handler_gets_the_gate_in_front():
    class Foreign(RequestHandler):
        def get(self):
            self.finish("open")

    behind = guarded(Foreign)
    assert issubclass(behind, Gate)
    assert behind.__mro__.index(Gate) < behind.__mro__.index(Foreign)
    assert (behind.role, behind.change_role) == (Role.LOOK, Role.LIVE)


def test_the_one_time_link_opens_one_session_and_is_dead_afterwards(monitor, client):
    token = monitor[1].gatekeeper.links.make()
    first = client.get(f"/login?token={token}")
    assert (first.status, first.headers["Location"]) == (302, "/trace")
    assert "HttpOnly" in str(first.headers.get_all("Set-Cookie"))
    assert client.get("/trace").status == 200
    second = Client(monitor[0])
    answer = second.get(f"/login?token={token}")
    assert answer.status == 403
    assert "has been used or is too old" in answer.text
    assert second.get("/trace").status == 302


def test_a_preview_of_the_link_does_not_use_it_up(monitor, client):
    token = monitor[1].gatekeeper.links.make()
    client.request("HEAD", f"/login?token={token}")
    assert client.get(f"/login?token={token}").status == 302


def test_the_password_opens_a_session_and_logout_ends_it(client):
    assert client.log_in().status == 302
    stolen = dict(client.cookies)
    assert client.get("/trace").status == 200
    assert client.post("/logout", xsrf=True).status == 302
    client.cookies = stolen
    assert client.get("/trace").status == 302


@pytest.mark.parametrize("length", ["50000000", "99999999999999999999"])
def test_a_stranger_cannot_fill_the_memory_with_a_body(monitor, length):
    address = urlsplit(monitor[0])
    with socket.create_connection((address.hostname, address.port), timeout=30) as line:
        head = f"POST /login HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {length}\r\n\r\n"
        line.sendall(head.encode())
        said = line.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 400")


def test_a_wrong_password_opens_nothing_and_guessing_ends(client):
    statuses = [client.log_in("wrong").status for _ in range(10)]
    assert statuses[0] == 403
    assert statuses[-1] == 429
    assert client.log_in(PASSWORD).status == 429


def test_guessing_by_header_ends_too(client):
    statuses = [client.get("/api/trace/stats", headers={"Authorization": f"Bearer x{i}"}).status for i in range(10)]
    assert statuses[0] == 401
    assert statuses[-1] == 429


@pytest.mark.parametrize(
    "header", [f"Bearer {PASSWORD}", "Bearer script-token", "Basic " + b64encode(f"any:{PASSWORD}".encode()).decode()]
)
def test_scripts_come_in_by_header(client, header):
    answer = client.get("/api/trace/stats", headers={"Authorization": header})
    assert answer.status == 200
    assert client.get("/metrics", headers={"Authorization": header}).status == 200


@pytest.mark.parametrize(
    "header", ["Bearer", "Basic !!!", "Basic " + b64encode(b"no colon").decode(), "Digest x", "Basic /w=="]
)
def test_a_broken_header_is_no_login(client, header):
    assert client.get("/api/trace/stats", headers={"Authorization": header}).status == 401


def test_a_foreign_host_is_refused_before_anything_else(client):
    answer = client.get("/login", headers={"Host": "evil.example"})
    assert answer.status == 421
    assert "--trace_hosts=evil.example" in answer.text


@pytest.mark.parametrize(
    "host",
    ["[localhost]evil.example", "[::1]evil.example", "localhost.evil.example", "evil.example:127.0.0.1",
     "a:b:127.0.0.1", "127.0.0.1@evil.example", "127.0.0.1.evil.example", "",
     "[", "127.0.0.1/evil.example", "127.1", "0x7f.1"],
)  # fmt: skip
def test_a_host_that_only_looks_like_ours_is_foreign(host):
    assert not Hosts("127.0.0.1").allow(host)


def test_our_own_names_are_ours_with_any_port():
    for host in ("localhost", "LOCALHOST:5555", "127.0.0.1:1", "[::1]:5555", "[::1]", "localhost."):
        assert Hosts("127.0.0.1").allow(host)


def test_a_change_needs_the_token_and_our_origin(client):
    client.log_in()
    path = "/api/trace/groups/x/resolve"
    assert client.post(path).status == 403
    assert client.post(path, xsrf=True, headers={"Origin": "http://evil.example"}).status == 403
    assert client.post(path, xsrf=True, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert client.post(path, xsrf=True, headers={"Origin": client.base}).status == 200


def test_a_browsers_remembered_password_needs_the_token_too(client):
    basic = {"Authorization": "Basic " + b64encode(f"any:{PASSWORD}".encode()).decode()}
    path = "/api/trace/groups/x/resolve"
    assert client.post(path, headers={**basic, "Origin": client.base}).status == 403
    assert client.post(path, headers=basic).status == 200


def test_flowers_own_commands_need_the_token_too(client):
    client.log_in()
    assert client.post("/api/worker/shutdown/celery@x").status == 403
    assert client.post("/api/worker/shutdown/celery@x", xsrf=True).status == 404


def test_security_headers_stand_on_every_answer(client):
    for path in ("/login", "/trace", "/api/trace/stats", "/metrics", "/workers", "/nowhere"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Access-Control-Allow-Origin"] is None
    client.log_in()
    policy = client.get("/trace/leaks").headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-inline" not in policy
    assert client.get("/trace").headers["Cache-Control"] == "no-store"


def test_flowers_open_api_switch_opens_nothing_here(monitor, client, monkeypatch):
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    answer = client.get("/api/workers")
    assert answer.status in (302, 401)
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "/a\\b", "/x\r\nSet-Cookie: a=b"]
)
def test_a_login_leads_nowhere_else(client, target):
    client.get("/login")
    answer = client.post(
        "/login",
        {"password": PASSWORD, "next": target, "_xsrf": client.cookies["_xsrf"]},
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.headers["Location"] == "/trace"


def test_a_session_ends(tmp_path):
    clock = FakeClock()
    with serving(lambda: make_monitor(tmp_path, clock=clock)) as (base, _):
        client = Client(base)
        client.log_in()
        assert client.get("/trace").status == 200
        clock.advance(3601)
        assert client.get("/trace").status == 302


def test_nobody_can_log_the_others_out_by_logging_in_often():
    sessions = Sessions(FakeClock(), 3600)
    first, own = sessions.begin("ada"), sessions.begin("lou")
    cookies = [sessions.begin("lou") for _ in range(2000)]
    assert sessions.find(first).user == "ada"
    assert sessions.find(own) is None
    assert sessions.find(cookies[-1]).user == "lou"
    assert len(sessions) == 101


def test_roles_are_steps(tmp_path):
    pairs = ("lou:1", "val:2", "sue:3", "liv:4", "joe:5")
    roles = ("lou:look", "val:locals", "sue:recreated", "liv:live")
    with serving(lambda: make_monitor(tmp_path, pairs=pairs, roles=roles)) as (base, _):
        statuses = {}
        for pair in pairs:
            basic = {"Authorization": "Basic " + b64encode(pair.encode()).decode(), "Accept": "application/json"}
            client = Client(base)
            statuses[pair[:3]] = (
                client.get("/api/trace/failures", headers=basic).status,
                client.get("/api/trace/shells", headers=basic).status,
                client.get("/trace/shell/x", headers=basic).status,
                client.post("/api/trace/failures/x/retry", headers=basic).status,
            )
        # 400: the shell's address wants a WebSocket; 404: there is no such failure.
        assert statuses == {
            "lou": (200, 403, 403, 403),
            "val": (200, 200, 403, 403),
            "sue": (200, 200, 400, 403),
            "liv": (200, 200, 400, 404),
            "joe": (200, 403, 403, 403),
        }
        assert Client(base).get("/trace").headers["WWW-Authenticate"].startswith("Basic")


@pytest.fixture
def oauth(tmp_path):
    """A monitor behind an OAuth provider, and what the provider's handler leaves in the browser."""
    roles = ("ada@example.org:live", "lou@example.org:look")
    with serving(
        lambda: make_monitor(tmp_path, auth="ada@example.org|lou@example.org|joe@example.org", roles=roles)
    ) as (base, app):

        def cookie(name, *, secret=None, age_s=0.0):
            secret = secret or app.settings["cookie_secret"]
            value = create_signed_value(secret, "user", name, clock=lambda: time.time() - age_s)
            return {"user": value.decode()}

        yield base, app, cookie


def test_who_comes_by_oauth_has_the_role_of_the_address(oauth):
    base, _, cookie = oauth
    statuses = {}
    for name in ("ada@example.org", "lou@example.org", "joe@example.org", "eve@example.org"):
        client = Client(base)
        client.cookies = cookie(name)
        pages = [client.get(path).status for path in ("/trace", "/trace/shells")]
        client.get("/trace")
        statuses[name[:3]] = (*pages, client.post("/api/trace/failures/x/retry", xsrf=True).status)
    assert statuses == {"ada": (200, 200, 404), "lou": (200, 403, 403), "joe": (200, 403, 403), "eve": (302, 302, 401)}


def test_an_oauth_cookie_that_is_forged_old_or_was_used_opens_nothing(oauth):
    base, app, cookie = oauth
    for bad in (
        cookie("ada@example.org", secret="guessed"),
        cookie("ada@example.org", age_s=2 * 86400),
        {"user": "ada@example.org"},
        {"user": '"2|1:0|10:0|4:user|0:|"'},
    ):
        client = Client(base)
        client.cookies = bad
        assert client.get("/trace").status == 302, bad
        assert client.get("/api/trace/stats").status == 401, bad
    client, stolen = Client(base), cookie("ada@example.org")
    client.cookies = dict(stolen)
    assert client.get("/trace").status == 200
    assert client.get("/trace").status == 200  # by our session from here on
    assert client.post("/api/trace/groups/x/resolve").status == 403  # needs the token
    copy = {**client.cookies, **stolen}
    assert client.post("/logout", xsrf=True).status == 302
    thief = Client(base)
    thief.cookies = copy
    assert thief.get("/trace").status == 302
    folder = app.trace_settings.folder
    assert "login by OAuth" in (folder / "audit.jsonl").read_text()
    assert "a session that has ended or never was" in (folder / "strangers.jsonl").read_text()


def test_refusals_stand_in_the_audit_log(tmp_path):
    with serving(lambda: make_monitor(tmp_path)) as (base, _):
        client = Client(base)
        client.get("/login", headers={"Host": "evil.example"})
        client.log_in("wrong")
        client.get("/trace/leaks")
        client.get("/api/trace/stats")
        client.log_in()
        client.post("/api/trace/groups/x/resolve")
        client.post("/api/trace/groups/y/resolve", xsrf=True, headers={"Origin": "http://evil.example"})
        stolen = dict(client.cookies)
        client.post("/logout", xsrf=True)
        client.cookies = stolen
        client.get("/trace/failures")
        client.cookies = {}
        client.post("/login", {"password": PASSWORD})
        for number in range(9):
            client.get("/metrics", headers={"Authorization": f"Bearer {number}"})
    log = [
        json.loads(line)
        for name in ("audit.jsonl", "strangers.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    refused = {(entry.get("user", ""), entry["command"], entry["verdict"].partition(" (")[0]) for entry in log}
    for expected in (
        ("", "Host evil.example", "refused: foreign host"),
        ("", "login", "refused: wrong password"),
        ("", "GET /trace/leaks", "refused: no login"),
        ("", "GET /api/trace/stats", "refused: no login"),
        ("admin", "POST /api/trace/groups/x/resolve", "refused: XSRF token: '_xsrf' argument missing from POST"),
        ("admin", "POST /api/trace/groups/y/resolve", "refused: origin http://evil.example"),
        ("", "GET /trace/failures", "refused: a session that has ended or never was"),
        ("", "POST /login", "refused: XSRF token: '_xsrf' argument missing from POST"),
        ("", "bearer login", "refused: too many wrong passwords"),
    ):
        assert expected in refused
    for name in ("audit.jsonl", "strangers.jsonl"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_flood_of_refusals_does_not_wash_the_audit_log_away(tmp_path):
    clock = FakeClock()
    log = AuditLog(tmp_path, clock)
    stored = []
    log.emit = stored.append
    log.done(who="ada", what="login")
    for number in range(5000):
        log.refused(who="", what=f"Host {number}", why="foreign host")
        log.refused(who="ada", what="login", why="wrong password")
    log.refused(who="lou", what="GET /trace/shells", why="needs the role locals")
    clock.advance(61)
    log.refused(who="", what="Host again", why="foreign host")
    ours, theirs = ((tmp_path / name).read_text().splitlines() for name in ("audit.jsonl", "strangers.jsonl"))
    assert [entry["user"] for entry in map(json.loads, ours)] == ["ada", "lou"]
    assert len(theirs) == 101
    assert "left out before this 9900" in theirs[-1]
    # Nobody fills the store who has not logged in, under whatever name.
    assert [entry.user for entry in stored] == ["ada", "lou"]
