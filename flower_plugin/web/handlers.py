"""Base classes of our handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import msgspec
from tornado.web import HTTPError, RequestHandler

from celery_trace.errors import Unavailable
from flower_plugin.auth.gate import Gate
from flower_plugin.auth.roles import User, UserRole
from flower_plugin.context import MonitorContext
from flower_plugin.pages.page import MonitorPage, Visit
from flower_plugin.problems import Problem, problem_of
from flower_plugin.rendering import markup

if TYPE_CHECKING:
    from _typeshed import OptExcInfo

    from celery_trace.queries import Queries

logger = logging.getLogger("celery_trace.monitor")

P = ParamSpec("P")
T = TypeVar("T")


class TraceHandler(Gate):
    """Base of all our handlers: requires a declared role, and runs blocking calls off the loop."""

    @property
    def context(self) -> MonitorContext:
        """The collaborators of handlers."""
        context: MonitorContext = self.application.context
        return context

    @property
    def user(self) -> User:
        """The authenticated user."""
        user = self.current_user
        if not isinstance(user, User):
            raise HTTPError(401)
        return user

    def visit(self) -> Visit:
        """The request, for a context function."""
        return Visit(
            arguments={name: self.get_query_argument(name) for name in self.request.query_arguments},
            now_s=self.context.clock.now_s(),
            user=self.user,
            paths=self.context.paths,
            settings=self.context.settings,
            read_only=self.gatekeeper.read_only,
            monitor=self.context.status(),
            refreshes=self.request.headers.get("X-Trace-Refresh") == "1",
        )

    async def off_loop(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a blocking call in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.context.threads, call, *arguments)

    async def query(self, call: Callable[Concatenate[Queries, P], T], *arguments: P.args, **filters: P.kwargs) -> T:
        """Call a function with the store's queries in a thread, where the store is also opened."""
        return await self.off_loop(lambda: call(self.context.queries, *arguments, **filters))

    def answer(self, value: object, status: int = 200) -> None:
        """Send JSON and finish."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(msgspec.json.encode(value))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log refusals as info, without a traceback."""
        if isinstance(value, Problem | Unavailable):
            logger.info("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class JsonHandler(TraceHandler):
    """Sends JSON, also for errors."""

    for_people = False

    def write_error(self, status_code: int, *, exc_info: OptExcInfo = (None, None, None), **_: object) -> None:
        """``{"error": {what, why, next}}``."""
        problem = problem_of(exc_info[1], status_code)
        self.answer({"error": {"what": problem.what, "why": problem.why, "next": problem.next}}, status=problem.status)


class HtmlHandler(TraceHandler):
    """Sends HTML, also for errors."""

    def get_template_namespace(self) -> dict[str, object]:
        """Names for all our templates, including modules."""
        context = self.context
        now_s = context.clock.now_s()
        return {
            **super().get_template_namespace(),
            "ago": lambda at_s: markup.ago(at_s, now_s),
            "time_left": lambda at_s: markup.ago(at_s, now_s, left=True),
            "path": context.paths.short,
            "asset": context.asset_url,
            "base": context.base_url,
            "url_prefix": context.url_prefix,
            "user": self.current_user,
            "monitor": context.status(),
            "read_only": self.gatekeeper.read_only,
            "may": lambda word: self.current_user is not None and self.current_user.may(UserRole[word.upper()]),
            "arguments": {name: self.get_query_argument(name) for name in self.request.query_arguments},
            "active_tab": "",
            "title": "",
        }

    def show_page(self, template: str, **context: object) -> None:
        """Render one of our templates and finish."""
        _ = self.xsrf_token  # sets the cookie that scripts send back
        RequestHandler.render(self, template, **context)

    def write_error(self, status_code: int, *, exc_info: OptExcInfo = (None, None, None), **_: object) -> None:
        """An error page with what, why and what to do next."""
        if not hasattr(self, "_current_user"):
            self.current_user = None
        problem = problem_of(exc_info[1], status_code)
        self.set_status(problem.status)
        self.show_page("trace/problem.html", problem=problem, back=problem.back, title=problem.what)


class PageHandler(HtmlHandler):
    """Serves a :class:`MonitorPage`."""

    def initialize(self, page: MonitorPage) -> None:
        """Called by Tornado with the arguments of the route."""
        self.page = page
        if page.framing:
            self.set_header("Content-Security-Policy", f"{self.policy}; frame-src 'self'")

    @property
    def role(self) -> UserRole:  # type: ignore[override]
        """The page's role."""
        return self.page.role

    async def get(self, *groups: str) -> None:
        """Run the context function in a thread, then render."""
        visit = self.visit()
        context = await self.query(self.page.context, visit, *groups)
        self.show_page(
            self.page.template, **{"title": self.page.title, "active_tab": self.page.tab, "visit": visit, **context}
        )


class NotFoundHandler(HtmlHandler):
    """404 for unknown URLs below ``/trace/``."""

    role = UserRole.LOOK
    change_role = UserRole.LOOK

    def get(self) -> None:
        """Raise 404."""
        raise Problem(404, "Page not found.", next="The overview links to all pages.")

    post = get


class JsonNotFoundHandler(JsonHandler):
    """404 for unknown URLs below ``/api/trace/``."""

    role = UserRole.LOOK
    change_role = UserRole.LOOK

    def get(self) -> None:
        """Raise 404."""
        raise Problem(404, "Not found.", next="docs/api.md lists all endpoints.")

    post = get
