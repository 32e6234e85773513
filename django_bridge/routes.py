"""Names requests by route, not by path, so that the number of names is bounded."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from django.urls import Resolver404, resolve

from django_bridge.texts import plain

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.urls import ResolverMatch

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

#: The route of requests that matched none, so that scanners don't create names.
NO_ROUTE = "(no route)"

_NAMED_GROUP = re.compile(r"\(\?P<(\w+)>")
_ANCHORS = re.compile(r"(?<!\\)[\^$?]|\\[AbBZ]")
_ESCAPE = re.compile(r"\\(.)")


def run_name(method: str | None, route: str) -> str:
    """The name of a request's run, such as ``GET /shop/<int:pk>/``. Unknown methods share one word."""
    return f"{method if method in METHODS else 'OTHER'} {route}"


@lru_cache(maxsize=2048)
def readable(route: str) -> str:
    """
    A resolver's route in readable form, with a leading slash.

    The route of ``path()`` is readable already; in a regular expression the groups are folded to their names:
    ``^shop/(?P<pk>[0-9]+)/$`` becomes ``/shop/<pk>/``.
    """
    if "(?P<" in route or "^" in route or "\\" in route or route.endswith("$"):
        route = _ESCAPE.sub(r"\1", _ANCHORS.sub("", _fold_groups(route)))
    return "/" + route.lstrip("/")


def _fold_groups(pattern: str) -> str:
    """Replace each outermost group by ``<its name>``, an unnamed one by ``<var>``; leave a non-capturing one out."""
    out: list[str] = []
    position = depth = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\" and position + 1 < len(pattern):
            if not depth:
                out.append(pattern[position : position + 2])
            position += 2
            continue
        if character == "[":
            # Parentheses in a character class are literal.
            end = pattern.find("]", position + 2)
            end = len(pattern) - 1 if end < 0 else end
            if not depth:
                out.append(pattern[position : end + 1])
            position = end + 1
            continue
        if character == "(":
            if not depth:
                named = _NAMED_GROUP.match(pattern, position)
                if named:
                    out.append(f"<{named[1]}>")
                elif not pattern.startswith("(?", position):
                    out.append("<var>")
            depth += 1
        elif character == ")":
            depth = max(0, depth - 1)
        elif not depth:
            out.append(character)
        position += 1
    return "".join(out)


def route_of(match: ResolverMatch) -> str:
    """The readable route of a ``ResolverMatch``."""
    return readable(plain(match.route or ""))


def find_match(request: HttpRequest) -> ResolverMatch | None:
    """
    The ``ResolverMatch`` of a request, even if it failed before it was routed.

    Returns:
        None if no route matches.
    """
    match = getattr(request, "resolver_match", None)
    if match is not None:
        return match
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None


def is_own_page(match: ResolverMatch) -> bool:
    """Whether a request is for our own admin pages, which are never measured."""
    return bool(match.url_name) and match.url_name.startswith("django_bridge_")
