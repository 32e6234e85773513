"""The monitor: Flower with our routes, the gate in front of all handlers, and background jobs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from celery import Celery
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.options import OptionParser
from tornado.web import RequestHandler

from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.model import AuditEntry
from celery_trace.settings import Settings
from flower_plugin import upstream
from flower_plugin.auth.gate import Gatekeeper
from flower_plugin.auth.proxies import ProxiedServer, Proxies
from flower_plugin.context import MonitorContext
from flower_plugin.incoming.argument_secrets import ArgumentSecrets, parameters_of
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.jobs import Jobs
from flower_plugin.pages.registry import navigation
from flower_plugin.rendering.templating import FOLDER, MonitorLoader
from flower_plugin.routes import routes
from flower_plugin.shell.opener import Opener, ProductOpener
from flower_plugin.shell.rooms import ShellRooms
from flower_plugin.store_access import StoreAccess
from flower_plugin.web.guarded import StaticFiles, guarded
from flower_plugin.web.handlers import NotFoundHandler
from flower_plugin.web.live import LiveFeed

#: Maximum request body, bytes. Tornado reads bodies before authentication, by default up to 100 MB each.
MOST_BODY_BYTES = 4 * 1024 * 1024
#: Timeouts of a request body and of an idle connection, seconds.
BODY_TIMEOUT_S, IDLE_TIMEOUT_S = 60.0, 300.0


class MonitorApplication(upstream.Flower):  # type: ignore[misc]
    """
    Flower with authentication and our pages.

    Args:
        capp: The Celery app.
        options: Flower's options, including ours.
        tornado_settings: From :func:`flower_plugin.upstream.flower_settings`.
        trace_settings: celery-trace's settings.
        access: The store.
        gatekeeper: Authentication and roles.
        clock: The clock.
        link: The state of the broker.
        events: Flower's events.
        opener: Opens shell sessions; tests pass their own.
        jobs: Background jobs.

    Attributes:
        context: The collaborators of handlers and jobs.
    """

    def __init__(
        self,
        *,
        capp: Celery,
        options: OptionParser,
        tornado_settings: Mapping[str, object],
        trace_settings: Settings,
        access: StoreAccess,
        gatekeeper: Gatekeeper,
        clock: Clock,
        link: BrokerLink,
        events: upstream.MonitorEvents,
        opener: Opener | None = None,
        jobs: type[Jobs] = Jobs,
    ) -> None:
        self.proxies = Proxies(options.trace_trusted_proxies)
        cookie = {"samesite": "Lax", "path": "/"} if options.url_prefix else {"samesite": "Lax"}
        settings = {
            **tornado_settings,
            # A unique path, since Tornado caches loaders by path for the whole process.
            "template_path": str(FOLDER),
            "template_loader": MonitorLoader(
                upstream.flower_template_folder(), upstream.splice, {"navigation": navigation}
            ),
            "static_handler_class": StaticFiles,
            "xsrf_cookie_kwargs": cookie,
            "websocket_ping_interval": 20,
            "websocket_ping_timeout": 20,
            "websocket_max_message_size": 1024 * 1024,
            "default_handler_class": NotFoundHandler,
        }
        super().__init__(options=options, capp=capp, events=events, **settings)
        self.context = context = MonitorContext(
            capp=self.capp,
            settings=trace_settings,
            access=access,
            gatekeeper=gatekeeper,
            clock=clock,
            link=link,
            events=events,
            loop=self.io_loop,
            url_prefix=options.url_prefix,
        )
        self.inspector = upstream.MonitorInspector(
            self.io_loop,
            self.capp,
            options.inspect_timeout / 1000.0,
            context.redactor,
            ArgumentSecrets(context.redactor, parameters_of(self.capp)),
        )
        gatekeeper.audit.emit = self._keep_audit_entry
        self.live = LiveFeed(context)
        self.rooms = ShellRooms(context, opener or ProductOpener(context))
        self.jobs = jobs(context, self.live)
        self.add_handlers(r".*", routes(context.base_url, self.live, self.rooms, oauth=bool(options.auth)))

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *arguments: object, **keywords: object
    ) -> HTTPMessageDelegate:
        """Tornado calls this for each request; all handler classes pass here."""
        return super().get_handler_delegate(request, guarded(target_class), *arguments, **keywords)

    def _keep_audit_entry(self, entry: AuditEntry) -> None:
        def write() -> None:
            with Guard("audit record"):
                self.context.store.write([entry])

        with suppress(RuntimeError):  # the monitor ends; the entry is in the audit file
            self.context.threads.submit(write)

    def http_server(self) -> ProxiedServer:
        """A server of this application without a listening socket."""
        server = ProxiedServer(
            self,
            ssl_options=self.ssl_options,
            xheaders=bool(self.options.xheaders or self.proxies),
            max_body_size=MOST_BODY_BYTES,
            max_buffer_size=2 * MOST_BODY_BYTES,
            body_timeout=BODY_TIMEOUT_S,
            idle_connection_timeout=IDLE_TIMEOUT_S,
        )
        server.proxies = self.proxies
        return server

    def start_http_server(self) -> int:
        """Listen on the configured address; returns the port."""
        server, sockets = self.http_server(), bind_sockets(self.options.port, address=self.options.address)
        server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    def start(self) -> None:
        """Serve until stopped."""
        self.jobs.start()
        super().start()

    def stop(self) -> None:
        """Stop the background work, then the loop. Idempotent."""
        self.jobs.stop()
        self.rooms.close()
        self.live.close()
        super().stop()
        self.context.threads.shutdown(wait=False, cancel_futures=True)
        self.context.access.close()
