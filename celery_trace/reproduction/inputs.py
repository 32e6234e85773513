"""What a run was called with, as recipes: a task's arguments, or the parts of a Django request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from celery_trace.errors import TraceError
from celery_trace.model import Failure, Kind, RequestContext
from celery_trace.redaction import MARK, Redactor
from celery_trace.reproduction import recipes
from celery_trace.reproduction.recipes import Hole, Pairs, Plain, Recipe, Row
from celery_trace.text.escape import escaped

_PART_OF_A_VALUE: Final = re.compile(r"… \(\d+ characters\)$|^file .*, \d+ bytes$")
#: Cookies that only middleware reads, which does not run in a test or a replay.
_OF_MIDDLEWARE: Final = frozenset(("sessionid", "csrftoken"))
_USER: Final = re.compile(r".* \((\d+|[0-9a-f-]{36})\)", re.DOTALL)
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")
_WITHOUT_BODY: Final = frozenset(("GET", "HEAD", "OPTIONS", "DELETE", "TRACE"))


class CannotReproduce(TraceError):
    """A failure can't be repeated by its arguments."""


def refuse(failure: Failure, why: str, next: str = "") -> NoReturn:
    """
    Refuse to repeat a failure.

    Raises:
        CannotReproduce: Always.
    """
    raise CannotReproduce(
        f"Can't repeat the failure {failure.id} of {escaped(failure.name)}",
        why,
        f"{next or 'Look at what was captured'}: celery trace show {failure.id}",
    )


def inputs_of(failure: Failure, redactor: Redactor, names: Sequence[str] = ()) -> dict[str, Recipe]:
    """
    ``args`` and ``kwargs`` of a task, or ``facts`` of a request.

    Args:
        failure: The whole record.
        redactor: A second look at all texts.
        names: Those of the task's positional parameters, for the names of holes.

    Raises:
        CannotReproduce: They were not captured.
    """
    if failure.kind is Kind.REQUEST:
        if failure.request is None:
            refuse(failure, "the request itself was not captured")
        return {"facts": _Request(failure.request, redactor).recipe()}
    if failure.capture is None:
        refuse(failure, "its arguments were not captured")
    call = recipes.call_of(failure.capture, redactor, names)
    return {"args": call.args, "kwargs": call.kwargs}


class _Request:
    """Reads a captured request. See :class:`celery_trace.reproduction.running.RequestFacts`."""

    def __init__(self, request: RequestContext, redactor: Redactor) -> None:
        self._request = request
        self._redactor = redactor

    def recipe(self) -> Recipe:
        request = self._request
        cookies = {name: text for name, text in request.cookies.items() if name not in _OF_MIDDLEWARE}
        headers = {name: text for name, text in request.headers.items() if name.lower() not in ("cookie", "host")}
        kind = next((text for name, text in headers.items() if name.lower() == "content-type"), "")
        post = self._fields("POST", request.post)
        if request.method not in _WITHOUT_BODY and not request.post and not kind.startswith(_FORMS):
            post = Hole("body", "the capture does not read the body of a request")
        facts: dict[str, Recipe] = {
            "method": Plain(request.method),
            "path": self._text("path", request.path),
            "get": self._fields("GET", request.get),
            "post": post,
            "headers": self._pairs("header", headers),
            "cookies": self._pairs("cookie", cookies),
            "user": self._user(request.user),
        }
        return Pairs(tuple((Plain(name), recipe) for name, recipe in facts.items()))

    def _text(self, where: str, text: str) -> Recipe:
        if MARK in text or self._redactor.text(text) != text:
            return Hole(where, "redacted")
        return Hole(where, "cut, or a file") if _PART_OF_A_VALUE.search(text) else Plain(text)

    def _pairs(self, what: str, texts: Mapping[str, str]) -> Recipe:
        return Pairs(tuple((Plain(name), self._named(f"{what} {name}", name, text)) for name, text in texts.items()))

    def _named(self, where: str, name: str, text: str) -> Recipe:
        return Hole(where, "redacted") if text and self._redactor.is_secret_name(name) else self._text(where, text)

    def _fields(self, what: str, lists: Mapping[str, list[str]]) -> Recipe:
        if "…" in lists:
            return Hole(what, "cut: it has more fields")
        return Pairs(
            tuple(
                (Plain(name), Row("list", tuple(self._named(f"{what} {name}", name, text) for text in texts)))
                for name, texts in lists.items()
            )
        )

    def _user(self, user: str) -> Recipe:
        if user in ("", "anonymous"):
            return Plain(None)
        found = _USER.fullmatch(user)
        return Plain(found[1]) if found else Hole("user", "only the name of its class was captured")
