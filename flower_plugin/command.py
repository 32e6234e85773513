"""
``celery -A proj monitor``: starts the monitor.

Flower's own command hard-codes its application class, so its few calls are repeated here, with
our application, bound to loopback, and closed.
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
from typing import Any, NoReturn

from celery import Celery
from tornado.ioloop import IOLoop
from tornado.options import Error as OptionError

from celery_trace.alerting import channels, rules
from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor
from celery_trace.settings import SettingError, Settings, from_app
from flower_plugin import upstream
from flower_plugin.app import MonitorApplication
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.gate import Gatekeeper, Hosts
from flower_plugin.auth.login import Credentials, Guesses, LoginSessions, OneTimeLinks, SpentCookies
from flower_plugin.auth.roles import RoleMap
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.calls import Calls, parameters_of
from flower_plugin.incoming.events import EventCheck
from flower_plugin.store_access import StoreAccess
from flower_plugin.upstream import MonitorEvents

logger = logging.getLogger("celery_trace.monitor")

LOOPBACK = "127.0.0.1"


def make_gatekeeper(options: Any, settings: Settings, clock: SystemClock) -> tuple[Gatekeeper, str]:
    """
    Who may come in, from the options and the environment.

    Returns:
        The gatekeeper, and the password that was generated (empty when one was configured).

    Raises:
        SettingError: ``--trace_roles`` or ``--basic_auth`` has an entry that is wrong, or ``--auth`` no provider.
    """
    password = os.environ.get("CELERY_TRACE_MONITOR_PASSWORD", "")
    token = os.environ.get("CELERY_TRACE_MONITOR_TOKEN", "")
    # A variable that is set and empty, or a comma at the end, names nobody.
    pairs = [pair for pair in options.basic_auth or () if pair.strip()]
    generated = ""
    if not (pairs or options.auth or password):
        generated = password = token_urlsafe(12)
    oauth = None
    if options.auth:
        pattern = options.auth
        hint = "Give one of Flower's, such as flower.views.auth.GoogleAuth2LoginHandler."
        if not options.auth_provider:
            raise SettingError(f"--auth is set without --auth_provider, so nobody could log in. {hint}")
        try:
            upstream.login_handler(options.auth_provider)
        except ValueError as error:
            raise SettingError(f"--auth_provider={options.auth_provider} can't be used: {error}. {hint}") from None

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
        guesses=Guesses(clock, credentials.accounts),
        audit=MonitorAuditLog(settings.folder, clock),
        spent=SpentCookies(clock, hours * 3600),
        oauth=oauth,
        session_days=hours / 24,
        read_only=bool(options.read_only or options.trace_read_only),
    )
    return keeper, generated


#: Options that hold a secret.
SECRET_OPTIONS = ("basic_auth", "oauth2_secret", "cookie_secret", "broker_api")


def warnings(options: Any, argv: Sequence[str], keeper: Gatekeeper) -> list[str]:
    """
    What is allowed and probably not meant, a plain sentence or two each.

    Args:
        options: Flower's and ours.
        argv: The command line.
        keeper: Who may come in.
    """
    found = []
    given = {_option_name(argument) for argument in argv if argument.startswith("-")}
    if shown := [name for name in SECRET_OPTIONS if name in given]:
        found.append(
            f"{_listed(f'--{name}' for name in shown)} on the command line can be read by every user of this machine "
            f"(ps shows it). Set {_listed(f'FLOWER_{name.upper()}' for name in shown)} in the environment instead, or "
            f"{_listed(shown)} in a flowerconfig.py that only you can read."
        )
    if options.xheaders and not (options.trace_trusted_proxies or options.unix_socket):
        found.append(
            "--xheaders has no effect without --trace_trusted_proxies: anybody can send X-Real-Ip, so it is believed "
            "from named proxies only. Until one is named, all visitors have the proxy's address and share its limit "
            "of wrong passwords, and cookies are not marked Secure. Name the addresses that your proxies connect "
            "from, such as --trace_trusted_proxies=127.0.0.1."
        )
    accounts = sorted(keeper.credentials.accounts)
    unknown = sorted(keeper.roles.unmatched(accounts))
    if unknown and not options.auth:
        found.append(
            f"--trace_roles names {_listed(map(repr, unknown))}, but nobody can log in under that name. "
            f"Those who can: {', '.join(accounts)}."
        )
    return found


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def make_application(app: Celery, settings: Settings) -> tuple[MonitorApplication, str]:
    """
    The monitor of a Celery app, from the options as they stand.

    Returns:
        The application, not started, and the generated password (empty when one was configured).
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
        check=EventCheck(redactor, clock, Calls(redactor, parameters_of(app))),
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
    """The port that it really listens on, or None for a Unix socket."""
    options = upstream.options
    try:
        if not options.unix_socket:
            return monitor.start_http_server()
        from tornado.netutil import bind_unix_socket

        # Flower gives its socket mode 0777; ours is for its owner, and a proxy in the same group.
        server = monitor.http_server()
        server.add_socket(bind_unix_socket(options.unix_socket, mode=0o660))
        return None
    except (OSError, socket.gaierror) as error:
        where = options.unix_socket or f"{options.address}:{options.port}"
        sys.stderr.write(
            f"Can't listen on {where}: {error}. Choose another with --port=N (0 takes a free one) or --address=HOST.\n"
        )
        raise SystemExit(1) from error


def _announce(monitor: MonitorApplication, port: int | None, generated: str) -> str:
    """
    Print where it is and how to come in. The link works once, so that a log that keeps it gives nothing away.

    Returns:
        The address without a path of ours; empty for a Unix socket.
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
            lines.append(f"  open once:  {address}/login?token={monitor.context.gatekeeper.links.make()}")
    if generated:
        lines.append(f"  password:   {generated}")
        lines.append("  (set CELERY_TRACE_MONITOR_PASSWORD or --basic_auth to choose your own)")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    return address


def _leave_on(number: int, loop: IOLoop) -> None:
    """
    Leave when a signal comes: at once, and where what runs at that moment swallows the exception (a callback of a
    weak reference, a library that catches everything), as soon as the loop runs.
    """

    def leave(*_: object) -> NoReturn:
        loop.asyncio_loop.call_soon_threadsafe(loop.stop)
        raise SystemExit(0)

    signal.signal(number, leave)


def _read_options(argv: Sequence[str]) -> None:
    """
    Flower's options and ours, from everywhere that Flower reads them.

    Raises:
        SystemExit: One is wrong, or the monitor does not take it; it has been said which.
    """
    upstream.define_options()
    try:
        upstream.apply_environment()
        upstream.parse_arguments("monitor", argv)
    except (OptionError, ValueError) as error:
        _refuse(f"An option of the monitor is wrong: {error}. `celery -A proj monitor --help` lists them.", error)
    options = upstream.options
    unknown = [argument for argument in argv if argument.startswith("-") and not _known(argument)]
    if unknown:
        _refuse(f"The monitor has no option {unknown[0]}. `celery -A proj monitor --help` lists them.")
    if not 0 <= options.port <= 65535:  # the system would take it modulo 65536, without a word
        _refuse(f"--port={options.port} is no port: it must be from 0 (any free one) to 65535.")
    if options.persistent or options.db != upstream.NO_DATABASE:
        name = "persistent" if options.persistent else "db"
        _refuse(
            f"The monitor does not take --{name}: Flower would keep arguments and results of tasks in a file that is "
            "read with pickle, so whoever can write it runs code here. Start without it (also in flowerconfig.py and "
            "FLOWER_*), and delete the file if there is one. Failures, leaks, runs and alerts are in the store and "
            "outlive a restart; only Flower's own lists of tasks and workers begin empty."
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
        settings: celery-trace's; from the app and the environment if None.

    Raises:
        SettingError: A setting or ``--trace_roles`` is wrong.
        SystemExit: An option is wrong or the address is taken; it has been said why. 0 on SIGTERM and Ctrl-C.
    """
    settings = settings or from_app(app)
    _read_options(argv)
    # Wrong rules and channels are refused now, not when the first alert is due.
    rules.configured(settings.alert_rules)
    channels.channels(settings.alert_channels)
    upstream.setup_logging()
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # not what it loads, but what it migrates
    monitor, generated = make_application(app, settings)
    for warning in warnings(upstream.options, argv, monitor.context.gatekeeper):
        sys.stderr.write(f"Warning: {warning}\n")
    atexit.register(monitor.stop)
    _leave_on(signal.SIGTERM, monitor.io_loop)
    try:
        port = _listen(monitor)
        if port is not None:
            # Cookies know no ports: two monitors on one host must not log each other out.
            monitor.context.gatekeeper.session_cookie = f"celery_trace_session_{port}"
        monitor.context.public_address = _announce(monitor, port, generated)
        upstream.print_banner(app, monitor.ssl_options is not None, port)
        monitor.start()
    except KeyboardInterrupt:
        logger.info("Stopping.")
    except SystemExit as leaving:
        if leaving.code:
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
