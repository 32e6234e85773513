"""Refusals for people: what, why, and what to do next."""

from __future__ import annotations

from tornado.web import HTTPError

from celery_trace.errors import Unavailable
from celery_trace.queries import BadCursor
from celery_trace.text.format import clip


class Trouble(Exception):
    """
    A refusal for people: what, why, and what to do next.

    Attributes:
        status: The HTTP status.
        back: Name of the route that leads on, and what its link says; None for the overview.
    """

    back: tuple[str, str] | None = None

    def __init__(self, status: int, what: str, why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.why = why
        self.next = next


class NotFound(Trouble):
    """
    What an address asks for does not exist.

    Args:
        what: What was asked for, in words.
        why: Why it may be gone.
        back: Name of the route that leads on, and what its link says.
    """

    def __init__(self, what: str, why: str, back: tuple[str, str]) -> None:
        super().__init__(404, what, why)
        self.back = back


def trouble_of(error: BaseException | None, status: int) -> Trouble:
    """Any error as what, why, next."""
    if isinstance(error, Trouble):
        return error
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
