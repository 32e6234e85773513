"""One run of a task or a view in this process, with its error as Celery's signals would report it."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from celery import Task
from celery.exceptions import Retry
from msgspec import Struct

from celery_trace.reproduction.project import LoadedProject

_OF_A_BODY: Final = frozenset(("content-type", "content-length"))
#: Pieces of a streamed answer that are read; it may have no end.
MOST_PIECES: Final = 10_000


class RunEnd(Struct, frozen=True):
    """How a run ended: the error, or what it returned."""

    error: BaseException | None = None
    returned: object = None


def run_task(task: Task, args: Sequence[object], kwargs: Mapping[str, object], retries: int) -> RunEnd:
    """
    Run one try of a task eagerly. A retry ends the try; its error is the one that led to it.

    Args:
        task: The task.
        args, kwargs: Its arguments.
        retries: The number of the try, as ``self.request.retries`` has it.
    """
    try:
        result = task.apply(args=list(args), kwargs=dict(kwargs), retries=retries, throw=True)
    except Retry as retry:
        cause = retry.exc
        return RunEnd(cause if isinstance(cause, BaseException) and cause.__traceback__ is not None else retry)
    except (Exception, SystemExit) as error:
        return RunEnd(error)
    if result.state in ("REJECTED", "IGNORED") and isinstance(result.result, BaseException):
        return RunEnd(result.result)
    return RunEnd(returned=result.result)


class RequestFacts(Struct, frozen=True, kw_only=True):
    """A Django request, as far as a view can be called with it. Middleware does not run."""

    method: str
    path: str
    get: Mapping[str, list[str]]
    post: Mapping[str, list[str]]
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    user: object = None  # the user's primary key; None for an anonymous one


def run_view(project: LoadedProject, facts: RequestFacts) -> RunEnd:
    """Call the view of a request's path with a request of Django's ``RequestFactory``."""
    project.load()
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
    try:
        return RunEnd(returned=_called(project, facts))
    except (Exception, SystemExit) as error:
        return RunEnd(error)


def _called(project: LoadedProject, facts: RequestFacts) -> Any:
    from django.urls import resolve

    request = _request(project, facts)
    match = resolve(facts.path)
    request.resolver_match = match
    response = match.func(request, *match.args, **match.kwargs)
    if inspect.isawaitable(response):
        response = asyncio.run(_awaited(response))
    render = getattr(response, "render", None)
    response = render() if callable(render) else response
    if getattr(response, "streaming", False) and not response.is_async:
        deque(islice(response, MOST_PIECES), maxlen=0)
    return response


async def _awaited(response: Any) -> Any:
    return await response


def _request(project: LoadedProject, facts: RequestFacts) -> Any:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import AnonymousUser
    from django.test import RequestFactory

    # A form is sent as the simpler of the two types: files are holes.
    headers = {name: text for name, text in facts.headers.items() if not (facts.post and name.lower() in _OF_A_BODY)}
    factory = RequestFactory()
    factory.cookies.load(dict(facts.cookies))
    request = factory.generic(
        facts.method,
        facts.path,
        data=urlencode(facts.post, doseq=True),
        content_type="application/x-www-form-urlencoded",
        QUERY_STRING=urlencode(facts.get, doseq=True),
        headers=headers,
    )
    request.user = AnonymousUser() if facts.user is None else project.model(get_user_model()._meta.label, facts.user)
    return request
