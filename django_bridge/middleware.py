"""The middleware: tells the tracer when a request comes, is routed, raises and is answered. Sync and async."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed

from django_bridge import visits
from django_bridge.tracer import Tracer, of_this_process


class TraceMiddleware:
    """
    Stands last in ``MIDDLEWARE``, right around the view, so that it sees exceptions first.

    What is raised outside it is still recorded, through Django's own signal and its security log.

    Raises:
        ImproperlyConfigured: A setting is wrong; the process doesn't start.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any], tracer: Tracer | None = None) -> None:
        self.tracer = tracer or of_this_process()
        if not self.tracer.settings.enabled:
            raise MiddlewareNotUsed
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            # Django asks the instance for its hooks: an async one saves a hop to a thread on each request.
            self.process_view = self._process_view_async  # type: ignore[assignment,method-assign]

    def __call__(self, request: Any) -> Any:
        if self.is_async:
            return self._call_async(request)
        visit = self.tracer.arrived(request)
        token = visits.current.set(visit)
        try:
            response = self.get_response(request)
        except BaseException as error:
            self.tracer.broke(visit, request, error)
            raise
        finally:
            visits.current.reset(token)
        return self.tracer.answered(visit, request, response)

    async def _call_async(self, request: Any) -> Any:
        visit = self.tracer.arrived(request)
        token = visits.current.set(visit)
        try:
            response = await self.get_response(request)
        except BaseException as error:
            self.tracer.broke(visit, request, error)
            raise
        finally:
            visits.current.reset(token)
        return self.tracer.answered(visit, request, response)

    def process_view(self, request: Any, *_view: Any) -> None:
        """The route is known; the view comes next."""
        visit = visits.of(request)
        if visit is not None:
            self.tracer.routed(visit, request)

    async def _process_view_async(self, request: Any, *view: Any) -> None:
        TraceMiddleware.process_view(self, request, *view)

    def process_exception(self, request: Any, error: BaseException) -> None:
        """The view raised. Always called in a thread under ASGI, so it only notes the exception."""
        self.tracer.noted(request, error)
