"""A monitor in this process, and a client that speaks to it over real sockets."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.client import HTTPMessage
from typing import Any

from celery import Celery

from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor
from celery_trace.settings import Settings, load
from flower_plugin import upstream
from flower_plugin.app import MonitorApplication
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.gate import Gatekeeper, Hosts
from flower_plugin.auth.login import Credentials, LoginSessions, LoginThrottle, OneTimeLinks, SpentCookies
from flower_plugin.auth.roles import RoleMap
from flower_plugin.incoming.argument_secrets import ArgumentSecrets, parameters_of
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.events import EventCheck
from flower_plugin.jobs import Jobs
from flower_plugin.store_access import StoreAccess

PASSWORD = "correct horse"


class QuietEvents(upstream.MonitorEvents):
    """Flower's events without the thread: nothing of a broker is asked."""

    def start(self) -> None:
        self.started_quietly = True

    def stop(self) -> None:
        self.started_quietly = False


class QuietJobs(Jobs):
    """The jobs are there and can be called; only open pages are told of changes by themselves."""

    def start(self) -> None:
        for job in self._jobs:
            if job.name == "Live pages":
                job.start()


def end_sessions(application: MonitorApplication) -> None:
    """End every shell of a monitor that goes on, and wait until nothing of them runs."""
    import threading

    rooms = list(application.rooms._rooms.values())
    sessions = [room._session for room in rooms if room._session is not None]
    done = threading.Event()
    application.io_loop.add_callback(lambda: ([room.end() for room in rooms], done.set()))
    assert done.wait(20)
    for session in sessions:
        session.close()


def forget_guesses(application: MonitorApplication) -> None:
    """Nobody has guessed a password yet."""
    keeper = application.context.gatekeeper
    keeper.throttle = LoginThrottle(application.context.clock, keeper.credentials.accounts)


class Options:
    """Flower's options with some of them laid over, without touching the global table."""

    def __init__(self, **values: Any) -> None:
        upstream.define_options()
        self.__dict__["_values"] = {"trace_session_hours": 12.0, **values}

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__["_values"]
        return values[name] if name in values else getattr(upstream.options, name)


def make_monitor(
    folder: Any,
    *,
    settings: Settings | None = None,
    access: StoreAccess | None = None,
    roles: tuple[str, ...] = (),
    pairs: tuple[str, ...] = (),
    password: str = PASSWORD,
    token: str = "",
    clock: Any = None,
    opener: Any = None,
    hosts: tuple[str, ...] = (),
    **options: Any,
) -> MonitorApplication:
    """
    A monitor that listens nowhere yet. Its store is SQLite in ``folder``.

    Args:
        roles, pairs, password, token: What the command reads from options and environment.
        options: Flower's, such as ``url_prefix`` or ``read_only``.
    """
    clock = clock or SystemClock()
    settings = settings or load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    chosen = Options(**options)
    capp = Celery("shop", broker="memory://", set_as_current=False)
    link = BrokerLink(clock)
    credentials = Credentials(pairs, "" if pairs else password, token)
    redactor = Redactor(settings.redact)
    keeper = Gatekeeper(
        credentials=credentials,
        roles=RoleMap.parse(roles),
        hosts=Hosts("127.0.0.1", hosts),
        sessions=LoginSessions(clock, 3600),
        links=OneTimeLinks(clock),
        throttle=LoginThrottle(clock, credentials.accounts),
        audit=MonitorAuditLog(settings.folder, clock),
        spent=SpentCookies(clock, 3600),
        oauth=(lambda name: bool(upstream.oauth_user_allowed(options["auth"], name))) if options.get("auth") else None,
        session_days=1 / 24,
        read_only=bool(chosen.read_only or chosen.trace_read_only),
    )
    from tornado.ioloop import IOLoop

    tornado_settings = upstream.flower_settings()
    if options.get("url_prefix"):
        prefix = "/" + options["url_prefix"].strip("/")
        for name in ("login_url", "static_url_prefix"):
            tornado_settings[name] = prefix + tornado_settings[name]
    return MonitorApplication(
        capp=capp,
        options=chosen,
        tornado_settings=tornado_settings,
        trace_settings=settings,
        access=access or StoreAccess(settings, clock),
        gatekeeper=keeper,
        clock=clock,
        link=link,
        events=QuietEvents(
            capp,
            IOLoop.current(),
            max_tasks_in_memory=1000,
            link=link,
            check=EventCheck(redactor, clock, ArgumentSecrets(redactor, parameters_of(capp))),
        ),
        opener=opener,
        jobs=QuietJobs,
    )


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.text = body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """A visitor: keeps cookies, sends the XSRF token when told to."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cookies: dict[str, str] = {}
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, xsrf: bool = False
    ) -> Answer:
        sent = {"Accept": "text/html", **(headers or {})}
        if self.cookies:
            sent.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        if xsrf:
            sent["X-XSRFToken"] = self.cookies.get("_xsrf", "")
        data = None
        if method != "GET":
            data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            if isinstance(body, dict) and sent.get("Content-Type") == "application/x-www-form-urlencoded":
                data = urllib.parse.urlencode(body).encode()
        request = urllib.request.Request(self.base + path, data=data, headers=sent, method=method)
        try:
            with self._opener.open(request, timeout=30) as answer:
                found = Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                found = Answer(error.code, error.headers, error.read())
        for line in found.headers.get_all("Set-Cookie") or ():
            name, _, rest = line.partition("=")
            value = rest.partition(";")[0]
            self.cookies[name] = value
            if not value or value == '""':
                del self.cookies[name]
        return found

    def get(self, path: str, **keywords: Any) -> Answer:
        return self.request("GET", path, **keywords)

    def post(self, path: str, body: Any = None, **keywords: Any) -> Answer:
        return self.request("POST", path, body, **keywords)

    def log_in(self, password: str = PASSWORD, name: str = "", prefix: str = "") -> Answer:
        """Through the form, as a person."""
        self.get(f"{prefix}/login")
        return self.post(
            f"{prefix}/login",
            {"password": password, "name": name, "_xsrf": self.cookies.get("_xsrf", "")},
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )


@contextmanager
def serving(make: Any) -> Any:
    """
    Serve a monitor from a thread of its own.

    Args:
        make: Called in that thread, returns the application.

    Yields:
        ``(base address, application)``.
    """
    import asyncio
    import threading

    from tornado.netutil import bind_sockets

    ready = threading.Event()
    held: dict[str, Any] = {}

    def serve() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)

        async def main() -> None:
            try:
                application = make()
                server, (socket,) = application.http_server(), bind_sockets(0, "127.0.0.1")
                server.add_socket(socket)
                held.update(app=application, port=socket.getsockname()[1], stop=asyncio.Event(), loop=loop)
                application.jobs.start()
            except BaseException as error:
                held["error"] = error
                ready.set()
                raise
            ready.set()
            await held["stop"].wait()
            application.rooms.close()
            application.live.close()
            server.stop()
            await server.close_all_connections()
            application.jobs.stop()
            application.context.threads.shutdown(wait=True)
            application.executor.shutdown(wait=True)
            application.rooms.threads.sessions.shutdown(wait=True)
            application.context.access.close()

        try:
            loop.run_until_complete(main())
        finally:
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=serve, name="monitor-under-test")
    thread.start()
    if not ready.wait(60) or "error" in held:
        thread.join(10)
        raise RuntimeError(f"the monitor did not start: {held.get('error')!r}")
    try:
        yield f"http://127.0.0.1:{held['port']}", held["app"]
    finally:
        held["loop"].call_soon_threadsafe(held["stop"].set)
        thread.join(60)
        assert not thread.is_alive(), "the monitor did not stop"


def eventually(look: Any, deadline_s: float = 30.0) -> Any:
    """What ``look`` returns once it is true."""
    end = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not so within {deadline_s} s: {look}"
        time.sleep(0.05)
