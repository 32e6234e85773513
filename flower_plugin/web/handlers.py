"""The handlers that every page and every answer of ours stands on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from tornado.web import HTTPError, RequestHandler

from celery_trace.errors import Unavailable
from flower_plugin.auth.gate import Gate
from flower_plugin.auth.roles import Role, User
from flower_plugin.context import MonitorContext
from flower_plugin.pages.page import MonitorPage, Visit
from flower_plugin.rendering import wording
from flower_plugin.trouble import Trouble, trouble_of

logger = logging.getLogger("celery_trace.monitor")

T = TypeVar("T")


class TraceHandler(Gate):
    """Base of all our handlers: denies unless a role is declared, and keeps blocking work off the loop."""

    @property
    def context(self) -> MonitorContext:
        """What the application made for its handlers."""
        context: MonitorContext = self.application.context
        return context

    @property
    def user(self) -> User:
        """Who asks; only where the gate has let somebody in."""
        user = self.current_user
        if not isinstance(user, User):
            raise HTTPError(401)
        return user

    def visit(self) -> Visit:
        """This request, for a context function."""
        return Visit(
            arguments={name: self.get_query_argument(name) for name in self.request.query_arguments},
            now_s=self.context.clock.now_s(),
            user=self.user,
            paths=self.context.paths,
            settings=self.context.settings,
            read_only=self.gatekeeper.read_only,
            monitor=self.context.status(),
        )

    async def off_loop(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run blocking work in a thread of ours."""
        return await asyncio.get_running_loop().run_in_executor(self.context.threads, call, *arguments)

    def answer(self, value: object, status: int = 200) -> None:
        """Finish with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(msgspec.json.encode(value))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Refusals are no faults of the server."""
        if isinstance(value, Trouble | Unavailable):
            logger.info("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class JsonHandler(TraceHandler):
    """Answers in JSON, errors too."""

    for_people = False

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """``{"error": {what, why, next}}``."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        trouble = trouble_of(error, status_code)
        self.answer({"error": {"what": trouble.what, "why": trouble.why, "next": trouble.next}}, status=trouble.status)


class HtmlHandler(TraceHandler):
    """Answers with a page, errors too."""

    def get_template_namespace(self) -> dict[str, Any]:
        """What every template of ours may use, also one that is included as a module."""
        context = self.context
        now_s = context.clock.now_s()
        return {
            **super().get_template_namespace(),
            "ago": lambda at_s: wording.ago(at_s, now_s),
            "path": context.paths.short,
            "asset": context.asset_url,
            "base": context.base_url,
            "url_prefix": context.url_prefix,
            "user": self.current_user,
            "monitor": context.status(),
            "read_only": self.gatekeeper.read_only,
            "may": lambda word: self.current_user is not None and self.current_user.may(Role[word.upper()]),
            "arguments": {name: self.get_query_argument(name) for name in self.request.query_arguments},
            "active_tab": "",
            "title": "",
        }

    def show_page(self, template: str, **context: object) -> None:
        """Render one of our templates and finish."""
        _ = self.xsrf_token  # sets the cookie that scripts send back
        RequestHandler.render(self, template, **context)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A page that says what, why and what next."""
        if not hasattr(self, "_current_user"):
            self.current_user = None
        error = kwargs.get("exc_info", (None, None, None))[1]
        trouble = trouble_of(error, status_code)
        self.set_status(trouble.status)
        self.show_page("trace/trouble.html", trouble=trouble, back=trouble.back, title=trouble.what)


class PageHandler(HtmlHandler):
    """Serves a :class:`MonitorPage`."""

    def initialize(self, page: MonitorPage) -> None:
        """Tornado hands in what the route says."""
        self.page = page
        if page.framing:
            self.set_header("Content-Security-Policy", f"{self.policy}; frame-src 'self'")

    @property
    def role(self) -> Role:  # type: ignore[override]
        """The page's."""
        return self.page.role

    async def get(self, *groups: str) -> None:
        """Read the facts in a thread, then render."""
        visit = self.visit()
        context = await self.off_loop(lambda: self.page.context(self.context.queries, visit, *groups))
        self.show_page(
            self.page.template, **{"title": self.page.title, "active_tab": self.page.tab, "visit": visit, **context}
        )


class NotFoundHandler(HtmlHandler):
    """Addresses below ``/trace/`` that nothing serves."""

    role = Role.LOOK
    change_role = Role.LOOK

    def get(self) -> None:
        """There is nothing."""
        raise Trouble(404, "There is nothing at this address.", next="The overview shows what there is.")

    post = get


class JsonNotFoundHandler(JsonHandler):
    """Addresses below ``/api/trace/`` that nothing serves."""

    role = Role.LOOK
    change_role = Role.LOOK

    def get(self) -> None:
        """There is nothing."""
        raise Trouble(404, "There is nothing at this address.", next="docs/api.md lists every address.")

    post = get
