"""Errors for users: what, why, and what to do next."""

from __future__ import annotations

from tornado.web import HTTPError

from celery_trace.errors import Unavailable
from celery_trace.queries import BadCursor
from celery_trace.text.format import clip


class Problem(Exception):
    """
    An error for users: what, why, and what to do next.

    Attributes:
        status: The HTTP status.
        back: Name of a route to continue with, and the text of its link; None for the overview.
    """

    back: tuple[str, str] | None = None

    def __init__(self, status: int, what: str, why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.why = why
        self.next = next


class NotFound(Problem):
    """
    The requested object does not exist.

    Args:
        what: What was not found.
        why: The possible reason.
        back: Name of a route to continue with, and the text of its link.
    """

    def __init__(self, what: str, why: str, back: tuple[str, str]) -> None:
        super().__init__(404, what, why)
        self.back = back


def problem_of(error: BaseException | None, status: int) -> Problem:
    """Any error as what, why, next."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Unavailable):
        return Problem(503, error.what, error.why, error.next)
    if isinstance(error, BadCursor):
        return Problem(400, "Invalid cursor.", str(error))
    if isinstance(error, HTTPError):
        text = (error.get_message() or error.reason or "").strip()
        known = {
            401: "Not logged in.",
            403: "Not allowed.",
            404: "Not found.",
            405: "Method not allowed.",
            421: "Unknown host name.",
            429: "Too many attempts.",
        }
        return Problem(error.status_code, known.get(error.status_code, "The request failed."), text)
    return Problem(
        status,
        "Internal error.",
        f"{type(error).__name__}: {clip(error, 300)}" if error is not None else "",
        "The traceback is in the monitor's log. Other pages and your tasks are not affected.",
    )
