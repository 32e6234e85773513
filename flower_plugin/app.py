"""The monitor: Flower, with our routes, the gate in front of all of them, and the work that goes on beside."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from tornado.netutil import bind_sockets
from tornado.web import HTTPError, RequestHandler

from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.model import AuditEntry
from celery_trace.redaction import Redactor
from celery_trace.settings import Settings
from flower_plugin import upstream
from flower_plugin.auth.gate import Gate, Gatekeeper
from flower_plugin.auth.proxies import ProxiedServer, Proxies
from flower_plugin.auth.roles import Role
from flower_plugin.facts import Facts
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.calls import Calls, parameters_of
from flower_plugin.jobs import Jobs
from flower_plugin.rendering.templating import FOLDER, MonitorLoader
from flower_plugin.routes import routes
from flower_plugin.shell.room import Opener, ShellRooms
from flower_plugin.web import wire
from flower_plugin.web.handlers import NotFoundHandler
from flower_plugin.web.live import LiveFeed
from flower_plugin.wording import Paths, project_roots

logger = logging.getLogger("celery_trace.monitor")

STATIC = Path(__file__).parent / "static"

#: Greatest body of a request, bytes. Tornado reads bodies before anybody is asked for a login, up to 100 MB each.
MOST_BODY_BYTES = 4 * 1024 * 1024
#: How long a body may take to arrive, and a connection to say nothing, seconds.
BODY_S, SILENT_S = 60.0, 300.0

#: Lists and objects inside each other in the arguments of a task that is sent by Flower's API.
MOST_TASK_DEPTH = 100

#: Threads for everything of ours that blocks. A slow store holds these and no page of Flower's.
THREADS = 12


_guarded: dict[type[RequestHandler], type[RequestHandler]] = {}


def guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    """The handler class that really serves: see :func:`_behind_the_gate`."""
    if handler not in _guarded:
        _guarded[handler] = _behind_the_gate(handler)
    return _guarded[handler]


def _behind_the_gate(handler: type[RequestHandler]) -> type[RequestHandler]:
    """
    A handler class of Flower's (or Tornado's) with the gate in front of it.

    Reading needs ``look``, and ``locals`` where Flower shows arguments and results; whatever may change
    something needs ``live``, because Flower's own commands shut workers down and start tasks. Its static
    files are public: the login page needs them.
    """
    if issubclass(handler, Gate):
        return handler
    if issubclass(handler, upstream.FlowerLoginHandler):
        # Its __new__ would make an instance of the configured provider, without the gate.
        handler = upstream.login_handler(upstream.options.auth_provider)
        roles: dict[str, Any] = {"role": Role.PUBLIC}
    elif issubclass(handler, upstream.StaticFileHandler):
        roles = {"role": Role.PUBLIC}
    elif issubclass(handler, upstream.SHOWS_VALUES):
        roles = {"role": Role.LOCALS, "change_role": Role.LIVE}
        if issubclass(handler, upstream.READS_BY_POST):
            roles["reading_methods"] = Gate.reading_methods | {"POST"}
    else:
        roles = {"role": Role.LOOK, "change_role": Role.LIVE}
    more = {
        "for_people": not issubclass(handler, upstream.BaseApiHandler),
        "cacheable": issubclass(handler, upstream.StaticFileHandler),
        "__module__": __name__,
    }
    bases: tuple[type, ...] = (FlowerGate if issubclass(handler, upstream.FlowerHandler) else Gate, handler)
    if issubclass(handler, upstream.StaticFileHandler):
        bases = (Gate, StaticFiles)
    elif issubclass(handler, upstream.RedactedResults.__base__):
        bases = (bases[0], upstream.RedactedResults, handler)
    return type(f"Guarded{handler.__name__}", bases, {**roles, **more})


class FlowerGate(Gate):
    """The gate in front of what Flower's own handlers do, and where they differ behind it."""

    #: Flower's API answers nobody where Flower knows of no login. It knows none of ours; the gate does.
    unauthenticated_api = True

    def render(self, template_name: str, **keywords: Any) -> Any:
        """A page of Flower's, without buttons that the gate would refuse."""
        if "read_only" in keywords:
            user = self.current_user
            changes = user is not None and user.may(self.change_role) and not self.gatekeeper.read_only
            keywords["read_only"] = keywords["read_only"] or not changes
        return super().render(template_name, **keywords)

    def get_task_args(self) -> Any:
        """The body of Flower's orders to run a task, refused where Flower would fail at it."""
        try:
            args, kwargs, options = super().get_task_args()
            wire.check((args, kwargs, options), MOST_TASK_DEPTH)
        except RecursionError:
            raise HTTPError(400, wire.TOO_DEEP) from None
        except wire.BadJson as error:
            raise HTTPError(400, str(error)) from None
        if not isinstance(kwargs, dict):
            raise HTTPError(400, "kwargs must be an object")
        return args, kwargs, options

    def normalize_options(self, options: Any) -> None:
        """Flower's reading of ``eta``, ``countdown`` and ``expires``, which takes texts and numbers for granted."""
        try:
            super().normalize_options(options)
        except TypeError as error:
            raise ValueError(str(error)) from error


class StaticFiles(upstream.StaticFileHandler):  # type: ignore[misc]
    """
    Flower's static files and ours. Their addresses, a dozen on each page, are made once: the files do not change.

    Flower's script is served with what :data:`flower_plugin.upstream.SCRIPT_FIXES` makes of it. Its address changes
    with that, so no browser goes on with the one that it has.
    """

    _addresses: ClassVar[dict[tuple[str, str, bool], str]] = {}
    # Not Tornado's own, where the version of the file as Flower ships it may be.
    _static_hashes: ClassVar[dict[str, str | None]] = {}

    @classmethod
    def get_content(cls, abspath: str, start: int | None = None, end: int | None = None) -> Any:
        """The bytes to serve."""
        fixed = upstream.fixed_script(abspath)
        return super().get_content(abspath, start, end) if fixed is None else fixed[start:end]

    def get_content_size(self) -> int:
        """How many there are."""
        fixed = upstream.fixed_script(str(self.absolute_path))
        return int(super().get_content_size()) if fixed is None else len(fixed)

    @classmethod
    def make_static_url(cls, settings: dict[str, Any], path: str, include_version: bool = True) -> str:
        """The address of a file, with its version."""
        key = (str(settings.get("static_url_prefix", "")), path, include_version)
        address = cls._addresses.get(key)
        if address is None:
            address = cls._addresses[key] = str(super().make_static_url(settings, path, include_version))
        return address


class MonitorApplication(upstream.Flower):  # type: ignore[misc]
    """
    Flower with the gate and our pages.

    Args:
        capp: The Celery app.
        options: Flower's options, ours among them.
        tornado_settings: From :func:`flower_plugin.upstream.flower_settings`.
        trace_settings: celery-trace's.
        facts: The store.
        gatekeeper: Who may come in.
        clock: Time.
        events: Flower's events; tests pass their own.
        opener: How shell sessions are opened; tests pass their own.
        jobs: What goes on beside the pages.
    """

    def __init__(
        self,
        *,
        capp: Any,
        options: Any,
        tornado_settings: Mapping[str, Any],
        trace_settings: Settings,
        facts: Facts,
        gatekeeper: Gatekeeper,
        clock: Clock,
        link: BrokerLink,
        events: Any = None,
        opener: Opener | None = None,
        jobs: type[Jobs] = Jobs,
    ) -> None:
        self.trace_settings = trace_settings
        self.facts = facts
        self.gatekeeper = gatekeeper
        self.clock = clock
        self.link = link
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="trace-monitor")
        self.paths = Paths(project_roots(trace_settings.in_app), Redactor(trace_settings.redact))
        self.proxies = Proxies(options.trace_trusted_proxies)
        self.base_url = "/" + options.url_prefix.strip("/") if options.url_prefix else ""
        settings = {
            **tornado_settings,
            # A path of our own: Tornado caches loaders by path for the whole process.
            "template_path": str(FOLDER),
            "template_loader": MonitorLoader(),
            "static_handler_class": StaticFiles,
            "xsrf_cookie_kwargs": {"samesite": "Lax"},
            "websocket_ping_interval": 20,
            "websocket_ping_timeout": 20,
            "websocket_max_message_size": 1024 * 1024,
            "default_handler_class": NotFoundHandler,
        }
        if self.base_url:
            settings["xsrf_cookie_kwargs"] = {"samesite": "Lax", "path": "/"}
        super().__init__(options=options, capp=capp, events=events, **settings)
        #: The one that decides what Flower's pages and answers show; the same names as in traced processes.
        self.redactor = Redactor(trace_settings.redact)
        calls = Calls(self.redactor, parameters_of(self.capp))
        self.inspector = upstream.MonitorInspector(
            self.io_loop, self.capp, options.inspect_timeout / 1000.0, self.redactor, calls
        )
        #: Where people reach it, with the prefix; known when it listens. Alerts link to it.
        self.public_address = ""
        gatekeeper.audit.emit = self._keep_audit_entry
        self.live = LiveFeed(self)
        self.rooms = ShellRooms(self, opener)
        self.jobs = jobs(self)
        self.add_handlers(r".*", routes(self.base_url, STATIC, oauth=bool(options.auth)))

    def get_handler_delegate(
        self, request: Any, target_class: type[RequestHandler], *arguments: Any, **keywords: Any
    ) -> Any:
        """Tornado asks this for each request: the one place through which every handler class comes."""
        return super().get_handler_delegate(request, guarded(target_class), *arguments, **keywords)

    def status(self) -> dict[str, Any]:
        """What every page says about the monitor itself."""
        broker = self.link.state
        return {
            "broker_up": broker.up,
            "broker_why": broker.why,
            "broker_since": broker.since_s,
            "transport": self.trace_settings.transport,
            "shell": self.trace_settings.shell,
            "failures_on": self.trace_settings.failures,
            "memory_mode": self.trace_settings.memory,
            # Celery counts it in KiB.
            "child_limit_bytes": (self.capp.conf.worker_max_memory_per_child or 0) * 1024,
            "events": self.events.counts,
            "unrecorded": self.events.unrecorded.now() if isinstance(self.events, upstream.MonitorEvents) else [],
            "workflow": lambda root_id: upstream.workflow(self.events, root_id),
            "app_name": str(self.capp.main or "celery"),
        }

    def _keep_audit_entry(self, entry: AuditEntry) -> None:
        def write() -> None:
            with Guard("audit record"):
                self.facts.store.write([entry])

        with Guard("audit record"):
            self.threads.submit(write)

    def asset_url(self, name: str) -> str:
        """The address of one of our static files; changes with its content."""
        return f"{self.base_url}/trace/static/{name}?v={_version(name)}"

    def http_server(self) -> ProxiedServer:
        """A server of this application that listens nowhere yet."""
        server = ProxiedServer(
            self,
            ssl_options=self.ssl_options,
            xheaders=bool(self.options.xheaders or self.proxies),
            max_body_size=MOST_BODY_BYTES,
            max_buffer_size=2 * MOST_BODY_BYTES,
            body_timeout=BODY_S,
            idle_connection_timeout=SILENT_S,
        )
        server.proxies = self.proxies
        return server

    def start_http_server(self) -> int:
        """Listen where the options say; returns the port."""
        server, sockets = self.http_server(), bind_sockets(self.options.port, address=self.options.address)
        server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    def start(self) -> None:
        """Serve until stopped."""
        self.jobs.start()
        super().start()

    def stop(self) -> None:
        """Stop everything beside the loop, then the loop. Twice is harmless."""
        self.jobs.stop()
        self.rooms.close()
        self.live.close()
        super().stop()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.facts.close()


@cache
def _version(name: str) -> str:
    return hashlib.blake2b((STATIC / name).read_bytes(), digest_size=6).hexdigest()
