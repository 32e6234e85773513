"""Profiling from the monitor: the order for a task's next run, and the flamegraph in its cage."""

from __future__ import annotations

from html import escape
from typing import Any

from celery_trace import private_files
from celery_trace.heap.flamegraph import VIEWS, NoFlamegraph, Profiles
from flower_plugin.api.changes import ChangeHandler
from flower_plugin.auth.roles import Role
from flower_plugin.trouble import Trouble, trouble_of
from flower_plugin.web.handlers import HtmlHandler

#: memray's page has its scripts and styles inline. It runs without an origin, so that whatever stands in the names of
#: files and functions reaches neither our pages nor the session, and it fetches nothing.
CAGE = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

#: Without an origin there is no local storage, and memray's script stops at the first touch of it.
STORAGE = (
    b"<script>(function () { const held = {}; Object.defineProperty(window, 'localStorage', {value: {"
    b"getItem: function (name) { return name in held ? held[name] : null; }, "
    b"setItem: function (name, value) { held[name] = String(value); }, "
    b"removeItem: function (name) { delete held[name]; }}}); })();</script>"
)


class ProfileNextHandler(ChangeHandler):
    """``POST /api/trace/tasks/profile``: ``{"name": task, "seconds": n}`` profiles its next run with memray."""

    change_role = Role.LIVE

    async def change(self, *_: str) -> dict[str, object]:
        """Tell the workers, signed."""
        body = self.body()
        name, seconds = body.get("name"), body.get("seconds", 600)
        if not isinstance(name, str) or not name or len(name) > 500:
            raise Trouble(400, "name is missing.", "It must be the name of a task.")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= 3600:
            raise Trouble(400, f"seconds is {seconds!r}.", "It must be a number from 1 to 3600.")
        from celery_trace.control.orders import profile

        settings, user = self.context.settings, self.user.name
        answers = await self.over_the_broker(
            lambda: profile(self.context.capp, settings, name, user=user, seconds=float(seconds))
        )
        if not answers:
            raise Trouble(
                409, "No worker took the order.", "None that celery-trace traces answered.", "Is a worker running?"
            )
        if not any(answer["ok"] for answer in answers):
            why = "; ".join(f"{answer['worker']}: {answer['why']}" for answer in answers)
            raise Trouble(409, "No worker took the order.", why)
        return {"name": name, "seconds": seconds, "workers": answers}


class FlamegraphHandler(HtmlHandler):
    """``GET /trace/profiles/ID/flamegraph``: memray's page, made now if need be, for a sandboxed frame."""

    role = Role.LOCALS

    async def get(self, identifier: str) -> None:
        """The page, or why there is none."""
        view = self.get_query_argument("view", "peak")
        if view not in VIEWS:
            raise Trouble(400, f"view is {view[:20]!r}.", f"It must be one of {', '.join(VIEWS)}.")
        page = await self.off_loop(self._read, identifier, view)
        self._finish_in_frame(page)

    def _read(self, identifier: str, view: str) -> bytes:
        profiles = Profiles(self.context.settings.folder)
        profile = profiles.find(identifier)
        if profile is None:
            raise Trouble(404, "There is no profile with this id.", "It may have given way to newer ones.")
        try:
            page = private_files.read(profiles.flamegraph(profile, view))
        except (NoFlamegraph, OSError) as error:
            raise Trouble(409, "There is no flamegraph of this run.", str(error)) from error
        return page.replace(b"<head>", b"<head>" + STORAGE, 1)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """In the frame, a refusal is a few plain words."""
        trouble = trouble_of(kwargs.get("exc_info", (None, None, None))[1], status_code)
        words = " ".join(escape(text) for text in (trouble.what, trouble.why, trouble.next) if text)
        self.set_status(trouble.status)
        self._finish_in_frame(
            f'<!doctype html><title>No flamegraph</title><p style="font: 1rem sans-serif">{words}</p>'
        )

    def _finish_in_frame(self, page: bytes | str) -> None:
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.set_header("Content-Security-Policy", CAGE)
        self.set_header("X-Frame-Options", "SAMEORIGIN")
        self.finish(page)
