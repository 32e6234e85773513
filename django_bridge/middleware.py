"""The middleware, sync and async: reports a request's arrival, route, exception and response to the tracer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed

from django_bridge import request_trace
from django_bridge.tracer import Tracer, of_this_process

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase


class TraceMiddleware:
    """
    The last one in ``MIDDLEWARE``, right around the view, so that it sees exceptions first.

    Exceptions outside it are recorded too, through Django's signal and security log.

    Raises:
        ImproperlyConfigured: A setting is invalid; the process doesn't start.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
        tracer: Tracer | None = None,
    ) -> None:
        self.tracer = tracer or of_this_process()
        if not self.tracer.settings.enabled:
            raise MiddlewareNotUsed
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            # Django reads hooks from the instance; an async one saves a thread switch on each request.
            self.process_view = self._process_view_async  # type: ignore[assignment,method-assign]

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        trace = self.tracer.arrived(request)
        token = request_trace.current.set(trace)
        try:
            response = self.get_response(request)
        except BaseException as error:
            self.tracer.broke(trace, request, error)
            raise
        finally:
            request_trace.current.reset(token)
        return self.tracer.answered(trace, request, response)

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        trace = self.tracer.arrived(request)
        token = request_trace.current.set(trace)
        try:
            response = await self.get_response(request)
        except BaseException as error:
            self.tracer.broke(trace, request, error)
            raise
        finally:
            request_trace.current.reset(token)
        return self.tracer.answered(trace, request, response)

    def process_view(self, request: HttpRequest, *_view: object) -> None:
        """The route is known; the view is called next."""
        trace = request_trace.of(request)
        if trace is not None:
            self.tracer.routed(trace, request)

    async def _process_view_async(self, request: HttpRequest, *view: object) -> None:
        TraceMiddleware.process_view(self, request, *view)

    def process_exception(self, request: HttpRequest, error: BaseException) -> None:
        """The view raised. Under ASGI this is always called in a thread, so it only notes the exception."""
        self.tracer.noted(request, error)
