"""Each kind of channel against a receiver of its own, and what is shown of their secrets."""

from __future__ import annotations

import base64
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from email import message_from_string
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from celery_trace.alerting.channels import DeliveryFailed, LogChannel, Message, channel, channels
from celery_trace.model import AlertView
from celery_trace.settings import SettingError

SECRET = "s3cr3t-t0k3n-0123456789"


class Receiver:
    """An HTTP server that remembers requests and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


class PostOffice:
    """As much of an SMTP server as it takes to receive a mail."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []
        office = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                def say(text: str) -> None:
                    self.wfile.write(text.encode() + b"\r\n")

                say("220 office")
                to = ""
                while line := self.rfile.readline().decode().strip():
                    verb = line.split(":")[0].upper()
                    if verb.startswith(("EHLO", "HELO")):
                        say("250 office")
                    elif verb == "RCPT TO":
                        to = line.partition(":")[2].strip()
                        say("250 ok")
                    elif verb == "DATA":
                        say("354 go on")
                        lines = []
                        while (part := self.rfile.readline().decode()) not in (".\r\n", ""):
                            lines.append(part)
                        office.mails.append((to, "".join(lines)))
                        say("250 taken")
                    elif verb == "QUIT":
                        say("221 bye")
                        return
                    else:
                        say("250 ok")

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def post_office() -> Iterator[PostOffice]:
    started = PostOffice()
    yield started
    started.close()


def message(**more: Any) -> Message:
    alert = AlertView(
        id="a1", rule="leak", subject="shop.leak", state="firing", severity="warning", text="It leaks ünïcode.",
        value=5000.0, threshold=1000.0, since=1.0, fired_at=2.0, resolved_at=None, link="leaks/x",
    )  # fmt: skip
    values: dict[str, Any] = {
        "state": "firing", "rule": "leak", "severity": "warning", "title": "[warning] leak: shop.leak",
        "body": "It leaks ünïcode.", "at": 3.0, "alerts": [alert],
    }  # fmt: skip
    return Message(**{**values, **more})


@pytest.mark.parametrize(
    ("changes", "level"),
    [({}, logging.WARNING), ({"severity": "critical"}, logging.ERROR), ({"severity": "info"}, logging.INFO),
     ({"severity": "critical", "state": "resolved"}, logging.INFO)],
)  # fmt: skip
def test_the_log_gets_the_level_that_fits(
    changes: dict[str, Any], level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "celery_trace.alerts"):
        channel("log:").send(message(**changes))
    (record,) = caplog.records
    assert record.levelno == level
    assert "It leaks" in record.getMessage()


def test_a_webhook_gets_the_alerts_as_json(receiver: Receiver) -> None:
    channel(f"webhook+http://ada:{SECRET}@127.0.0.1:{receiver.port}/hook?key={SECRET}").send(message())
    ((path, headers, body),) = receiver.requests
    assert path == f"/hook?key={SECRET}"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode() == f"ada:{SECRET}"
    assert headers["content-type"].startswith("application/json")
    posted = json.loads(body)
    assert posted["version"] == 1
    assert posted["message"]["state"] == "firing"
    assert posted["message"]["alerts"][0]["text"] == "It leaks ünïcode."
    assert posted["message"]["alerts"][0]["value"] == 5000.0


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_answers_anything_but_2xx_has_not_taken_it(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(DeliveryFailed, match=f"answered {status}"):
        channel(f"webhook+http://127.0.0.1:{receiver.port}/").send(message())
    assert len(receiver.requests) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "address",
    [
        "webhook+http://ada:" + SECRET + "@127.0.0.1:{port}/" + SECRET + "?key=" + SECRET,
        "webhook+https://127.0.0.1:{port}/" + SECRET,
        "json://ada:" + SECRET + "@127.0.0.1:{port}/" + SECRET,
        "mailto://ada:" + SECRET + "@127.0.0.1:{port}?from=a@shop.test&to=b@shop.test&mode=insecure",
    ],
)
def test_a_receiver_that_is_not_there_is_an_error_without_the_secret(address: str) -> None:
    with pytest.raises(DeliveryFailed) as failed:
        channel(address.format(port=free_port())).send(message())
    assert str(failed.value)
    assert SECRET not in str(failed.value)


def test_apprise_posts_json(receiver: Receiver) -> None:
    channel(f"json://127.0.0.1:{receiver.port}/path").send(message())
    ((path, _, body),) = receiver.requests
    assert path == "/path"
    posted = json.loads(body)
    assert (posted["title"], posted["message"], posted["type"]) == (
        "[warning] leak: shop.leak",
        "It leaks ünïcode.",
        "warning",
    )


def test_apprise_speaks_to_what_looks_like_slack(receiver: Receiver) -> None:
    """Mattermost's incoming webhook is Slack's shape, and its host may be ours."""
    channel(f"mmost://127.0.0.1:{receiver.port}/{'a1b2c3d4e5f6g7h8i9j0k1l2m3'}").send(message())
    ((path, _, body),) = receiver.requests
    assert path == "/hooks/a1b2c3d4e5f6g7h8i9j0k1l2m3"
    assert "It leaks" in json.loads(body)["text"]


def test_apprise_sends_mail(post_office: PostOffice) -> None:
    address = f"mailto://127.0.0.1:{post_office.port}?from=trace@shop.test&to=ada@shop.test&mode=insecure&format=text"
    channel(address).send(message())
    ((to, text),) = post_office.mails
    assert "ada@shop.test" in to
    mail = message_from_string(text)
    assert "leak: shop.leak" in str(mail["Subject"])
    part = next(part for part in mail.walk() if part.get_content_type() == "text/plain")
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert "It leaks ünïcode." in payload.decode()


@pytest.mark.parametrize("silenced", [False, True])
def test_a_service_that_refuses_says_why_whatever_the_application_logs(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, silenced: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("apprise"), "disabled", silenced)
    monkeypatch.setattr(logging.getLogger("apprise"), "level", logging.CRITICAL if silenced else logging.NOTSET)
    receiver.status = 500
    with pytest.raises(DeliveryFailed) as failed:
        channel(f"json://127.0.0.1:{receiver.port}/{SECRET}").send(message())
    assert "500" in str(failed.value)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("log:", "log:"),
        (f"webhook+https://ada:{SECRET}@hooks.shop.test/{SECRET}?k={SECRET}", "webhook+https://hooks.shop.test/…"),
        (f"jsons://ada:{SECRET}@hooks.shop.test:8443/{SECRET}", "jsons://hooks.shop.test:8443/…"),
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general", "slack://…/…"),
        (
            f"mailto://ada:{SECRET}@smtp.shop.test:2525/?from=a@shop.test&to=b@shop.test",
            "mailto://smtp.shop.test:2525/…",
        ),
    ],
)
def test_a_label_tells_channels_apart_and_nothing_else(address: str, label: str) -> None:
    assert channel(address).label == label


def test_channels_that_look_alike_are_numbered() -> None:
    labels = [made.label for made in channels(["webhook+https://a.test/1", "webhook+https://a.test/2", "log:"])]
    assert labels == ["webhook+https://a.test/…", "webhook+https://a.test/… (2)", "log:"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"webhook+ftp://a.test/{SECRET}", "webhook+https://host"),
        (f"webhook+https:///{SECRET}", "webhook+https://host"),
        (f"webhook+https://a.test:notaport/{SECRET}", "webhook+https://host"),
        (f"https://a.test/{SECRET}", "Write webhook+https://…"),
        (f"nonsense://{SECRET}", "nonsense://… (the rest is hidden) that Apprise does not accept"),
        (SECRET, "has (hidden), but each must be log:, webhook+https://…, or an Apprise URL"),
        ("log", "has log, but each must be"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(address: str, says: str) -> None:
    with pytest.raises(SettingError) as refused:
        channel(address)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_without_apprise_its_channels_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r'pip install "celery-trace\[alerts\]"'):
        channel("json://a.test/")
    assert isinstance(channel("log:"), LogChannel)
