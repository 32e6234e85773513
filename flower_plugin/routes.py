"""All our routes."""

from __future__ import annotations

from tornado.web import RedirectHandler, RequestHandler, URLSpec, url

from flower_plugin.api import changes, profiling, reading, triage, views
from flower_plugin.api.listings import LISTS
from flower_plugin.api.metrics import MetricsHandler
from flower_plugin.api.profiles import ProfileHandler
from flower_plugin.api.reproducing import MadeTestHandler
from flower_plugin.api.running import RunningHandler
from flower_plugin.api.timelines import TimelineHandler
from flower_plugin.context import STATIC, static_version
from flower_plugin.pages.registry import PAGES
from flower_plugin.shell.rooms import ShellRooms
from flower_plugin.shell.socket import ShellSocket
from flower_plugin.upstream import StaticFileHandler
from flower_plugin.web.handlers import JsonNotFoundHandler, NotFoundHandler, PageHandler
from flower_plugin.web.live import LiveFeed, LiveSocket
from flower_plugin.web.login_pages import LoginHandler, LogoutHandler

#: Routes other than pages: (pattern below the prefix, handler, name).
ROUTES: tuple[tuple[str, type[RequestHandler], str], ...] = (
    (r"/api/trace/stats", reading.StatsHandler, "trace_api_stats"),
    (rf"/api/trace/({'|'.join(LISTS)})", reading.ListHandler, "trace_api_list"),
    (r"/api/trace/alerts/rules", changes.AlertRulesHandler, "trace_api_alert_rules"),
    (r"/api/trace/alerts/test", changes.ChannelTestHandler, "trace_api_alert_test"),
    (r"/api/trace/alerts/([^/]+)/(ack|silence)", changes.AlertHandler, "trace_api_alert"),
    (r"/api/trace/(leaks|groups)/([^/]+)/resolve", changes.ResolveHandler, "trace_api_resolve"),
    (r"/api/trace/groups/(resolve|ignore)", triage.GroupsHandler, "trace_api_groups"),
    (r"/api/trace/groups/([^/]+)/reopen", triage.ReopenHandler, "trace_api_reopen"),
    (r"/api/trace/groups/([^/]+)/assign", triage.AssignHandler, "trace_api_assign"),
    (r"/api/trace/groups/([^/]+)/ignore", triage.IgnoreHandler, "trace_api_ignore"),
    (r"/api/trace/groups/([^/]+)/comments", triage.CommentHandler, "trace_api_comment"),
    (r"/api/trace/comments/([^/]+)/remove", triage.CommentRemovalHandler, "trace_api_comment_removal"),
    (r"/api/trace/groups/([^/]+)/retry", triage.RetryGroupHandler, "trace_api_retry_group"),
    (r"/api/trace/groups/([^/]+)/retry/stop", triage.StopRetryHandler, "trace_api_stop_retry"),
    (r"/api/trace/failures/([^/]+)/retry", changes.RetryHandler, "trace_api_retry"),
    (r"/api/trace/failures/([^/]+)/test", MadeTestHandler, "trace_api_made_test"),
    (r"/api/trace/failures/([^/]+)/drop", changes.DropHandler, "trace_api_drop"),
    (r"/api/trace/tasks/trace", changes.TraceNowHandler, "trace_api_trace_now"),
    (r"/api/trace/tasks/profile", profiling.ProfileNextHandler, "trace_api_profile_next"),
    (r"/api/trace/profiles/(.+)", ProfileHandler, "trace_api_profile"),
    (r"/api/trace/running", RunningHandler, "trace_api_running"),
    (r"/api/trace/views", views.ViewsHandler, "trace_api_views"),
    (r"/api/trace/views/([^/]+)/remove", views.ViewRemovalHandler, "trace_api_view_removal"),
    (r"/api/trace/suggestions", reading.SuggestionsHandler, "trace_api_suggestions"),
    (r"/api/trace/forecasts", reading.ForecastsHandler, "trace_api_forecasts"),
    (r"/api/trace/workflows/([^/]+)", TimelineHandler, "trace_api_workflow"),
    (r"/api/trace/(leaks|failures|groups|alerts|shells)/([^/]+)", reading.OneHandler, "trace_api_one"),
    (r"/trace/profiles/([^/]+)/flamegraph", profiling.FlamegraphHandler, "trace_flamegraph"),
    (r"/metrics", MetricsHandler, "trace_metrics"),
    (r"/logout", LogoutHandler, "trace_logout"),
    (r"/api/trace(?:/.*)?", JsonNotFoundHandler, "trace_api_missing"),
    (r"/trace/.*", NotFoundHandler, "trace_missing"),
)


def routes(base: str, feed: LiveFeed, rooms: ShellRooms, *, oauth: bool) -> list[URLSpec]:
    """
    Our routes below ``base``, ``""`` or ``/prefix``.

    Args:
        base: The prefix. Flower's own rewriting drops the arguments of handlers, so ours are prefixed here.
        feed: Updates of open pages.
        rooms: The shell rooms.
        oauth: Whether ``/login`` belongs to the OAuth provider.
    """
    found = [url(rf"{base}{page.path}", PageHandler, {"page": page}, name=page.name) for page in PAGES]
    found.append(url(rf"{base}/trace/live", LiveSocket, {"feed": feed}, name="trace_live"))
    found.append(url(rf"{base}/trace/shell/([^/]+)", ShellSocket, {"rooms": rooms}, name="trace_shell"))
    files = {"path": str(STATIC), "versioned": True}
    found.append(url(rf"{base}/trace/static/{static_version()}/(.*)", StaticFileHandler, files, name="trace_static"))
    if not oauth:
        found.append(url(rf"{base}/login/?", LoginHandler, name="trace_login"))
    if base:
        found.append(url(base, RedirectHandler, {"url": f"{base}/", "permanent": False}, name="trace_without_slash"))
    found.extend(url(rf"{base}{path}", handler, name=name) for path, handler, name in ROUTES)
    return found
