"""
``celery -A proj monitor``: starts the monitor.

Flower's command hard-codes its application class, so its few calls are repeated here with our
application, bound to loopback and with a login.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from secrets import token_urlsafe
from typing import NoReturn

from celery import Celery
from tornado.ioloop import IOLoop
from tornado.options import Error as OptionError
from tornado.options import OptionParser

from celery_trace.alerting import channels, rules
from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor
from celery_trace.settings import SettingError, Settings, from_app
from flower_plugin import upstream
from flower_plugin.app import MonitorApplication
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.gate import Gatekeeper, Hosts
from flower_plugin.auth.login import Credentials, LoginSessions, LoginThrottle, OneTimeLinks, SpentCookies
from flower_plugin.auth.roles import RoleMap
from flower_plugin.incoming.argument_secrets import ArgumentSecrets, parameters_of
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.events import EventCheck
from flower_plugin.store_access import StoreAccess
from flower_plugin.upstream import MonitorEvents

logger = logging.getLogger("celery_trace.monitor")

LOOPBACK = "127.0.0.1"


def make_gatekeeper(options: OptionParser, settings: Settings, clock: SystemClock) -> tuple[Gatekeeper, str]:
    """
    Authentication and roles from the options and the environment.

    Returns:
        The gatekeeper, and the generated password (empty if one is configured).

    Raises:
        SettingError: ``--trace_roles`` or ``--basic_auth`` has an invalid entry, or ``--auth`` has no provider.
    """
    password = os.environ.get("CELERY_TRACE_MONITOR_PASSWORD", "")
    token = os.environ.get("CELERY_TRACE_MONITOR_TOKEN", "")
    # An empty variable or a trailing comma is not an entry.
    pairs = [pair for pair in options.basic_auth or () if pair.strip()]
    generated = ""
    if not (pairs or options.auth or password):
        generated = password = token_urlsafe(12)
    oauth = None
    if options.auth:
        pattern = options.auth
        hint = "Use one of Flower's providers, such as flower.views.auth.GoogleAuth2LoginHandler."
        if not options.auth_provider:
            raise SettingError(f"--auth requires --auth_provider. {hint}")
        try:
            upstream.login_handler(options.auth_provider)
        except ValueError as error:
            raise SettingError(f"Invalid --auth_provider={options.auth_provider}: {error}. {hint}") from None

        def oauth(name: str) -> bool:
            return bool(upstream.oauth_user_allowed(pattern, name))

    hours = options.trace_session_hours
    credentials = Credentials(pairs, password, token)
    keeper = Gatekeeper(
        credentials=credentials,
        roles=RoleMap.parse(options.trace_roles),
        hosts=Hosts("*" if options.unix_socket else options.address, options.trace_hosts),
        sessions=LoginSessions(clock, hours * 3600),
        links=OneTimeLinks(clock),
        throttle=LoginThrottle(clock, credentials.accounts),
        audit=MonitorAuditLog(settings.folder, clock),
        spent=SpentCookies(clock, hours * 3600),
        oauth=oauth,
        session_days=hours / 24,
        read_only=bool(options.read_only or options.trace_read_only),
    )
    return keeper, generated


#: Options with secrets.
SECRET_OPTIONS = ("basic_auth", "oauth2_secret", "cookie_secret", "broker_api")


def warnings(options: OptionParser, argv: Sequence[str], keeper: Gatekeeper) -> list[str]:
    """
    Warnings about options that are valid but probably a mistake.

    Args:
        options: Flower's and ours.
        argv: The command line.
        keeper: Authentication and roles.
    """
    found = []
    given = {_option_name(argument) for argument in argv if argument.startswith("-")}
    if shown := [name for name in SECRET_OPTIONS if name in given]:
        found.append(
            f"{_listed(f'--{name}' for name in shown)} on the command line is visible to all users of this machine "
            f"(ps shows it). Set {_listed(f'FLOWER_{name.upper()}' for name in shown)} in the environment instead, or "
            f"{_listed(shown)} in a flowerconfig.py that only you can read."
        )
    if options.xheaders and not (options.trace_trusted_proxies or options.unix_socket):
        found.append(
            "--xheaders has no effect without --trace_trusted_proxies: any client can send X-Real-Ip, so it is "
            "accepted from trusted proxies only. Without one, all clients have the proxy's address and share its limit "
            "of wrong passwords, and cookies are not marked Secure. Set the addresses that your proxies connect from, "
            "such as --trace_trusted_proxies=127.0.0.1."
        )
    accounts = sorted(keeper.credentials.accounts)
    unknown = sorted(keeper.roles.unmatched(accounts))
    if unknown and not options.auth:
        found.append(
            f"--trace_roles has {_listed(map(repr, unknown))}, but no account has that name. "
            f"Accounts: {', '.join(accounts)}."
        )
    return found


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def make_application(app: Celery, settings: Settings) -> tuple[MonitorApplication, str]:
    """
    The monitor of a Celery app, from the current options.

    Returns:
        The application, not started, and the generated password (empty if one is configured).
    """
    options = upstream.options
    clock = SystemClock()
    keeper, generated = make_gatekeeper(options, settings, clock)
    link = BrokerLink(clock)
    loop = IOLoop.instance()
    redactor = Redactor(settings.redact)
    events = MonitorEvents(
        app,
        loop,
        enable_events=options.enable_events,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
        link=link,
        check=EventCheck(redactor, clock, ArgumentSecrets(redactor, parameters_of(app))),
    )
    monitor = MonitorApplication(
        capp=app,
        options=options,
        tornado_settings=upstream.flower_settings(),
        trace_settings=settings,
        access=StoreAccess(settings, clock),
        gatekeeper=keeper,
        clock=clock,
        link=link,
        events=events,
    )
    return monitor, generated


def _listen(monitor: MonitorApplication) -> int | None:
    """Listen; returns the actual port, or None for a Unix socket."""
    options = upstream.options
    try:
        if not options.unix_socket:
            return monitor.start_http_server()
        from tornado.netutil import bind_unix_socket

        # Flower creates its socket with mode 0777. Ours is for its owner and a proxy in the same group.
        server = monitor.http_server()
        server.add_socket(bind_unix_socket(options.unix_socket, mode=0o660))
        return None
    except (OSError, socket.gaierror) as error:
        where = options.unix_socket or f"{options.address}:{options.port}"
        sys.stderr.write(f"Can't listen on {where}: {error}. Use --port=N (0 for any free port) or --address=HOST.\n")
        raise SystemExit(1) from error


def _announce(monitor: MonitorApplication, port: int | None, generated: str) -> str:
    """
    Print the address and the login. The link works once, so a log that has it is harmless.

    Returns:
        The base URL; empty for a Unix socket.
    """
    options = upstream.options
    lines = []
    address = ""
    if port is None:
        lines.append(f"celery-trace monitor on the Unix socket {options.unix_socket}")
    else:
        host = LOOPBACK if options.address in {"", "0.0.0.0", "::"} else options.address  # noqa: S104 - compared
        host = f"[{host}]" if ":" in host else host
        scheme = "https" if monitor.ssl_options else "http"
        address = f"{scheme}://{host}:{port}{monitor.context.base_url}"
        lines.append(f"celery-trace monitor: {address}/trace")
        if generated:
            lines.append(f"  one-time link:  {address}/login?token={monitor.context.gatekeeper.links.make()}")
    if generated:
        lines.append(f"  password:       {generated}")
        lines.append("  (set CELERY_TRACE_MONITOR_PASSWORD or --basic_auth to choose your own password)")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    return address


def _exit_on(number: int, loop: IOLoop) -> None:
    """
    Exit on a signal: at once, or in the loop's next round if the interrupted code swallows the exception (a weak
    reference callback, a library that catches everything).
    """

    def stop(*_: object) -> NoReturn:
        loop.asyncio_loop.call_soon_threadsafe(loop.stop)
        raise SystemExit(0)

    signal.signal(number, stop)


def _read_options(argv: Sequence[str]) -> None:
    """
    Read Flower's options and ours from all of Flower's sources.

    Raises:
        SystemExit: An option is invalid or not supported; the error was printed.
    """
    upstream.define_options()
    try:
        upstream.apply_environment()
        upstream.parse_arguments("monitor", argv)
    except (OptionError, ValueError) as error:
        _refuse(f"Invalid option: {error}. `celery -A proj monitor --help` lists all options.", error)
    options = upstream.options
    unknown = [argument for argument in argv if argument.startswith("-") and not _known(argument)]
    if unknown:
        _refuse(f"Unknown option {unknown[0]}. `celery -A proj monitor --help` lists all options.")
    if not 0 <= options.port <= 65535:  # the system would silently use it modulo 65536
        _refuse(f"Invalid --port={options.port}: it must be from 0 (any free port) to 65535.")
    if options.persistent or options.db != upstream.NO_DATABASE:
        name = "persistent" if options.persistent else "db"
        _refuse(
            f"--{name} is not supported: Flower would keep arguments and results of tasks in a pickle file, which lets "
            "anyone who can write the file run code in the monitor. Remove the option (also from flowerconfig.py and "
            "FLOWER_*), and delete the file if it exists. Failures, leaks, runs and alerts are in the store and "
            "survive a restart; only Flower's own lists of tasks and workers start empty."
        )
    if not options.address and not options.unix_socket:
        options.address = LOOPBACK


def _refuse(why: str, error: BaseException | None = None) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    raise SystemExit(2) from error


def run(app: Celery, argv: Sequence[str], settings: Settings | None = None) -> None:
    """
    Serve the monitor until it is stopped.

    Args:
        app: The Celery app.
        argv: Flower's options and ours, without the program's name.
        settings: celery-trace's settings; read from the app and the environment if None.

    Raises:
        SettingError: A setting or ``--trace_roles`` is invalid.
        SystemExit: An option is invalid or the address is in use; the error was printed. 0 on SIGTERM and Ctrl-C.
    """
    settings = settings or from_app(app)
    _read_options(argv)
    # Reject invalid rules and channels now, not at the first alert.
    rules.configured(settings.alert_rules)
    channels.channels(settings.alert_channels)
    upstream.setup_logging()
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # only migrations, not plugins
    monitor, generated = make_application(app, settings)
    for warning in warnings(upstream.options, argv, monitor.context.gatekeeper):
        sys.stderr.write(f"Warning: {warning}\n")
    atexit.register(monitor.stop)
    _exit_on(signal.SIGTERM, monitor.io_loop)
    try:
        port = _listen(monitor)
        if port is not None:
            # Cookies are shared by all ports of a host; two monitors must not log each other out.
            monitor.context.gatekeeper.session_cookie = f"celery_trace_session_{port}"
        monitor.context.public_address = _announce(monitor, port, generated)
        upstream.print_banner(app, monitor.ssl_options is not None, port)
        monitor.start()
    except KeyboardInterrupt:
        logger.info("Stopping.")
    except SystemExit as error:
        if error.code:
            raise
        logger.info("Stopping.")
    finally:
        monitor.stop()
        atexit.unregister(monitor.stop)


def _option_name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0].replace("-", "_")


def _known(argument: str) -> bool:
    name = _option_name(argument)
    return upstream.known_option(name) or name in {"help", "logging", "log_to_stderr"}
