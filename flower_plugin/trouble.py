"""Refusals for people: what, why, and what to do next."""

from __future__ import annotations

from tornado.web import HTTPError

from celery_trace.errors import Unavailable
from celery_trace.queries import BadCursor
from celery_trace.text.format import clip
from flower_plugin.pages.page import Missing


class Trouble(Exception):
    """A refusal for people: what, why, and what to do next; ``status`` is the HTTP status."""

    def __init__(self, status: int, what: str, why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.why = why
        self.next = next


def trouble_of(error: BaseException | None, status: int) -> Trouble:
    """Any error as what, why, next."""
    if isinstance(error, Trouble):
        return error
    if isinstance(error, Missing):
        return Trouble(404, error.what, error.why)
    if isinstance(error, Unavailable):
        return Trouble(503, error.what, error.why, error.next)
    if isinstance(error, BadCursor):
        return Trouble(400, "There is no such page of this list.", str(error))
    if isinstance(error, HTTPError):
        text = (error.get_message() or error.reason or "").strip()
        known = {
            401: "You are not logged in.",
            403: "That is not allowed.",
            404: "There is nothing here.",
            405: "This address does not take that method.",
            421: "That host name is not ours.",
            429: "Too many tries.",
        }
        return Trouble(error.status_code, known.get(error.status_code, "That did not work."), text)
    return Trouble(
        status,
        "The monitor failed at this.",
        f"{type(error).__name__}: {clip(error, 300)}" if error is not None else "",
        "The full traceback is in the monitor's log. Other pages and your tasks are not affected.",
    )
