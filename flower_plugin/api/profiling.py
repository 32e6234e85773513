"""Profiling from the monitor: the order for a task's next run, and the flamegraph in a sandboxed iframe."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from celery_trace import private_files
from celery_trace.heap.flamegraph import VIEWS, NoFlamegraph, Profiles
from flower_plugin.api.changes import ChangeHandler
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem, problem_of
from flower_plugin.web.handlers import HtmlHandler

if TYPE_CHECKING:
    from _typeshed import OptExcInfo

#: memray's page has inline scripts and styles. It runs without an origin and without network access, so that names of
#: files and functions can't inject code into our pages or the session.
SANDBOX_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

#: Without an origin there is no local storage, and memray's script fails without it.
STORAGE = (
    b"<script>(function () { const held = {}; Object.defineProperty(window, 'localStorage', {value: {"
    b"getItem: function (name) { return name in held ? held[name] : null; }, "
    b"setItem: function (name, value) { held[name] = String(value); }, "
    b"removeItem: function (name) { delete held[name]; }}}); })();</script>"
)


class ProfileNextHandler(ChangeHandler):
    """``POST /api/trace/tasks/profile``: ``{"name": task, "seconds": n}`` profiles its next run with memray."""

    change_role = UserRole.LIVE

    async def change(self, *_: str) -> dict[str, object]:
        """Send a signed order to the workers."""
        name, seconds = self.order(600)
        from celery_trace.control.orders import profile

        settings, user = self.context.settings, self.user.name
        answers = await self.over_the_broker(
            lambda: profile(self.context.capp, settings, name, user=user, seconds=float(seconds))
        )
        if not answers:
            raise Problem(409, "No worker accepted the order.", "No traced worker replied.", "Is a worker running?")
        if not any(answer["ok"] for answer in answers):
            why = "; ".join(f"{answer['worker']}: {answer['why']}" for answer in answers)
            raise Problem(409, "No worker accepted the order.", why)
        return {"name": name, "seconds": seconds, "workers": answers}


class FlamegraphHandler(HtmlHandler):
    """``GET /trace/profiles/ID/flamegraph``: memray's page for the iframe, rendered on first use."""

    role = UserRole.LOCALS

    async def get(self, identifier: str) -> None:
        """Send the page."""
        view = self.get_query_argument("view", "peak")
        if view not in VIEWS:
            raise Problem(400, f"Invalid view {view[:20]!r}.", f"It must be one of {', '.join(VIEWS)}.")
        page = await self.off_loop(self._read, identifier, view)
        self._finish_in_frame(page)

    def _read(self, identifier: str, view: str) -> bytes:
        profiles = Profiles(self.context.settings.folder)
        profile = profiles.find(identifier)
        if profile is None:
            raise Problem(404, "Profile not found.", "It may have been deleted in favor of newer ones.")
        try:
            page = private_files.read(profiles.flamegraph(profile, view))
        except (NoFlamegraph, OSError) as error:
            raise Problem(409, "No flamegraph for this run.", str(error)) from error
        return page.replace(b"<head>", b"<head>" + STORAGE, 1)

    def write_error(self, status_code: int, *, exc_info: OptExcInfo = (None, None, None), **_: object) -> None:
        """Errors are plain text in the iframe."""
        problem = problem_of(exc_info[1], status_code)
        text = " ".join(escape(part) for part in (problem.what, problem.why, problem.next) if part)
        self.set_status(problem.status)
        self._finish_in_frame(f'<!doctype html><title>No flamegraph</title><p style="font: 1rem sans-serif">{text}</p>')

    def _finish_in_frame(self, page: bytes | str) -> None:
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.set_header("Content-Security-Policy", SANDBOX_POLICY)
        self.set_header("X-Frame-Options", "SAMEORIGIN")
        self.finish(page)
