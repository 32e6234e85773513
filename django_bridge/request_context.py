"""What a failed request was: method, route, view, user, headers, data. Redacted, and read without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.utils.functional import empty
from django.views.debug import SafeExceptionReporterFilter, get_exception_reporter_filter
from msgspec.structs import replace

from celery_trace.guard import Guard
from celery_trace.model import Line, RequestContext
from celery_trace.redaction import MARK, Redactor
from celery_trace.settings import Limits
from django_bridge import routes
from django_bridge.template_lines import template_line
from django_bridge.texts import plain
from django_bridge.visits import TracedRequest

#: Content types whose body a read of ``request.POST`` parses from memory once ``request.body`` was read.
_FORM = "application/x-www-form-urlencoded"
_ALL = "__ALL__"
#: Characters of a cookie's value that a program made up; fewer are a choice of the visitor's, such as a language.
_GENERATED = 16


def describe(
    request: Any, visit: TracedRequest, error: BaseException, *, status: int, redactor: Redactor, limits: Limits
) -> RequestContext:
    """
    Read a request for the record of its failure.

    Nothing of it makes a query or reads from the client: the user is named when
    something loaded it before, and POST is shown when something parsed it before. A part
    that can't be read is left out; the others stay.
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
        sql_count=visit.sql_count,
        sql_s=visit.sql_s,
        template=_part("template", lambda: secrets.template(error), None),
    )


def _part(name: str, read: Callable[[], Any], otherwise: Any) -> Any:
    """One part of a request; what is broken in it (a hostile header, a user's filter) costs only that part."""
    with Guard(f"django: {name} of a request"):
        return read()
    return otherwise


def loaded_user(request: Any) -> str:
    """
    The user of a request as ``name (primary key)``, when it was loaded already; else empty.

    Asking ``request.user`` would query the session and the user.
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
    """Takes the secrets out of one request: ours by name and shape, and what Django was told is sensitive."""

    def __init__(self, request: Any, redactor: Redactor, limits: Limits) -> None:
        self._request = request
        self._redactor = redactor
        self._limits = limits
        self._filter = get_exception_reporter_filter(request)
        self._own_names = {django_settings.SESSION_COOKIE_NAME, django_settings.CSRF_COOKIE_NAME}

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers; what ``hidden_settings`` of Django's filter matches in ``META`` is hidden here too."""
        csrf = django_settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")
        return {
            name: MARK if name.upper() == csrf or self._django_hides(f"HTTP_{name}") else value
            for name, value in self._redacted(headers.items())
        }

    def cookies(self, cookies: Mapping[str, str]) -> dict[str, str]:
        """
        Cookies; those of the session and of CSRF are secrets under whatever name they go.

        So is every other one whose value was generated: it stands for a login, as `remember` does.
        """
        return {
            name: MARK if name in self._own_names or self._django_hides(name) or _is_generated(value) else value
            for name, value in self._redacted(cookies.items())
        }

    def fields(self, lists: Iterable[tuple[str, list[str]]], hidden: Iterable[str] = ()) -> dict[str, list[str]]:
        """GET or POST fields, each with all its values; those named in ``hidden`` without them."""
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
        """POST as far as it was parsed, and the names and sizes of uploaded files."""
        request = self._request
        parsed = "_post" in request.__dict__
        if not parsed and not ("_body" in request.__dict__ and request.content_type == _FORM):
            return {}
        # Django honours the decorator only with DEBUG off. A record stays on disk, so here it always holds.
        hidden = getattr(request, "sensitive_post_parameters", None) or ()
        if hidden == _ALL:
            hidden = list(request.POST)
        fields = self.fields(self._filtered_post().lists(), hidden)
        for name, files in request.FILES.lists():
            fields[self._text(name)] = [
                f"file {self._text(str(file.name))}, {file.size} bytes" for file in files[: self._limits.breadth]
            ]
        return fields

    def path(self, path: str, match: Any) -> str:
        """The path; a part that the route calls a token, as in a link to reset a password, is taken out."""
        for name, value in (match.kwargs if match is not None else {}).items():
            if self._redactor.is_secret_name(name) and isinstance(value, str) and value:
                path = path.replace(value, MARK)
        return self._text(path)

    def template(self, error: BaseException) -> Line | None:
        """The line of a template behind the error; a literal secret in it is taken out, as in any source."""
        line = template_line(error)
        return replace(line, code=self._redactor.source(line.code)) if line is not None else None

    def _filtered_post(self) -> Any:
        """POST through the project's own reporter filter, where it has one."""
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
        # Redacted before it is cut: half a secret no longer looks like one. What follows far behind the cut isn't read.
        most = self._limits.string
        shown = self._redactor.text(text[: most * 4])
        if len(shown) > most:
            shown = f"{shown[:most]}… ({len(text)} characters)"
        return plain(shown)
