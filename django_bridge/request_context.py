"""Describes a failed request: method, route, view, user, headers, data. Redacted, and read without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from django.conf import settings as django_settings
from django.utils.functional import empty
from django.views.debug import SafeExceptionReporterFilter, get_exception_reporter_filter
from msgspec.structs import replace

from celery_trace.guard import Guard
from celery_trace.model import Line, RequestContext
from celery_trace.redaction import MARK, Redactor
from celery_trace.settings import Limits
from django_bridge import routes
from django_bridge.request_trace import RequestTrace
from django_bridge.template_lines import template_line
from django_bridge.texts import plain

if TYPE_CHECKING:
    from django.http import HttpRequest, QueryDict
    from django.urls import ResolverMatch

T = TypeVar("T")

#: Content types that ``request.POST`` parses from memory once ``request.body`` was read.
_FORM = "application/x-www-form-urlencoded"
_ALL = "__ALL__"
#: Minimum length of a generated cookie value; shorter ones are choices of the user, such as a language.
_GENERATED = 16


def describe(
    request: HttpRequest, trace: RequestTrace, error: BaseException, *, status: int, redactor: Redactor, limits: Limits
) -> RequestContext:
    """
    Read a request for the record of its failure.

    It makes no query and reads nothing from the client: the user is shown if it was loaded before, and POST if it was
    parsed before. A part that can't be read is left out; the others stay.
    """
    secrets = _Secrets(request, redactor, limits)
    match = _part("route", lambda: routes.find_match(request), None)
    return RequestContext(
        method=plain(request.method or ""),
        path=_part("path", lambda: secrets.path(request.path, match), ""),
        route=routes.route_of(match) if match is not None else "",
        view=_part("view", lambda: plain(match._func_path), "") if match is not None else "",
        user=_part("user", lambda: plain(redactor.text(loaded_user(request))), ""),
        status=status,
        headers=_part("headers", lambda: secrets.headers(request.headers), {}),
        get=_part("GET", lambda: secrets.fields(request.GET.lists()), {}),
        post=_part("POST", secrets.post, {}),
        cookies=_part("cookies", lambda: secrets.cookies(request.COOKIES), {}),
        sql_count=trace.sql_count,
        sql_s=trace.sql_s,
        template=_part("template", lambda: secrets.template(error), None),
    )


def _part(name: str, read: Callable[[], T], otherwise: T) -> T:
    """Read one part of a request; an error (a hostile header, a user's filter) only costs that part."""
    with Guard(f"django: {name} of a request"):
        return read()
    return otherwise


def loaded_user(request: HttpRequest) -> str:
    """
    The user of a request as ``name (primary key)`` if it was loaded already; otherwise empty.

    Reading ``request.user`` would query the session and the user.
    """
    cached = request.__dict__
    user = cached.get("_cached_user") or cached.get("_acached_user")
    if user is None:
        user = cached.get("user")
        if user is not None and "_wrapped" in getattr(user, "__dict__", {}):
            user = user.__dict__["_wrapped"]
            if user is empty:
                return ""
    if user is None:
        return ""
    values = getattr(user, "__dict__", {})
    name = values.get(getattr(type(user), "USERNAME_FIELD", "username"))
    key = values.get(user._meta.pk.attname) if hasattr(type(user), "_meta") else None
    if name is None and key is None:
        return "anonymous" if type(user).__name__ == "AnonymousUser" else type(user).__name__
    return f"{name} ({key})" if isinstance(name, str) and isinstance(key, int | str) else str(type(user).__name__)


def _is_generated(value: str) -> bool:
    return len(value) >= _GENERATED and " " not in value and any(map(str.isdigit, value)) and not value.isdigit()


class _Secrets:
    """Redacts one request: secrets by name and shape, and what the project has declared sensitive to Django."""

    def __init__(self, request: HttpRequest, redactor: Redactor, limits: Limits) -> None:
        self._request = request
        self._redactor = redactor
        self._limits = limits
        self._filter = get_exception_reporter_filter(request)
        self._own_names = {django_settings.SESSION_COOKIE_NAME, django_settings.CSRF_COOKIE_NAME}

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers, without those that ``hidden_settings`` of Django's filter matches in ``META``."""
        csrf = django_settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")
        return {
            name: MARK if name.upper() == csrf or self._django_hides(f"HTTP_{name}") else value
            for name, value in self._redacted(headers.items())
        }

    def cookies(self, cookies: Mapping[str, str]) -> dict[str, str]:
        """
        Cookies. Those of the session and of CSRF are secrets under any name.

        So is every other one with a generated value, as it may be a login, like ``remember``.
        """
        return {
            name: MARK if name in self._own_names or self._django_hides(name) or _is_generated(value) else value
            for name, value in self._redacted(cookies.items())
        }

    def fields(self, lists: Iterable[tuple[str, list[str]]], hidden: Iterable[str] = ()) -> dict[str, list[str]]:
        """GET or POST fields, each with all its values; those in ``hidden`` without values."""
        fields: dict[str, list[str]] = {}
        for name, values in lists:
            if len(fields) == self._limits.breadth:
                fields["…"] = ["more fields were left out"]
                break
            secret = name in hidden or self._redactor.is_secret_name(name)
            kept = [MARK if secret else self._text(str(value)) for value in values[: self._limits.breadth]]
            fields[self._text(name)] = kept
        return fields

    def post(self) -> dict[str, list[str]]:
        """POST as far as it was parsed, with the names and sizes of uploaded files."""
        request = self._request
        parsed = "_post" in request.__dict__
        if not parsed and not ("_body" in request.__dict__ and request.content_type == _FORM):
            return {}
        # Django honours the decorator only without DEBUG. A record stays on disk, so it always applies here.
        hidden = getattr(request, "sensitive_post_parameters", None) or ()
        if hidden == _ALL:
            hidden = list(request.POST)
        fields = self.fields(self._filtered_post().lists(), hidden)
        for name, files in request.FILES.lists():
            fields[self._text(name)] = [
                f"file {self._text(str(file.name))}, {file.size} bytes" for file in files[: self._limits.breadth]
            ]
        return fields

    def path(self, path: str, match: ResolverMatch) -> str:
        """The path, without parts that the route names as tokens, as in a link to reset a password."""
        for name, value in (match.kwargs if match is not None else {}).items():
            if self._redactor.is_secret_name(name) and isinstance(value, str) and value:
                path = path.replace(value, MARK)
        return self._text(path)

    def template(self, error: BaseException) -> Line | None:
        """The template line of the error, with literal secrets redacted, as in any source."""
        line = template_line(error)
        return replace(line, code=self._redactor.source(line.code)) if line is not None else None

    def _filtered_post(self) -> QueryDict:
        """POST through the project's own reporter filter, if it has one."""
        if type(self._filter) is SafeExceptionReporterFilter:
            return self._request.POST
        return self._filter.get_post_parameters(self._request)

    def _django_hides(self, name: str) -> bool:
        return self._filter.hidden_settings.search(name) is not None

    def _redacted(self, pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        for number, (name, value) in enumerate(pairs):
            if number == self._limits.breadth:
                return
            secret = bool(value) and self._redactor.is_secret_name(name)
            yield self._text(name), MARK if secret else self._text(value)

    def _text(self, text: str) -> str:
        # Redact before cutting, as half a secret is not recognized. Text far beyond the cut isn't read.
        most = self._limits.string
        shown = self._redactor.text(text[: most * 4])
        if len(shown) > most:
            shown = f"{shown[:most]}… ({len(text)} characters)"
        return plain(shown)
