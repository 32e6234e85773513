"""Every address of ours, and every page, in one list each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import RedirectHandler, URLSpec, url

from flower_plugin.api import changes as api
from flower_plugin.api.heaps import HeapProfileHandler
from flower_plugin.api.listings import LISTS
from flower_plugin.api.metrics import MetricsHandler
from flower_plugin.api.profiling import FlamegraphHandler, ProfileNextHandler
from flower_plugin.pages import alerts, failures, flames, leaks, overview, profiles, runs, shells, statistics, workers
from flower_plugin.pages.page import Page
from flower_plugin.shell.room import ShellSocket
from flower_plugin.upstream import StaticFileHandler
from flower_plugin.web import entrance
from flower_plugin.web.handlers import JsonNotFoundHandler, NotFoundHandler, PageHandler
from flower_plugin.web.live import LiveSocket

#: To add a page: write its module and template, and one line here.
PAGES: tuple[Page, ...] = (
    overview.PAGE,
    leaks.LIST,
    leaks.ONE,
    failures.GROUPS,
    failures.LIST,
    failures.ONE,
    workers.PAGE,
    runs.NAMES,
    runs.ONE,
    flames.PAGE,
    alerts.PAGE,
    shells.LIST,
    shells.ONE,
    profiles.LIST,
    profiles.ONE,
    statistics.PAGE,
)

#: Addresses beside the pages: (pattern below the prefix, handler, name).
ADDRESSES: tuple[tuple[str, type[Any], str], ...] = (
    (r"/api/trace/stats", api.StatsHandler, "trace_api_stats"),
    (rf"/api/trace/({'|'.join(LISTS)})", api.ListHandler, "trace_api_list"),
    (r"/api/trace/alerts/rules", api.AlertRulesHandler, "trace_api_alert_rules"),
    (r"/api/trace/alerts/test", api.ChannelTestHandler, "trace_api_alert_test"),
    (r"/api/trace/alerts/([^/]+)/(ack|silence)", api.AlertHandler, "trace_api_alert"),
    (r"/api/trace/(leaks|groups)/([^/]+)/resolve", api.ResolveHandler, "trace_api_resolve"),
    (r"/api/trace/failures/([^/]+)/retry", api.RetryHandler, "trace_api_retry"),
    (r"/api/trace/failures/([^/]+)/drop", api.DropHandler, "trace_api_drop"),
    (r"/api/trace/tasks/trace", api.TraceNowHandler, "trace_api_trace_now"),
    (r"/api/trace/tasks/profile", ProfileNextHandler, "trace_api_profile_next"),
    (r"/api/trace/profiles/(.+)", HeapProfileHandler, "trace_api_profile"),
    (r"/api/trace/forecasts", api.ForecastsHandler, "trace_api_forecasts"),
    (r"/api/trace/(leaks|failures|alerts|shells)/([^/]+)", api.OneHandler, "trace_api_one"),
    (r"/trace/live", LiveSocket, "trace_live"),
    (r"/trace/shell/([^/]+)", ShellSocket, "trace_shell"),
    (r"/trace/profiles/([^/]+)/flamegraph", FlamegraphHandler, "trace_flamegraph"),
    (r"/metrics", MetricsHandler, "trace_metrics"),
    (r"/logout", entrance.LogoutHandler, "trace_logout"),
    (r"/api/trace(?:/.*)?", JsonNotFoundHandler, "trace_api_missing"),
    (r"/trace/.*", NotFoundHandler, "trace_missing"),
)


def routes(base: str, static: Path, *, oauth: bool) -> list[URLSpec]:
    """
    Our routes below ``base``, ``""`` or ``/prefix``.

    Args:
        base: In front of every address. Flower's own rewriting drops the arguments of handlers, so ours are
            prefixed here.
        static: The folder of our static files.
        oauth: Whether ``/login`` belongs to the configured OAuth provider.
    """
    found = [url(rf"{base}{page.path}", PageHandler, {"page": page}, name=page.name) for page in PAGES]
    found.append(url(rf"{base}/trace/static/(.*)", StaticFileHandler, {"path": str(static)}, name="trace_static"))
    if not oauth:
        found.append(url(rf"{base}/login/?", entrance.LoginHandler, name="trace_login"))
    if base:
        found.append(url(base, RedirectHandler, {"url": f"{base}/", "permanent": False}, name="trace_without_slash"))
    found.extend(url(rf"{base}{path}", handler, name=name) for path, handler, name in ADDRESSES)
    return found
