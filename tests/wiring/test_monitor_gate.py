"""Every route is closed unless it says otherwise, and each way in is the way that was meant."""

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
from tornado.netutil import bind_unix_socket
from tornado.web import HTTPError, RequestHandler, create_signed_value

from celery_trace.clock import FakeClock
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.gate import Gate, Hosts
from flower_plugin.auth.login import MOST_BY_ACCOUNT, MOST_BY_ADDRESS, WINDOW_S, LoginSessions
from flower_plugin.auth.roles import Role
from flower_plugin.upstream import flower_template_folder, splice
from flower_plugin.web.guarded import guarded
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
    token = monitor[1].context.gatekeeper.links.make()
    answer = client.get(f"/login?token={token}&next=/trace/leaks")
    assert answer.headers["Location"] == "/trace/leaks"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    client.get(f"/login?token={token}")
    for name in ("audit.jsonl", "strangers.jsonl"):
        assert token not in (monitor[1].context.settings.folder / name).read_text()


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


class AnswersEarly(RequestHandler):
    """What a handler may do in ``prepare``, as Tornado's redirects and errors do."""

    ran: ClassVar[list[str]] = []

    def prepare(self):
        kind = self.path_args[0]
        self.ran.append(kind)
        if kind == "redirect":
            self.redirect("/elsewhere")
        elif kind == "refuse":
            raise HTTPError(410, "gone")
        elif kind == "wait":
            return self.wait()
        return None

    async def wait(self):
        await asyncio.sleep(0)
        self.finish("answered after a wait")

    def get(self, kind):
        self.finish(f"got {kind}")


@pytest.mark.parametrize("prefix", ["", "/flower"], ids=["at the root", "below a prefix"])
def test_what_a_handler_answers_in_its_own_prepare_is_the_answer_to_who_was_let_in(tmp_path, prefix):
    def make():
        app = make_monitor(tmp_path, **({"url_prefix": "flower"} if prefix else {}))
        app.add_handlers(r".*", [(rf"{prefix}/early/(.*)", AnswersEarly)])
        return app

    AnswersEarly.ran.clear()
    with serving(make) as (base, _):
        client = Client(base)
        for kind in ("redirect", "refuse", "wait", "nothing"):
            answer = client.get(f"{prefix}/early/{kind}")
            assert (answer.status, "/login?" in answer.headers["Location"]) == (302, True)
        assert AnswersEarly.ran == []
        client.log_in(prefix=prefix)
        answers = {kind: client.get(f"{prefix}/early/{kind}") for kind in ("redirect", "refuse", "wait", "nothing")}
        assert AnswersEarly.ran == list(answers)
    assert (answers["redirect"].status, answers["redirect"].headers["Location"]) == (302, "/elsewhere")
    assert answers["refuse"].status == 410
    assert (answers["wait"].status, answers["wait"].text) == (200, "answered after a wait")
    assert (answers["nothing"].status, answers["nothing"].text) == (200, "got nothing")


def test_below_a_prefix_its_address_without_the_slash_leads_there_and_others_are_not_found(tmp_path):
    with serving(lambda: make_monitor(tmp_path, url_prefix="flower")) as (base, _):
        client = Client(base)
        for address in ("/", "/flower", "/flower/", "/flowers", "/trace"):
            answer = client.get(address)
            assert answer.status == 302
            assert answer.headers["Location"].startswith("/flower/login?")
        client.log_in(prefix="/flower")
        found = {
            address: client.get(address).status
            for address in ("/", "/trace", "/other", "/flower/", "/flower/trace", "/flower/nowhere", "/flower/trace/no")
        }
        assert found == {
            "/": 404, "/trace": 404, "/other": 404, "/flower/": 200, "/flower/trace": 200, "/flower/nowhere": 404,
            "/flower/trace/no": 404,
        }  # fmt: skip
        answer = client.get("/flower?refresh=1")
        assert (answer.status, answer.headers["Location"]) == (302, "/flower/?refresh=1")
        assert client.post("/", xsrf=True).status == 404


def test_the_one_time_link_opens_one_session_and_is_dead_afterwards(monitor, client):
    token = monitor[1].context.gatekeeper.links.make()
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
    token = monitor[1].context.gatekeeper.links.make()
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
    answers = [client.get("/api/trace/stats", headers={"Authorization": f"Bearer x{i}"}) for i in range(10)]
    assert answers[0].status == 401
    assert answers[-1].status == 429
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= WINDOW_S + 1
    assert answers[-1].json()["error"]["what"] == "Too many tries."


def guess(client, number, name="ada", **headers):
    """The statuses of that many wrong passwords through the form."""
    client.get("/login")
    fields = {"name": name, "password": "wrong", "_xsrf": client.cookies["_xsrf"]}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    found = []
    for index in range(number):
        sent = {key.replace("_", "-"): value.format(index) for key, value in headers.items()}
        found.append(client.post("/login", fields, headers={**form, **sent}).status)
    return found


PAIRS = {"pairs": ("ada:secret", "bob:other"), "password": ""}


@pytest.mark.parametrize("header", ["X_Real_Ip", "X_Forwarded_For"])
@pytest.mark.parametrize(
    "options", [{}, {"trace_trusted_proxies": ["192.0.2.1"]}], ids=["no proxy is named", "another proxy is named"]
)
def test_a_made_up_address_gives_no_further_guesses(tmp_path, header, options):
    with serving(lambda: make_monitor(tmp_path, xheaders=True, **PAIRS, **options)) as (base, _):
        statuses = guess(Client(base), 60, **{header: "198.51.100.{}"})
        assert statuses == [403] * MOST_BY_ADDRESS + [429] * (60 - MOST_BY_ADDRESS)


def test_guessing_from_many_addresses_ends_too_and_shuts_out_nobody_who_was_there_before(tmp_path):
    options = {"xheaders": True, "trace_trusted_proxies": ["127.0.0.0/8"], **PAIRS}
    clock = FakeClock()
    with serving(lambda: make_monitor(tmp_path, clock=clock, **options)) as (base, _):
        home, form = {"X-Real-Ip": "203.0.113.7"}, {"Content-Type": "application/x-www-form-urlencoded"}

        def log_in(name, password, headers):
            visitor = Client(base)
            visitor.get("/login", headers=headers)
            fields = {"name": name, "password": password, "_xsrf": visitor.cookies["_xsrf"]}
            return visitor, visitor.post("/login", fields, headers={**form, **headers})

        ada, answer = log_in("ada", "secret", home)
        assert answer.status == 302
        assert guess(Client(base), 60, X_Real_Ip="198.51.100.{}").count(403) == MOST_BY_ACCOUNT
        assert guess(Client(base), 60, name="nobody", X_Real_Ip="198.51.101.{}").count(403) == MOST_BY_ACCOUNT
        # Her session goes on, and she may log in from where she was before; from a new place she waits.
        assert ada.get("/trace", headers=home).status == 200
        assert log_in("ada", "secret", home)[1].status == 302
        basic = {"Authorization": "Basic " + b64encode(b"ada:secret").decode(), **home}
        assert Client(base).get("/api/trace/stats", headers=basic).status == 200
        elsewhere = log_in("ada", "secret", {"X-Real-Ip": "203.0.113.8"})[1]
        assert elsewhere.status == 429
        assert 1 <= int(elsewhere.headers["Retry-After"]) <= WINDOW_S + 1
        assert "Try again in" in elsewhere.text
        # Somebody else is not concerned.
        assert log_in("bob", "other", {"X-Real-Ip": "203.0.113.9"})[1].status == 302
        clock.advance(WINDOW_S + 1)
        assert log_in("ada", "secret", {"X-Real-Ip": "203.0.113.8"})[1].status == 302


def addresses_in_the_log(folder):
    """The addresses of what strangers tried, in order."""
    lines = (folder / "strangers.jsonl").read_text().splitlines()
    return [re.search(r"address (\S+?)\)", json.loads(line)["verdict"])[1] for line in lines]


def test_an_address_from_a_proxy_holds_for_one_request_on_its_line(tmp_path):
    options = {"trace_trusted_proxies": ["127.0.0.1"], **PAIRS}
    with serving(lambda: make_monitor(tmp_path, **options)) as (base, _):
        line = http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)
        for forwarded in ("198.51.100.1", None, "203.0.113.1, 198.51.100.2", "nonsense", "198.51.100.3, 127.0.0.1"):
            line.request("GET", "/metrics", headers={"X-Forwarded-For": forwarded} if forwarded else {})
            assert line.getresponse().read()
        line.close()
    assert addresses_in_the_log(tmp_path) == ["198.51.100.1", "127.0.0.1", "198.51.100.2", "127.0.0.1", "198.51.100.3"]


@pytest.mark.parametrize(("proxies", "secure"), [(["127.0.0.1"], True), ([], False)])
@pytest.mark.parametrize("header", ["X-Forwarded-Proto", "X-Scheme"])
def test_only_a_named_proxy_says_that_the_visitor_came_by_tls(tmp_path, proxies, secure, header):
    with serving(lambda: make_monitor(tmp_path, xheaders=True, trace_trusted_proxies=proxies)) as (base, app):
        answer = Client(base).get(f"/login?token={app.context.gatekeeper.links.make()}", headers={header: "https"})
        cookie = next(line for line in answer.headers.get_all("Set-Cookie") if "session" in line)
        assert ("Secure" in cookie) is secure


def test_over_a_unix_socket_the_one_who_may_open_it_is_the_proxy(tmp_path):
    path = str(tmp_path / "monitor.sock")
    with serving(lambda: make_monitor(tmp_path, xheaders=True, **PAIRS)) as (_, app):
        opened = threading.Event()
        servers = []

        def open_socket():
            servers.append(app.http_server())
            servers[0].add_socket(bind_unix_socket(path, mode=0o600))
            opened.set()

        app.io_loop.add_callback(open_socket)
        assert opened.wait(20)
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(20)
            line.connect(path)
            line.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Real-Ip: 198.51.100.9\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 401")
        app.io_loop.add_callback(servers[0].stop)
    assert addresses_in_the_log(tmp_path) == ["198.51.100.9"]


@pytest.mark.parametrize(
    ("name", "password", "role"),
    [
        ("bob", "live:secret", "look"),
        ("bob:live", "secret", None),
        ("bob:live:secret", "", None),
        ("bob", "secret", None),
    ],
)
def test_a_colon_in_a_password_gives_nobody_another_name_or_role(tmp_path, name, password, role):
    make = lambda: make_monitor(tmp_path, pairs=("bob:live:secret",), roles=("bob:look", "*:live"))  # noqa: E731
    with serving(make) as (base, _):
        client = Client(base)
        assert client.log_in(password, name).status == (302 if role else 403)
        assert client.post("/api/trace/failures/x/retry", xsrf=True).status == (403 if role else 401)
        if role:
            assert "Role: look" in client.get("/trace").text
        header = {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}
        # HTTP itself knows no colon in a name: what is sent is one text, and its first colon divides it.
        fits = f"{name}:{password}" == "bob:live:secret"
        assert Client(base).get("/api/trace/stats", headers=header).status == (200 if fits else 401)
        assert Client(base).post("/api/trace/failures/x/retry", headers=header).status == (403 if fits else 401)


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
    assert client.get("/trace").headers["Cache-Control"] == "no-store"


#: A script, a style or a handler of an event within a page.
INLINE = re.compile(r"<script(?![^>]*(\bsrc=|application/json))[^>]*>|\sstyle=|<[^>]*\son[a-z]+=")


@pytest.mark.parametrize(
    "path",
    ["/", "/workers", "/tasks", "/task/x", "/worker/x", "/broker", "/api/workers", "/api/tasks", "/nowhere", "/logout",
     "/login", "/metrics", "/static/js/flower.js", "/trace", "/trace/leaks", "/trace/nowhere", "/api/trace/leaks"],
)  # fmt: skip
def test_no_page_of_ours_or_flowers_may_run_an_inline_script_and_none_has_one(client, path):
    client.log_in()
    answer = client.get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    if answer.headers["Content-Type"].startswith("text/html"):
        assert not INLINE.search(answer.text)


@pytest.mark.parametrize("path", sorted(Path(flower_template_folder()).glob("*.html")), ids=lambda path: path.name)
def test_no_template_of_flowers_has_anything_inline_once_it_is_spliced(path, caplog):
    assert not INLINE.search(splice(path.name, path.read_text()))
    assert not caplog.records  # each place that we change is there


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
    sessions = LoginSessions(FakeClock(), 3600)
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
    folder = app.context.settings.folder
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
    log = MonitorAuditLog(tmp_path, clock)
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
